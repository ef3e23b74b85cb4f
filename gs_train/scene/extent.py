"""The size of a scene, measured from its cameras: extent, and positions of random points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import points_in_frame
from gs_train.cameras.poses import camera_centre
from gs_train.errors import first_few
from gs_train.scene.types import PointCloud, View

_SEEN_FRACTION = 0.9
"""Cube side as a fraction of the width that a camera sees at the target.

For the NeRF-synthetic scenes it gives a half side of 1.3 world units, the usual cube of these scenes.
"""
_FAR_CAMERA = 20.0
_MEETING_FRACTION = 0.15
"""A camera looks at a point if its axis passes within this fraction of its distance from the point."""


_PIXEL_VIEWS, _PIXEL_POINTS = 50, 10_000
"""Most views and points that ``pixel_width`` looks at."""
_FRUSTUM_DEPTH = (0.5, 12.0)
"""Nearest and farthest random point of a view in extents. Points of forward-facing scenes lie 3 to 12 extents deep,
points of indoor scenes up to 3."""


def camera_centres(views: Sequence[View]) -> NDArray[np.float64]:
    """[V, 3] positions of the cameras, world units."""
    return np.array([camera_centre(view.world_to_camera) for view in views]).reshape(-1, 3)


def near_cameras(centres: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[V] whether each camera stands among the others.

    A camera is far if its distance from the median centre exceeds ``_FAR_CAMERA`` times the 75th percentile of these
    distances. The usual cause is one wrong position, such as a photo without a GPS fix.

    Args:
        centres: [V, 3] positions, world units, V >= 1.
    """
    distance = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    usual = float(np.percentile(distance, 75))
    # Cameras that share one centre differ by rounding alone.
    return distance <= _FAR_CAMERA * usual if usual > 1e-9 * np.abs(centres).max() else np.ones(len(centres), bool)


def far_photos(views: Sequence[View]) -> list[str]:
    """A notice about photos that are far from all others; empty without one."""
    if not views:
        return []
    centres = camera_centres(views)
    near = near_cameras(centres)
    far = [view.name for view, is_near in zip(views, near, strict=True) if not is_near]
    if not far:
        return []
    middle = np.median(centres, axis=0)
    distance, spread = (np.linalg.norm(centres[rows] - middle, axis=1) for rows in (~near, near))
    named = f"{len(far)} of {len(views)} photos ({first_few(far)}) are {distance.max():.3g} world units away from the"
    others = f"others, which stand within {spread.max():.3g}"
    return [f"{named} {others}: their positions are probably wrong, so the extent of the scene leaves them out."]


def scene_extent(views: Sequence[View], points: PointCloud) -> float:
    """1.1 x the largest distance of the views' centres from their mean (original: cameras_extent), world units, > 0.

    Cameras far from all others do not count. If all cameras share one centre, the extent is 1.1 x the median distance
    of the points from it, and 1.0 without points.
    """
    centres = camera_centres(views)
    centres = centres[near_cameras(centres)]
    middle = centres.mean(axis=0)
    radius = float(np.linalg.norm(centres - middle, axis=1).max())
    if radius <= 1e-9 * max(1.0, float(np.abs(middle).max())):
        radius = float(np.median(np.linalg.norm(points.xyz - middle, axis=1))) if len(points.xyz) else 0.0
        if radius <= 0.0:
            return 1.0
    return 1.1 * radius


def pixel_width(views: Sequence[View], xyz: NDArray[np.float64], extent: float) -> float:
    """The width that a pixel of the views covers at the median depth of the points that they see, world units, > 0.

    Args:
        views: at least one.
        xyz: [N, 3] points, world units. If no view sees any of them, their depth is taken to be the extent.
        extent: the scene's extent, world units, > 0.
    """
    seen, some = [np.empty(0)], xyz[:: -(-len(xyz) // _PIXEL_POINTS) or 1]
    for view in views[:: -(-len(views) // _PIXEL_VIEWS)]:
        inside, _, _, depth = points_in_frame(view.camera, view.world_to_camera, some)
        seen.append(depth[inside] / view.camera.fx)
    widths = np.concatenate(seen)
    width = float(np.median(widths)) if len(widths) else 0.0
    return width if width > 0 else extent / views[0].camera.fx


def place_random_points(unit: NDArray[np.float64], views: Sequence[View], extent: float) -> NDArray[np.float64]:
    """[N, 3] positions for the points of a scene without any, world units.

    If the cameras stand around one target and look at it, the points fill the cube around the target that they see.
    Otherwise the points are spread over the views' frusta, evenly over the pixels and over the logarithm of the depth:
    cameras that look the same way, along a line or outward see nothing of the space between them.

    Args:
        unit: [N, 3] uniform random numbers, 0 to 1.
        views: at least one.
        extent: the scene's extent, world units, > 0.
    """
    if not views:
        raise ValueError("views: random points need at least one camera")
    centres = camera_centres(views)
    cube = _target_cube(views, centres, np.stack([view.world_to_camera[2, :3] for view in views]))
    if cube is not None:
        middle, half = cube
        low, high = middle - half, middle + half
        return np.asarray(low + unit * (high - low))
    nearest, farthest = (factor * extent for factor in _FRUSTUM_DEPTH)
    points = np.empty_like(unit)
    for index, view in enumerate(views):
        own = slice(index, None, len(views))
        camera, (x, y, along) = view.camera, unit[own].T
        depth = nearest * (farthest / nearest) ** along
        right, down = (x * camera.width - camera.cx) / camera.fx, (y * camera.height - camera.cy) / camera.fy
        points[own] = (
            centres[index] + np.stack([right * depth, down * depth, depth], axis=1) @ view.world_to_camera[:3, :3]
        )
    return points


def _target_cube(
    views: Sequence[View], centres: NDArray[np.float64], axes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float] | None:
    """Middle [3] and half side of the cube that all cameras look at.

    None if the cameras do not look at one target from several sides. ``centres`` and ``axes`` ([V, 3]) are the
    positions and the unit viewing directions of the cameras.
    """
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # [V, 3, 3] projects onto the plane across each axis
    # The smallest eigenvalue is 0 for parallel axes and 2/3 for axes from all directions.
    if np.linalg.eigvalsh(across.mean(axis=0))[0] < 0.2:
        return None
    target = np.linalg.solve(across.sum(axis=0), np.einsum("vij,vj->i", across, centres))
    towards = target - centres
    distance = np.linalg.norm(towards, axis=1)
    miss = np.linalg.norm(np.einsum("vij,vj->vi", across, towards), axis=1)
    in_front = np.einsum("vi,vi->v", towards, axes) > 0
    if np.median(miss) > _MEETING_FRACTION * np.median(distance) or np.mean(in_front) < 0.9:
        return None
    seen = [min(0.5 * view.camera.width / view.camera.fx, 0.5 * view.camera.height / view.camera.fy) for view in views]
    return target, _SEEN_FRACTION * float(np.median(distance * seen))
