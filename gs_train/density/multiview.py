"""Density control by several training views: densify where errors remain in them, prune Gaussians that none of them
needs.

The idea is FastGS's (arXiv 2511.04283): the gradient of a single view asks for many Gaussians that other views have no
use for. A round renders some training views and gives every Gaussian the pixel errors it is blended into, weighted by
its blending weight. The Gaussians with the largest error densify, within a budget that grows with the iteration.
Pruning happens once, after densification, using many views: pruning every round on few views removed useful Gaussians.
Each round makes its own statistics, so no statistics are saved in checkpoints.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from gs_train.density.config import DensityConfig
from gs_train.density.scores import draw_views, score_views
from gs_train.density.types import DensityPlan, DensitySetup, rows_of, rows_of_each, spare_one
from gs_train.model.gaussians import GaussianModel
from gs_train.render.types import RenderOutput

_LAST_ROUND_VIEWS = 10
"""The last round renders this many times the views of the other rounds."""
PIXELS_PER_GAUSSIAN = 40
"""Pixels of the training photos per Gaussian of the budget: two measured numbers for each of a Gaussian's 59
parameters. Fewer pixels per Gaussian overfit the photos."""


class MultiviewDensity:
    """Densify where several views have errors; prune Gaussians that contribute to none of them."""

    needs_absgrad: ClassVar[bool] = False

    def __init__(self, setup: DensitySetup) -> None:
        """Keep the settings."""
        self.config = setup.config
        self._extent, self._start = setup.extent, setup.gaussians
        self._most = min(setup.max_gaussians, setup.photo_pixels // PIXELS_PER_GAUSSIAN)
        self._views, self._generator = setup.views, setup.generator

    def regulariser(self, model: GaussianModel) -> Tensor | None:
        """None: the loss is the photometric loss alone."""
        return None

    def measure(self, render: RenderOutput) -> Tensor:
        """Empty: a round renders views of its own."""
        return torch.zeros(0)

    def observe(self, measured: Tensor) -> None:
        """Do nothing: there are no statistics."""

    def plan(self, model: GaussianModel, iteration: int, background: Tensor) -> DensityPlan | None:
        """Densify in a round; prune in the last round."""
        config = self.config
        if not config.is_round(iteration, config.until_iteration + config.interval):
            return None
        last = iteration >= config.until_iteration
        count = config.score_views * (_LAST_ROUND_VIEWS if last else 1)
        views = draw_views(self._views, count, self._generator)
        scores = score_views(model, self._views, views, config.high_error, background)
        with torch.no_grad():
            opacities, largest_scale = model.opacities(), model.scales().amax(dim=1)
            weak = opacities < config.min_opacity
            if last:
                useless = scores.seen & (scores.contribution < config.min_contribution)
                return DensityPlan(drop=rows_of(spare_one(weak | useless, opacities)))
            spared = spare_one(weak, opacities)
            drop, candidates = rows_of_each(spared, (scores.error > 0) & ~spared)
            room = max(0, budget(iteration, self._start, self._most, config) - len(model) + len(drop))
            # A round adds at most one Gaussian per candidate. Ties go to the lower row.
            best = candidates[scores.error[candidates].sort(descending=True, stable=True).indices[:room]]
            large = largest_scale[best] > config.percent_dense * self._extent
            clone, split = (best[places] for places in rows_of_each(~large, large))
            return DensityPlan(clone=clone, split=split, drop=drop)

    def state_dict(self) -> dict[str, Any]:
        """The number of Gaussians at the start of training, from which the budget grows."""
        return {"start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict``."""
        self._start = int(state["start"])


def budget(iteration: int, start: int, most: int, config: DensityConfig) -> int:
    """The number of Gaussians allowed at ``iteration``.

    It grows linearly from ``start`` to ``most`` between ``from_iteration`` and ``until_iteration``, and stays at
    ``most`` afterwards.
    """
    first, last = int(config.from_iteration), int(config.until_iteration)
    progress = min(max((iteration - first) / max(last - first, 1), 0.0), 1.0)
    return min(most, math.ceil(start + (most - start) * progress))
