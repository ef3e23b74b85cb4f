"""The colour behind the Gaussians: black, white, a random colour each step, or a colour learned with the Gaussians."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gs_train.config.settings import BackgroundKind
from gs_train.model import optimizer as door

_LEARNING_RATE = 0.01
"""Of the logit of a learned colour. Some hundred steps cross the range, fewer than the Gaussians need to settle."""


class Background:
    """The background colour of a run, [3] RGB, 0 to 1."""

    def __init__(self, kind: BackgroundKind, generator: torch.Generator, device: torch.device | str) -> None:
        """Start; a learned colour starts from mid grey.

        Args:
            kind: see ``--background``.
            generator: on the CPU; draws random colours and is saved by its owner.
            device: device of the colours.
        """
        self._kind, self._generator, self._device = kind, generator, torch.device(device)
        self._logit = torch.zeros(3, device=self._device, requires_grad=kind == "learned")
        self._optimizer = torch.optim.Adam([self._logit], lr=_LEARNING_RATE) if kind == "learned" else None
        if self._optimizer is not None:
            door.start_moments(self._optimizer)

    def sample(self) -> Tensor:
        """The colour of the next render in training; differentiable if it is learned."""
        if self._kind == "random":
            # A copy that does not block: the GPU may still be busy with the step before.
            return torch.rand(3, generator=self._generator).to(self._device, non_blocking=True)
        return self._logit.sigmoid() if self._kind == "learned" else self.eval_color()

    def eval_color(self) -> Tensor:
        """The colour for evaluation: the learned colour, or black if training used random colours."""
        if self._kind == "learned":
            return self._logit.detach().sigmoid()
        return torch.full((3,), 1.0 if self._kind == "white" else 0.0, device=self._device)

    def parameters(self) -> list[Tensor]:
        """The logit of a learned colour, which renders send gradients to."""
        return [self._logit] if self._optimizer is not None else []

    def step(self) -> None:
        """Take an Adam step on a learned colour, after ``backward``."""
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """``eval_color`` for every program that renders a checkpoint, and the optimizer of a learned colour. Tensors
        are copied."""
        state: dict[str, Any] = {"eval_color": self.eval_color().clone()}
        if self._optimizer is not None:
            state |= {"logit": self._logit.detach().clone(), "moments": door.dump_moments(self._optimizer)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict`` for the same kind."""
        if self._optimizer is not None:
            with torch.no_grad():
                self._logit.copy_(state["logit"])
            door.load_moments(self._optimizer, state["moments"])
