"""Small motions of a camera, and the pixels that they move.

A motion is a tensor [6]: a rotation vector in radians, then a shift in world units, both along the camera's axes. Poses
are [4, 4] world-to-camera matrices with OpenCV axes. Small tensors are float64, because float32 rotations drift when
they are multiplied many times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gs_train.cameras.camera import Camera


def pixel_flow(camera: Camera, x: Tensor, y: Tensor, inverse_depth: Tensor) -> Tensor:
    """Derivative of pixel positions by a motion of the camera, for points that stand still.

    Args:
        camera: a pinhole.
        x, y: [...] position on the image plane at distance 1.
        inverse_depth: [...] 1 / distance along the camera's axis; 0 for points that are far away.

    Returns:
        [2, 6, ...] derivative of the pixel's column and row, px per radian and px per world unit.
    """
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    column = torch.stack([x * y, -one - x * x, y, -inverse_depth, zero, x * inverse_depth])
    row = torch.stack([one + y * y, -x * y, -x, zero, -inverse_depth, y * inverse_depth])
    return torch.stack([camera.fx * column, camera.fy * row])


def pixel_metric(flow: Tensor, counts: Tensor) -> Tensor:
    """[6, 6] float64 matrix M: m^T M m is the mean squared displacement of the pixels by a motion m, px^2.

    Args:
        flow: [2, 6, ...] from ``pixel_flow``.
        counts: [...] weight of each pixel in the mean.
    """
    pixels, weights = flow.transpose(0, 1).flatten(2).double(), counts.flatten().double()
    each = (pixels * weights).flatten(1) @ pixels.flatten(1).T
    return each / weights.sum().clamp(min=1.0)


def moved(world_to_camera: Tensor, motion: Tensor) -> Tensor:
    """[4, 4] pose of a camera after ``motion``; the input is float64."""
    turn = rotation_matrix(motion[:3]).T
    after = world_to_camera.clone()
    after[:3, :3] = turn @ world_to_camera[:3, :3]
    after[:3, 3] = turn @ (world_to_camera[:3, 3] - motion[3:])
    return after


def motion_between(before: Tensor, after: Tensor) -> Tensor:
    """[..., 6] motion from the poses ``before`` to ``after``, [..., 4, 4] each; exact to second order in the angle."""
    turn, shift = before[..., :3, :3], before[..., :3, 3:]
    relative = turn @ after[..., :3, :3].mT
    offset = (shift - relative @ after[..., :3, 3:])[..., 0]
    twice = torch.stack(
        [
            relative[..., 2, 1] - relative[..., 1, 2],
            relative[..., 0, 2] - relative[..., 2, 0],
            relative[..., 1, 0] - relative[..., 0, 1],
        ],
        dim=-1,
    )
    return torch.cat([0.5 * twice, offset], dim=-1)


def mean_square_px(motion: Tensor, metric: Tensor) -> Tensor:
    """[...] mean squared displacement of the pixels by motions [..., 6], px^2; ``metric`` [..., 6, 6]."""
    return torch.einsum("...i,...ij,...j->...", motion, metric, motion)


def rotation_matrix(vector: Tensor) -> Tensor:
    """[3, 3] rotation by the vector's length in radians about its direction (Rodrigues' formula)."""
    cross = cross_matrices(vector)
    # sin(x) / x and (1 - cos(x)) / x^2, also at 0.
    angle = vector.norm() / torch.pi
    unit = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return unit + torch.sinc(angle) * cross + 0.5 * torch.sinc(0.5 * angle) ** 2 * (cross @ cross)


def cross_matrices(vectors: Tensor) -> Tensor:
    """[..., 3, 3] matrices whose product with any x is the cross product of ``vectors`` [..., 3] and x."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
