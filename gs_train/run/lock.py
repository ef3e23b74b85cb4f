"""The lock of a run's folder: one process trains in it at a time. Commands that only read the run ignore it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gs_train.errors import UserError

LOCK_NAME = ".lock"
"""The file that the process locks. It holds the number of the process, and goes when training ends; after a kill it
stays, without a lock."""
_PATIENCE_S = 0.3
"""How long ``hold_lock`` tries: ``check_unlocked`` of another process takes the lock for an instant."""
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)


@contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Lock a folder for this process, and create it if it is missing. A file system without locks is no error.

    Raises:
        UserError: another process holds the lock.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, deadline = folder / LOCK_NAME, time.monotonic() + _PATIENCE_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if _try_lock(descriptor):
            # The process before may have removed the file between the two calls.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        elif time.monotonic() > deadline:
            os.close(descriptor)
            raise _taken(folder)
        os.close(descriptor)
        time.sleep(0.05)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        if os.name != "nt":
            path.unlink(missing_ok=True)
        os.close(descriptor)
        if os.name == "nt":  # which cannot remove an open file
            with suppress(OSError):
                path.unlink(missing_ok=True)


def check_unlocked(folder: Path) -> None:
    """Check that no process trains in a folder, which may be missing.

    Raises:
        UserError: a process holds the lock.
    """
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR)
    except OSError:
        return
    try:
        if not _try_lock(descriptor):
            raise _taken(folder)
    finally:
        os.close(descriptor)


def _taken(folder: Path) -> UserError:
    try:
        process = f" (process {int((folder / LOCK_NAME).read_text())})"
    except (OSError, ValueError):
        process = ""
    return UserError(f"another training{process} is writing to {folder}: wait until it has ended, or stop it.")


def _try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; false if another open file holds the lock."""
    try:
        if os.name == "nt":
            import msvcrt

            # A locked byte cannot be read, so it lies far behind the process number.
            os.lseek(descriptor, 1 << 30, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _TAKEN
    return True
