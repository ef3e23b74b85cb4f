"""Where the scene is, as far as the cameras tell: the box that stands in for missing points.

The invariant: the box has a volume, whatever the cameras.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gs_train.scene.load import camera_centres
from gs_train.scene.types import View

_SEEN_SHARE = 0.9
"""Of what a camera sees at the distance of what it looks at: 1.3 world units for the NeRF-synthetic scenes, their usual cube."""
_MEETING_SHARE = 0.15
"""Axes that pass one place within this share of their cameras' distance from it look at it."""


def initial_bounds(views: Sequence[View], extent: float) -> NDArray[np.float64]:
    """[2, 3] lower and upper corner of a box to draw random points from, world units.

    Where the cameras stand around something and look at it, it is the cube around that place which they see. Else it is the box around
    the cameras, at least as thick as the extent in every direction: cameras often stand in one plane or on a line.

    Args:
        views: at least one.
        extent: the scene's extent, world units.
    """
    if not views:
        raise ValueError("views: random points need at least one camera")
    centres = camera_centres(views)
    cube = _looked_at(views, centres, np.stack([view.world_to_camera[2, :3] for view in views]))
    if cube is not None:
        middle, half = cube
        return np.stack([middle - half, middle + half])
    low, high = centres.min(axis=0), centres.max(axis=0)
    sides = np.maximum(0.5 * (high - low), 0.5 * extent if extent > 0.0 else 1.0)
    return np.stack([0.5 * (low + high) - sides, 0.5 * (low + high) + sides])


def _looked_at(
    views: Sequence[View], centres: NDArray[np.float64], axes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float] | None:
    """Middle and half side of the cube that all cameras look at; None where they do not look at one place from several sides."""
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # [V, 3, 3] what is perpendicular to each axis
    # The least eigenvalue is nothing for parallel axes, and 2/3 for axes from all around.
    if np.linalg.eigvalsh(across.mean(axis=0))[0] < 0.2:
        return None
    place = np.linalg.solve(across.sum(axis=0), np.einsum("vij,vj->i", across, centres))
    towards = place - centres
    distance = np.linalg.norm(towards, axis=1)
    passed_by = np.linalg.norm(np.einsum("vij,vj->vi", across, towards), axis=1)
    if (
        np.median(passed_by) > _MEETING_SHARE * np.median(distance)
        or np.mean(np.einsum("vi,vi->v", towards, axes) > 0) < 0.9
    ):
        return None
    seen = [min(0.5 * view.camera.width / view.camera.fx, 0.5 * view.camera.height / view.camera.fy) for view in views]
    return place, _SEEN_SHARE * float(np.median(distance * seen))
