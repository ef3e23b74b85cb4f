"""What several training views say of every Gaussian: how much of the error that remains is its, and how much it contributes at all.

It looks and changes nothing; controllers decide. The invariant: no view is rendered but those asked for, and no gradient of the model is
touched.
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
    """What some views say of each Gaussian; [N] each."""

    error: Tensor
    """Its share in the pixels whose error is high, times that error, summed over pixels and views; float32, px."""
    share: Tensor
    """Its share in the pixels of the view that it has most of: alpha times the light that is left in front of it, summed; float32, px."""
    seen: Tensor
    """Whether it is in one of the views; bool."""


def draw_views(views: Views, count: int, generator: torch.Generator) -> list[int]:
    """Numbers of at most ``count`` different views."""
    return torch.randperm(len(views), generator=generator)[:count].tolist()


def score_views(model: GaussianModel, views: Views, indices: list[int], high_error: float) -> ViewScores:
    """Render the views and distribute their errors to the Gaussians.

    A Gaussian's share in a pixel is the derivative of the pixel's colour by the Gaussian's. So a copy of the model in one grey is
    rendered, and its backward pass, with the errors as the image's gradient, sums them by share: on any rasterizer, at the price of a
    training step.

    Args:
        model: not changed.
        views: where to look.
        indices: which of them.
        high_error: mean absolute error of a pixel, 0..1, from which on it counts.
    """
    count, device = len(model), model.device
    error_sum, most = torch.zeros(count, device=device), torch.zeros(count, device=device)
    seen = torch.zeros(count, dtype=torch.bool, device=device)
    grey = {name: tensor.detach() for name, tensor in model.parameters.items()}
    grey["f_dc"], grey["f_rest"] = torch.zeros_like(grey["f_dc"]), grey["f_rest"][:, :0]
    for index in indices:
        with torch.no_grad():
            photo, weight = views.photo(index)
            image = views.exposed(views.render(model, index).image, index)
            error = (apply_mask(image, photo, weight) - photo).abs().mean(dim=2)
        probe = GaussianModel(grey)
        render = views.render(probe, index)
        high = torch.where(error > high_error, error, 0.0)
        render.image.backward(torch.stack([high, torch.ones_like(error), torch.zeros_like(error)], dim=2))
        assert probe.f_dc.grad is not None
        visible = render.visible()
        # Rows that the view does not see may hold anything.
        of_high, of_all, _ = torch.where(visible, probe.f_dc.grad[:, 0].T / SH_C0, 0.0)
        error_sum += of_high
        most = torch.maximum(most, of_all)
        seen |= visible
    return ViewScores(error=error_sum, share=most, seen=seen)
