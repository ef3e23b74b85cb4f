"""Density control of the original paper: clone and split at large screen-space gradients, prune transparent
Gaussians, split huge ones.

``AbsgradDensity`` sums absolute gradients (AbsGS; Ye et al. 2024), so that the pulls of different pixels on one
Gaussian do not cancel and large Gaussians that blur detail are found; its threshold is larger. Screen-space pruning is
absent, because the original's never fires. The statistics always belong to the current rows of the model and restart
from zero after every round.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from gs_train.density.types import DensityPlan, DensitySetup, rows_of_each, spare_one
from gs_train.model.gaussians import GaussianModel
from gs_train.render.types import RenderOutput


class ClassicDensity:
    """The controller of the original paper (section 5) and trainer, with a hard cap on the number of Gaussians."""

    needs_absgrad: ClassVar[bool] = False

    def __init__(self, setup: DensitySetup) -> None:
        """Start with empty statistics."""
        self.config = setup.config
        self._extent = setup.extent
        self._max_gaussians = setup.max_gaussians
        self._white_background = setup.white_background
        self._device = setup.device
        self._clear(setup.gaussians)

    @property
    def _threshold(self) -> float:
        return self.config.grad_threshold

    def regulariser(self, model: GaussianModel) -> Tensor | None:
        """None: the loss is the photometric loss alone."""
        return None

    def measure(self, render: RenderOutput) -> Tensor:
        """[N] gradient norms of one view, -1 for Gaussians that it does not see.

        Gradients are in px. Multiplied by half the image size they are in normalised device coordinates, as in the
        original.

        Raises:
            ValueError: there is no gradient, or its rows are not the model's.
        """
        grad = render.screen_gradient(absolute=self.needs_absgrad)
        if grad is None:
            raise ValueError("means2d has no gradient; call measure after backward")
        if len(grad) != len(self._grad_sum):
            raise ValueError(f"means2d: expected {len(self._grad_sum)} rows, got {len(grad)}")
        height, width = render.image.shape[:2]
        norm = torch.hypot(grad[:, 0] * (0.5 * width), grad[:, 1] * (0.5 * height))
        # The gradient of rows that the view does not see is undefined, and one NaN would spoil a whole round.
        return torch.where(render.visible(), norm.nan_to_num_(nan=0.0, posinf=0.0), -1.0)

    def observe(self, measured: Tensor) -> None:
        """Add the gradient norms of one view for the Gaussians it sees."""
        self._grad_sum += measured.clamp(min=0.0)
        self._grad_count += measured >= 0.0

    def plan(self, model: GaussianModel, iteration: int, background: Tensor) -> DensityPlan | None:
        """Changes to make after this iteration, or None. Every round clears the statistics.

        Raises:
            ValueError: the model's rows are not the rows of the statistics.
        """
        if len(model) != len(self._grad_sum):
            raise ValueError(f"model: expected {len(self._grad_sum)} rows, got {len(model)}")
        reset = self._resets_at(iteration)
        if not self.config.is_round(iteration, self.config.until_iteration):
            return DensityPlan(reset_opacity=True) if reset else None
        with torch.no_grad():
            plan = self._plan_round(model, iteration, reset)
        self._clear(plan.row_count(len(model)))
        return plan if plan.changes_rows() or reset else None

    def state_dict(self) -> dict[str, Any]:
        """The statistics, [N] each; not copied."""
        return {"grad_sum": self._grad_sum, "grad_count": self._grad_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore copies of saved statistics; their number of rows may differ from the current one.

        Raises:
            ValueError: the two tensors do not have the same shape [N].
        """
        grad_sum, grad_count = state["grad_sum"], state["grad_count"]
        if grad_sum.dim() != 1 or grad_sum.shape != grad_count.shape:
            shapes = f"{list(grad_sum.shape)} and {list(grad_count.shape)}"
            raise ValueError(f"grad_sum and grad_count: expected one shape [N], got {shapes}")
        self._grad_sum = grad_sum.to(self._device, torch.float32, copy=True)
        self._grad_count = grad_count.to(self._device, torch.int64, copy=True)

    def _clear(self, count: int) -> None:
        self._grad_sum = torch.zeros(count, dtype=torch.float32, device=self._device)
        self._grad_count = torch.zeros(count, dtype=torch.int64, device=self._device)

    def _resets_at(self, iteration: int) -> bool:
        """Whether opacities are reset after ``iteration``. Over white the original resets once more, at
        ``from_iteration``."""
        config = self.config
        if not 0 < iteration < config.until_iteration or config.opacity_reset_interval == 0:
            return False
        first = self._white_background and iteration == config.from_iteration
        return iteration % config.opacity_reset_interval == 0 or first

    def _plan_round(self, model: GaussianModel, iteration: int, reset: bool) -> DensityPlan:
        config = self.config
        mean_grad = self._grad_sum / self._grad_count.clamp(min=1)
        largest_scale = model.scales().amax(dim=1)
        opacities = model.opacities()

        # The original densifies first and prunes afterwards, so new rows are pruned by the same rules. Here both are
        # decided at once: transparent Gaussians do not densify.
        weak = opacities < config.min_opacity
        hot = (mean_grad >= self._threshold) & (self._grad_count > 0) & ~weak
        large = largest_scale > config.percent_dense * self._extent
        if 0 < config.opacity_reset_interval < iteration:
            # The original prunes these. Where few views see a plain background, that loses it: 31 dB fell to 23 dB.
            hot |= (largest_scale > config.max_world_scale * self._extent) & ~weak
        clone, split, drop = rows_of_each(hot & ~large, hot & large, spare_one(weak, opacities))
        # Every row that densifies adds one Gaussian. The largest gradients come first, ties go to the lower row.
        room = max(0, self._max_gaussians - len(model) + len(drop))
        if len(clone) + len(split) > room:
            grow = torch.cat([clone, split]).sort().values
            best = grow[mean_grad[grow].sort(descending=True, stable=True).indices[:room]]
            chosen = torch.zeros_like(hot).index_fill(0, best, True)
            clone, split = rows_of_each(chosen & ~large, chosen & large)
        return DensityPlan(clone=clone, split=split, drop=drop, reset_opacity=reset)


class AbsgradDensity(ClassicDensity):
    """Classic density control by absolute gradients (AbsGS)."""

    needs_absgrad: ClassVar[bool] = True

    @property
    def _threshold(self) -> float:
        return self.config.absgrad_threshold
