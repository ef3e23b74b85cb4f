"""Camera poses: centre, inverse, look-at, quaternions and axis conventions, in NumPy.

A pose is a rigid [4, 4] matrix ``world_to_camera`` with OpenCV camera axes (x right, y down, z forward). Training
depends on these functions to the last bit, so the order of their floating-point operations must stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_AGREEMENT = 0.5
"""Length of the mean upward direction of cameras that agree on it."""
Matrix = TypeVar("Matrix", NDArray[np.float64], "Tensor")


def camera_centre(world_to_camera: Matrix) -> Matrix:
    """[3] position of the camera in the world, -R^T t. Takes arrays and tensors; differentiable for tensors."""
    return -world_to_camera[:3, :3].T @ world_to_camera[:3, 3]


def camera_to_world(world_to_camera: NDArray[np.float64]) -> NDArray[np.float64]:
    """[4, 4] inverse of a pose."""
    return np.asarray(np.linalg.inv(world_to_camera), np.float64)


def pose_at(centre: NDArray[np.float64], rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """[4, 4] world-to-camera pose from the camera's ``centre`` [3] and the world-to-camera ``rotation`` [3, 3]."""
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = rotation
    world_to_camera[:3, 3] = -rotation @ centre
    return world_to_camera


def look_at(
    centre: NDArray[np.float64], target: NDArray[np.float64], up: tuple[float, float, float] = (0.0, 0.0, 1.0)
) -> NDArray[np.float64]:
    """[4, 4] world-to-camera pose of an upright camera that sees ``target`` in the middle of its view.

    Args:
        centre: [3] position of the camera, world units.
        target: [3] position, different from ``centre``.
        up: [3] world direction that points up in the image, not parallel to the viewing direction.
    """
    forward = target - centre
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return pose_at(centre, np.stack((right, np.cross(forward, right), forward)))


def up_axis(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3] the mean upward direction of cameras, or that of the first if they do not agree.

    Args:
        turns: [V, 3, 3] world -> camera, OpenCV axes.
    """
    mean = -turns[:, 1].mean(axis=0)
    length = float(np.linalg.norm(mean))
    return mean / length if length > _LEAST_AGREEMENT else -turns[0, 1]


def quaternion_to_rotation(wxyz: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """[3, 3] rotation matrix of a unit quaternion wxyz."""
    w, x, y, z = wxyz
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def rotation_to_quaternion(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """[4] unit quaternion wxyz of a [3, 3] rotation matrix, w >= 0.

    It is the eigenvector for the largest eigenvalue of a symmetric matrix. Source: Bar-Itzhack, "New Method for
    Extracting the Quaternion from a Rotation Matrix" (2000).
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    k = np.array(
        (
            (a + e + i, h - f, c - g, d - b),
            (h - f, a - e - i, b + d, c + g),
            (c - g, b + d, e - a - i, f + h),
            (d - b, c + g, f + h, i - a - e),
        )
    )
    wxyz = np.linalg.eigh(k)[1][:, -1]
    return np.asarray(wxyz if wxyz[0] >= 0 else -wxyz)


def opengl_to_opencv(camera_to_world_rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3, 3] camera-to-world rotation with OpenCV axes, from one with OpenGL axes (x right, y up, z backward)."""
    return camera_to_world_rotation * (1.0, -1.0, -1.0)
