"""The places of the Gaussians along a Morton curve, which orders them in memory.

Gaussians that are near in space are near in most views. Storing them near in memory makes a training step faster
(``docs/benchmarks.md`` has the figures). This module only computes the places, and only from the positions;
``GaussianModel.sort_optimizer`` sorts by them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 10
"""Bits per axis: each axis has 2 to this power cells."""
_MOST_SAMPLES = 100_000
"""Upper limit of the positions that estimate the curve's bounds. Quantiles of all positions would take longer than the
sort."""


def morton_codes(xyz: Tensor) -> Tensor:
    """The place of every row along a Morton curve (Z-order curve).

    The curve covers the middle 98 % of the positions along each axis. Positions outside are clamped to its bounds.

    Args:
        xyz: [N, 3] positions, world units.

    Returns:
        [N] int64 on the device of ``xyz``, the number of the cell along the curve. Rows of a cell have the same number.
    """
    xyz = xyz.detach()
    if len(xyz) == 0:
        return torch.zeros(0, dtype=torch.int64, device=xyz.device)
    sample = xyz[:: -(-len(xyz) // _MOST_SAMPLES)].sort(dim=0).values
    low, high = sample[len(sample) // 100], sample[len(sample) - 1 - len(sample) // 100]
    cells = ((xyz - low) / (high - low)).nan_to_num(0.0).clamp(0.0, 1.0).mul(2**_BITS - 1).long()
    code = torch.zeros(len(xyz), dtype=torch.int64, device=xyz.device)
    for bit in range(_BITS):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code
