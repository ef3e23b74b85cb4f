"""Files that appear whole or not at all: temporary file beside the target, fsync, rename.

The invariant: whatever happens in between, a full disk or a lost power line, the target is either as it was or entirely new.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace ``path`` with what ``write`` puts into the file it is handed.

    Args:
        path: the target; its folder is created.
        write: writes the content; may raise, and then nothing is changed.

    Raises:
        OSError: the file cannot be written. The target is untouched and the temporary file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic within one file system only; with the process number, so that two runs do not collide.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Binary and buffered: a full disk shows on write, flush or fsync, and all three are inside the try.
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
    """Create or replace a UTF-8 text file; see ``write_whole``."""
    atomic_write(path, lambda file: file.write(text.encode("utf-8")))


def _close(file: BinaryIO) -> None:
    """Close without a second complaint: closing flushes again, and on a full disk that raises what was already raised."""
    try:
        file.close()
    except OSError:
        # Everything that counts was flushed and synced before; what is left over belongs to a file that is about to be removed.
        pass


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can (Windows cannot open a folder)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
