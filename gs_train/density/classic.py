"""Density control of the original paper: clone and split where the screen-space gradient is large, drop the transparent and the huge.

With absolute gradients (AbsGS; Ye et al. 2024) the pull of different pixels on one Gaussian does not cancel, so a large one that blurs
detail is found; the threshold is then larger. It watches and plans; it never touches the model. It has no screen-size pruning, as the
original's never fires. The invariant: the statistics belong to the rows of the model as it is, and start from zero after every round.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gs_train.density.config import DensityConfig, check_resolved
from gs_train.density.types import SPLIT_SHRINK, DensityPlan, rows_of, spare_one
from gs_train.model.gaussians import GaussianModel
from gs_train.render.types import RenderOutput
from gs_train.scene.types import Camera


class ClassicDensity:
    """The controller of the original paper and trainer (section 5 of the paper), with a hard cap on the number of Gaussians."""

    def __init__(
        self,
        config: DensityConfig,
        *,
        extent: float,
        max_gaussians: int,
        count: int,
        device: torch.device | str,
        white_background: bool = False,
    ) -> None:
        """Start with empty statistics.

        Args:
            config: with whole iterations in every schedule field.
            extent: the scene's extent, world units.
            max_gaussians: hard cap; growth is trimmed to the largest gradients.
            count: rows of the model now.
            device: where the model lives.
            white_background: the original then resets opacities once more, at ``from_iteration``.

        Raises:
            ValueError: a schedule field is still a fraction, or ``max_gaussians`` is below 1.
        """
        check_resolved(config, max_gaussians)
        self.config = config
        self._absolute = config.kind == "absgrad"
        self._extent = extent
        self._max_gaussians = max_gaussians
        self._white_background = white_background
        self._device = torch.device(device)
        self._clear(count)

    def regulariser(self, model: GaussianModel) -> Tensor | None:
        """None: the loss is the photometric one."""
        return None

    def observe(self, render: RenderOutput, camera: Camera) -> None:
        """Add one view's gradient norms, over the Gaussians it sees.

        The gradient in px is multiplied by half the image size, which makes it one of normalised device coordinates as in the original.

        Raises:
            ValueError: there is no gradient, or its rows are not the model's.
        """
        grad = render.means2d.absgrad if self._absolute else render.means2d.grad  # type: ignore[attr-defined]
        if grad is None:
            raise ValueError("means2d has no gradient; call observe after backward")
        if len(grad) != len(self._grad_sum):
            raise ValueError(f"means2d: expected {len(self._grad_sum)} rows, got {len(grad)}")
        norm = torch.hypot(grad[:, 0] * (0.5 * camera.width), grad[:, 1] * (0.5 * camera.height))
        visible = render.visible()
        # Rows that are not visible may hold anything, and one bad gradient must not spoil a whole round: both count as 0.
        self._grad_sum += norm.nan_to_num_(nan=0.0, posinf=0.0).mul_(visible)
        self._grad_count += visible

    def plan(self, model: GaussianModel, iteration: int) -> DensityPlan | None:
        """Say what to change after ``iteration`` (counted from 1), or None. Every round clears the statistics, whatever it finds.

        Raises:
            ValueError: the model's rows are not those of the statistics.
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
        """Take over copies of saved statistics, with their own number of rows.

        Raises:
            ValueError: the two do not have the same shape [N].
        """
        grad_sum, grad_count = state["grad_sum"], state["grad_count"]
        if grad_sum.dim() != 1 or grad_sum.shape != grad_count.shape:
            raise ValueError(
                f"grad_sum and grad_count: expected one shape [N], got {list(grad_sum.shape)} and {list(grad_count.shape)}"
            )
        self._grad_sum = grad_sum.to(self._device, torch.float32, copy=True)
        self._grad_count = grad_count.to(self._device, torch.int64, copy=True)

    def _clear(self, count: int) -> None:
        self._grad_sum = torch.zeros(count, dtype=torch.float32, device=self._device)
        self._grad_count = torch.zeros(count, dtype=torch.int64, device=self._device)

    def _resets_at(self, iteration: int) -> bool:
        config = self.config
        if not 0 < iteration < config.until_iteration or config.opacity_reset_interval == 0:
            return False
        return iteration % config.opacity_reset_interval == 0 or (
            self._white_background and iteration == config.from_iteration
        )

    def _plan_round(self, model: GaussianModel, iteration: int, reset: bool) -> DensityPlan:
        config = self.config
        mean_grad = self._grad_sum / self._grad_count.clamp(min=1)
        largest_scale = model.scales().amax(dim=1)
        opacities = model.opacities()

        # The original grows first and drops afterwards, so a new row falls by the same rules as an old one. Deciding both at once: a weak
        # Gaussian does not grow, and one that is split is judged by its children's size.
        weak = opacities < config.min_opacity
        hot = (
            (mean_grad >= (config.absgrad_threshold if self._absolute else config.grad_threshold))
            & (self._grad_count > 0)
            & ~weak
        )
        large = largest_scale > config.percent_dense * self._extent
        split = hot & large
        drop = weak
        if 0 < config.opacity_reset_interval < iteration:
            size_afterwards = torch.where(split, largest_scale / SPLIT_SHRINK, largest_scale)
            drop = weak | (size_afterwards > config.max_world_scale * self._extent)
        drop = spare_one(drop, opacities)
        grow = self._trim(hot & ~drop, mean_grad, room=self._max_gaussians - len(model) + int(drop.sum()))
        return DensityPlan(
            clone=rows_of(grow & ~large),
            split=rows_of(grow & large),
            drop=rows_of(drop),
            reset_opacity=reset,
        )

    def _trim(self, grow: Tensor, mean_grad: Tensor, *, room: int) -> Tensor:
        """Leave at most ``room`` rows in ``grow`` (each adds one Gaussian): those with the largest gradients, ties to the lower row."""
        rows = rows_of(grow)
        if len(rows) <= room:
            return grow
        order = mean_grad[rows].sort(descending=True, stable=True).indices
        trimmed = torch.zeros_like(grow)
        trimmed[rows[order[: max(room, 0)]]] = True
        return trimmed
