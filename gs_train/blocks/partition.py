"""Divides a scene on its ground plane into blocks of about equally many points, and assigns the photos to the blocks.

A photo belongs to every block that holds at least 2 % of the points that it observes; so blocks overlap in photos, not
in Gaussians. Without observations, a photo belongs to the blocks near its camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.poses import up_axis
from gs_train.scene.extent import camera_centres, near_cameras, scene_extent
from gs_train.scene.part import Region
from gs_train.scene.types import PointCloud, Scene, View

FEWEST_PHOTOS = 50
"""A block with fewer photos is merged with its neighbour."""
_LEAST_SHARE = 0.02
"""Share of a photo's points that a block holds if the photo belongs to it. With 0.03 the border has too few photos:
its PSNR is 0.6 dB below that of the middle of the blocks."""
_MARGIN_SHARE = 0.25
"""Margin around blocks for photos without observations, in mean sides of a block."""
_CENTRAL = (2.0, 98.0)
"""Percentiles of the points that measure the scene on the ground plane: a few points lie far outside."""
_PAIR = tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """A block of a scene."""

    region: Region
    """Its box on the ground plane."""
    photos: tuple[str, ...]
    """Names of its training views, sorted."""
    points: int
    """Number of the scene's points in the box."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """All blocks of a scene: their boxes cover the ground plane without overlap."""

    blocks: tuple[Block, ...]
    """At least one."""
    extent: float
    """The median of the extents of the blocks, world units."""
    margin: float
    """See ``Part.margin``, world units."""
    notices: tuple[str, ...]
    """Sentences about merged blocks."""


def partition(scene: Scene, columns: int, rows: int, *, fewest_photos: int = FEWEST_PHOTOS) -> Partition:
    """Divide a scene into ``columns`` times ``rows`` blocks, or fewer if blocks would have too few photos.

    Args:
        scene: its training views are assigned.
        columns: blocks along the longer side of the scene on the ground plane.
        rows: blocks in each column.
        fewest_photos: of a block.
    """
    axes = ground_axes(scene)
    whole = Region(axes=axes, low=(-math.inf, -math.inf), high=(math.inf, math.inf))
    centres = camera_centres(scene.train_views)
    flat = whole.flat(_placed(scene))
    heights, notices = [rows] * columns, list[str]()
    while True:
        regions = _boxes(flat, heights, axes)
        margin = _MARGIN_SHARE * math.sqrt(math.prod(_spread(flat)) / len(regions))
        members = _members(scene.train_views, centres, scene.points, regions, margin)
        counts = members.sum(axis=0)
        smallest = int(counts.argmin())
        if counts[smallest] >= fewest_photos or len(regions) == 1:
            break
        notices.append(
            f"A block with {counts[smallest]} photos is merged with its neighbour: a block needs {fewest_photos}."
        )
        heights = _merged(heights, smallest)
    blocks = tuple(
        Block(
            region=region,
            photos=tuple(
                view.name for view, member in zip(scene.train_views, members[:, index], strict=True) if member
            ),
            points=int(region.contains(scene.points.xyz).sum()),
        )
        for index, region in enumerate(regions)
    )
    extents = [
        scene_extent([scene.train_views[row] for row in members[:, index].nonzero()[0]], scene.points)
        for index in range(len(regions))
    ]
    return Partition(blocks=blocks, extent=float(np.median(extents)), margin=margin, notices=tuple(notices))


