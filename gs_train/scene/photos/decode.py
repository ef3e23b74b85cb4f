"""Decodes photos, at training size: uint8 RGB, with alpha and a weight where there are any.

Not here: which file belongs to which view and at what size it is trained (``load.py``), and keeping the pixels (``cache.py``). The
invariant: an array handed out has exactly the size of its view's camera.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gs_train.cameras.undistort import resample, sampling_map
from gs_train.errors import UserError
from gs_train.scene.types import View

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_PIXELS = 500_000_000
_WHOLLY = 250
"""From here on a resampled pixel of a mask is made of pixels that all count; of less than that, a share comes from what is masked."""
# While a photo is decoded: Pillow's own 4 twice, and the array with its source, 3 each; undistorted, where it comes from and another array.
_BYTES_PER_PIXEL, _BYTES_PER_UNDISTORTED = 14, 28
_DECODING_BYTES = 10**9
_IF_DAMAGED = "copy the photo afresh, or take it out of the scene and train anew with --skip-missing"
_IF_HUGE = "make the scene anew from smaller copies of the photos"
_IF_MASK_DAMAGED = "make the mask anew, or take it out of its folder"

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
    try:
        yield from for_each(decode_image, views, _workers(views, memory))
    finally:
        # The maps of large photos take hundreds of megabytes, and whoever has all photos needs none of them any more.
        sampling_map.cache_clear()


def check_images(views: Sequence[View]) -> None:
    """Decode every view's image and keep none, so that a damaged one is known before hours of training.

    Raises:
        UserError: as ``decode_images`` does.
    """
    for _ in decode_images(views):
        pass


def image_faults(views: Sequence[View]) -> Iterator[UserError]:
    """What is wrong with the views' images, in their order, found by decoding them all."""

    def fault_of(view: View) -> UserError | None:
        try:
            decode_image(view)
        except UserError as fault:
            return fault
        return None

    yield from (fault for fault in for_each(fault_of, views, _workers(views, _DECODING_BYTES)) if fault is not None)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in px, from the file's header alone.

    An EXIF orientation is not applied, here or when decoding: a scene's camera describes the pixels as they are stored.

    Raises:
        UserError: the file is no image that Pillow knows, is damaged in its header, or has more than 500 megapixels.
    """
    with opened(path) as image:
        return image.size


def decode_image(view: View) -> NDArray[np.uint8]:
    """A view's pixels at the size of ``view.camera``: [H, W, 3] uint8 RGB; [H, W, 4] with alpha, and the colours multiplied by it;
    [H, W, 5] with a weight besides, 255 for what counts in loss, density statistics and metrics, 0 for what does not. Last channels that
    are 255 throughout are left out.

    Where the file has another size, Lanczos is used: the half- and quarter-size folders of the public benchmarks were made with it, so
    that training on them or on a resized original agrees. A distorted photo is brought to the size of ``view.distorted_camera`` in this way, and
    then undistorted by one bilinear resampling.

    Raises:
        UserError: the file or its mask is truncated, cannot be decoded, or has more than 500 megapixels.
    """
    source = view.distorted_camera or view.camera
    size = (source.width, source.height)
    with opened(view.image_path) as stored:
        planes = [stored.convert("RGB")] if view.alpha == "ignore" and stored.has_transparency_data else _planes(stored)
        if view.mask_path is not None:
            if len(planes) == 1:
                planes.append(Image.new("L", stored.size, 255))
            planes.append(Image.fromarray(decode_mask(view.mask_path)).resize(stored.size, Image.Resampling.NEAREST))
        if stored.size != size:
            planes = [plane.resize(size, Image.Resampling.LANCZOS) for plane in planes]
        pixels = np.concatenate([np.atleast_3d(np.asarray(plane)) for plane in planes], axis=2)
    if view.distorted_camera is not None:
        pixels = resample(pixels, view.distorted_camera, view.camera)
    pixels = _whole_pixels(pixels)
    return _telling(_weigh_by_alpha(pixels) if view.alpha == "mask" else pixels)


def decode_mask(path: Path) -> NDArray[np.uint8]:
    """[H, W] uint8 at the mask's own size: 0 where it is black, 255 elsewhere.

    Black is what is below half of the mask's largest value: so masks of 0 and 1 do as well as those of 0 and 255, and the noise that JPEG
    leaves in black does no harm.

    Raises:
        UserError: as ``decode_image`` does.
    """
    with opened(path, if_damaged=_IF_MASK_DAMAGED) as stored:
        values = np.asarray(stored if stored.mode.startswith(("I", "F")) else stored.convert("L"))
        return np.where((values > 0) & (values >= 0.5 * float(values.max())), np.uint8(255), np.uint8(0))


def reduced(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Pixels as ``decode_image`` gives them, each the mean of ``factor`` x ``factor``; the last row and column may be of less.

    The weight is the least of theirs: the mean of pixels that count and of others that do not is no colour to learn.
    """
    planes = [np.asarray(Image.fromarray(plane).reduce(factor)) for plane in np.moveaxis(pixels[:, :, :4], 2, 0)]
    if pixels.shape[2] == 5:
        height, width = planes[0].shape
        beyond = ((0, height * factor - pixels.shape[0]), (0, width * factor - pixels.shape[1]))
        weight = np.pad(pixels[:, :, 4], beyond, constant_values=255)
        planes.append(weight.reshape(height, factor, width, factor).min(axis=(1, 3)))
    return np.stack(planes, axis=2)


