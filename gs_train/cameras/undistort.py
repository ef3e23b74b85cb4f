"""Takes the distortion out of photos: which pinhole camera stands for a distorted one, and the one resampling that its photos need.

Not here: the camera models (``distortion.py``), reading and resizing files (``images.py``). The invariant: a point that the distorted
camera shows at a place of the photo, the pinhole camera shows at the place that takes its colour from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.distortion import fold_radius, is_pinhole, project, unproject
from gs_train.scene.types import Camera, Lens

Undistort = Literal["crop", "full"]

WIDEST_DEG = 120.0
"""What a pinhole may see across each axis. Towards 180 degrees ever more of its pixels would show ever less of the photo."""

_REACH = math.tan(math.radians(WIDEST_DEG / 2))
_MOST_GROWTH = 2.0  # of a side of the image, as COLMAP's max_scale
_TRIED = 33
_ROUND_TRIP = 1e-6
_BLOCK_PX = 1 << 16


class FoldedLensError(Exception):
    """Some pixels of the photo have no direction, or two places of it the same one: no lens does that, damaged parameters do."""


@dataclass(frozen=True, kw_only=True)
class Pinhole:
    """The camera that stands for a distorted one."""

    camera: Camera
    """At the size that the lens has; the focal lengths are the lens's own, so that the middle of the photo keeps its resolution."""
    narrowed: bool
    """Was the photo's view wider than ``WIDEST_DEG``, and was it cropped to that?"""


@lru_cache(maxsize=1024)
def pinhole_for(lens: Lens, undistort: Undistort) -> Pinhole:
    """The pinhole camera whose picture is the photo's, undistorted.

    With "crop" its picture is the largest upright rectangle that the edges of the undistorted photo leave free, so that every pixel
    of it has a source; with "full" it is the rectangle around them, so that every pixel of the photo is in it. These are the two ends of
    COLMAP's undistorter (blank_pixels 0 and 1), but that each side is placed by itself: the principal point may move off the middle.
    Focal lengths are kept, unless a side would grow to more than twice the photo's.

    Raises:
        FoldedLensError: the distortion cannot be inverted over the photo.
    """
    if is_pinhole(lens):
        camera = Camera(width=lens.width, height=lens.height, fx=lens.fx, fy=lens.fy, cx=lens.cx, cy=lens.cy)
        return Pinhole(camera=camera, narrowed=False)
    left, top, right, bottom = sides = _rectangle(lens, undistort)
    if not (left < right and top < bottom):
        raise FoldedLensError
    zoom = min(
        1.0,
        _MOST_GROWTH * lens.width / ((right - left) * lens.fx),
        _MOST_GROWTH * lens.height / ((bottom - top) * lens.fy),
    )
    fx, fy = zoom * lens.fx, zoom * lens.fy
    width, cx = _whole_pixels(left * fx, right * fx, undistort)
    height, cy = _whole_pixels(top * fy, bottom * fy, undistort)
    camera = Camera(width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy)
    _check_round_trip(lens, camera, undistort)
    return Pinhole(camera=camera, narrowed=max(map(abs, sides)) >= _REACH)


def resample(pixels: NDArray[np.uint8], lens: Lens, camera: Camera) -> NDArray[np.uint8]:
    """A photo undistorted, bilinearly; all channels alike.

    Args:
        pixels: [lens.height, lens.width, 3 to 5] uint8: RGB, multiplied by alpha where there is a fourth channel, and weight.
        lens: what they were taken through.
        camera: what they shall look taken by.

    Returns:
        [camera.height, camera.width, C] uint8: C as given where every pixel has a source, else 5, the weight being 0 where there is none
        (the colour there is that of the photo's edge).
    """
    from scipy.ndimage import map_coordinates  # takes a while to load, and scenes without distortion do without

    places, inside = sampling_map(lens, camera)
    planes = [map_coordinates(plane, places, np.uint8, order=1, mode="nearest") for plane in np.moveaxis(pixels, 2, 0)]
    if not inside.all():
        opaque = np.full(inside.shape, 255, np.uint8)
        planes += [opaque] * (5 - len(planes))
        planes[4] = np.where(inside, planes[4], np.uint8(0))
    return np.stack(planes, axis=2)


