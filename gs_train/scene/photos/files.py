"""Opens image files: the formats that photos and masks may have, the header, the orientation and the faults of a file.

``decode.py`` makes training pixels from an opened photo, ``masks.py`` reads masks. Sizes and pixels are those that the
file stores: COLMAP reads photos without applying the EXIF orientation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from gs_train.errors import FileFault, UserError

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "GIF", "JPEG2000", "AVIF")
"""Pillow's names of the formats to open, besides HEIC. Pillow knows more, but an EPS file would start Ghostscript."""

HEIC_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
"""Lower-case file endings of HEIC photos."""

SUFFIXES = HEIC_SUFFIXES.union(
    ".jpg .jpeg .jpe .jfif .mpo .png .tif .tiff .webp .bmp .ppm .pgm .pbm .pnm .pfm .gif .jp2 .j2k .avif".split()
)
"""Lower-case file endings of all formats."""

_NAMED = "JPEG, PNG, TIFF, WebP, BMP, PPM, GIF, JPEG 2000, AVIF and HEIC"
_MOST_PIXELS = 500_000_000
_IF_DAMAGED = "copy the photo again, or remove it from the scene and train again with --skip-missing"
_IF_HUGE = "make the scene again from smaller copies of the photos"
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))

_ORIENTATION, _BITS, _COMPRESSION, _PLANES = 0x0112, 258, 259, 284
_PNG_EXIF = frozenset(("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"))
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns above 89 megapixels and refuses above 179, but phones take larger photos. This module limits memory by
# _MOST_PIXELS and by the camera's size, which a photo must match. Pillow's limit is a global variable and decoding runs
# in threads, so it is set once.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, kw_only=True)
class Header:
    """An image file without its pixels."""

    size: tuple[int, int]
    """(width, height) of the stored pixels, px."""
    orientation: int
    """EXIF orientation, 1 to 8, which turns the stored pixels upright; 1 if they are upright or the file names none."""
    mode: str
    """Pillow's name of the pixel format."""


def read_header(path: Path) -> Header:
    """The header of an image file.

    Raises:
        UserError: as ``opened`` does.
    """
    with opened(path) as image:
        orientation = _exif_orientation(image)
        # Pillow gives the upright size of TIFF files alone.
        size = turned_size(image.size, orientation) if image.format == "TIFF" else image.size
        return Header(size=size, orientation=orientation, mode=image.mode)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the stored pixels in px, read from the file's header alone.

    Raises:
        UserError: as ``opened`` does.
    """
    return read_header(path).size


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) of an image of ``size`` after it is turned by an EXIF orientation."""
    return (size[1], size[0]) if orientation >= 5 else size


def inverse(orientation: int) -> int:
    """The EXIF orientation that undoes ``orientation``."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The stored pixels of an opened image, turned by an EXIF orientation; 1 leaves them as they are."""
    if image.format == "TIFF":
        exif = _exif_orientation(image)
        image.load()
        if exif == orientation:
            return image  # Pillow turns TIFF files alone when it loads them.
        if exif != 1:
            image = image.transpose(_TURNS[inverse(exif)])
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


@contextmanager
def opened(path: Path, *, if_damaged: str = _IF_DAMAGED, if_huge: str = _IF_HUGE) -> Iterator[Image.Image]:
    """Open an image without reading its pixels.

    Args:
        path: a file.
        if_damaged: the remedy to name if the image cannot be decoded.
        if_huge: the remedy to name if it has too many pixels.

    Raises:
        UserError: it has more than 500 megapixels or an unknown format, needs a package that is not installed, or an
            exception occurred here or in the caller's block.
    """
    try:
        with _open(path) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                limit = f"more than the {_MOST_PIXELS // 1_000_000} megapixels that a photo may have"
                raise FileFault(f"{path} is {width}x{height} px, {limit}: {if_huge}.", file=path, kind="huge")
            if image.format == "TIFF" and _is_misread(image):
                problem = "is a TIFF whose planes or byte order Pillow cannot decode"
                remedy = "store the photos again as 8-bit PNG or TIFF files of the same names"
                raise FileFault(f"{path} {problem}: {remedy}.", file=path, kind="TIFF")
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        message = f"{path} cannot be decoded (its content is none of {_NAMED}): convert it to one of them"
        raise FileFault(f"{message}, {if_damaged}.", file=path, kind="unknown") from error
    except Exception as error:
        # Pillow's decoders raise many types for damaged files: OSError, SyntaxError, zlib.error, RuntimeError (AVIF),
        # NotImplementedError (DDS), MemoryError (JPEG 2000) ...
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise FileFault(f"{path} cannot be decoded ({reason}): {if_damaged}.", file=path, kind="damaged") from error


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        if not _is_heic(path):
            raise
    try:
        heif: Any = import_module("pillow_heif")
    except ImportError:
        install = f"`{sys.executable} -m pip install pillow-heif`"
        message = f"{path} is a HEIC photo, which needs the package pillow-heif: install it with {install}"
        raise FileFault(
            f"{message}, or convert the photos to JPEG files of the same names.", file=path, kind="HEIC"
        ) from None
    image: Image.Image = heif.HeifImageFile(path)
    return image


def _is_heic(path: Path) -> bool:
    """Whether the file's brands name HEVC-coded images. The ending says little: phones also export HEIC as .jpg."""
    with path.open("rb") as file:
        start = file.read(64)
    length = min(int.from_bytes(start[:4], "big"), len(start))
    brands = {start[at : at + 4] for at in (8, *range(16, length - 3, 4))}
    return start[4:8] == b"ftyp" and bool(brands & _HEIC_BRANDS)


def _exif_orientation(image: Image.Image) -> int:
    # To look for EXIF data behind the pixels of a PNG file, Pillow would decode the file.
    if image.format == "PNG" and not _PNG_EXIF & image.info.keys():
        return 1
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # Damaged EXIF data, in as many ways as damaged pixels. The photo itself may be intact.
        return 1
    return value if value in _TURNS else 1


def _is_misread(image: Any) -> bool:
    """Whether Pillow decodes this TIFF file wrongly.

    Pillow 13 reads uncompressed planes as 8-bit numbers, and compressed big-endian numbers of more than 16 bits as
    little-endian.
    """
    tags = image.tag_v2
    planar, compressed = tags.get(_PLANES, 1) == 2, tags.get(_COMPRESSION, 1) != 1
    if planar and not compressed and max(tags.get(_BITS, (1,))) > 8:
        return True
    return tags.prefix == b"MM" and image.mode in ("I", "F") and (planar or compressed)
