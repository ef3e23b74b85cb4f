"""What density controllers share: the plan they return, what they may look at, what a split means, and how rows are chosen.

A controller never touches the model. It watches renders (``observe``), and at its iterations says what to change (``plan``). The
invariant: a plan's row numbers refer to the model as it was when ``plan`` was called.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from gs_train.model.gaussians import GaussianModel
from gs_train.render.types import RenderOutput
from gs_train.scene.types import Camera

SPLIT_CHILDREN = 2
"""How many Gaussians take the place of a split one (paper, section 5.2)."""
SPLIT_SHRINK = 0.8 * SPLIT_CHILDREN
"""A child's scales are its parent's divided by this (original: 0.8 N = 1.6)."""


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class DensityPlan:
    """What to change, in rows of the model as it stands. A row is in at most one of clone, split, divide and drop."""

    clone: Tensor = field(default_factory=_none)
    """[C] int64 rows to duplicate as they are."""
    split: Tensor = field(default_factory=_none)
    """[S] int64 rows to replace by two smaller ones."""
    relocate: Tensor = field(default_factory=_none)
    """[K] int64 rows that become several equal ones, which in one place would look like the one. The row itself stays as one of
    them and keeps its moments: with equal moments they would never part."""
    relocate_into: Tensor = field(default_factory=_none)
    """[K] int64, how many each of them becomes; at least 2."""
    drop: Tensor = field(default_factory=_none)
    """[D] int64 rows to remove."""
    reset_opacity: bool = False
    """Whether to lower every opacity afterwards."""
    shift: Tensor | None = None
    """[N, 3] to add to the positions before anything else, world units; Adam's moments stay."""

    def changes_rows(self) -> bool:
        """Whether rows come or go."""
        return any(len(rows) > 0 for rows in (self.clone, self.split, self.relocate, self.drop))

    def row_count(self, count: int) -> int:
        """How many rows a model of ``count`` has afterwards."""
        relocated = int(self.relocate_into.sum()) - len(self.relocate)
        return count + len(self.clone) + (SPLIT_CHILDREN - 1) * len(self.split) + relocated - len(self.drop)


class Views(Protocol):
    """The training views, for controllers that look at several of them at once."""

    def __len__(self) -> int: ...

    def photo(self, index: int) -> tuple[Tensor, Tensor | None]:
        """[H, W, 3] float32 in 0..1, at the size that is trained now; and [H, W, 1] how much each pixel counts, None for all."""
        ...

    def render(self, model: GaussianModel, index: int) -> RenderOutput:
        """The model from the photo's camera, at its size."""
        ...

    def exposed(self, image: Tensor, index: int) -> Tensor:
        """[H, W, 3] of that render as it is to be compared with the photo."""
        ...


class DensityController(Protocol):
    """Watches training and plans where Gaussians are needed or useless."""

    def regulariser(self, model: GaussianModel) -> Tensor | None:
        """A scalar to add to the loss, or None."""
        ...

    def observe(self, render: RenderOutput, camera: Camera) -> None:
        """Take in one view after its backward pass (``render.means2d.grad`` is there)."""
        ...

    def plan(self, model: GaussianModel, iteration: int) -> DensityPlan | None:
        """Say what to change after this iteration (counted from 1), or None. A round of densification also clears the statistics."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def rows_of(mask: Tensor) -> Tensor:
    """[M] int64 rows where the [N] mask is true."""
    return mask.nonzero().squeeze(1)


def spare_one(drop: Tensor, opacities: Tensor) -> Tensor:
    """``drop``, less the most opaque row (ties to the lower) where every row would go: an empty model cannot learn any more."""
    if len(drop) == 0 or not bool(drop.all()):
        return drop
    spared = drop.clone()
    spared[opacities.sort(descending=True, stable=True).indices[0]] = False
    return spared
