"""Applies a density plan to a model: new rows are appended, then parents and pruned rows are removed in one call.

Controllers decide; this module only executes. Rows that a plan does not name keep their order, values and Adam moments,
except for positions that the plan shifts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gs_train.density.types import SPLIT_CHILDREN, SPLIT_SHRINK, DensityPlan
from gs_train.model.gaussians import GaussianModel
from gs_train.model.quaternions import rotate

_MOST_COPIES = 51
"""Limit of the copies of one relocated row. Above it the binomials of the formula lose their digits (3DGS-MCMC: 51)."""


def apply_plan(plan: DensityPlan, model: GaussianModel, generator: torch.Generator, *, reset_opacity_to: float) -> None:
    """Change ``model`` in place as ``plan`` says.

    Rows afterwards: the kept rows in their old order (relocated rows among them), the clones, the first child of every
    split row, the second child of every split row, the further copies of the relocated rows.

    Args:
        plan: rows of ``model`` as it is.
        model: changed through its optimizer door.
        generator: on the CPU, so that the children are drawn alike on every device.
        reset_opacity_to: opacity that a reset lowers to.

    Raises:
        ValueError: the plan names a row twice, or a row that the model does not have. The model is unchanged then.
    """
    if plan.changes_rows():
        _check_rows(plan, model)
    with torch.no_grad():
        if plan.shift is not None:
            model.xyz.add_(plan.shift)
        if len(plan.relocate) > 0:
            opacity, factor = relocated(model.opacities()[plan.relocate], plan.relocate_into)
            model.opacity[plan.relocate] = opacity.logit().to(model.opacity.dtype)[:, None]
            model.scaling[plan.relocate] += factor.log().to(model.scaling.dtype)[:, None]
    if plan.changes_rows():
        with torch.no_grad():
            new_rows = _new_rows(plan, model, generator)
        if len(new_rows["xyz"]) > 0:
            model.cat_tensors_to_optimizer(new_rows)
        gone = _on_device(model, plan.split, plan.drop)
        if len(gone) > 0:
            keep = torch.ones(len(model), dtype=torch.bool, device=model.device)
            keep[gone] = False
            model.prune_optimizer(keep)
    if plan.reset_opacity:
        model.reset_opacity(reset_opacity_to)


def _on_device(model: GaussianModel, *rows: Tensor) -> Tensor:
    """The rows of a plan in one tensor on the model's device."""
    return torch.cat([each.to(model.device) for each in rows])


def _check_rows(plan: DensityPlan, model: GaussianModel) -> None:
    """Raise ValueError if the plan names a row twice, or a row that the model does not have."""
    # On the CPU, because every look at a value on a GPU waits for it.
    named, count = _on_device(model, plan.clone, plan.relocate, plan.split, plan.drop).cpu(), len(model)
    if int(named.min()) < 0 or int(named.max()) >= count:
        raise ValueError(f"plan: expected rows from 0 to {count - 1}, got {int(named.min())} to {int(named.max())}")
    if int(torch.bincount(named).max()) > 1:
        raise ValueError("plan: a row is named more than once")


def _new_rows(plan: DensityPlan, model: GaussianModel, generator: torch.Generator) -> dict[str, Tensor]:
    """The rows to append: clones, then ``SPLIT_CHILDREN`` children per split row, then the further copies of relocated
    rows.

    The position of a child or copy is drawn from the distribution of its parent. Relocated parents already have their
    new opacity and scale.
    """
    children = plan.split.repeat(SPLIT_CHILDREN)
    copies = plan.relocate.repeat_interleave(plan.relocate_into - 1)
    sources = _on_device(model, plan.clone, children, copies)
    new = {name: tensor[sources] for name, tensor in model.parameters.items()}
    moved, first = sources[len(plan.clone) :], len(plan.clone)
    if len(moved) > 0:
        draws = torch.randn(len(moved), 3, generator=generator, dtype=model.xyz.dtype).to(model.device)
        new["xyz"][first:] += rotate(model.quaternions()[moved], draws * model.scales()[moved])
        new["scaling"][first : first + len(children)] -= math.log(SPLIT_SHRINK)
    return new


def relocated(opacities: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity and scale factor of n identical Gaussians in one place that look like one (3DGS-MCMC, Kheradmand et al.
    2024, eq. 9).

    The new opacity p solves 1 - (1 - p)^n = o. Blended, the n profiles sum to sum_j C(n, j) (-1)^(j-1) p^j exp(-j d^2 /
    2). The integral of this sum along a line equals the original's when the scales shrink by o / sum_j C(n, j)
    (-1)^(j-1) p^j / sqrt(j).

    Args:
        opacities: [K] original opacities o, 0 to 1.
        into: [K] int64, n >= 1; more than 51 counts as 51.

    Returns:
        [K] float64 new opacities, and [K] float64 factors on the scales.
    """
    original, n = opacities.double(), into.clamp(max=_MOST_COPIES).double()
    copy = -torch.expm1(torch.log1p(-original.clamp(max=1.0 - 1e-7)) / n)
    j = torch.arange(1, _MOST_COPIES + 1, dtype=torch.float64, device=original.device)
    # lgamma has poles at the counts beyond n, so the terms there are left out.
    inside = j <= n[:, None]
    log_binomial = (
        torch.lgamma(n + 1)[:, None] - torch.lgamma(j + 1) - torch.lgamma(torch.where(inside, n[:, None] - j, 0.0) + 1)
    )
    signs = 1 - 2 * ((j - 1) % 2)
    terms = torch.where(inside, torch.exp(log_binomial + j * copy[:, None].log()) * signs / j.sqrt(), 0.0)
    return copy, original / terms.sum(dim=1)
