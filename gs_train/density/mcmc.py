"""Density control as sampling: 3DGS-MCMC (Kheradmand et al. 2024).

Transparent Gaussians are moved to where opaque ones are, their number grows by a few per cent a round up to the cap, every step shakes the
transparent ones, and the loss presses opacities and scales down so that some become free. Two things are not as in the paper, both for
short runs: it starts like the other kinds (not with opacity 0.5 and a tenth of the scale), and what is moved lands within the Gaussian
that it is divided from (not all in its middle, from where equal ones hardly part). It has no statistics: the invariant is that its plans
follow from the model, the iteration and the generator alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gs_train.density.config import DensityConfig, check_resolved
from gs_train.density.types import DensityPlan
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

    def __init__(self, config: DensityConfig, *, max_gaussians: int, generator: torch.Generator) -> None:
        """Keep the settings; there are no statistics.

        Args:
            config: with whole iterations in every schedule field.
            max_gaussians: the cap that the number grows to.
            generator: on the CPU; the source of every draw, saved by its owner.

        Raises:
            ValueError: a schedule field is still a fraction, or ``max_gaussians`` is below 1.
        """
        check_resolved(config, max_gaussians)
        self.config = config
        self._max_gaussians = max_gaussians
        self._generator = generator

    def regulariser(self, model: GaussianModel) -> Tensor | None:
        """Mean opacity and mean scale (world units), with their weights."""
        return self.config.opacity_reg * model.opacities().mean() + self.config.scale_reg * model.scales().mean()

    def observe(self, render: RenderOutput, camera: Camera) -> None:
        """Nothing: opacity says it all."""

    def plan(self, model: GaussianModel, iteration: int) -> DensityPlan | None:
        """Noise after every step; in a round also where the transparent ones go, and which ones grow."""
        with torch.no_grad():
            opacities = model.opacities()
            shift = self._noise(model, opacities)
            config = self.config
            if not (
                config.from_iteration < iteration < config.refine_until_iteration
                and config.interval > 0
                and iteration % config.interval == 0
            ):
                return DensityPlan(shift=shift)
            dead = opacities <= config.min_opacity
            living = (~dead).nonzero().squeeze(1)
            if len(living) == 0:
                return DensityPlan(shift=shift)
            count = len(model)
            grown = max(count, min(self._max_gaussians, int((1.0 + config.growth) * count)))
            wanted = grown - len(living)
            if wanted == 0:
                return DensityPlan(shift=shift)
            # On the CPU, so that a seed means the same on every device.
            drawn = torch.multinomial(opacities[living].cpu(), wanted, replacement=True, generator=self._generator)
            times = torch.bincount(drawn, minlength=len(living))
            sources = times.nonzero().squeeze(1)
            return DensityPlan(
                divide=living[sources.to(living.device)],
                divide_into=(times[sources] + 1).to(living.device),
                drop=dead.nonzero().squeeze(1),
                shift=shift,
            )

    def state_dict(self) -> dict[str, Any]:
        """Nothing changes here."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""

    def _noise(self, model: GaussianModel, opacities: Tensor) -> Tensor:
        """[N, 3] shifts of the positions: larger for the transparent, along each one's own shape, and falling with the rate of ``xyz``."""
        assert model.optimizer is not None
        config, shift = self.config, torch.zeros_like(model.xyz)
        rows = (opacities < _STILL).nonzero().squeeze(1)
        draws = torch.randn(len(rows), 3, generator=self._generator).to(shift.device)
        strength = torch.sigmoid(_STEEPNESS * (config.min_opacity - opacities[rows])) * (get_lr(model.optimizer, "xyz") * config.noise_lr)
        quaternions, scales = model.quaternions()[rows], model.scales()[rows]
        shift[rows] = rotate(quaternions, scales.square() * rotate_back(quaternions, draws * strength[:, None]))
        return shift
