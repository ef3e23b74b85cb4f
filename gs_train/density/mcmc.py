"""Density control as sampling: 3DGS-MCMC (Kheradmand et al. 2024).

Transparent Gaussians relocate to others, which they then share. The number of Gaussians grows by a few per cent per
round up to the cap. Every step adds noise to the positions of transparent Gaussians, and the loss pulls opacities and
scales down so that some Gaussians become free. Four points differ from the paper, for short runs:

- Targets of relocation are drawn by the errors of some training views, not by opacity, which does not know where detail
  is missing.
- Relocated Gaussians land within their target's extent, not all at its centre, where identical copies hardly separate.
- Training starts as with the other kinds, not with opacity 0.5 and a tenth of the scale.
- Noise moves a Gaussian by at most the scene's extent per axis and step, Gaussians far outside the scene
  count as transparent, and the last round prunes the Gaussians that no training view sees.

The controller keeps no statistics: its plans follow from the model, the views, the iteration and the generator. The
same seed gives other noise on a GPU, which draws it itself.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from gs_train.density.scores import draw_views, score_views
from gs_train.density.types import DensityPlan, DensitySetup, rows_of, spare_one
from gs_train.model.gaussians import GaussianModel
from gs_train.model.optimizer import get_lr
from gs_train.model.quaternions import rotate, rotate_back
from gs_train.render.types import RenderOutput

_STEEPNESS = 100.0
"""How sharply the noise falls with opacity (3DGS-MCMC)."""
_FAR = 100.0
"""Gaussians farther from the origin than this many extents of the scene are relocated."""
_STILL = 0.25
"""Above this opacity the noise is below 1e-10 of its strength for a transparent Gaussian, so nothing is drawn."""


class McmcDensity:
    """Relocation, growth to a cap, noise and regularisation, as in 3DGS-MCMC."""

    needs_absgrad: ClassVar[bool] = False

    def __init__(self, setup: DensitySetup) -> None:
        """Keep the settings."""
        self.config = setup.config
        self._max_gaussians, self._extent = setup.max_gaussians, setup.extent
        self._views, self._generator = setup.views, setup.generator

    def regulariser(self, model: GaussianModel) -> Tensor | None:
        """Weighted mean opacity plus weighted mean scale (world units)."""
        return self.config.opacity_reg * model.opacities().mean() + self.config.scale_reg * model.scales().mean()

    def measure(self, render: RenderOutput) -> Tensor:
        """Empty: a round renders views of its own."""
        return torch.zeros(0)

    def observe(self, measured: Tensor) -> None:
        """Do nothing: there are no statistics."""

    def plan(self, model: GaussianModel, iteration: int, background: Tensor) -> DensityPlan | None:
        """Noise after every step; in a round also relocation and growth, in the last round pruning."""
        with torch.no_grad():
            opacities = model.opacities()
            shift = self._noise(model, opacities)
        config = self.config
        if not config.is_round(iteration, config.refine_until_iteration + config.interval):
            return DensityPlan(shift=shift)
        if iteration >= config.refine_until_iteration:
            return DensityPlan(drop=rows_of(spare_one(self._unseen(model, background), opacities)), shift=shift)
        # The draws are made on the CPU, so that a seed gives the same draws on every device. The plan stays there.
        dead = ((opacities <= config.min_opacity) | (model.xyz.detach().norm(dim=1) > _FAR * self._extent)).cpu()
        living = rows_of(~dead)
        if len(living) == 0:
            return DensityPlan(shift=shift)
        count = len(model)
        grown = max(count, min(self._max_gaussians, int((1.0 + config.growth) * count)))
        wanted = grown - len(living)
        if wanted == 0:
            return DensityPlan(shift=shift)
        weights = self._weights(model, opacities, background).cpu()[living]
        drawn = torch.multinomial(weights, wanted, replacement=True, generator=self._generator)
        times = torch.bincount(drawn, minlength=len(living))
        sources = rows_of(times > 0)
        return DensityPlan(
            relocate=living[sources],
            relocate_into=times[sources] + 1,
            drop=rows_of(dead),
            shift=shift,
        )

    def state_dict(self) -> dict[str, Any]:
        """Empty: the controller has no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: the controller has no state."""

    def _unseen(self, model: GaussianModel, background: Tensor) -> Tensor:
        """[N] bool: no training view sees the Gaussian."""

        def visible(index: int) -> Tensor:
            return self._views.render(model, index, background).visible().float()

        unseen = torch.ones(len(model), dtype=torch.bool, device=model.device)
        with torch.no_grad():
            for seen in self._views.map(visible, range(len(self._views))):
                unseen &= seen == 0
        return unseen

    def _weights(self, model: GaussianModel, opacities: Tensor, background: Tensor) -> Tensor:
        """[N] weights of the draw: the error that each Gaussian is blended into, plus a trace of its opacity."""
        views = draw_views(self._views, self.config.score_views, self._generator)
        scores = score_views(model, self._views, views, self.config.high_error, background)
        error = scores.error.clamp(min=0.0)
        # The trace of opacity keeps every living Gaussian eligible when few have errors.
        return error + 1e-6 * opacities * error.mean().clamp(min=1e-6)

    def _noise(self, model: GaussianModel, opacities: Tensor) -> Tensor:
        """[N, 3] noise on positions, world units.

        It is larger for transparent Gaussians, follows the shape of each Gaussian, and scales with the learning rate of
        ``xyz``.
        """
        assert model.optimizer is not None
        rate = get_lr(model.optimizer, "xyz") * self.config.noise_lr
        if model.device.type != "cpu":
            # To select rows would make the program wait for the GPU, and noise for every row is a large copy.
            draws = torch.randn(len(model), 3, generator=self._generator_on(model.device), device=model.device)
            return self._shaped(draws, rate, opacities, model.quaternions(), model.scales())
        rows, shift = rows_of(opacities < _STILL), torch.zeros_like(model.xyz)
        draws = torch.randn(len(rows), 3, generator=self._generator)
        shift[rows] = self._shaped(draws, rate, opacities[rows], model.quaternions()[rows], model.scales()[rows])
        return shift

    def _generator_on(self, device: torch.device) -> torch.Generator:
        """A generator on a GPU, whose seed is drawn on the CPU: so it has no state to save."""
        generator = torch.Generator(device)
        generator.manual_seed(int(torch.randint(2**62, (), generator=self._generator)))
        return generator

    def _shaped(self, draws: Tensor, rate: float, opacities: Tensor, quaternions: Tensor, scales: Tensor) -> Tensor:
        """[M, 3] noise of the strength and shape of M Gaussians, world units, from M standard normal draws."""
        strength = torch.sigmoid(_STEEPNESS * (self.config.min_opacity - opacities)) * rate
        noise = scales.square() * rotate_back(quaternions, draws * strength[:, None])
        return rotate(quaternions, noise.clamp(-self._extent, self._extent))