def _whole_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """After resampling: what is made of masked pixels in part does not count either."""
    if pixels.shape[2] == 5:
        pixels[:, :, 4] = np.where(pixels[:, :, 4] >= _WHOLLY, np.uint8(255), np.uint8(0))
    return pixels


def _weigh_by_alpha(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Alpha becomes weight, and the colours are divided by it: nothing is left to composite."""
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[:, :, 3:4].astype(np.float32)
    colours = np.clip(np.round(pixels[:, :, :3] * (255.0 / np.maximum(alpha, 1.0))), 0.0, 255.0)
    mask = pixels[:, :, 4:5] / 255.0 if pixels.shape[2] == 5 else 1.0
    return np.concatenate([colours, np.full_like(alpha, 255.0), np.round(alpha * mask)], axis=2).astype(np.uint8)


def _telling(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Without the last channels that are 255 throughout, and so say nothing."""
    count = pixels.shape[2]
    while count > 3 and pixels[:, :, count - 1].min() == 255:
        count -= 1
    return pixels if count == pixels.shape[2] else pixels[:, :, :count].copy()


def for_each(function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None) -> Iterator[Result]:
    """``function`` of every item, in their order, by a pool of threads, of which none runs far ahead; the first fault ends it."""
    count = workers or os.cpu_count() or 1
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max_workers=count) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Whoever asked may have had enough, or an image is damaged: what has not begun is not decoded.
            pool.shutdown(wait=False, cancel_futures=True)


def _workers(views: Sequence[View], memory: int) -> int:
    """How many threads need about ``memory`` bytes together to decode these views; at least one."""
    needed = [
        math.prod(image_size(view.image_path)) * (_BYTES_PER_UNDISTORTED if view.distorted_camera else _BYTES_PER_PIXEL)
        for view in views
    ]
    return max(1, min(os.cpu_count() or 1, memory // max(needed, default=1)))


@contextmanager
def opened(path: Path, *, if_damaged: str = _IF_DAMAGED, if_huge: str = _IF_HUGE) -> Iterator[Image.Image]:
    """The image in ``path``, its pixels not read yet.

    Args:
        path: a file.
        if_damaged: the remedy that is told where it cannot be decoded.
        if_huge: the remedy that is told where it has too many pixels.

    Raises:
        UserError: it has more than 500 megapixels; or anything else goes wrong with it, in here or in the caller's block.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                message = f"{path} is {width}x{height} px, and {_MOST_PIXELS // 1_000_000} megapixels is the most that a photo may have"
                raise UserError(f"{message}: {if_huge}.")
            yield image
    except UserError:
        raise
    except Exception as error:
        # Damage makes Pillow's many decoders raise nearly anything: OSError, SyntaxError, zlib.error, RuntimeError (AVIF),
        # NotImplementedError (DDS), MemoryError (JPEG 2000) ...
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"{path} cannot be decoded ({reason}): {if_damaged}.") from error


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
