"""Decodes photos at training size: uint8 RGB, with alpha and pixel weights if they have any.

``load.py`` assigns files and training sizes to views, ``cache.py`` keeps the pixels. A decoded array always has the
size of its view's camera.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gs_train.cameras.undistort import resample, sampling_map
from gs_train.errors import UserError
from gs_train.scene.photos.files import opened, turned
from gs_train.scene.photos.levels import is_deep
from gs_train.scene.photos.masks import decode_mask
from gs_train.scene.photos.threads import DECODING_BYTES, for_each, thread_count
from gs_train.scene.types import View

_UNMASKED = 250
"""A resampled mask pixel of at least this value has only unmasked pixels as sources."""
# Memory during decoding: 4 bytes twice in Pillow, and 3 bytes each in the array and its source. Undistortion needs as
# much again.
_BYTES_PER_PIXEL, _BYTES_PER_UNDISTORTED = 14, 28


def decode_images(views: Sequence[View], memory: int = DECODING_BYTES) -> Iterator[NDArray[np.uint8]]:
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

    yield from (fault for fault in for_each(fault_of, views, _workers(views, DECODING_BYTES)) if fault is not None)


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
        upright = turned(stored, view.orientation)
        planes = _planes(upright, view)
        if view.mask is not None:
            if len(planes) == 1:
                planes.append(Image.new("L", upright.size, 255))
            mask = Image.fromarray(decode_mask(view.mask))
            planes.append(mask.resize(upright.size, Image.Resampling.NEAREST))
        if upright.size != size:
            planes = [plane.resize(size, Image.Resampling.LANCZOS) for plane in planes]
        pixels = np.concatenate([np.atleast_3d(np.asarray(plane)) for plane in planes], axis=2)
    if len(planes) > 1 and upright.size != size:
        # Lanczos resampling overshoots. Premultiplied colours above alpha would exceed white over a background.
        np.minimum(pixels[:, :, :3], pixels[:, :, 3:4], out=pixels[:, :, :3])
    if view.distorted_camera is not None:
        pixels = resample(pixels, view.distorted_camera, view.camera)
    pixels = _whole_pixels(pixels)
    return _without_opaque(_alpha_to_weight(pixels) if view.alpha == "mask" else pixels)


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


def _workers(views: Sequence[View], memory: int) -> int:
    """Number of threads that together need about ``memory`` bytes to decode these views; at least one."""
    largest = 0
    for view in views:
        with opened(view.image_path) as image:
            per_pixel = _BYTES_PER_UNDISTORTED if view.distorted_camera else _BYTES_PER_PIXEL
            largest = max(largest, math.prod(image.size) * per_pixel)
    return thread_count(largest, memory)


def _planes(image: Image.Image, view: View) -> list[Image.Image]:
    """RGB; or RGB premultiplied by alpha, which is the photo over black, and alpha."""
    if is_deep(image.mode):
        # Pillow's own conversion clips at 255 instead of scaling, which makes the photo white.
        with np.errstate(invalid="ignore"):
            grey = np.nan_to_num(np.asarray(image, np.float64) * (255.0 / view.white))
        return [Image.fromarray(np.clip(np.round(grey), 0.0, 255.0).astype(np.uint8)).convert("RGB")]
    if image.has_transparency_data and view.alpha != "ignore":
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return [Image.alpha_composite(black, rgba).convert("RGB"), rgba.getchannel("A")]
    return [image.convert("RGB")]
