"""Points of a scene that has none, from small copies of its photos: a plane sweep (Collins 1996).

Each pixel of a photo is looked up in the nearest other photos at many depths. The depth at which the surroundings look
alike is its depth, and counts if the depths of other photos agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import map_coordinates, uniform_filter

from gs_train.cameras.camera import Camera, points_in_frame
from gs_train.cameras.poses import camera_centre
from gs_train.scene.extent import camera_centres
from gs_train.scene.photos.threads import for_each
from gs_train.scene.types import PointCloud, View

SWEEP_POINTS = 10_000
"""Number of points. 20,000 are worse on the fern: with small Gaussians at the start it learns its photos by heart."""
_FEWEST = 100
"""Fewer points are no start."""
_MOST_VIEWS = 40
_PIXELS = 5000
"""Size of the small copies. A photo of 4 : 3 becomes 82x61."""
_DEPTH = (0.25, 12.0)
"""Nearest and farthest depth in extents."""
_PARALLAX_PX = (1.0, 0.25)
"""Parallax between two planes of the first sweep, over all depths, and of the second, over the depths of the view that
the first one finds. Finer planes are worth 0.6 dB on the fern."""
_FOUND = (0.005, 0.995)
"""Quantiles of the depths that the first sweep finds; the second goes a tenth of their distance beyond them."""
_FEWEST_PLANES, _MOST_PLANES = 32, 128
_NEIGHBOURS = 4
"""Other photos that a photo is compared with. Occlusion may spoil half of them."""
_SAME_WAY = 0.75
"""Smallest cosine between the directions of two photos to compare."""
_WINDOW = 5
_LEAST_VARIANCE = 1.5e-5
"""Variance of the brightness (0 to 1) in a window that has something to see."""
_LEAST_CORRELATION = 0.7
_AGREEING = 2
"""Other photos whose depth must agree, within a plane and a half."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _SmallView:
    """A view at the size of the sweep."""

    camera: Camera
    world_to_camera: NDArray[np.float64]
    """[4, 4]."""
    rgb: NDArray[np.float32]
    """[H, W, 3], 0 to 1."""
    grey: NDArray[np.float32]
    """[H, W] brightness, 0 to 1."""
    counts: NDArray[np.bool_]
    """[H, W] whether the pixel is not masked."""

    def rays(self) -> NDArray[np.float64]:
        """[H, W, 3] positions at depth 1 in the camera's coordinates."""
        camera = self.camera
        y, x = np.mgrid[: camera.height, : camera.width] + 0.5
        return np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones_like(x)], axis=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Depths:
    """The depths of the pixels of a view."""

    inverse: NDArray[np.float64]
    """[H, W] inverse depth, 1 / world units; 0 where none is found."""
    step: float
    """The distance between two planes in inverse depth."""


def sweep_points(
    views: Sequence[View], photo_of: Callable[[int], NDArray[np.uint8]], extent: float, seed: int
) -> PointCloud:
    """Points on which the photos agree, in the photos' colours.

    Args:
        views: at least one.
        photo_of: gives the pixels of a view in the format of ``decode_image``, at any size.
        extent: the scene's extent, world units, > 0.
        seed: of the choice among the points.

    Returns:
        At most ``SWEEP_POINTS`` points; none if there are too few.
    """
    chosen = range(0, len(views), -(-len(views) // _MOST_VIEWS))
    small = [_small(views[index], photo_of(index)) for index in chosen]
    near = _neighbours([views[index] for index in chosen])

    ranges = [(1.0 / (_DEPTH[1] * extent), 1.0 / (_DEPTH[0] * extent))] * len(small)
    depths: list[_Depths] = []
    for parallax_px in _PARALLAX_PX:
        depths = _sweep_all(small, near, ranges, parallax_px)
        ranges = [_range_of(found.inverse) for found in depths]
    found = [_points(view, found) for view, found in zip(small, depths, strict=True)]
    xyz, rgb = (np.concatenate(parts) for parts in zip(*found, strict=True))
    rows = np.sort(np.random.default_rng(seed).permutation(len(xyz))[:SWEEP_POINTS])
    if len(rows) < _FEWEST:
        rows = rows[:0]
    return PointCloud(xyz=xyz[rows], rgb=np.round(255.0 * rgb[rows]).astype(np.uint8))


def _small(view: View, photo: NDArray[np.uint8]) -> _SmallView:
    factor = min(1.0, (_PIXELS / (photo.shape[0] * photo.shape[1])) ** 0.5)
    size = max(1, round(photo.shape[1] * factor)), max(1, round(photo.shape[0] * factor))
    planes = [
        np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BOX)) for plane in np.moveaxis(photo, 2, 0)
    ]
    rgb = np.stack(planes[:3], axis=2).astype(np.float32) / 255.0
    counts = planes[4] == 255 if len(planes) > 4 else np.ones(rgb.shape[:2], dtype=bool)
    camera = view.camera.resized(*size)
    return _SmallView(
        camera=camera, world_to_camera=view.world_to_camera, rgb=rgb, grey=rgb.mean(axis=2), counts=counts
    )


