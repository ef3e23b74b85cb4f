"""The order of the Gaussians in memory: along a Morton curve, so that what is near in space, and so in most views, is near in memory.

It only computes an order; the model's ``reorder_optimizer`` carries it out. The invariant: the same positions give the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 10
"""Cells along each axis: 2 to this power."""
_MOST_SAMPLES = 100_000
"""Positions that the curve's ends are estimated from; quantiles of all would take longer than the sort."""


def morton_order(xyz: Tensor) -> Tensor:
    """The rows along a Morton curve (Z-order) through the middle 98 % of the positions; those beyond count as on its border.

    Args:
        xyz: [N, 3] positions, world units.

    Returns:
        [N] int64, a permutation on the device of ``xyz``; rows of one cell keep their order.
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
    return code.argsort(stable=True)
