"""Pictures of an evaluation: their names in a run folder, and their form inside a page."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image, features

_LONGEST_STEM_BYTES = 196
_LONGEST_PX = 960
"""Longest side of a picture in a page."""
_SHORTEST_PX = 96
"""Pictures are not reduced below this longest side; even pure noise is small at it."""
_QUALITY = 80
_DAMAGED = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""Errors of Pillow for files that are no whole pictures."""


def png_names(names: Sequence[str]) -> list[str]:
    """A .png name without folders for each view name, all different and at most 200 bytes long. View names come from a
    file, so no slash or dot may leave the folder."""
    flat = [name.replace("/", "__").replace("\\", "__") for name in names]
    stems = [PurePosixPath(name).stem for name in flat]
    # A scene may hold cat.jpg and cat.png: then the endings stay in the names.
    return [f"{_shortened(stem)}.png" for stem in (stems if len(set(stems)) == len(stems) else flat)]


def _shortened(stem: str) -> str:
    """``stem`` if it is short enough; else its beginning and a hash of all of it.

    Disks limit a name to 255 bytes, of which atomic writes need some.
    """
    data = stem.encode(errors="surrogatepass")
    if len(data) <= _LONGEST_STEM_BYTES:
        return stem
    digest = hashlib.sha256(data).hexdigest()[:16]
    return data[: _LONGEST_STEM_BYTES - 17].decode(errors="ignore") + f"-{digest}"


def read_picture(path: Path) -> Image.Image | None:
    """An RGB picture; None if the file is missing or damaged."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of pictures that two large photos side by side make.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return picture.convert("RGB")
    except _DAMAGED:
        return None


def read_pair(path: Path) -> tuple[Image.Image, Image.Image] | None:
    """The photo and the render of a picture of an evaluation, which has them side by side; None if the file is missing
    or damaged."""
    both = read_picture(path)
    if both is None or both.width < 2:
        return None
    half = both.width // 2
    return both.crop((0, 0, half, both.height)), both.crop((half, 0, 2 * half, both.height))


def data_uri(picture: Image.Image, most_bytes: float) -> str:
    """A picture as a data: URI for an <img>.

    Args:
        picture: RGB.
        most_bytes: of the URI. A larger picture is reduced.
    """
    kind = "WEBP" if features.check("webp") else "JPEG"
    longest = max(picture.size)
    side = min(longest, _LONGEST_PX)
    while True:
        size = (max(1, round(picture.width * side / longest)), max(1, round(picture.height * side / longest)))
        shown = picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)
        file = io.BytesIO()
        # WebP's method 2 takes half the time of its default for 5 % more bytes; JPEG ignores it.
        shown.save(file, format=kind, quality=_QUALITY, method=2)
        text = f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
        if len(text) <= most_bytes or side <= _SHORTEST_PX:
            return text
        side = max(_SHORTEST_PX, min(int(0.95 * side * math.sqrt(most_bytes / len(text))), side - 1))