def ground_axes(scene: Scene) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Two unit vectors that span the ground plane: the first along the longer side of the scene, both across the mean
    upward direction of the cameras."""
    up = up_axis(np.stack([view.world_to_camera[:3, :3] for view in scene.train_views]))
    placed = _placed(scene)
    across = (placed - placed.mean(axis=0)) @ (np.eye(3) - np.outer(up, up))
    first = np.linalg.svd(across, full_matrices=False)[2][0]
    first -= up * (first @ up)
    first /= np.linalg.norm(first)
    # The largest component is positive, so that the same scene always gives the same axes.
    first *= np.sign(first[np.abs(first).argmax()])
    second = np.cross(up, first)
    return tuple(first.tolist()), tuple(second.tolist())


def grid_for(scene: Scene, blocks: int) -> tuple[int, int]:
    """Columns and rows of at least ``blocks`` blocks whose sides are about equal."""
    axes = ground_axes(scene)
    width, height = _spread(Region(axes=axes, low=(0.0, 0.0), high=(0.0, 0.0)).flat(_placed(scene)))
    width, height = max(width, 1e-9), max(height, 1e-9)

    def badness(columns: int) -> float:
        rows = math.ceil(blocks / columns)
        return abs(math.log(width / columns / (height / rows))) + (columns * rows - blocks) / blocks

    columns = min(range(1, blocks + 1), key=badness)
    return columns, math.ceil(blocks / columns)


def _placed(scene: Scene) -> NDArray[np.float64]:
    """[N, 3] positions that show where the scene is: its points, or its cameras if it has few points."""
    centres = camera_centres(scene.train_views)
    return scene.points.xyz if len(scene.points.xyz) > len(centres) else centres[near_cameras(centres)]


def _spread(flat: NDArray[np.float64]) -> _PAIR:
    """Width and height of positions [N, 2] on the ground plane, without outliers."""
    low, high = np.percentile(flat, _CENTRAL, axis=0)
    width, height = (high - low).tolist()
    return width, height


def _boxes(flat: NDArray[np.float64], heights: list[int], axes: tuple[tuple[float, float, float], ...]) -> list[Region]:
    """The boxes of columns with ``heights`` rows each, column by column. Each box has about equally many positions."""
    shares = np.cumsum(heights) / sum(heights)
    cuts = [-math.inf, *np.quantile(flat[:, 0], shares[:-1]).tolist(), math.inf]
    regions = []
    for rows, (left, right) in zip(heights, pairwise(cuts), strict=True):
        own = flat[(flat[:, 0] >= left) & (flat[:, 0] < right), 1]
        inner = np.quantile(own, np.arange(1, rows) / rows).tolist() if len(own) else [0.0] * (rows - 1)
        levels = [-math.inf, *inner, math.inf]
        for bottom, top in pairwise(levels):
            regions.append(Region(axes=(axes[0], axes[1]), low=(left, bottom), high=(right, top)))
    return regions


def _merged(heights: list[int], index: int) -> list[int]:
    """The heights of the columns with one block less, in the column of block ``index``."""
    column = int(np.searchsorted(np.cumsum(heights), index, side="right"))
    fewer = [rows - (at == column) for at, rows in enumerate(heights)]
    return [rows for rows in fewer if rows > 0]


def _members(
    views: tuple[View, ...],
    centres: NDArray[np.float64],
    points: PointCloud,
    regions: list[Region],
    margin: float,
) -> NDArray[np.bool_]:
    """[V, B] whether a view belongs to a block."""
    inside = np.stack([region.contains(points.xyz) for region in regions], axis=1)  # [P, B]
    order = None if points.ids is None else np.argsort(points.ids)
    near = np.stack([region.widened(margin).contains(centres) for region in regions], axis=1)
    members = np.zeros((len(views), len(regions)), dtype=bool)
    for row, view in enumerate(views):
        seen = _rows_of(view, points, order)
        members[row] = near[row] if len(seen) == 0 else inside[seen].mean(axis=0) >= _LEAST_SHARE
    return members


def _rows_of(view: View, points: PointCloud, order: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Rows of the points that a view observes; empty if the scene does not tell. ``order`` sorts the points by id."""
    if points.ids is None or order is None or view.point_ids is None or len(order) == 0:
        return np.zeros(0, np.int64)
    at = np.searchsorted(points.ids, view.point_ids, sorter=order).clip(max=len(order) - 1)
    rows = order[at]
    return np.asarray(rows[points.ids[rows] == view.point_ids])
