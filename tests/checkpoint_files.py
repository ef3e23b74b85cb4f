"""Checkpoints whose content is changed on purpose, with the right checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Replace the content of a checkpoint by ``change(content)``; None keeps the content, which was changed in place.

    The file gets its checksum, also if the content is wrong.
    """
    content = torch.load(path, weights_only=True)
    changed = change(content)
    with path.open("w+b") as file:
        write_unchecked(content if changed is None else changed, file)


def write_unchecked(content: Any, file: BinaryIO) -> None:
    """As ``write_content``, also for content that it refuses."""
    torch.save(content, file)
    seal(file)


def seal(file: BinaryIO) -> None:
    """Add the checksum to a zip file of any origin, open for reading and writing."""
    file.seek(0)
    digest = hashlib.sha256(file.read()).hexdigest().encode()
    # The last two bytes of a zip are the length of its comment, here zero.
    file.seek(-2, os.SEEK_END)
    file.write(len(digest).to_bytes(2, "little") + digest)
