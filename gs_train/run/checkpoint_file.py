"""The file of a checkpoint: plain values in torch's zip format, with a checksum of all its bytes.

The checksum is the comment of the zip, so ``torch.load`` reads the file like any other. It finds every flipped bit,
also in the headers of the zip, which torch and zipfile do not compare. A file with the right checksum may still be made
on purpose, so sizes and pickle instructions are checked before torch sees the file: reading takes no more memory than
the file has bytes.
"""

from __future__ import annotations

import hashlib
import os
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gs_train.run.structure import check_plain

_CHUNK = 1 << 20
_DIGEST = re.compile(rb"[0-9a-f]{64}")
_LARGEST_PICKLE = 8 << 20
"""Bytes. Tensors are outside the pickle, so it has some 20 kB."""
_ALLOWED = re.compile(
    r"torch\._utils _rebuild_tensor_v2|torch\._utils _rebuild_parameter|torch \w+Storage|collections OrderedDict"
)
"""The names that pickled tensors refer to. Other names that ``torch.load`` allows reserve memory of any size."""


class NotIntact(Exception):
    """The file is truncated, altered, or not of the form that ``write_content`` writes."""


def write_content(content: dict[str, Any], file: BinaryIO) -> None:
    """Write plain values and the checksum.

    Raises:
        OSError: from ``file``.
        ValueError: ``content`` has a value that ``read_content`` would refuse, such as the state of a density
            controller with a NumPy array.
    """
    hashing = _HashingFile(file)
    check_plain(content, most_values=_LARGEST_PICKLE, most_bytes=2**63)
    try:
        torch.save(content, hashing)  # type: ignore[arg-type]
    except RuntimeError:
        # torch reports a failed write as an error about file positions.
        if hashing.fault is not None:
            raise hashing.fault from None
        raise
    check_plain(content, most_values=_LARGEST_PICKLE, most_bytes=hashing.size)
    digest = hashing.digest.hexdigest().encode("ascii")
    # The last two bytes of a zip are the length of its comment.
    file.seek(-2, os.SEEK_END)
    file.write(len(digest).to_bytes(2, "little") + digest)


def read_content(path: Path) -> tuple[Any, bool]:
    """Read plain values onto the CPU.

    Returns:
        The values, and whether the file has a checksum. Files of older formats have none.

    Raises:
        NotIntact: see the class.
        PermissionError: the file may not be read. It is not damaged.
    """
    try:
        with path.open("rb") as file:
            checked = _check_digest(file)
            most_values = _check_zip(file)
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(file, map_location="cpu", weights_only=True)
            check_plain(content, most_values=most_values, most_bytes=os.fstat(file.fileno()).st_size)
    except (NotIntact, PermissionError):
        raise
    except Exception as error:
        # zipfile, pickle and torch raise errors of many types on altered bytes.
        raise NotIntact(str(error)) from error
    return content, checked


def _check_digest(file: BinaryIO) -> bool:
    """Whether the file has a checksum. Raises NotIntact if it does not match."""
    size = os.fstat(file.fileno()).st_size
    covered = size - 2 - 64
    if covered <= 0:
        return False
    file.seek(covered)
    tail = file.read()
    if tail[:2] != (64).to_bytes(2, "little") or not _DIGEST.fullmatch(tail[2:]):
        return False
    file.seek(0)
    digest = hashlib.sha256()
    while covered > 0:
        chunk = file.read(min(covered, _CHUNK))
        if not chunk:
            break
        digest.update(chunk)
        covered -= len(chunk)
    digest.update(bytes(2))
    if digest.hexdigest().encode("ascii") != tail[2:]:
        raise NotIntact("the checksum does not match")
    return True


def _check_zip(file: BinaryIO) -> int:
    """Check that the file is a zip of a plain pickle and its tensors; returns the size of the pickle.

    Raises:
        NotIntact, zipfile.BadZipFile, ValueError: it is not.
    """
    file.seek(0)
    # torch reads a file with another start as an old format, which may reserve memory of any size.
    if file.read(4) != b"PK\x03\x04":
        raise NotIntact("it is not a zip file")
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries
        ):
            raise NotIntact("it is compressed")
        if sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
            raise NotIntact("its parts are larger than the file")
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        if len(pickles) != 1 or not pickles[0].filename.endswith("/data.pkl") or len(set(names)) != len(names):
            raise NotIntact("it is not one pickle with its tensors")
        if pickles[0].file_size > _LARGEST_PICKLE:
            raise NotIntact("its pickle is too large")
        data = archive.read(pickles[0])
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL" and not _ALLOWED.fullmatch(str(argument)):
            raise NotIntact(f"it refers to {argument}")
    return len(data)


class _HashingFile:
    """The part of a file that ``torch.save`` needs. It hashes the bytes, and remembers the error of a failed write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.fault: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.fault = error
            raise
        self.digest.update(data)
        self.size += written
        return written

    def flush(self) -> None:
        self._file.flush()
