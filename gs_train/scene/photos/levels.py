"""Levels of photos: the value that becomes white in photos of more than 8 bits, and a notice about black photos.

The value is the same for all photos of a scene, so that their brightness stays comparable. ``decode.py`` applies it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError
from gs_train.scene.photos.files import Header, opened, turned
from gs_train.scene.photos.threads import for_each, thread_count

WHITE = 65535.0
"""White of a photo with one channel of 16 bits."""

_WHITES = (255.0, 1023.0, 4095.0, 16383.0, WHITE, 2.0**24 - 1, 2.0**31 - 1, 2.0**32 - 1)
_OVERSHOOT = 1.1  # Resampling makes float pixels that are brighter than white.
_USED_SHARE = 0.5
_BYTES_PER_PIXEL = 16
_PEEK_SIDE_PX = 300
_PEEKED = 3
_DARK, _DARK_PERCENTILE = 16.0, 99.0


def is_deep(mode: str) -> bool:
    """Whether a Pillow mode has one channel of more than 8 bits: 16 or 32 bits, or float."""
    return mode.startswith(("I", "F"))


def find_white(headers: Mapping[Path, Header]) -> tuple[dict[Path, float], list[str]]:
    """The pixel value that becomes white in each photo of more than 8 bits, and notices for the user.

    Integers become white at the largest value of 8, 10, 12, 14, 16, 24, 31 or 32 bits, the smallest of these that no
    photo of the scene exceeds. Float pixels become white at 1 or at one of these values, or at the largest value of the
    scene if it is far below them.

    Args:
        headers: by file, of the photos of the scene. Photos of 8 bits are not decoded.
    """
    whites: dict[Path, float] = {}
    notices = []
    for kind, name in (("I", "16 or 32 bits"), ("F", "float pixels")):
        files = [file for file, header in headers.items() if header.mode.startswith(kind)]
        if not files:
            continue
        pixels = max(header.size[0] * header.size[1] for header in headers.values())
        largest = max(for_each(_largest, files, thread_count(pixels * _BYTES_PER_PIXEL)))
        white = _white_of(largest, kind)
        whites |= dict.fromkeys(files, white)
        if (kind, white) != ("I", WHITE):
            bits = f" ({round(np.log2(white + 1))} bits)" if white in _WHITES else ""
            notices.append(
                f"{len(files)} photos have {name} with values up to {largest:g}: {white:g}{bits} becomes white."
            )
    return whites, notices


def _white_of(largest: float, kind: str) -> float:
    if kind == "I":
        return next(white for white in _WHITES if largest <= white)
    white = next((white for white in (1.0, *_WHITES) if largest <= _OVERSHOOT * white), largest)
    return white if white == 1.0 or largest >= _USED_SHARE * white else largest


def _largest(file: Path) -> float:
    """The largest finite pixel value; 0 for a photo that cannot be decoded, which decoding will report."""
    try:
        with opened(file) as image:
            values = np.asarray(image)
            return float(np.max(values, where=np.isfinite(values), initial=0))
    except UserError:
        return 0.0


# ---- small copies


def peek(file: Path, orientation: int = 1) -> NDArray[np.float32]:
    """[H, W, 3] colours of a photo at about 300 px, in the units of its file.

    Args:
        file: the photo.
        orientation: EXIF orientation to apply to the stored pixels; 1 leaves them as they are.

    Raises:
        UserError: the photo cannot be decoded.
    """
    with opened(file) as image:
        image.draft(None, (_PEEK_SIDE_PX, _PEEK_SIDE_PX))  # JPEG files are decoded at 1/2, 1/4 or 1/8 of their size.
        pixels = turned(image, orientation)
        values = np.atleast_3d(np.asarray(pixels if is_deep(pixels.mode) else pixels.convert("RGB")))
        step = max(1, max(values.shape) // _PEEK_SIDE_PX)
        small = values[::step, ::step].astype(np.float32)
        return np.broadcast_to(small, (*small.shape[:2], 3))


def dark_notice(whites: Mapping[Path, float], files: Sequence[Path]) -> list[str]:
    """A notice if photos are nearly black throughout; it looks at three of them.

    Args:
        whites: of ``find_white``.
        files: the photos.
    """
    chosen = [files[at] for at in sorted({0, len(files) // 2, len(files) - 1})] if files else []

    def is_dark(file: Path) -> bool:
        try:
            values = peek(file) * (255.0 / whites.get(file, 255.0))
        except UserError:
            return False
        return float(np.percentile(values, _DARK_PERCENTILE)) < _DARK

    if not chosen or not all(for_each(is_dark, chosen)):
        return []
    message = f"The photos are nearly black: {_DARK_PERCENTILE:g} % of the pixels are below {_DARK:g} of 255"
    return [f"{message}. If they hold fewer bits than their format, store them again with 8 bits."]
