"""Adam that steps only the rows that a view sees, each with a count of steps of its own.

An ordinary Adam moves the others too, by what is left of their momentum, and lets their second moments fade. The invariant: a row that is
seen k times has, to rounding, what an ordinary Adam that ran for those k steps alone would have given it, bias correction included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_BETAS = (0.9, 0.999)


class VisibleAdam(torch.optim.Optimizer):
    """One tensor per group, rows first. State of each: ``exp_avg`` and ``exp_avg_sq`` like the tensor, ``steps`` [N, 1, ...] float32."""

    def __init__(self, groups: Sequence[dict[str, Any]], *, eps: float) -> None:
        """``groups``: with ``params``, ``lr`` and ``name`` each."""
        super().__init__(groups, {"lr": 0.0, "eps": eps})

    @torch.no_grad()
    def step(self, visible: Tensor) -> None:  # type: ignore[override]
        """Take a step on the rows where ``visible`` ([N] bool) is true; tensors without a gradient are left out."""
        rows = visible.nonzero().squeeze(1)
        first, second = _BETAS
        for group in self.param_groups:
            (parameter,) = group["params"]
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["steps"] = parameter.new_zeros(len(parameter), *[1] * (parameter.dim() - 1))
            gradient = parameter.grad[rows]
            steps = state["steps"][rows].add_(1.0)
            mean = state["exp_avg"][rows].lerp_(gradient, 1.0 - first)
            square = state["exp_avg_sq"][rows].mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
            for name, values in (("steps", steps), ("exp_avg", mean), ("exp_avg_sq", square)):
                state[name][rows] = values
            denominator = square.div_(1.0 - second**steps).sqrt_().add_(group["eps"])
            parameter[rows] -= mean.div_(1.0 - first**steps).mul_(group["lr"]).div_(denominator)
