"""Decodes photos, at training size: uint8 RGB, with alpha where there is any.

Not here: which file belongs to which view and at what size it is trained (``load.py``), and keeping the pixels (``cache.py``). The
invariant: an array handed out has exactly the size of its view's camera.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gs_train.errors import UserError
from gs_train.scene.types import View

_MOST_PIXELS = 500_000_000
# While a photo is decoded: Pillow's own 4 twice, and the array with its source, 3 each.
_BYTES_PER_PIXEL = 14
_DECODING_BYTES = 10**9
_REMEDY = "copy the photo afresh, or take it out of the scene and train anew with --skip-missing"

# Pillow warns from 89 megapixels on and refuses from 179 on, which are photos that phones take. What guards the memory here is _MOST_PIXELS
# and the camera's size, which a photo must have. Pillow has this limit as a global alone, and decoding runs in threads, so it is set once.
Image.MAX_IMAGE_PIXELS = None


def decode_images(views: Sequence[View], memory: int = _DECODING_BYTES) -> Iterator[NDArray[np.uint8]]:
    """``decode_image`` of every view, in their order, by a pool of threads (Pillow decodes outside Python's lock).

    Args:
        views: any number.
        memory: bytes; there are only so many threads as need about that much together, but at least one.

    Raises:
        UserError: an image is truncated, cannot be decoded or is no longer there; the message names it.
    """
    largest = max((math.prod(image_size(view.image_path)) for view in views), default=1)
    workers = max(1, min(os.cpu_count() or 1, memory // (_BYTES_PER_PIXEL * largest)))
    waiting: deque[Future[NDArray[np.uint8]]] = deque()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            for view in views:
                waiting.append(pool.submit(decode_image, view))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Whoever asked may have had enough, or an image is damaged: what has not begun is not decoded.
            pool.shutdown(wait=False, cancel_futures=True)


def check_images(views: Sequence[View]) -> None:
    """Decode every view's image and keep none, so that a damaged one is known before hours of training.

    Raises:
        UserError: as ``decode_images`` does.
    """
    for _ in decode_images(views):
        pass


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in px, from the file's header alone.

    An EXIF orientation is not applied, here or when decoding: a scene's camera describes the pixels as they are stored.

    Raises:
        UserError: the file is no image that Pillow knows, is damaged in its header, or has more than 500 megapixels.
    """
    with _opened(path) as image:
        return image.size


def decode_image(view: View) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 RGB at the size of ``view.camera``; [H, W, 4] with alpha, and the colours multiplied by it, where the file has alpha.

    Where the file has another size, Lanczos is used: the half- and quarter-size folders of the public benchmarks were made with it, so
    that training on them or on a resized original agrees.

    Raises:
        UserError: the file is truncated, cannot be decoded, or has more than 500 megapixels.
    """
    size = (view.camera.width, view.camera.height)
    with _opened(view.image_path) as stored:
        planes = _planes(stored)
        if stored.size != size:
            planes = [plane.resize(size, Image.Resampling.LANCZOS) for plane in planes]
        pixels = np.concatenate([np.atleast_3d(np.asarray(plane)) for plane in planes], axis=2)
        # Where a photo is opaque throughout, alpha says nothing.
        return pixels[:, :, :3].copy() if pixels.shape[2] == 4 and pixels[:, :, 3].min() == 255 else pixels


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image in ``path``, its pixels not read yet; whatever goes wrong with it, in here or in the caller's block, is a ``UserError``."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                told = f"{path} is {width}x{height} px, and {_MOST_PIXELS // 1_000_000} megapixels is the most that a photo may have"
                raise UserError(f"{told}: make the scene anew from smaller copies of the photos.")
            yield image
    except UserError:
        raise
    except Exception as error:
        # Damage makes Pillow's many decoders raise nearly anything: OSError, SyntaxError, zlib.error, RuntimeError (AVIF),
        # NotImplementedError (DDS), MemoryError (JPEG 2000) ...
        raise _undecodable(path, error) from error


def _planes(image: Image.Image) -> list[Image.Image]:
    """RGB, and alpha where there is any; then RGB is multiplied by it, which is the photo over black."""
    if image.mode.startswith("I"):
        # 16-bit grey. Pillow's own conversion clips at 255 instead of scaling, which turns a photo white.
        grey = np.clip(np.asarray(image, np.int64) // 257, 0, 255).astype(np.uint8)
        return [Image.fromarray(grey).convert("RGB")]
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return [Image.alpha_composite(black, rgba).convert("RGB"), rgba.getchannel("A")]
    return [image.convert("RGB")]


def _undecodable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return UserError(f"{path} cannot be decoded ({reason}): {_REMEDY}.")
