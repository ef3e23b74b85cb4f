"""Carrying out a density plan on a model: clones and split children are appended, then parents and dropped rows go in one prune.

It decides nothing; controllers do. The invariant: the rows that a plan does not name keep their order, values and Adam moments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gs_train.density.types import SPLIT_CHILDREN, SPLIT_SHRINK, DensityPlan
from gs_train.model.gaussians import GaussianModel


def carry_out(plan: DensityPlan, model: GaussianModel, generator: torch.Generator, *, reset_opacity_to: float) -> None:
    """Change ``model`` as ``plan`` says.

    The kept rows come first in their old order, then the clones, then the first child of every split row, then the second.

    Args:
        plan: with rows of ``model`` as it is.
        model: changed in place, through its door to Adam.
        generator: on the CPU, so that the draws for the split children are the same on every device.
        reset_opacity_to: the opacity that a reset lowers to.

    Raises:
        ValueError: the plan names a row twice, or one that the model does not have. Nothing is changed then.
    """
    gone = torch.cat([plan.split, plan.drop])
    named = torch.cat([plan.clone, gone])
    count = len(model)
    if len(named) > 0:
        if int(named.min()) < 0 or int(named.max()) >= count:
            raise ValueError(f"plan: expected rows from 0 to {count - 1}, got {int(named.min())} to {int(named.max())}")
        if int(torch.bincount(named).max()) > 1:
            raise ValueError("plan: a row is named more than once")
        with torch.no_grad():
            new_rows = _new_rows(plan, model, generator)
        if len(new_rows["xyz"]) > 0:
            model.cat_tensors_to_optimizer(new_rows)
        if len(gone) > 0:
            keep = torch.ones(len(model), dtype=torch.bool, device=model.device)
            keep[gone] = False
            model.prune_optimizer(keep)
    if plan.reset_opacity:
        model.reset_opacity(reset_opacity_to)


def _new_rows(plan: DensityPlan, model: GaussianModel, generator: torch.Generator) -> dict[str, Tensor]:
    """Copies of the cloned rows, then ``SPLIT_CHILDREN`` children of every split row, sampled from the parent's own distribution."""
    children = plan.split.repeat(SPLIT_CHILDREN)
    new = {name: tensor[torch.cat([plan.clone, children])] for name, tensor in model.parameters.items()}
    if len(children) > 0:
        draws = torch.randn(len(children), 3, generator=generator, dtype=model.xyz.dtype).to(model.device)
        offsets = _rotate(model.quaternions()[children], draws * model.scales()[children])
        new["xyz"][len(plan.clone) :] += offsets
        new["scaling"][len(plan.clone) :] -= math.log(SPLIT_SHRINK)
    return new


def _rotate(quaternions: Tensor, vectors: Tensor) -> Tensor:
    """Rotate [M, 3] vectors by [M, 4] unit quaternions wxyz: v + 2 u x (u x v + w v), with u the vector part."""
    w, u = quaternions[:, :1], quaternions[:, 1:]
    rotated: Tensor = vectors + 2.0 * torch.linalg.cross(u, torch.linalg.cross(u, vectors) + w * vectors)
    return rotated
