"""Atomic writes: write a temporary file beside the target, fsync it, then rename it.

After an error, a full disk or a power failure, the target is either unchanged or completely new.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.tmp")
"""Name of a temporary file: its target and its process."""
_STARTED = time.time()
"""When this process loaded this module, seconds since 1970. It has written no temporary file before."""


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace the file ``path`` with the content that ``write`` produces.

    Args:
        path: the target. A missing folder is created.
        write: writes the content to the open binary file that it receives. If it raises, the target stays unchanged.

    Raises:
        OSError: the file cannot be written. The target is unchanged and the temporary file is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A rename is atomic within one file system only, so the temporary file is in the target's folder. The process
    # number in its name keeps two runs from colliding.
    temporary = path.with_name(_temporary_name(path.name))
    try:
        # The file is buffered, so a full disk raises in write, flush or fsync. All three are inside the try block.
        file = temporary.open("wb")
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        finally:
            _close(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Create or replace a UTF-8 text file, as ``atomic_write`` does."""
    atomic_write(path, lambda file: file.write(text.encode("utf-8")))


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files in a folder whose processes were killed. Files of living processes stay.

    Args:
        folder: may be missing.
        name: of the only target whose temporary files are removed; None for all targets.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            match = _TEMPORARY.fullmatch(path.name)
            if match and name in (None, match[1]) and _is_leftover(path, int(match[2])):
                path.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether a file has the name of a temporary file of ``atomic_write``."""
    return _TEMPORARY.fullmatch(path.name) is not None


def _temporary_name(name: str) -> str:
    return f".{name}.{os.getpid()}.tmp"


def _is_leftover(path: Path, process: int) -> bool:
    """Whether a temporary file belongs to no living process."""
    if process == os.getpid():
        # In a container, every run may have the same process number.
        return path.stat().st_mtime < _STARTED
    if os.name == "nt":
        # There, a file that a process writes cannot be removed, and os.kill would end the process.
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def _close(file: BinaryIO) -> None:
    """Close ``file`` and ignore errors.

    On a full disk, closing flushes again and would repeat the error of the first flush.
    """
    try:
        file.close()
    except OSError:
        # After a successful fsync no bytes are left to write. After a failure the file is deleted next.
        pass


def _sync_folder(folder: Path) -> None:
    """Make the rename durable. Windows cannot open a folder, so there it does nothing."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
