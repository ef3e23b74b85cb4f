"""Scores of every Gaussian over several training views: the error it is blended into, and its contribution.

The module renders and measures only; controllers decide the changes. It leaves every gradient untouched: of the model,
of learned poses and of learned exposures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gs_train.density.types import Views
from gs_train.losses import apply_mask
from gs_train.model.gaussians import GaussianModel
from gs_train.model.spherical_harmonics import SH_C0


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewScores:
    """Scores of N Gaussians over some views."""

    error: Tensor
    """[N] float32, px: sum of blending weight times pixel error, over the pixels with a high error of all views."""
    contribution: Tensor
    """[N] float32, px: largest per-view sum of blending weights (alpha times transmittance)."""
    seen: Tensor
    """[N] bool: whether at least one of the views sees the Gaussian."""


def draw_views(views: Views, count: int, generator: torch.Generator) -> list[int]:
    """Indices of at most ``count`` different views, in random order."""
    return torch.randperm(len(views), generator=generator)[:count].tolist()


def score_views(
    model: GaussianModel, views: Views, indices: list[int], high_error: float, background: Tensor
) -> ViewScores:
    """Render some views and distribute their pixel errors to the Gaussians.

    The blending weight of a Gaussian in a pixel is the derivative of the pixel's colour by the Gaussian's colour. So a
    copy of the model in one grey is rendered, and its backward pass sums any per-pixel quantity by blending weight when
    that quantity is the gradient of the image. This works with every rasterizer and costs as much as a training step
    per view.

    Args:
        model: left unchanged.
        views: the training views.
        indices: views to render.
        high_error: pixels with a mean absolute error (0 to 1) above this count.
        background: [3] RGB, 0 to 1.
    """
    count, device = len(model), model.device
    error_sum, contribution = torch.zeros(count, device=device), torch.zeros(count, device=device)
    seen = torch.zeros(count, dtype=torch.bool, device=device)
    grey = {name: tensor.detach() for name, tensor in model.parameters.items()}
    grey["f_dc"], grey["f_rest"] = torch.zeros_like(grey["f_dc"]), grey["f_rest"][:, :0]

    def measure(index: int) -> Tensor:
        """[3, N] error, contribution and visibility in one view."""
        with torch.no_grad():
            photo, weights = views.photo(index, background)
            image = views.exposed(views.render(model, index, background).image, index)
            error = (apply_mask(image, photo, weights) - photo).abs().mean(dim=2)
        probe = GaussianModel(grey)
        render = views.render(probe, index, background)
        high = torch.where(error > high_error, error, 0.0)
        # Red carries the high errors, green the number 1 in every pixel.
        weights_of = torch.stack([high, torch.ones_like(error), torch.zeros_like(error)], dim=2)
        # Learned poses take part in the render. A gradient on them would enter their next step.
        (gradient,) = torch.autograd.grad(render.image, [probe.f_dc], weights_of)
        visible = render.visible()
        # The gradient of rows that the view does not see is undefined.
        by_weight = torch.where(visible, gradient[:, 0].T / SH_C0, 0.0)
        return torch.cat([by_weight[:2], visible[None]])

    for by_error, by_weight, visible in views.map(measure, indices):
        error_sum += by_error
        contribution = torch.maximum(contribution, by_weight)
        seen |= visible > 0
    return ViewScores(error=error_sum, contribution=contribution, seen=seen)
