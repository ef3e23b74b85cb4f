"""Rotation of vectors by unit quaternions wxyz."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(quaternions: Tensor, vectors: Tensor) -> Tensor:
    """Rotate [M, 3] vectors by [M, 4] unit quaternions wxyz: v + 2 u x (u x v + w v), with u the vector part."""
    w, u = quaternions[:, :1], quaternions[:, 1:]
    rotated: Tensor = vectors + 2.0 * torch.linalg.cross(u, torch.linalg.cross(u, vectors) + w * vectors)
    return rotated


def rotate_back(quaternions: Tensor, vectors: Tensor) -> Tensor:
    """Rotate [M, 3] vectors by the inverses of [M, 4] unit quaternions wxyz."""
    return rotate(torch.cat((quaternions[:, :1], -quaternions[:, 1:]), dim=1), vectors)
