"""Small tensors of which every training view has its own, and the Adam that steps them.

A step touches the view that was used and no other: each has moments and a count of steps of its own, so a view that comes up every
hundredth iteration learns like one that comes up every second one. The invariant: what ``centred`` gives has the mean it was asked for,
over all views, so that what the views have in common stays with the Gaussians.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


class PerView:
    """A tensor for each of V views, learned."""

    def __init__(self, start: Tensor, rate_at: Callable[[int], float]) -> None:
        """Start every view from the same values.

        Args:
            start: [V, ...]; copied.
            rate_at: iteration -> learning rate.
        """
        self._values, self._rate_at = start.detach().clone(), rate_at
        # Each parameter is a window on its row, so the mean over all needs no gathering.
        self._parameters = [Parameter(row) for row in self._values]
        self._optimizer = torch.optim.Adam(self._parameters)

    def zero_mean(self, index: int, mean: Tensor) -> Tensor:
        """The tensor of view ``index``, moved as all would have to be for them to have this mean; differentiable by its own values."""
        return self._parameters[index] - (self._values.mean(dim=0) - mean)

    def step(self, iteration: int) -> None:
        """Take a step on the views used since the last one, after ``backward``."""
        self._optimizer.param_groups[0]["lr"] = self._rate_at(iteration)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Values and moments; the values are copied."""
        return {"values": self._values.clone(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave for as many views."""
        with torch.no_grad():
            self._values.copy_(state["values"])
        self._optimizer.load_state_dict(state["optimizer"])
