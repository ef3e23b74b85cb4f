"""Decodes photos and keeps them: every image once, at training size and where asked for smaller, uint8 RGB, with alpha where there is any.

Not here: which file belongs to which view and at what size it is trained (``load.py``). The invariant: an array handed out has exactly the
size of its view's camera, or of that camera reduced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gs_train.errors import UserError
from gs_train.scene.types import View
from gs_train.scene.undistort import resample

Result = TypeVar("Result")

_MOST_PIXELS = 500_000_000
_REMEDY = "copy the photo afresh, or take it out of the scene and train anew with --skip-missing"

# Pillow warns from 89 megapixels on and refuses from 179 on, which are photos that phones take. What guards the memory here is _MOST_PIXELS
# and the camera's size, which a photo must have. Pillow has this limit as a global alone, and decoding runs in threads, so it is set once.
Image.MAX_IMAGE_PIXELS = None


class ImageCache:
    """All images of some views in memory, decoded by a pool of threads when the cache is made (Pillow decodes outside Python's lock)."""

    def __init__(self, views: Sequence[View]) -> None:
        """Decode every view's image.

        Args:
            views: in the order of the indices.

        Raises:
            UserError: an image is truncated, cannot be decoded or is no longer there; the message names it.
        """
        self._images = _for_each(decode_image, views)
        self._smaller: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self._images)

    def get(self, index: int, downscale: int = 1) -> NDArray[np.uint8]:
        """[H, W, 3, 4 or 5] uint8 of view ``index``, as ``decode_image`` gives it: the cache's own array, not to be written to.

        Args:
            downscale: with N, each pixel is the mean of N x N; made when first asked for, then kept.
        """
        if downscale == 1:
            return self._images[index]
        key = index, downscale
        if key not in self._smaller:
            planes = [Image.fromarray(plane).reduce(downscale) for plane in np.moveaxis(self._images[index], 2, 0)]
            self._smaller[key] = np.stack([np.asarray(plane) for plane in planes], axis=2)
        return self._smaller[key]

    def byte_count(self) -> int:
        """Memory that the images take, in bytes."""
        return sum(image.nbytes for image in (*self._images, *self._smaller.values()))


def check_images(views: Sequence[View]) -> None:
    """Decode every view's image and keep none, so that a damaged one is known before hours of training.

    Raises:
        UserError: as ``ImageCache`` does.
    """

    def check(view: View) -> None:
        decode_image(view)

    _for_each(check, views)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in px, from the file's header alone.

    An EXIF orientation is not applied, here or when decoding: a scene's camera describes the pixels as they are stored.

    Raises:
        UserError: the file is no image that Pillow knows, is damaged in its header, or has more than 500 megapixels.
    """
    with _opened(path) as image:
        return image.size


def decode_image(view: View) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 RGB at the size of ``view.camera``; [H, W, 4] with alpha, and the colours multiplied by it, where the file has alpha;
    [H, W, 5] where some pixels have no source, alpha then always there and the last channel saying which pixels count (255) and which
    do not (0).

    Where the file has another size, Lanczos is used: the half- and quarter-size folders of the public benchmarks were made with it, so
    that training on them or on a resized original agrees. A distorted photo is brought to the size of ``view.lens`` in this way, and
    then undistorted by one bilinear resampling.

    Raises:
        UserError: the file is truncated, cannot be decoded, or has more than 500 megapixels.
    """
    source = view.lens or view.camera
    size = (source.width, source.height)
    with _opened(view.image_path) as stored:
        planes = _planes(stored)
        if stored.size != size:
            planes = [plane.resize(size, Image.Resampling.LANCZOS) for plane in planes]
        pixels = np.concatenate([np.atleast_3d(np.asarray(plane)) for plane in planes], axis=2)
    if pixels.shape[2] == 4 and pixels[:, :, 3].min() == 255:
        # Where a photo is opaque throughout, alpha says nothing.
        pixels = pixels[:, :, :3].copy()
    return pixels if view.lens is None else resample(pixels, view.lens, view.camera)


def _for_each(function: Callable[[View], Result], views: Sequence[View]) -> list[Result]:
    """``function`` of every view, in their order, by a pool of threads."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [pool.submit(function, view) for view in views]
        try:
            return [future.result() for future in futures]
        except BaseException:
            # The first fault ends it: without this the pool would decode all the rest before the message is seen.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
