"""What density controllers share: the plan they return, and what a split means.

A controller never touches the model. It watches renders (``observe``), and at its iterations says what to change (``plan``). The
invariant: a plan's row numbers refer to the model as it was when ``plan`` was called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from gs_train.model.gaussians import GaussianModel
from gs_train.render.types import RenderOutput
from gs_train.scene.types import Camera

SPLIT_CHILDREN = 2
"""How many Gaussians take the place of a split one (paper, section 5.2)."""
SPLIT_SHRINK = 0.8 * SPLIT_CHILDREN
"""A child's scales are its parent's divided by this (original: 0.8 N = 1.6)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DensityPlan:
    """What to change, in rows of the model as it stands. A row is in at most one of clone, split and drop."""

    clone: Tensor
    """[C] int64 rows to duplicate as they are."""
    split: Tensor
    """[S] int64 rows to replace by two smaller ones."""
    drop: Tensor
    """[D] int64 rows to remove."""
    reset_opacity: bool
    """Whether to lower every opacity afterwards."""


class DensityController(Protocol):
    """Watches training and plans where Gaussians are needed or useless."""

    def observe(self, render: RenderOutput, camera: Camera) -> None:
        """Take in one view after its backward pass (``render.means2d.grad`` is there)."""
        ...

    def plan(self, model: GaussianModel, iteration: int) -> DensityPlan | None:
        """Say what to change after this iteration (counted from 1), or None. A round of densification also clears the statistics."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
