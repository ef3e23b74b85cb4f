"""The exception for mistakes that a user can correct, and the parts of error messages that several modules share.

The command line prints a ``UserError`` and exits with code 2. Every other exception is a bug and keeps its traceback.
"""

import difflib
import errno
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

_MOST_NAMES = 5
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A fault of the input. Its one sentence names the file or the flag, then the remedy."""


class FileFault(UserError):
    """A fault of one file of a scene, which other files may share."""

    def __init__(self, message: str, *, file: Path, kind: str) -> None:
        """Set the sentence, the file that it names, and a word for the fault: ``combine_faults`` joins equal kinds."""
        super().__init__(message)
        self.file, self.kind = file, kind


def combine_faults(faults: Iterable[UserError]) -> list[UserError]:
    """Each fault once, in order. File faults of one kind become one fault, which counts the files and names some."""
    groups: dict[str, list[UserError]] = {}
    for fault in faults:
        groups.setdefault(f"kind {fault.kind}" if isinstance(fault, FileFault) else str(fault), []).append(fault)
    combined: list[UserError] = []
    for group in groups.values():
        first = group[0]
        files = list(dict.fromkeys(fault.file.name for fault in group if isinstance(fault, FileFault)))
        if len(files) < 2:
            combined.append(first)
        else:
            combined.append(UserError(f"{len(files)} files ({first_few(files)}) share this fault: {first}"))
    return combined


def first_few(names: Sequence[str]) -> str:
    """At most five of the names, joined by commas; dots follow if there are more."""
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")


def nearest(word: str, known: Sequence[str]) -> str:
    """`` (did you mean X?)`` for the known word that resembles ``word`` most; empty if none resembles it."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def describe_full_disk(error: OSError, folder: Path | None = None) -> str | None:
    """The first half of an error message if ``error`` means that a disk is full; else None.

    Args:
        error: from any file operation.
        folder: the place to name if the error names no file.

    Returns:
        The fault and the first half of its remedy, such as ``The disk is full at RUN (No space left on device): free
        space``. The caller adds the second half.
    """
    if error.errno not in _DISK_FULL:
        return None
    place = folder if error.filename is None else error.filename
    if error.errno == errno.EFBIG:
        if place is None:
            file = "A file"
        else:
            file = f"A file in {place}" if error.filename is None else str(place)
        return f"{file} cannot grow ({error.strerror}): lift the limit on the size of files (ulimit -f)"
    return f"The disk is full{'' if place is None else f' at {place}'} ({error.strerror}): free space"


def describe_gpu_memory(error: RuntimeError) -> str | None:
    """The first half of an error message if ``error`` means that a GPU has no memory left; else None.

    Returns:
        The fault with its numbers, such as ``The GPU has no memory left (2.00 GiB asked for, 1.10 GiB of 79.11 GiB
        free)``. The caller adds the remedy.
    """
    torch, text = sys.modules.get("torch"), str(error)
    own_type = torch is not None and isinstance(error, torch.OutOfMemoryError)
    if not own_type and not ("CUDA" in text and "out of memory" in text):
        return None
    numbers = []
    if asked := re.search(r"Tried to allocate ([\d.]+ \w+)", text):
        numbers.append(f"{asked[1]} asked for")
    if capacity := re.search(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", text):
        numbers.append(f"{capacity[2]} of {capacity[1]} free")
    return "The GPU has no memory left" + (f" ({', '.join(numbers)})" if numbers else "")
