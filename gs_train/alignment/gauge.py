"""The common motion of a rig of cameras: a rotation, a shift and a scale that leave every photo as it is.

A splat and its cameras may move together without a change in any photo, so a fit of both to the photos drifts. The
drift is measured against the cameras as they were given, in pixels: it is the similarity transform of the moved cameras
that brings their pictures closest to those of the given cameras. Camera centres alone would not do, because a tilt of
all cameras and a shift of the splat look almost the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gs_train.alignment.motion import cross_matrices, mean_square_px, motion_between, rotation_matrix

_SIMILARITY = 7
_TIKHONOV = 1e-6
"""Holds directions that no picture shows, such as the scale of cameras in one place."""


def without_common_motion(poses: Tensor, given: Tensor, metric: Tensor) -> Tensor:
    """The poses after the similarity transform that brings them closest to the given ones.

    Args:
        poses: [V, 4, 4] float64 world-to-camera, near ``given``.
        given: [V, 4, 4] float64.
        metric: [V, 6, 6] float64, from ``pixel_metric``; zeros for a view without a metric, which takes the mean.

    Returns:
        [V, 4, 4] float64.
    """
    known = metric.diagonal(dim1=1, dim2=2).sum(dim=1) > 0
    mean = metric.sum(dim=0) / known.sum().clamp(min=1)
    metric = torch.where(known[:, None, None], metric, mean)
    turn, centres = poses[:, :3, :3], _centres(poses)
    middle = centres.mean(dim=0)
    arms = centres - middle
    # [V, 6, 7] derivative of each camera's motion by the rotation (3), the scale and the shift (3) of the rig.
    effect = torch.zeros(len(poses), 6, _SIMILARITY, dtype=poses.dtype, device=poses.device)
    effect[:, :3, :3] = turn
    effect[:, 3:, :3] = -turn @ cross_matrices(arms)
    effect[:, 3:, 3] = (turn @ arms[:, :, None])[:, :, 0]
    effect[:, 3:, 4:] = turn
    weighted = effect.mT @ metric
    normal = (weighted @ effect).sum(dim=0)
    gradient = (weighted @ motion_between(given, poses)[:, :, None]).sum(dim=0)[:, 0]
    damping = _TIKHONOV * normal.diagonal() + 1e-12
    similarity = -torch.linalg.solve_ex(normal + torch.diag(damping), gradient).result
    rotation = rotation_matrix(similarity[:3])
    aligned = poses.clone()
    aligned[:, :3, :3] = turn @ rotation.T
    moved = (1.0 + similarity[3]) * (arms @ rotation.T) + middle + similarity[4:]
    aligned[:, :3, 3] = -(aligned[:, :3, :3] @ moved[:, :, None])[:, :, 0]
    return aligned


def is_common(poses: Tensor, given: Tensor, metric: Tensor, *, times: float = 3.0) -> bool:
    """Whether the common motion is larger than individual errors of the given cameras would make it.

    The mean of independent errors is not zero either: of 6 V errors, the similarity takes up 7.

    Args:
        poses, given, metric: as in ``without_common_motion``.
        times: how many times larger.
    """
    aligned = without_common_motion(poses, given, metric)
    common = mean_square_px(motion_between(aligned, poses), metric).mean()
    individual = mean_square_px(motion_between(given, aligned), metric).mean()
    return bool(common > times**2 * individual * _SIMILARITY / (6 * len(poses)))


def _centres(poses: Tensor) -> Tensor:
    """[V, 3] centres of cameras with poses [V, 4, 4]."""
    return -(poses[:, :3, :3].mT @ poses[:, :3, 3:])[:, :, 0]
