"""Camera paths for films, from the cameras of the photos: orbit, arc, spiral, and interpolation between cameras.

All rotations are world -> camera with OpenCV axes, so row 1 points down and row 2 forward. All paths end where they
begin, except ``interpolate``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from gs_train.cameras.poses import look_at, pose_at, up_axis

Array = NDArray[np.float64]

_LOOKS_AWAY = -0.1
"""Cosine between a viewing direction and the ray to the focus. It is 0 for parallel axes, whose focus is between the
cameras."""
_FULL_ORBIT_GAP_DEG = 120.0
"""Largest azimuth without a camera that an orbit crosses."""
_FORWARD_FACING = 0.95
"""Length of the mean viewing direction from which on a scene counts as forward-facing."""
_CURVE_SAMPLES = 4096
_LEAST_AXIS_RATIO = 0.5
"""Of the ellipse of an orbit: cameras on a line would make it pass through the scene."""
_MOST_KEYS = 24
"""Of an interpolation. More keys repeat the shaking of a hand-held camera."""
_FAR_STEP = 3.0
"""In median steps between photos: a longer one shows that the photos are not in the order of a walk."""


def focus_of(eyes: Array, turns: Array) -> Array:
    """[3] the point nearest to all optical axes, by least squares; cameras that look away from it do not count.

    Args:
        eyes: [V, 3] camera centres.
        turns: [V, 3, 3] world -> camera, OpenCV axes.
    """
    focus = _nearest_point(eyes, turns[:, 2])
    rays = focus - eyes
    looking = (rays * turns[:, 2]).sum(axis=1) >= _LOOKS_AWAY * np.linalg.norm(rays, axis=1)
    if len(eyes) > looking.sum() >= 2:
        return _nearest_point(eyes[looking], turns[looking, 2])
    return focus


def in_one_place(eyes: Array) -> bool:
    """Whether all camera centres [V, 3] are the same but for rounding."""
    spread = np.abs(eyes - eyes.mean(axis=0)).max()
    return bool(spread <= 1e-6 * max(1.0, float(np.abs(eyes).max())))


def choose_path(eyes: Array, turns: Array) -> Literal["orbit", "arc", "spiral", "interpolate"]:
    """The path that shows only sides of the scene that photos show.

    Args:
        eyes: [V, 3] camera centres.
        turns: [V, 3, 3] world -> camera.

    Returns:
        ``orbit`` for photos from all sides, ``spiral`` for photos that face the same way, ``interpolate`` for photos
        from one place, else ``arc``.
    """
    if in_one_place(eyes):
        return "interpolate"
    angles, _ = _azimuths(eyes, turns)
    if np.degrees(_largest_gap(angles)[0]) < _FULL_ORBIT_GAP_DEG:
        return "orbit"
    return "spiral" if np.linalg.norm(turns[:, 2].mean(axis=0)) > _FORWARD_FACING else "arc"


def orbit(eyes: Array, turns: Array, count: int) -> Array:
    """[count, 4, 4] poses on an ellipse about the focus, at equal steps and at the mean height of the cameras.

    Args:
        eyes: [V, 3] camera centres, not all in one place.
        turns: [V, 3, 3] world -> camera.
        count: number of poses.
    """
    up, focus = up_axis(turns), focus_of(eyes, turns)
    rays, (first, second) = eyes - focus, _plane(eyes - focus, up)
    half_axes = np.percentile(np.abs(rays @ np.stack((first, second)).T), 90, axis=0)
    half_axes = np.maximum(half_axes, _LEAST_AXIS_RATIO * half_axes.max())
    angles = np.linspace(0, 2 * np.pi, _CURVE_SAMPLES + 1)[:, None]
    curve = half_axes[0] * np.cos(angles) * first + half_axes[1] * np.sin(angles) * second
    length = _lengths(curve)
    places = np.interp(np.linspace(0, length[-1], count, endpoint=False), length, np.arange(len(length)))
    ring = np.stack([np.interp(places, np.arange(len(curve)), axis) for axis in curve.T], axis=1)
    return facing(focus + (rays @ up).mean() * up + ring, focus, up)


def circle(focus: Array, up: Array, distance: float, count: int) -> Array:
    """[count, 4, 4] poses on a level circle about a splat without cameras, from a little above.

    Args:
        focus: [3] point in the middle of each view.
        up: [3] unit vector.
        distance: of the cameras from the focus, world units.
        count: number of poses.
    """
    second = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    second /= np.linalg.norm(second)
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)[:, None]
    ring = np.cos(angles) * np.cross(second, up) + np.sin(angles) * second
    tilt = np.radians(15.0)
    return facing(focus + distance * (np.cos(tilt) * ring + np.sin(tilt) * up), focus, up)


def arc(eyes: Array, turns: Array, count: int) -> Array:
    """[count, 4, 4] poses there and back over the azimuths that the cameras cover, at their radii and heights.

    Args:
        eyes: [V, 3] camera centres, not all in one place.
        turns: [V, 3, 3] world -> camera.
        count: number of poses.
    """
    up, focus = up_axis(turns), focus_of(eyes, turns)
    angles, (first, second) = _azimuths(eyes, turns)
    start = _largest_gap(angles)[1]
    covered = (angles - start) % (2 * np.pi)
    span = max(float(covered.max()), 1e-3)
    steps = span * (1 - np.cos(np.linspace(0, 2 * np.pi, count, endpoint=False))) / 2
    # A wide kernel, because neighbouring photos may differ much in radius and height.
    weights = np.exp(-0.5 * ((steps[:, None] - covered) / (span / 6)) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    rays = eyes - focus
    height = weights @ (rays @ up)
    radius = weights @ np.hypot(rays @ first, rays @ second)
    directions = np.cos(steps + start)[:, None] * first + np.sin(steps + start)[:, None] * second
    return facing(focus + height[:, None] * up + radius[:, None] * directions, focus, up)


def spiral(eyes: Array, turns: Array, near: float, far: float, count: int) -> Array:
    """[count, 4, 4] poses on two turns of a spiral about the mean camera.

    Source: LLFF (Mildenhall et al. 2019), the path of its films.

    Args:
        eyes: [V, 3] camera centres.
        turns: [V, 3, 3] world -> camera.
        near: distance of the nearest parts of the scene, world units.
        far: distance of its farthest parts, world units.
        count: number of poses.
    """
    mean = turns[:, 2].mean(axis=0)
    forward = mean / np.linalg.norm(mean) if np.linalg.norm(mean) > 1e-6 else turns[0, 2]
    up, centre = up_axis(turns), eyes.mean(axis=0)
    distance = 1 / ((1 - 0.75) / near + 0.75 / far)
    axes = facing(centre[None], centre + forward, up)[0, :3, :3]
    radii = np.minimum(np.percentile(np.abs((eyes - centre) @ axes.T), 90, axis=0), distance / 2)
    angle = np.linspace(0, 4 * np.pi, count, endpoint=False)
    offsets = radii * np.stack((np.cos(angle), -np.sin(angle), -np.sin(angle / 2)), axis=1)
    return facing(centre + offsets @ axes, centre + distance * forward, up)


def interpolate(eyes: Array, turns: Array, focals: Array, count: int) -> tuple[Array, Array]:
    """[count, 4, 4] poses on a smooth curve through the cameras at equal speed, and [count] focal lengths.

    Args:
        eyes: [V, 3] camera centres in the order of the photos, at least two.
        turns: [V, 3, 3] world -> camera.
        focals: [V] focal lengths in image heights.
        count: number of poses.
    """
    order = _walk(eyes)
    order = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), _MOST_KEYS)).round().astype(int))]
    steps = np.linalg.norm(np.diff(eyes[order], axis=0), axis=1)
    # Cameras that only turn need time, too.
    least = 0.05 * float(np.median(steps)) or float(steps.max()) or 1.0
    knots = np.concatenate(([0.0], np.cumsum(np.sqrt(np.maximum(steps, least)))))
    positions = CubicSpline(knots, eyes[order])
    rotations = RotationSpline(knots, Rotation.from_matrix(turns[order]))
    times = np.linspace(0, knots[-1], _CURVE_SAMPLES)
    length = _lengths(positions(times))
    length = length + np.linspace(0, 0.01 * (length[-1] or 1.0), len(length))
    chosen = np.interp(np.linspace(0, length[-1], count), length, times)
    matrices = rotations(chosen).as_matrix()
    poses = np.stack([pose_at(eye, turn) for eye, turn in zip(positions(chosen), matrices, strict=True)])
    return poses, np.interp(chosen, knots, focals[order])


def facing(eyes: Array, target: Array, up: Array) -> Array:
    """[F, 4, 4] poses of upright cameras that look at a point.

    Args:
        eyes: [F, 3] camera centres, different from the target.
        target: [3] point in the middle of each view.
        up: [3] direction that points up in the images, of any length but 0.
    """
    poses = []
    for eye in eyes:
        forward = target - eye
        along = np.linalg.norm(np.cross(forward, up)) < 1e-6 * np.linalg.norm(forward) * np.linalg.norm(up)
        x, y, z = (np.eye(3)[np.argmin(np.abs(forward))] if along else up).tolist()
        poses.append(look_at(eye, target, (x, y, z)))
    return np.stack(poses)


def _nearest_point(eyes: Array, forward: Array) -> Array:
    """[3] the point nearest to the lines from ``eyes`` [V, 3] along the unit vectors ``forward`` [V, 3]."""
    across = np.eye(3) - forward[:, :, None] * forward[:, None]
    # Parallel axes have no such point: the small term then holds the mean of the centres.
    held = 1e-6 * len(eyes) * np.eye(3)
    right = (across @ eyes[:, :, None])[:, :, 0].sum(axis=0) + held @ eyes.mean(axis=0)
    point: Array = np.linalg.solve(across.sum(axis=0) + held, right)
    return point


def _plane(rays: Array, up: Array) -> tuple[Array, Array]:
    """Two unit vectors [3] across ``up``: the main direction of the rays [V, 3], and the direction across it."""
    level = rays - (rays @ up)[:, None] * up
    # A small term keeps the main direction across up where all rays are along up.
    first = np.linalg.eigh(level.T @ level - (1e-12 + np.sum(level**2)) * np.outer(up, up))[1][:, -1]
    return first, np.cross(up, first)


def _azimuths(eyes: Array, turns: Array) -> tuple[Array, tuple[Array, Array]]:
    """[V] angles of the cameras about the focus, rad, and the two axes [3] that they are measured in."""
    up, focus = up_axis(turns), focus_of(eyes, turns)
    first, second = _plane(eyes - focus, up)
    return np.arctan2((eyes - focus) @ second, (eyes - focus) @ first), (first, second)


def _largest_gap(angles: Array) -> tuple[float, float]:
    """The largest angle without a camera, and the angle of the camera at its end, rad."""
    ordered = np.sort(angles)
    gaps = np.diff(ordered, append=ordered[0] + 2 * np.pi)
    last = int(gaps.argmax())
    return float(gaps[last]), float(ordered[(last + 1) % len(ordered)])


def _lengths(curve: Array) -> Array:
    """[S] length of a curve [S, 3] up to each of its points."""
    return np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))))


def _walk(eyes: Array) -> NDArray[np.int64]:
    """[V] the cameras in the order of a walk: that of the photos, or else from each camera to the nearest left."""
    steps = np.linalg.norm(np.diff(eyes, axis=0), axis=1)
    if steps.max() <= _FAR_STEP * np.median(steps):
        return np.arange(len(eyes))
    order, left = [0], np.arange(1, len(eyes))
    while len(left):
        nearest = int(np.linalg.norm(eyes[left] - eyes[order[-1]], axis=1).argmin())
        order.append(int(left[nearest]))
        left = np.delete(left, nearest)
    return np.array(order)
