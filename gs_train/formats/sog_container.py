"""The container of .sog files: a zip file or a folder of a meta.json and lossless WebP images.

Sizes of files and images are checked before anything is unpacked.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gs_train.formats.reading import Damaged, check_expansion

_META = "meta.json"
_LONGEST_META = 1 << 20
"""Bytes. Four codebooks of 256 numbers take some 20,000."""
_IMAGES = 6
"""Images with a pixel for each Gaussian, at most."""
_MOST_SPARE = 2
"""Largest ratio of an image's pixels to the pixels in use, and the same number of rows of spare pixels."""
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Files:
    """The files of a splat, opened."""

    meta: Any
    """The content of meta.json."""
    read: Callable[[str], bytes]
    """The content of a file by name; raises Damaged if it is missing or too large."""
    size: int
    """Bytes on disk."""

    def check_count(self, count: int) -> None:
        """Raise Damaged if images of ``count`` Gaussians cannot come from so few bytes."""
        check_expansion(4 * _IMAGES * count, self.size)


def pack(files: Mapping[str, bytes]) -> bytes:
    """A zip file without compression and without dates."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), content)
    return buffer.getvalue()


def unpack(path: Path) -> Files:
    """Open a .sog file, or the folder of a meta.json.

    Raises:
        OSError: the file cannot be read.
        Damaged: it is no zip file, or its meta.json is missing or not JSON.
    """
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return unpack_zip(path.read_bytes())
    return _with_meta(*_folder_reader(path), path.name)


def unpack_zip(content: bytes) -> Files:
    """Open the content of a .sog file; raises Damaged as ``unpack``."""
    return _with_meta(_zip_reader(content), len(content), _META)


def _with_meta(read: Callable[[str], bytes], size: int, name: str) -> Files:
    try:
        meta = json.loads(read(name))
    except (ValueError, RecursionError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"its {_META} is not JSON") from error
    return Files(meta=meta, read=read, size=size)


def _zip_reader(content: bytes) -> Callable[[str], bytes]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error) as error:
        raise Damaged(f"its zip file is broken: {str(error)[:80]}") from error

    def read(name: str) -> bytes:
        try:
            entry = archive.getinfo(name)
        except KeyError:
            raise Damaged(f"it lacks the file {name[:100]}") from None
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise Damaged(f"its file {name[:100]} is encrypted or compressed by an unknown method")
        _check_size(name, entry.file_size)
        check_expansion(entry.file_size, len(content))
        try:
            return archive.read(entry)
        except (
            *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError),
            *(RuntimeError, NotImplementedError, struct.error, OverflowError),
        ) as error:
            raise Damaged(f"its file {name[:100]} is broken: {str(error)[:80]}") from error

    return read


def _folder_reader(meta: Path) -> tuple[Callable[[str], bytes], int]:
    def read(name: str) -> bytes:
        file = meta.parent / name
        if Path(name).name != name or "\\" in name or "\0" in name or not file.is_file():
            raise Damaged(f"it lacks the file {name[:100]}")
        _check_size(name, file.stat().st_size)
        return file.read_bytes()

    return read, sum(file.stat().st_size for file in meta.parent.glob("*.webp")) + meta.stat().st_size


def _check_size(name: str, size: int) -> None:
    if name.endswith(_META) and size > _LONGEST_META:
        raise Damaged(f"its {_META} has {size:,} bytes")


# ---- images


def image_size(count: int) -> tuple[int, int]:
    """Width and height of an image with a pixel for each of ``count`` Gaussians; multiples of 4."""
    width = 4 * math.ceil(math.sqrt(count) / 4)
    return width, 4 * math.ceil(math.ceil(count / width) / 4)


def encode_image(columns: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """A lossless WebP image.

    Args:
        columns: [M, 1 to 4] channels of the first M pixels; a missing colour is 0, a missing alpha 255.
        size: width and height.
    """
    width, height = size
    pixels = np.zeros((width * height, 4), dtype=np.uint8)
    pixels[:, 3] = 255
    pixels[: len(columns), : columns.shape[1]] = columns
    buffer = io.BytesIO()
    # Without ``exact``, colours may change where alpha is 0. Higher methods take longer and pack no better.
    image = Image.fromarray(pixels.reshape(height, width, 4))
    image.save(buffer, "WEBP", lossless=True, quality=50, method=2, exact=True)
    return buffer.getvalue()


def decode_image(content: bytes, pixels: int, width: int | None = None) -> NDArray[np.uint8]:
    """[pixels, 4] the first pixels of a WebP image.

    Args:
        content: of the file.
        pixels: number of pixels in use.
        width: of the image, if it must be this.

    Raises:
        Damaged: it is not an intact WebP image, or its size is not plausible for ``pixels``.
    """
    found_width, height = _webp_size(content)
    spare = _MOST_SPARE * pixels + 4 * found_width * _MOST_SPARE
    if not pixels <= found_width * height <= spare or (width is not None and found_width != width):
        raise Damaged(f"an image has {found_width}x{height} pixels for {pixels:,} values")
    try:
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
            rgba = np.asarray(image.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError, Image.DecompressionBombError) as error:
        raise Damaged(f"an image is broken: {error}") from error
    return rgba.reshape(-1, 4)[:pixels]


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in the header, which Pillow would not read without reserving memory for the image."""
    if len(content) < 30 or content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        raise Damaged("an image is not WebP")
    if content[12:16] == b"VP8L":
        bits = struct.unpack_from("<I", content, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if content[12:16] == b"VP8X":
        width, height = (int.from_bytes(content[place : place + 3], "little") + 1 for place in (24, 27))
        return width, height
    raise Damaged("an image is not lossless WebP")
