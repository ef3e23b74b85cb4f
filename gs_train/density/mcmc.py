"""Density control as sampling: 3DGS-MCMC (Kheradmand et al. 2024).

Transparent Gaussians are moved to others that they then divide, their number grows by a few per cent a round up to the cap, every step
shakes the transparent ones, and the loss presses opacities and scales down so that some become free. Three things are not as in the paper,
for short runs: which ones are divided is drawn by the errors of some training views, not by opacity, which does not know where detail is
missing; what is moved lands within the Gaussian that it is divided from, not all in its middle, from where equal ones hardly part; and it
starts like the other kinds, not with opacity 0.5 and a tenth of the scale. It has no statistics: the invariant is that its plans follow
from the model, the views, the iteration and the generator alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gs_train.density.config import DensityConfig, check_resolved
from gs_train.density.scores import draw_views, score_views
from gs_train.density.types import DensityPlan, Views, rows_of
from gs_train.model.gaussians import GaussianModel
from gs_train.model.optimizer import get_lr
from gs_train.model.quaternions import rotate, rotate_back
from gs_train.render.types import RenderOutput
from gs_train.scene.types import Camera

_STEEPNESS = 100.0
"""How sharply the noise falls with opacity (3DGS-MCMC)."""
_STILL = 0.25
"""From this opacity on the noise is less than 1e-10 of what it is for a transparent one: not worth its draws."""


class McmcDensity:
    """Relocation, growth to a cap, noise and regularisation, as in 3DGS-MCMC."""

    def __init__(self, config: DensityConfig, *, max_gaussians: int, views: Views, generator: torch.Generator) -> None:
        """Keep the settings; there are no statistics.

        Args:
            config: with whole iterations in every schedule field.
            max_gaussians: the cap that the number grows to.
            views: the training views.
            generator: on the CPU; the source of every draw, saved by its owner.

        Raises:
            ValueError: a schedule field is still a fraction, or ``max_gaussians`` is below 1.
        """
        check_resolved(config, max_gaussians)
        self.config = config
        self._max_gaussians = max_gaussians
        self._views, self._generator = views, generator

    def regulariser(self, model: GaussianModel) -> Tensor | None:
        """Mean opacity and mean scale (world units), with their weights."""
        return self.config.opacity_reg * model.opacities().mean() + self.config.scale_reg * model.scales().mean()

    def observe(self, render: RenderOutput, camera: Camera) -> None:
        """Nothing: a round looks for itself."""

    def plan(self, model: GaussianModel, iteration: int) -> DensityPlan | None:
        """Noise after every step; in a round also where the transparent ones go, and which ones grow."""
        with torch.no_grad():
            opacities = model.opacities()
            shift = self._noise(model, opacities)
        config = self.config
        if not config.is_round(iteration, config.refine_until_iteration):
            return DensityPlan(shift=shift)
        dead = opacities <= config.min_opacity
        living = rows_of(~dead)
        if len(living) == 0:
            return DensityPlan(shift=shift)
        count = len(model)
        grown = max(count, min(self._max_gaussians, int((1.0 + config.growth) * count)))
        wanted = grown - len(living)
        if wanted == 0:
            return DensityPlan(shift=shift)
        # On the CPU, so that a seed means the same on every device.
        drawn = torch.multinomial(
            self._weights(model, opacities)[living].cpu(), wanted, replacement=True, generator=self._generator
        )
        times = torch.bincount(drawn, minlength=len(living))
        sources = rows_of(times > 0)
        return DensityPlan(
            relocate=living[sources.to(living.device)],
            relocate_into=(times[sources] + 1).to(living.device),
            drop=rows_of(dead),
            shift=shift,
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing changes here."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""

    def _weights(self, model: GaussianModel, opacities: Tensor) -> Tensor:
        """[N] how likely each one is divided: its share in the errors that some views still have, or its opacity where they have none."""
        views = draw_views(self._views, self.config.score_views, self._generator)
        error = score_views(model, self._views, views, self.config.high_error).error.clamp(min=0.0)
        # A trace of opacity, so that there are always enough to draw from.
        return error + 1e-6 * opacities * error.mean().clamp(min=1e-6)

    def _noise(self, model: GaussianModel, opacities: Tensor) -> Tensor:
        """[N, 3] shifts of the positions: larger for the transparent, along each one's own shape, and falling with the rate of ``xyz``."""
        assert model.optimizer is not None
        config, shift = self.config, torch.zeros_like(model.xyz)
        rows = rows_of(opacities < _STILL)
        draws = torch.randn(len(rows), 3, generator=self._generator).to(shift.device)
        strength = torch.sigmoid(_STEEPNESS * (config.min_opacity - opacities[rows])) * (
            get_lr(model.optimizer, "xyz") * config.noise_lr
        )
        quaternions, scales = model.quaternions()[rows], model.scales()[rows]
        shift[rows] = rotate(quaternions, scales.square() * rotate_back(quaternions, draws * strength[:, None]))
        return shift