# Views of one camera share its map. Where every photo has a camera of its own, only few maps are kept, for each takes 8 bytes a pixel.
# Threads that begin at the same time may each make the first one: that takes no longer than waiting for it.
@lru_cache(maxsize=4)
def sampling_map(lens: Lens, camera: Camera) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where in the photo each pixel of the pinhole camera takes its colour.

    Returns:
        [2, H, W] row and column in the photo, counted from the middle of its first pixel and moved into it where they were outside; and
        [H, W] whether they were inside: within the photo's area and this side of the lens's fold. Both read-only.
    """
    places = np.empty((2, camera.height, camera.width), np.float32)
    inside = np.empty((camera.height, camera.width), np.bool_)
    columns = np.arange(camera.width) + 0.5
    step = max(1, _BLOCK_PX // camera.width)
    for first in range(0, camera.height, step):
        rows = np.arange(first, min(first + step, camera.height)) + 0.5
        plane = _plane_of(camera, columns, rows)
        pixels = project(lens, plane)
        inside[first : first + step] = _inside(lens, plane, pixels)
        places[0, first : first + step] = np.clip(np.nan_to_num(pixels[..., 1]) - 0.5, 0, lens.height - 1)
        places[1, first : first + step] = np.clip(np.nan_to_num(pixels[..., 0]) - 0.5, 0, lens.width - 1)
    places.flags.writeable = inside.flags.writeable = False
    return places, inside


def _rectangle(lens: Lens, undistort: Undistort) -> tuple[float, float, float, float]:
    """left, top, right, bottom on the plane z = 1, none further out than ``WIDEST_DEG`` allows."""
    across, down = np.arange(lens.width + 1.0), np.arange(lens.height + 1.0)
    left, right = (unproject(lens, np.stack((np.full_like(down, x), down), axis=1)) for x in (0.0, float(lens.width)))
    top, bottom = (
        unproject(lens, np.stack((across, np.full_like(across, y)), axis=1)) for y in (0.0, float(lens.height))
    )
    edges = np.concatenate((left, top, right, bottom))
    nowhere = np.asarray(np.isnan(edges).any(axis=1))
    # Without an inverse are only places further out than the furthest corner of a pinhole, or the lens is none.
    if nowhere.any() and fold_radius(lens) < math.sqrt(2.0) * _REACH:
        raise FoldedLensError
    if undistort == "full":
        low = np.where(nowhere[:, None], -_REACH, edges).min(axis=0)
        high = np.where(nowhere[:, None], _REACH, edges).max(axis=0)
        left_top, right_bottom = np.maximum(low, -_REACH).tolist(), np.minimum(high, _REACH).tolist()
        return (*left_top, *right_bottom)
    # fmax and fmin pass over NaN.
    return (
        float(np.fmax.reduce(left[:, 0], initial=-_REACH)),
        float(np.fmax.reduce(top[:, 1], initial=-_REACH)),
        float(np.fmin.reduce(right[:, 0], initial=_REACH)),
        float(np.fmin.reduce(bottom[:, 1], initial=_REACH)),
    )


def _whole_pixels(low: float, high: float, undistort: Undistort) -> tuple[int, float]:
    """The side of an image from ``low`` to ``high`` px off the axis in whole pixels, and where the axis meets it; centred."""
    side = max(1, math.floor(high - low + 1e-6) if undistort == "crop" else math.ceil(high - low - 1e-6))
    return side, side / 2 - (low + high) / 2


def _check_round_trip(lens: Lens, camera: Camera, undistort: Undistort) -> None:
    """Project a grid of the pinhole's pixels and look whether they come back: what the edges did not show, shows here."""
    plane = _plane_of(
        camera, np.linspace(0.5, camera.width - 0.5, _TRIED), np.linspace(0.5, camera.height - 0.5, _TRIED)
    )
    pixels = project(lens, plane)
    inside = _inside(lens, plane, pixels)
    if not (inside.all() if undistort == "crop" else inside.any()):
        raise FoldedLensError
    if not (np.abs(unproject(lens, pixels[inside]) - plane[inside]) <= _ROUND_TRIP).all():
        raise FoldedLensError


def _plane_of(
    camera: Camera, columns: NDArray[np.floating[Any]], rows: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """[rows, columns, 2] x/z and y/z of the pixels in these columns and rows."""
    x, y = np.meshgrid((columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy)
    return np.stack((x, y), axis=-1)


def _inside(lens: Lens, plane: NDArray[np.float64], pixels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which places of the photo, and the directions they are shown from, are its own: in its area, and this side of the lens's fold."""
    within = ((pixels >= 0) & (pixels <= (lens.width, lens.height))).all(axis=-1)
    return np.asarray(within & (np.linalg.norm(plane, axis=-1) <= fold_radius(lens)))
