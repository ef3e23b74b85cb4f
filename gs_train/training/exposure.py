"""Exposure: a colour transform of its own for every training photo, so that a camera that meters anew does not become part of the scene.

A render is multiplied by a 3x3 matrix and shifted before it is compared with its photo. Only training photos have one: a test view is
rendered as it is. The invariant: the mean of all transforms is the identity, so that the splat keeps the mean look of the photos.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gs_train.model.schedule import get_expon_lr_func
from gs_train.training.per_view import PerView

_LR_INIT, _LR_FINAL = 0.01, 0.001
"""A gain of 30 % takes a view some thirty visits."""


class Exposure(PerView):
    """An affine colour transform per training view, [V, 3, 4]."""

    def __init__(self, views: int, iterations: int, device: torch.device | str) -> None:
        """Start from the identity; the rate decays over ``iterations``."""
        self._identity = torch.eye(3, 4, device=device)
        super().__init__(
            self._identity.expand(views, 3, 4), get_expon_lr_func(_LR_INIT, _LR_FINAL, max_steps=iterations)
        )

    def exposed(self, image: Tensor, index: int) -> Tensor:
        """[H, W, 3]: a render from training view ``index`` as that photo was exposed; not clamped."""
        transform = self.zero_mean(index, self._identity)
        return image @ transform[:, :3].T + transform[:, 3]
