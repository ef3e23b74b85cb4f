"""Carrying out a density plan on a model: new rows are appended, then parents and dropped rows go in one prune.

It decides nothing; controllers do. The invariant: the rows that a plan does not name keep their order, values and Adam moments, but for
positions that the plan shifts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gs_train.density.types import SPLIT_CHILDREN, SPLIT_SHRINK, DensityPlan
from gs_train.model.gaussians import GaussianModel
from gs_train.model.quaternions import rotate

_MOST_PARTS = 51
"""A row is divided into at most so many; beyond, the formula's binomials lose their digits (3DGS-MCMC: 51)."""


def apply_plan(plan: DensityPlan, model: GaussianModel, generator: torch.Generator, *, reset_opacity_to: float) -> None:
    """Change ``model`` as ``plan`` says.

    The kept rows come first in their old order, divided ones among them, then the clones, then the first child of every split row, then
    the second, then the further parts of the divided rows.

    Args:
        plan: with rows of ``model`` as it is.
        model: changed in place, through its door to Adam.
        generator: on the CPU, so that the draws for the split children are the same on every device.
        reset_opacity_to: the opacity that a reset lowers to.

    Raises:
        ValueError: the plan names a row twice, or one that the model does not have. Nothing is changed then.
    """
    gone = torch.cat([rows.to(model.device) for rows in (plan.split, plan.drop)])
    named = torch.cat([rows.to(model.device) for rows in (plan.clone, plan.relocate, gone)])
    count = len(model)
    if len(named) > 0:
        if int(named.min()) < 0 or int(named.max()) >= count:
            raise ValueError(f"plan: expected rows from 0 to {count - 1}, got {int(named.min())} to {int(named.max())}")
        if int(torch.bincount(named).max()) > 1:
            raise ValueError("plan: a row is named more than once")
    with torch.no_grad():
        if plan.shift is not None:
            model.xyz.add_(plan.shift)
        if len(plan.relocate) > 0:
            opacity, factor = relocated(model.opacities()[plan.relocate], plan.relocate_into)
            model.opacity[plan.relocate] = opacity.logit().to(model.opacity.dtype)[:, None]
            model.scaling[plan.relocate] += factor.log().to(model.scaling.dtype)[:, None]
    if len(named) > 0:
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
    """Copies of the cloned rows, then ``SPLIT_CHILDREN`` children of every split row, then further parts of the divided rows, which have
    their new opacity and scale already; children and parts sampled from the distribution of the row they come from."""
    children = plan.split.repeat(SPLIT_CHILDREN)
    parts = plan.relocate.repeat_interleave(plan.relocate_into - 1)
    sources = torch.cat([rows.to(model.device) for rows in (plan.clone, children, parts)])
    new = {name: tensor[sources] for name, tensor in model.parameters.items()}
    moved, first = sources[len(plan.clone) :], len(plan.clone)
    if len(moved) > 0:
        draws = torch.randn(len(moved), 3, generator=generator, dtype=model.xyz.dtype).to(model.device)
        new["xyz"][first:] += rotate(model.quaternions()[moved], draws * model.scales()[moved])
        new["scaling"][first : first + len(children)] -= math.log(SPLIT_SHRINK)
    return new


def relocated(opacities: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
    """What n equal Gaussians in one place must be to look like the one (3DGS-MCMC, Kheradmand et al. 2024, eq. 9).

    Their opacity p gives 1 - (1 - p)^n = o. Blended, their profiles sum to sum_j C(n, j) (-1)^(j-1) p^j exp(-j d^2 / 2), whose integral
    along a line is that of the one when the scales shrink by o / sum_j C(n, j) (-1)^(j-1) p^j / sqrt(j).

    Args:
        opacities: [K] of the ones.
        into: [K] int64, n >= 1 each; more than 51 counts as 51.

    Returns:
        [K] float64 opacities of the parts, and [K] float64 factors on their scales.
    """
    one, n = opacities.double(), into.clamp(max=_MOST_PARTS).double()
    part = -torch.expm1(torch.log1p(-one.clamp(max=1.0 - 1e-7)) / n)
    j = torch.arange(1, _MOST_PARTS + 1, dtype=torch.float64, device=one.device)
    # exp(lgamma) of counts beyond n would be that of poles; those terms are left out.
    inside = j <= n[:, None]
    log_binomial = (
        torch.lgamma(n + 1)[:, None] - torch.lgamma(j + 1) - torch.lgamma(torch.where(inside, n[:, None] - j, 0.0) + 1)
    )
    terms = torch.where(
        inside, torch.exp(log_binomial + j * part[:, None].log()) * (1 - 2 * ((j - 1) % 2)) / j.sqrt(), 0.0
    )
    return part, one / terms.sum(dim=1)
