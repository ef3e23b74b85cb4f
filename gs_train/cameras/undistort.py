"""Undistortion: the pinhole camera for a distorted camera, and the resampling of its photos.

The camera models are in ``distortion.py``. Reading and resizing files is in ``scene/photos/decode.py``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import Camera
from gs_train.cameras.distortion import fold_radius, project, unproject

Undistort = Literal["crop", "full"]

WIDEST_DEG = 120.0
"""Widest field of view of the pinhole camera along each axis.

Towards 180 degrees, more and more pixels would show less and less of the photo.
"""

_REACH = math.tan(math.radians(WIDEST_DEG / 2))
_MOST_GROWTH = 2.0  # Limit on the growth of an image side, the same as COLMAP's max_scale.
_GRID_SIDE = 33
_ROUND_TRIP = 1e-6
_BLOCK_PX = 1 << 16


class FoldedLensError(Exception):
    """Some pixels of the photo have no direction, or two pixels share one: the parameters are damaged."""


@lru_cache(maxsize=1024)
def pinhole_for(camera: Camera, undistort: Undistort) -> Camera:
    """The pinhole camera of the undistorted photos of ``camera``.

    With "crop" its image is the largest upright rectangle inside the edges of the undistorted photo, so every pixel has
    a source. With "full" its image is the rectangle around these edges, so it shows every pixel of the photo. These are
    the two ends of COLMAP's undistorter (blank_pixels 0 and 1), except that each side moves on its own: the principal
    point may leave the middle. The focal lengths stay, which keeps the resolution in the middle of the photo. They
    shrink only where a side would otherwise grow to more than twice the photo's.

    Raises:
        FoldedLensError: the distortion cannot be inverted over the photo.
    """
    if camera.is_pinhole():
        return Camera(width=camera.width, height=camera.height, fx=camera.fx, fy=camera.fy, cx=camera.cx, cy=camera.cy)
    left, top, right, bottom = _rectangle(camera, undistort)
    if not (left < right and top < bottom):
        raise FoldedLensError
    zoom = min(
        1.0,
        _MOST_GROWTH * camera.width / ((right - left) * camera.fx),
        _MOST_GROWTH * camera.height / ((bottom - top) * camera.fy),
    )
    fx, fy = zoom * camera.fx, zoom * camera.fy
    width, cx = _whole_pixels(left * fx, right * fx, undistort)
    height, cy = _whole_pixels(top * fy, bottom * fy, undistort)
    pinhole = Camera(width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy)
    _check_round_trip(camera, pinhole, undistort)
    return pinhole


def is_narrowed(camera: Camera, undistort: Undistort) -> bool:
    """Whether ``pinhole_for`` crops the view of ``camera`` to ``WIDEST_DEG``.

    Raises:
        FoldedLensError: the distortion cannot be inverted over the photo.
    """
    return not camera.is_pinhole() and max(map(abs, _rectangle(camera, undistort))) >= _REACH


def resample(pixels: NDArray[np.uint8], camera: Camera, pinhole: Camera) -> NDArray[np.uint8]:
    """Undistort a photo by bilinear interpolation, each channel alike.

    Args:
        pixels: [camera.height, camera.width, 3 to 5] uint8: RGB, premultiplied by alpha if there is a fourth channel,
            and pixel weight.
        camera: the distorted camera of the photo.
        pinhole: the camera of the result.

    Returns:
        [pinhole.height, pinhole.width, C] uint8. C is that of ``pixels`` if every pixel has a source inside the photo.
        Otherwise C is 5, and the pixels without a source have weight 0 and the colour of the photo's edge.
    """
    from scipy.ndimage import map_coordinates  # Slow to import, and scenes without distortion do not need it.

    places, inside = sampling_map(camera, pinhole)
    planes = [map_coordinates(plane, places, np.uint8, order=1, mode="nearest") for plane in np.moveaxis(pixels, 2, 0)]
    if not inside.all():
        opaque = np.full(inside.shape, 255, np.uint8)
        planes += [opaque] * (5 - len(planes))
        planes[4] = np.where(inside, planes[4], np.uint8(0))
    return np.stack(planes, axis=2)


# Views of one camera share its map. The cache is small, because a map takes 8 bytes per pixel and every photo may have
# its own camera. Threads that start together may each compute the first map, which takes no longer than waiting for one
# of them.
@lru_cache(maxsize=4)
def sampling_map(camera: Camera, pinhole: Camera) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The position in the distorted photo for each pixel of the pinhole camera.

    Returns:
        [2, H, W] float32 row and column in the photo, counted from the centre of its first pixel and clamped to the
        photo. [H, W] bool, whether the position was inside: within the photo's area and inside the fold of the lens.
        Both are read-only.
    """
    places = np.empty((2, pinhole.height, pinhole.width), np.float32)
    inside = np.empty((pinhole.height, pinhole.width), np.bool_)
    columns = np.arange(pinhole.width) + 0.5
    step = max(1, _BLOCK_PX // pinhole.width)
    for first in range(0, pinhole.height, step):
        rows = np.arange(first, min(first + step, pinhole.height)) + 0.5
        plane = _plane_of(pinhole, columns, rows)
        pixels = project(camera, plane)
        inside[first : first + step] = _inside(camera, plane, pixels)
        places[0, first : first + step] = np.clip(np.nan_to_num(pixels[..., 1]) - 0.5, 0, camera.height - 1)
        places[1, first : first + step] = np.clip(np.nan_to_num(pixels[..., 0]) - 0.5, 0, camera.width - 1)
    places.setflags(write=False)
    inside.setflags(write=False)
    return places, inside


@lru_cache(maxsize=1024)
def _rectangle(camera: Camera, undistort: Undistort) -> tuple[float, float, float, float]:
    """left, top, right, bottom of the undistorted photo on the plane z = 1, within ``WIDEST_DEG``."""
    width, height = float(camera.width), float(camera.height)
    across, down = np.arange(camera.width + 1.0), np.arange(camera.height + 1.0)
    left, right = (unproject(camera, np.stack((np.full_like(down, x), down), axis=1)) for x in (0.0, width))
    top, bottom = (unproject(camera, np.stack((across, np.full_like(across, y)), axis=1)) for y in (0.0, height))
    edges = np.concatenate((left, top, right, bottom))
    nowhere = np.asarray(np.isnan(edges).any(axis=1))
    # A real lens lacks an inverse only beyond the corners of the widest pinhole camera.
    if nowhere.any() and fold_radius(camera) < math.sqrt(2.0) * _REACH:
        raise FoldedLensError
    if undistort == "full":
        low = np.where(nowhere[:, None], -_REACH, edges).min(axis=0)
        high = np.where(nowhere[:, None], _REACH, edges).max(axis=0)
        left_top, right_bottom = np.maximum(low, -_REACH).tolist(), np.minimum(high, _REACH).tolist()
        return (*left_top, *right_bottom)
    # fmax and fmin ignore NaN.
    return (
        float(np.fmax.reduce(left[:, 0], initial=-_REACH)),
        float(np.fmax.reduce(top[:, 1], initial=-_REACH)),
        float(np.fmin.reduce(right[:, 0], initial=_REACH)),
        float(np.fmin.reduce(bottom[:, 1], initial=_REACH)),
    )


def _whole_pixels(low: float, high: float, undistort: Undistort) -> tuple[int, float]:
    """Side in whole px, and principal point in px, of an image that covers ``low`` to ``high`` px off the axis."""
    side = max(1, math.floor(high - low + 1e-6) if undistort == "crop" else math.ceil(high - low - 1e-6))
    return side, side / 2 - (low + high) / 2


def _check_round_trip(camera: Camera, pinhole: Camera, undistort: Undistort) -> None:
    """Project a grid of pinhole pixels and back, to find folds inside the photo that its edges do not show."""
    plane = _plane_of(
        pinhole, np.linspace(0.5, pinhole.width - 0.5, _GRID_SIDE), np.linspace(0.5, pinhole.height - 0.5, _GRID_SIDE)
    )
    pixels = project(camera, plane)
    inside = _inside(camera, plane, pixels)
    if not (inside.all() if undistort == "crop" else inside.any()):
        raise FoldedLensError
    if not (np.abs(unproject(camera, pixels[inside]) - plane[inside]) <= _ROUND_TRIP).all():
        raise FoldedLensError


def _plane_of(
    pinhole: Camera, columns: NDArray[np.floating[Any]], rows: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """[rows, columns, 2] x/z and y/z of the pixels in these columns and rows."""
    x, y = np.meshgrid((columns - pinhole.cx) / pinhole.fx, (rows - pinhole.cy) / pinhole.fy)
    return np.stack((x, y), axis=-1)


def _inside(camera: Camera, plane: NDArray[np.float64], pixels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[...] whether projected ``pixels`` [..., 2] of ``plane`` [..., 2] lie in the photo and inside the lens's fold."""
    within = ((pixels >= 0) & (pixels <= (camera.width, camera.height))).all(axis=-1)
    return np.asarray(within & (np.linalg.norm(plane, axis=-1) <= fold_radius(camera)))
