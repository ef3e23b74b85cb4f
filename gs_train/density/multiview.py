"""Density control by what several training views say of a Gaussian: does error remain where it contributes, and does it contribute at all?

The idea is that of FastGS (arXiv 2511.04283): a single view's gradient asks for many Gaussians that other views have no use for. Here a
round renders some training views, takes each pixel's error, and gives every Gaussian the error of the pixels it is blended into, by its
share in them. Those with most of it grow, as many as the budget of that iteration allows; those whose share is nothing anywhere go.
They go once, when growth ends, and by many views: rounds that ask a few views each would in the end leave only what all of them need. The
invariant: the statistics are made in the round itself, so nothing but the generator is carried from one round to the next.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gs_train.density.config import DensityConfig, check_resolved
from gs_train.density.scores import draw_views, score_views
from gs_train.density.types import DensityPlan, Views, rows_of, spare_one
from gs_train.model.gaussians import GaussianModel
from gs_train.render.types import RenderOutput
from gs_train.scene.types import Camera

_LAST_LOOK = 10
"""The last round looks at so many times the views that the others look at."""
PIXELS_PER_GAUSSIAN = 40
"""Of the training photos, for each Gaussian that the budget grows to: two measured numbers for each of its 59 parameters. With fewer, the
photos are learnt by heart."""


class MultiviewDensity:
    """Grow where error remains, drop what no view needs; both by some training views at a time."""

    def __init__(
        self,
        config: DensityConfig,
        *,
        extent: float,
        max_gaussians: int,
        pixels: int,
        start: int,
        views: Views,
        generator: torch.Generator,
    ) -> None:
        """Keep the settings.

        Args:
            config: with whole iterations in every schedule field.
            extent: the scene's extent, world units.
            max_gaussians: the number that the budget grows to, where there are pixels enough.
            pixels: of all training photos, at the size that is trained at in the end.
            start: the number of Gaussians that training starts from.
            views: the training views.
            generator: on the CPU; draws the views of a round, saved by its owner.

        Raises:
            ValueError: a schedule field is still a fraction, or ``max_gaussians`` is below 1.
        """
        check_resolved(config, max_gaussians)
        self.config = config
        self._extent, self._start = extent, start
        self._most = min(max_gaussians, pixels // PIXELS_PER_GAUSSIAN)
        self._views, self._generator = views, generator

    def regulariser(self, model: GaussianModel) -> Tensor | None:
        """None: the loss is the photometric one."""
        return None

    def observe(self, render: RenderOutput, camera: Camera) -> None:
        """Nothing: a round looks for itself."""

    def plan(self, model: GaussianModel, iteration: int) -> DensityPlan | None:
        """In a round, look at some views, and say what grows; in the last one look at more of them, and say what goes."""
        config = self.config
        if not config.is_round(iteration, config.until_iteration + config.interval):
            return None
        last = iteration >= config.until_iteration
        views = draw_views(self._views, config.score_views * (_LAST_LOOK if last else 1), self._generator)
        scores = score_views(model, self._views, views, config.high_error)
        with torch.no_grad():
            opacities, largest_scale = model.opacities(), model.scales().amax(dim=1)
            weak = opacities < config.min_opacity
            if last:
                return DensityPlan(
                    drop=rows_of(spare_one(weak | (scores.seen & (scores.share < config.min_contribution)), opacities))
                )
            drop = spare_one(weak, opacities)
            room = budget(iteration, self._start, self._most, config) - len(model) + int(drop.sum())
            score = torch.where(drop, 0.0, scores.error)
            # Each round at most doubles what is hot; ties go to the lower row.
            candidates = rows_of(score > 0)
            best = candidates[score[candidates].sort(descending=True, stable=True).indices[: max(room, 0)]]
            large = largest_scale[best] > config.percent_dense * self._extent
            return DensityPlan(clone=best[~large], split=best[large], drop=rows_of(drop))

    def state_dict(self) -> dict[str, Any]:
        """The number that training started from; nothing else is carried from round to round."""
        return {"start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave. Older checkpoints hold nothing: their runs started from the points, as this one does."""
        self._start = int(state.get("start", self._start))


def budget(iteration: int, start: int, most: int, config: DensityConfig) -> int:
    """How many Gaussians there may be at ``iteration``: a straight line from ``start`` to ``most`` over the window of densification, at
    the end of which it stays."""
    first, last = int(config.from_iteration), int(config.until_iteration)
    progress = min(max((iteration - first) / max(last - first, 1), 0.0), 1.0)
    return min(most, math.ceil(start + (most - start) * progress))
