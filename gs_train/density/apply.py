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
        plan: rows of ``model`` as it is, on its device or on the CPU.
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
            rows, into = (_on_device(model, each) for each in (plan.relocate, plan.relocate_into))
            opacity, factor = relocated(model.opacities()[rows], into)
            model.opacity[rows] = opacity.logit().to(model.opacity.dtype)[:, None]
            model.scaling[rows] += factor.log().to(model.scaling.dtype)[:, None]
    if plan.changes_rows():
        with torch.no_grad():
            new_rows = _new_rows(plan, model, generator)
        if len(new_rows["xyz"]) > 0:
            model.cat_tensors_to_optimizer(new_rows)
        gone = _on_device(model, plan.split, plan.drop)
        if len(gone) > 0:
            keep = torch.ones(len(model), dtype=torch.bool, device=model.device).index_fill(0, gone, False)
            model.prune_optimizer(keep, len(model) - len(gone))
    if plan.reset_opacity:
        model.reset_opacity(reset_opacity_to)


def _on_device(model: GaussianModel, *parts: Tensor) -> Tensor:
    """Parts of a plan in one tensor on the model's device."""
    return torch.cat([_uploaded(part, model.device) for part in parts])


def _uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; the program does not wait for a GPU, because it copies from pinned memory."""
    if tensor.device == device or len(tensor) == 0:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _check_rows(plan: DensityPlan, model: GaussianModel) -> None:
    """Raise ValueError if the plan names a row twice, or a row that the model does not have."""
    count = len(model)
    named = _on_device(model, plan.clone, plan.relocate, plan.split, plan.drop).sort().values
    twice = (named[1:] == named[:-1]).any().long()
    # Every look at a value on a GPU waits for it, so all are read at once.
    lowest, highest, repeated = torch.stack([named[0], named[-1], twice]).tolist()
    if lowest < 0 or highest >= count:
        raise ValueError(f"plan: expected rows from 0 to {count - 1}, got {lowest} to {highest}")
    if repeated:
        raise ValueError("plan: a row is named more than once")


def _new_rows(plan: DensityPlan, model: GaussianModel, generator: torch.Generator) -> dict[str, Tensor]:
    """The rows to append: clones, then ``SPLIT_CHILDREN`` children per split row, then the further copies of relocated
    rows.

    The position of a child or copy is drawn from the distribution of its parent. Relocated parents already have their
    new opacity and scale.
    """
    children = plan.split.repeat(SPLIT_CHILDREN)
    times = _on_device(model, plan.relocate_into) - 1
    copies = _on_device(model, plan.relocate).repeat_interleave(times, output_size=plan.copy_count())
    sources = _on_device(model, plan.clone, children, copies)
    new = {name: tensor[sources] for name, tensor in model.parameters.items()}
    moved, first = sources[len(plan.clone) :], len(plan.clone)
    if len(moved) > 0:
        draws = _uploaded(torch.randn(len(moved), 3, generator=generator, dtype=model.xyz.dtype), model.device)
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
