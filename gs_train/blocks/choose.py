"""Chooses the blocks of a city that a view needs, and the views that are rendered together, within a memory budget.

No torch, and no files: ``evaluate.py`` renders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import Camera
from gs_train.cameras.poses import camera_centre
from gs_train.errors import UserError
from gs_train.formats.splat_data import SplatData
from gs_train.scene.types import View

_REACH = 3.33
"""Standard deviations at which an opaque Gaussian falls below 1/255, the least opacity that is drawn."""
_MARGIN_PX = 2.0
"""Around the image: the renderers widen every Gaussian by half a pixel."""
_CORNERS = np.array(list(np.ndindex(2, 2, 2)), dtype=bool)
"""[8, 3] whether a corner of a box is at the high end of each axis."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockBounds:
    """Size of a block's part of the splat."""

    low: NDArray[np.float64]
    """[3] of the smallest box around its Gaussians, world units."""
    high: NDArray[np.float64]
    """[3] of the same box."""
    gaussians: int
    """Their number, at least 1."""

    def distance(self, centre: NDArray[np.float64]) -> tuple[float, float]:
        """World units from a point [3] to the box, 0 inside, and to its middle."""
        outside = np.maximum(np.maximum(self.low - centre, centre - self.high), 0.0)
        return float(np.linalg.norm(outside)), float(np.linalg.norm((self.low + self.high) / 2 - centre))

    def in_view(self, camera: Camera, world_to_camera: NDArray[np.float64]) -> bool:
        """Whether the box may meet the frustum of a pinhole camera. False is certain: all corners are beyond one side
        of the frustum."""
        corners = np.where(_CORNERS, self.high, self.low)
        x, y, z = (corners @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]).T
        fx, fy, cx, cy = camera.pinhole_intrinsics()
        sides = (
            z,
            fx * x + (cx + _MARGIN_PX) * z,
            (camera.width + _MARGIN_PX - cx) * z - fx * x,
            fy * y + (cy + _MARGIN_PX) * z,
            (camera.height + _MARGIN_PX - cy) * z - fy * y,
        )
        return all(bool((side > 0).any()) for side in sides)


def bounds_of(pieces: Iterable[SplatData]) -> BlockBounds | None:
    """The box around all Gaussians as far as they are drawn; None without Gaussians. All values are finite."""
    low, high, count = np.full(3, np.inf), np.full(3, -np.inf), 0
    for piece in pieces:
        with np.errstate(over="ignore"):
            reach = _REACH * np.exp(piece.scaling.astype(np.float64).max(axis=1, initial=-np.inf))[:, None]
        low = np.minimum(low, (piece.xyz - reach).min(axis=0, initial=np.inf))
        high = np.maximum(high, (piece.xyz + reach).max(axis=0, initial=-np.inf))
        count += len(piece)
    return BlockBounds(low=low, high=high, gaussians=count) if count else None


def blocks_for(view: View, bounds: dict[int, BlockBounds], most: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The blocks that a view shows, nearest first: those that fit, and the others.

    Args:
        view: in the coordinates of the bounds.
        bounds: number of a block -> its bounds; at least one.
        most: Gaussians in memory at a time.

    Raises:
        UserError: the nearest block does not fit.
    """
    centre = camera_centre(view.world_to_camera)
    near = sorted(bounds, key=lambda number: bounds[number].distance(centre))
    seen = [number for number in near if bounds[number].in_view(view.camera, view.world_to_camera)] or near[:1]
    fitting = sum(_total(seen[: count + 1], bounds) <= most for count in range(len(seen)))
    if fitting == 0:
        raise UserError(
            f"--memory-gb has room for {most:,} Gaussians, and block {seen[0]} has {bounds[seen[0]].gaussians:,}: "
            "give more."
        )
    return tuple(seen[:fitting]), tuple(seen[fitting:])


def grouped(
    wanted: Sequence[tuple[int, ...]], bounds: dict[int, BlockBounds], most: int
) -> list[tuple[tuple[int, ...], list[int]]]:
    """Sets of blocks to load one after the other, each with the indices of the views to render from it.

    Every view is rendered from a set that contains the blocks it wants. Views with similar wishes share a set as long
    as it fits, so that blocks are loaded a few times only.

    Args:
        wanted: blocks of each view; each fits alone.
        bounds: of the blocks.
        most: Gaussians in memory at a time.
    """
    views: dict[frozenset[int], list[int]] = {}
    for index, blocks in enumerate(wanted):
        views.setdefault(frozenset(blocks), []).append(index)
    groups = []
    while views:
        together, members = frozenset[int](), list[int]()
        while views:
            # The largest set begins a group; then the set that adds the fewest Gaussians joins it.
            cost = {each: _total(together | each, bounds) for each in views}
            best = min(cost, key=lambda each: (cost[each] if together else -cost[each], sorted(each)))
            if cost[best] > most:
                break
            together |= best
            members += views.pop(best)
        groups.append((tuple(sorted(together)), sorted(members)))
    return groups


def _total(blocks: Iterable[int], bounds: dict[int, BlockBounds]) -> int:
    return sum(bounds[number].gaussians for number in blocks)
