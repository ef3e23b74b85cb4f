"""Decodes photos at training size: uint8 RGB, with alpha and pixel weights if they have any.

``load.py`` assigns files and training sizes to views, ``cache.py`` keeps the pixels. A decoded array always has the
size of its view's camera.
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
_UNMASKED = 250
"""A resampled mask pixel of at least this value has only unmasked pixels as sources."""
# Memory during decoding: 4 bytes twice in Pillow, and 3 bytes each in the array and its source. Undistortion needs as
# much again.
_BYTES_PER_PIXEL, _BYTES_PER_UNDISTORTED = 14, 28
_DECODING_BYTES = 10**9
_IF_DAMAGED = "copy the photo again, or remove it from the scene and train again with --skip-missing"
_IF_HUGE = "make the scene again from smaller copies of the photos"
_IF_MASK_DAMAGED = "make the mask again, or remove it from its folder"

# Pillow warns above 89 megapixels and refuses above 179, but phones take larger photos. This module limits memory by
# _MOST_PIXELS and by the camera's size, which a photo must match. Pillow's limit is a global variable and decoding runs
# in threads, so it is set once.
Image.MAX_IMAGE_PIXELS = None


def decode_images(views: Sequence[View], memory: int = _DECODING_BYTES) -> Iterator[NDArray[np.uint8]]:
    """Decode the image of every view, in order, in a thread pool (Pillow decodes outside Python's lock).

    Args:
        views: any number.
        memory: bytes that all threads together may need, approximately. It limits their number, to at least one.

    Raises:
        UserError: an image is truncated, cannot be decoded or no longer exists; the message names it.
    """
    try:
        yield from for_each(decode_image, views, _workers(views, memory))
    finally:
        # The maps of large photos take hundreds of megabytes, and no caller needs them after decoding.
        sampling_map.cache_clear()


def check_images(views: Sequence[View]) -> None:
    """Decode every view's image and keep none, to find a damaged photo before hours of training.

    Raises:
        UserError: as ``decode_images`` does.
    """
    for _ in decode_images(views):
        pass


def image_faults(views: Sequence[View]) -> Iterator[UserError]:
    """Decode the images of all views and return the faults, in the views' order."""

    def fault_of(view: View) -> UserError | None:
        try:
            decode_image(view)
        except UserError as fault:
            return fault
        return None

    yield from (fault for fault in for_each(fault_of, views, _workers(views, _DECODING_BYTES)) if fault is not None)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in px, read from the file's header alone.

    Neither this function nor decoding applies the EXIF orientation, because a scene's camera describes the stored
    pixels.

    Raises:
        UserError: the file is not an image that Pillow knows, has a damaged header, or has more than 500 megapixels.
    """
    with opened(path) as image:
        return image.size


def decode_image(view: View) -> NDArray[np.uint8]:
    """A view's pixels at the size of ``view.camera``, without last channels that are 255 everywhere.

    A file of another size is resized by Lanczos resampling. The public benchmarks made their half- and quarter-size
    folders with it, so training gives the same result with these folders and with resized originals. A distorted photo
    is first resized to ``view.distorted_camera`` and then undistorted by one bilinear resampling.

    Returns:
        [H, W, 3] uint8 RGB; or [H, W, 4] with RGB premultiplied by alpha, and alpha; or [H, W, 5] with a weight as
        well: 255 for pixels that count in loss, density statistics and metrics, 0 for pixels that do not, and values
        between for partial alpha if ``view.alpha`` is "mask".

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
    return _without_opaque(_alpha_to_weight(pixels) if view.alpha == "mask" else pixels)


def decode_mask(path: Path) -> NDArray[np.uint8]:
    """[H, W] uint8 at the mask's own size: 0 for black pixels, 255 for others.

    Values below half of the mask's largest value are black. Masks of 0 and 1 therefore work like masks of 0 and 255,
    and JPEG noise in black areas has no effect.

    Raises:
        UserError: as ``decode_image`` does.
    """
    with opened(path, if_damaged=_IF_MASK_DAMAGED) as stored:
        values = np.asarray(stored if stored.mode.startswith(("I", "F")) else stored.convert("L"))
        return np.where((values > 0) & (values >= 0.5 * float(values.max())), np.uint8(255), np.uint8(0))


def reduced(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Reduce pixels in the format of ``decode_image``: each is the mean of ``factor`` x ``factor`` pixels.

    The last row and column may have fewer sources. A weight is the minimum of its sources, because a mean over masked
    pixels is not a colour to learn.
    """
    planes = [np.asarray(Image.fromarray(plane).reduce(factor)) for plane in np.moveaxis(pixels[:, :, :4], 2, 0)]
    if pixels.shape[2] == 5:
        height, width = planes[0].shape
        beyond = ((0, height * factor - pixels.shape[0]), (0, width * factor - pixels.shape[1]))
        weight = np.pad(pixels[:, :, 4], beyond, constant_values=255)
        planes.append(weight.reshape(height, factor, width, factor).min(axis=(1, 3)))
    return np.stack(planes, axis=2)


def _whole_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Set the weight to 0 for resampled pixels with a masked source, and to 255 for the others."""
    if pixels.shape[2] == 5:
        pixels[:, :, 4] = np.where(pixels[:, :, 4] >= _UNMASKED, np.uint8(255), np.uint8(0))
    return pixels


def _alpha_to_weight(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn alpha into pixel weight and undo the premultiplication, so that compositing has no effect."""
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[:, :, 3:4].astype(np.float32)
    colours = np.clip(np.round(pixels[:, :, :3] * (255.0 / np.maximum(alpha, 1.0))), 0.0, 255.0)
    mask = pixels[:, :, 4:5] / 255.0 if pixels.shape[2] == 5 else 1.0
    return np.concatenate([colours, np.full_like(alpha, 255.0), np.round(alpha * mask)], axis=2).astype(np.uint8)


def _without_opaque(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Drop the last channels that are 255 everywhere."""
    count = pixels.shape[2]
    while count > 3 and pixels[:, :, count - 1].min() == 255:
        count -= 1
    return pixels if count == pixels.shape[2] else pixels[:, :, :count].copy()


def for_each(function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None) -> Iterator[Result]:
    """Map ``function`` over the items in a thread pool; results come in order, and an exception ends the iteration.

    The pool runs only a few items ahead of the consumer. ``workers`` is the number of threads; None for one per core.
    """
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
            # The consumer may have stopped, or an image is damaged: drop the items that have not begun.
            pool.shutdown(wait=False, cancel_futures=True)


def _workers(views: Sequence[View], memory: int) -> int:
    """Number of threads that together need about ``memory`` bytes to decode these views; at least one."""
    needed = [
        math.prod(image_size(view.image_path)) * (_BYTES_PER_UNDISTORTED if view.distorted_camera else _BYTES_PER_PIXEL)
        for view in views
    ]
    return max(1, min(os.cpu_count() or 1, memory // max(needed, default=1)))


@contextmanager
def opened(path: Path, *, if_damaged: str = _IF_DAMAGED, if_huge: str = _IF_HUGE) -> Iterator[Image.Image]:
    """Open an image without reading its pixels.

    Args:
        path: a file.
        if_damaged: the remedy to name if the image cannot be decoded.
        if_huge: the remedy to name if it has too many pixels.

    Raises:
        UserError: it has more than 500 megapixels, or an exception occurred here or in the caller's block.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                limit = f"more than the {_MOST_PIXELS // 1_000_000} megapixels that a photo may have"
                raise UserError(f"{path} is {width}x{height} px, {limit}: {if_huge}.")
            yield image
    except UserError:
        raise
    except Exception as error:
        # Pillow's decoders raise many types for damaged files: OSError, SyntaxError, zlib.error, RuntimeError (AVIF),
        # NotImplementedError (DDS), MemoryError (JPEG 2000) ...
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"{path} cannot be decoded ({reason}): {if_damaged}.") from error


def _planes(image: Image.Image) -> list[Image.Image]:
    """RGB; or RGB premultiplied by alpha, which is the photo over black, and alpha."""
    if image.mode.startswith("I"):
        # 16-bit grey. Pillow's own conversion clips at 255 instead of scaling, which makes the photo white.
        grey = np.clip(np.asarray(image, np.int64) // 257, 0, 255).astype(np.uint8)
        return [Image.fromarray(grey).convert("RGB")]
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return [Image.alpha_composite(black, rgba).convert("RGB"), rgba.getchannel("A")]
    return [image.convert("RGB")]