def _neighbours(views: Sequence[View]) -> list[list[int]]:
    """The nearest other views of each view, of those that look the same way."""
    centres, axes = camera_centres(views), np.array([view.world_to_camera[2, :3] for view in views])
    chosen = []
    for centre, axis in zip(centres, axes, strict=True):
        away = np.linalg.norm(centres - centre, axis=1)
        away[(axes @ axis < _SAME_WAY) | (away < 1e-9)] = np.inf
        order = np.argsort(away, kind="stable")[:_NEIGHBOURS]
        chosen.append([int(index) for index in order if np.isfinite(away[index])])
    return chosen


def _sweep_all(
    views: Sequence[_SmallView],
    near: Sequence[Sequence[int]],
    ranges: Sequence[tuple[float, float]],
    parallax_px: float,
) -> list[_Depths]:
    """The depths of each view, compared with its neighbours ``near`` in its range of inverse depths, as far as others
    agree."""

    def sweep(index: int) -> _Depths:
        return _sweep(views[index], [views[other] for other in near[index]], ranges[index], parallax_px)

    swept = list(for_each(sweep, range(len(views))))
    return [_agreed(index, views, swept) for index in range(len(views))]


def _sweep(
    view: _SmallView, others: Sequence[_SmallView], inverse_range: tuple[float, float], parallax_px: float
) -> _Depths:
    """The depth of each pixel of ``view`` at which ``others`` look most alike, in a range of inverse depths."""
    grey, (farthest, nearest) = view.grey, inverse_range
    if not others or nearest <= farthest:
        return _Depths(inverse=np.zeros(grey.shape), step=1.0)
    planes = np.linspace(farthest, nearest, _plane_count(view, others, nearest - farthest, parallax_px))
    like, textured = _correlation_with(grey)
    correlation = np.full((len(planes), len(others), *grey.shape), -1.0, dtype=np.float32)
    rays = view.rays().reshape(-1, 3)
    for number, other in enumerate(others):
        turn = other.world_to_camera[:3, :3] @ view.world_to_camera[:3, :3].T
        shift = other.world_to_camera[:3, 3] - turn @ view.world_to_camera[:3, 3]
        # Rows are x, y, depth times a pixel's column, row, 1.
        lens = np.array([[other.camera.fx, 0.0, other.camera.cx], [0.0, other.camera.fy, other.camera.cy], [0, 0, 1]])
        turned, shifted = ((lens @ part).astype(np.float32) for part in (turn @ rays.T, shift[:, None]))
        for index, inverse in enumerate(planes):
            # A point at depth 1 / inverse, times inverse: the same pixel.
            column, row, depth = turned + np.float32(inverse) * shifted
            places, inside = _places(row, column, depth, other.camera)
            seen = map_coordinates(other.grey, places, order=1, mode="nearest", prefilter=False).reshape(grey.shape)
            correlation[index, number] = np.where(inside.reshape(grey.shape), like(seen), -1.0)
    best_half = np.partition(correlation, len(others) // 2, axis=1)[:, len(others) // 2 :].mean(axis=1)
    inverse, at_border = _peak(best_half, planes)
    found = (best_half.max(axis=0) > _LEAST_CORRELATION) & textured & view.counts & ~at_border
    return _Depths(inverse=np.where(found, inverse, 0.0), step=float(planes[1] - planes[0]))


def _places(
    row: NDArray[np.float32], column: NDArray[np.float32], depth: NDArray[np.float32], camera: Camera
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """[2, N] rows and columns (0 is the middle of the first pixel) of points whose rows and columns are multiplied by
    their depth, and [N] whether the points are in the picture."""
    with np.errstate(divide="ignore", invalid="ignore"):
        places = np.stack([row, column]) / depth
        inside = (depth > 0) & (places >= 0).all(axis=0)
        inside &= (places[0] < camera.height) & (places[1] < camera.width)
    return np.where(inside, places - np.float32(0.5), np.float32(0)), inside


def _correlation_with(
    grey: NDArray[np.float32],
) -> tuple[Callable[[NDArray[np.float32]], NDArray[np.float32]], NDArray[np.bool_]]:
    """A function that correlates the window around each pixel of ``grey`` with that of another picture, -1 to 1, and
    [H, W] whether the window has something to see."""
    mean = _blurred(grey)
    variance = _blurred(grey * grey) - mean * mean

    def correlation(seen: NDArray[np.float32]) -> NDArray[np.float32]:
        seen_mean = _blurred(seen)
        seen_variance = _blurred(seen * seen) - seen_mean * seen_mean
        products = np.maximum(variance, _LEAST_VARIANCE / 2) * np.maximum(seen_variance, _LEAST_VARIANCE / 2)
        result: NDArray[np.float32] = (_blurred(seen * grey) - seen_mean * mean) / np.sqrt(products)
        return result

    return correlation, variance > _LEAST_VARIANCE


def _blurred(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """[H, W] mean of the window around each pixel."""
    mean: NDArray[np.float32] = uniform_filter(values, _WINDOW, mode="nearest")
    return mean


def _plane_count(view: _SmallView, others: Sequence[_SmallView], depths: float, parallax_px: float) -> int:
    """The number of planes between which the farthest of ``others`` has the parallax; ``depths`` is the range of
    inverse depths."""
    centre = camera_centre(view.world_to_camera)
    baseline = max(float(np.linalg.norm(camera_centre(other.world_to_camera) - centre)) for other in others)
    count = view.camera.fx * baseline * depths / parallax_px
    return int(np.clip(count, _FEWEST_PLANES, _MOST_PLANES))


def _peak(scores: NDArray[np.float32], planes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """[H, W] place of the highest of ``scores`` ([planes, H, W]) between the planes, by a parabola through three of
    them, and whether it is the first or the last plane."""
    best = scores.argmax(axis=0)
    at_border = (best == 0) | (best == len(planes) - 1)
    middle = np.clip(best, 1, len(planes) - 2)
    before, at, after = (np.take_along_axis(scores, middle[None] + by, axis=0)[0] for by in (-1, 0, 1))
    bend = np.minimum(before - 2.0 * at + after, -1e-6)
    offset = np.clip(0.5 * (before - after) / bend, -0.5, 0.5)
    return planes[0] + (middle + offset) * (planes[1] - planes[0]), at_border


def _agreed(index: int, views: Sequence[_SmallView], depths: Sequence[_Depths]) -> _Depths:
    """The depths of view ``index`` with which enough other views agree."""
    own = depths[index]
    found = own.inverse > 0
    xyz, _ = _points(views[index], own)
    agreeing = np.zeros(len(xyz), dtype=np.int64)
    for number, (other, their) in enumerate(zip(views, depths, strict=True)):
        if number == index:
            continue
        inside, row, column, depth = points_in_frame(other.camera, other.world_to_camera, xyz)
        theirs = their.inverse[row[inside].astype(np.int64), column[inside].astype(np.int64)]
        agreeing[inside] += (theirs > 0) & (np.abs(theirs - 1.0 / depth[inside]) < 1.5 * their.step)
    agreed = np.zeros_like(own.inverse)
    agreed[found] = np.where(agreeing >= _AGREEING, own.inverse[found], 0.0)
    return _Depths(inverse=agreed, step=own.step)


def _range_of(inverse: NDArray[np.float64]) -> tuple[float, float]:
    """The inverse depths to look at again; an empty range if none is found."""
    found = inverse[inverse > 0]
    if len(found) == 0:
        return 0.0, 0.0
    low, high = (float(quantile) for quantile in np.quantile(found, _FOUND))
    return max(low - 0.1 * (high - low), 0.5 * low), high + 0.1 * (high - low)


def _points(view: _SmallView, depths: _Depths) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """[N, 3] positions, world units, and [N, 3] colours of the pixels whose depth is found."""
    found = depths.inverse > 0
    in_camera = view.rays()[found] / depths.inverse[found][:, None]
    return (in_camera - view.world_to_camera[:3, 3]) @ view.world_to_camera[:3, :3], view.rgb[found]
