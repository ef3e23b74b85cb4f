"""Decodes photos and keeps them: every image once, at training size, RGB uint8.

Not here: which file belongs to which view and at what size it is trained (``load.py``). The invariant: an array handed out has exactly the
size of its view's camera.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gs_train.errors import UserError
from gs_train.scene.types import View

# What Pillow's many decoders raise on damaged files. UnidentifiedImageError is an OSError.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class ImageCache:
    """All images of some views in memory, decoded by a pool of threads when the cache is made (Pillow decodes outside Python's lock)."""

    def __init__(self, views: Sequence[View], *, white_background: bool = False) -> None:
        """Decode every view's image.

        Args:
            views: in the order of the indices.
            white_background: composite images that have alpha over white instead of black.

        Raises:
            UserError: an image is truncated, cannot be decoded or is no longer there; the message names it.
        """
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            futures = [pool.submit(decode_image, view, white_background=white_background) for view in views]
            try:
                self._images = [future.result() for future in futures]
            except BaseException:
                # The first fault ends it: without this the pool would decode all the rest before the message is seen.
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def __len__(self) -> int:
        return len(self._images)

    def get(self, index: int) -> NDArray[np.uint8]:
        """[H, W, 3] uint8 RGB of view ``index``: the cache's own array, not to be written to."""
        return self._images[index]

    def byte_count(self) -> int:
        """Memory that the images take, in bytes."""
        return sum(image.nbytes for image in self._images)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in px, from the file's header alone.

    An EXIF orientation is not applied, here or when decoding: a scene's camera describes the pixels as they are stored.

    Raises:
        UserError: the file is no image that Pillow knows, or is damaged in its header.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except _DECODER_ERRORS as error:
        raise _undecodable(path, error) from error


def decode_image(view: View, *, white_background: bool = False) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 RGB at the size of ``view.camera``.

    Alpha is composited over the background that training renders over. Where the file has another size, Lanczos is used: the
    half- and quarter-size folders of the public benchmarks were made with it, so that training on them or on a resized original agrees.

    Raises:
        UserError: the file is truncated or cannot be decoded.
    """
    size = (view.camera.width, view.camera.height)
    try:
        with Image.open(view.image_path) as stored:
            rgb = _to_rgb(stored, 255 if white_background else 0)
            if rgb.size != size:
                rgb = rgb.resize(size, Image.Resampling.LANCZOS)
            return np.array(rgb, np.uint8)
    except _DECODER_ERRORS as error:
        raise _undecodable(view.image_path, error) from error


def _to_rgb(image: Image.Image, background: int) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey. Pillow's own conversion clips at 255 instead of scaling, which turns a photo white.
        grey = np.clip(np.asarray(image, np.int64) // 257, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (background, background, background, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _undecodable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return UserError(f"{path} cannot be decoded ({reason}): copy the photo afresh, or take it out of the scene and add --skip-missing.")
