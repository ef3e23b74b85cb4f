"""Points of a scene that has none, from photos with transparent pixels: random points in the visual hull.

A photo shows nothing where it is transparent, so its rays through these pixels are empty. What all photos leave is the
visual hull of the object (Laurentini 1994).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import points_in_frame
from gs_train.scene.extent import place_random_points
from gs_train.scene.types import PointCloud, View

HULL_POINTS = 10_000
"""Number of points. 30,000 give the same picture in more time."""
_FEWEST = 100
"""Fewer points in the hull are no start."""
_ROUND, _ROUNDS = 100_000, 20
"""Random points of one round, and the most rounds. Lego fills a twelfth of its cube; thin objects fill less."""
_MOST_ROOM = 0.5
"""Share of the random points in the hull from which the photos say too little, as with transparent corners alone."""
_MOST_VIEWS = 100
_MOST_SIDE = 500
"""Larger photos are thinned out, so that all of them take little memory."""
_TRANSPARENT = 5
"""Largest alpha (of 255) of an empty pixel. Alpha at the edges of an object is larger."""
_WRONG = 0.05
"""Share of the photos that may be wrong about a point."""


def hull_points(
    views: Sequence[View], photo_of: Callable[[int], NDArray[np.uint8]], extent: float, seed: int
) -> PointCloud | None:
    """Random points where at most a few photos are transparent, in the mean colour of the photos.

    Args:
        views: at least one.
        photo_of: gives the pixels of a view in the format of ``decode_image``, at any size.
        extent: the scene's extent, world units, > 0.
        seed: of the random numbers.

    Returns:
        At most ``HULL_POINTS`` points; none if the photos leave no room for points; None if they are hardly
        transparent.
    """
    chosen = range(0, len(views), -(-len(views) // _MOST_VIEWS))
    photos = [(views[index], _thinned(photo_of(index))) for index in chosen]
    if not any(_is_empty(photo).any() for _, photo in photos):
        return None
    rng = np.random.default_rng(seed)
    xyz, rgb, found = [np.empty((0, 3))], [np.empty((0, 3), np.uint8)], 0
    for done in range(_ROUNDS):
        placed = place_random_points(rng.random((_ROUND, 3)), views, extent)
        inside, colours = _carve(placed, photos)
        xyz.append(inside)
        rgb.append(colours)
        found += len(inside)
        if found > _MOST_ROOM * (done + 1) * _ROUND:
            return None
        if found >= HULL_POINTS:
            break
    rows = slice(HULL_POINTS if found >= _FEWEST else 0)
    return PointCloud(xyz=np.concatenate(xyz)[rows], rgb=np.concatenate(rgb)[rows])


def _thinned(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every n-th row and column of a photo, at most ``_MOST_SIDE`` of each."""
    step = -(-max(photo.shape[:2]) // _MOST_SIDE)
    return photo if step == 1 else photo[::step, ::step].copy()


def _carve(
    xyz: NDArray[np.float64], photos: Sequence[tuple[View, NDArray[np.uint8]]]
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """The points of ``xyz`` ([N, 3]) that lie in the hull, [M, 3], and their colours, [M, 3]."""
    empty, sums = np.zeros(len(xyz), np.int64), np.zeros((len(xyz), 4))
    for view, photo in photos:
        inside, row, column, _ = points_in_frame(view.camera, view.world_to_camera, xyz)
        down, right = photo.shape[0] / view.camera.height, photo.shape[1] / view.camera.width
        pixels = photo[(row[inside] * down).astype(np.int64), (column[inside] * right).astype(np.int64)]
        empty[inside] += _is_empty(pixels)
        sums[inside] += pixels[:, :4] if pixels.shape[1] > 3 else np.pad(pixels, ((0, 0), (0, 1)), constant_values=255)
        left = empty <= _WRONG * len(photos)
        xyz, empty, sums = xyz[left], empty[left], sums[left]
    seen = sums[:, 3] > 0
    # Photos are premultiplied by alpha.
    colours = 255.0 * sums[seen, :3] / sums[seen, 3:]
    return xyz[seen], np.clip(np.round(colours), 0, 255).astype(np.uint8)


def _is_empty(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[...] whether pixels [..., C] in the format of ``decode_image`` show that there is nothing."""
    if pixels.shape[-1] == 3:
        return np.zeros(pixels.shape[:-1], dtype=bool)
    empty: NDArray[np.bool_] = pixels[..., 3] <= _TRANSPARENT
    return empty if pixels.shape[-1] == 4 else empty & (pixels[..., 4] == 255)
