"""The interface of density control: the controller protocol, the setup it receives, the plan it returns.

A controller never changes the model. ``measure`` and ``observe`` collect statistics from renders, ``plan`` names rows
to change, and ``apply.apply_plan`` changes them. Row numbers in a plan refer to the model as it was when ``plan`` was
called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from gs_train.density.config import DensityConfig, check_resolved
from gs_train.model.gaussians import GaussianModel
from gs_train.render.types import RenderOutput

SPLIT_CHILDREN = 2
"""Number of Gaussians that replace a split one (3DGS paper, section 5.2)."""
SPLIT_SHRINK = 0.8 * SPLIT_CHILDREN
"""The scales of a child are the scales of its parent divided by this (original: 0.8 N = 1.6)."""


def _no_rows() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class DensityPlan:
    """Changes to the rows of a model. A row appears at most once in clone, split, relocate and drop together."""

    clone: Tensor = field(default_factory=_no_rows)
    """[C] int64, rows to duplicate unchanged."""
    split: Tensor = field(default_factory=_no_rows)
    """[S] int64, rows to replace by two smaller Gaussians."""
    relocate: Tensor = field(default_factory=_no_rows)
    """[K] int64, rows split into n identical copies with the same total appearance. The original row keeps its Adam
    moments. The copies start with zero moments, or they would move in lockstep with it."""
    relocate_into: Tensor = field(default_factory=_no_rows)
    """[K] int64, n for each row of ``relocate``; at least 2. On the CPU, its sum needs no wait for a GPU."""
    drop: Tensor = field(default_factory=_no_rows)
    """[D] int64, rows to prune."""
    reset_opacity: bool = False
    """Whether to lower every opacity after the other changes."""
    shift: Tensor | None = None
    """[N, 3] added to the positions before the other changes, world units. Adam's moments stay."""

    def changes_rows(self) -> bool:
        """Whether the plan adds or removes rows."""
        return any(len(rows) > 0 for rows in (self.clone, self.split, self.relocate, self.drop))

    def copy_count(self) -> int:
        """The number of rows that relocation adds."""
        return int(self.relocate_into.sum()) - len(self.relocate)

    def row_count(self, count: int) -> int:
        """The number of rows of a model of ``count`` rows after the plan."""
        children = (SPLIT_CHILDREN - 1) * len(self.split)
        return count + len(self.clone) + children + self.copy_count() - len(self.drop)


class Views(Protocol):
    """The training views, for controllers that render several of them in one round."""

    def __len__(self) -> int: ...

    def photo(self, index: int, background: Tensor) -> tuple[Tensor, Tensor | None]:
        """The photo of view ``index`` at the current training size, composited over ``background`` ([3] RGB, 0 to 1).

        Returns:
            [H, W, 3] float32, 0 to 1; and pixel weights [H, W, 1], 0 to 1, or None if every pixel counts fully.
        """
        ...

    def render(self, model: GaussianModel, index: int, background: Tensor) -> RenderOutput:
        """Render the model from the camera of view ``index``, at the photo's size."""
        ...

    def exposed(self, image: Tensor, index: int) -> Tensor:
        """[H, W, 3], a render of view ``index`` with the learned exposure of its photo."""
        ...

    def map(self, function: Callable[[int], Tensor], indices: Iterable[int]) -> Iterator[Tensor]:
        """The results of ``function`` for some views, in the order of their indices.

        Several processes share the work, so use it for all renders of a round.

        Args:
            function: index of a view -> a float32 tensor, of one shape for all views.
            indices: the views, the same in every process.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class DensitySetup:
    """Everything a controller may use throughout a run.

    Raises:
        ValueError: a schedule point is still a fraction, or ``max_gaussians`` is below 1.
    """

    config: DensityConfig
    """Settings, with whole iterations in every schedule point."""
    max_gaussians: int
    """Upper limit of the number of Gaussians."""
    extent: float
    """The scene's extent, world units."""
    gaussians: int
    """Number of Gaussians at the start."""
    photo_pixels: int
    """Number of pixels of all training photos at full training size."""
    white_background: bool
    """Whether training composites over white."""
    views: Views
    """The training views."""
    generator: torch.Generator
    """Source of every random draw. It lives on the CPU and is saved in checkpoints."""
    device: torch.device
    """Device of the model."""

    def __post_init__(self) -> None:
        """Check once for every controller."""
        check_resolved(self.config, self.max_gaussians)


class DensityController(Protocol):
    """Plans where Gaussians are added and removed. ``train(..., density=MyController)`` uses a class of your own.

    ``examples/`` has a complete controller. Every number that changes during training belongs in ``state_dict``, so
    that a resumed run continues exactly.
    """

    needs_absgrad: ClassVar[bool]
    """Whether ``measure`` reads absolute gradients; the renderer computes it only then."""

    def __init__(self, setup: DensitySetup) -> None: ...

    def regulariser(self, model: GaussianModel) -> Tensor | None:
        """A scalar to add to the loss, or None."""
        ...

    def measure(self, render: RenderOutput) -> Tensor:
        """The statistics of one view after its backward pass (``render.screen_gradient`` is known).

        Returns:
            float32, of one shape for all views of a step; an empty tensor if the controller keeps no statistics.
        """
        ...

    def observe(self, measured: Tensor) -> None:
        """Collect the result of ``measure`` for one view. Several processes measure different views, and each process
        observes all views in their order."""
        ...

    def plan(self, model: GaussianModel, iteration: int, background: Tensor) -> DensityPlan | None:
        """Changes to make after this iteration, or None.

        Args:
            model: the Gaussians after the Adam step; must not be changed.
            iteration: the step just taken, from 1.
            background: [3] RGB of this step, for renders of the controller's own.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors to resume from; loadable with ``weights_only=True``."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict``."""
        ...


def rows_of(mask: Tensor) -> Tensor:
    """[M] int64 rows where the [N] mask is true."""
    return mask.nonzero().squeeze(1)


def rows_of_each(*masks: Tensor) -> list[Tensor]:
    """``rows_of`` for several masks [N], with a single wait for a GPU: for the numbers of rows."""
    counts = torch.stack([mask.sum() for mask in masks]).tolist()
    return [
        # Before torch 2.10, nonzero_static of a mask without rows fails on a GPU.
        mask.nonzero_static(size=count).squeeze(1) if count else mask.new_empty(0, dtype=torch.int64)
        for mask, count in zip(masks, counts, strict=True)
    ]


def spare_one(drop: Tensor, opacities: Tensor) -> Tensor:
    """The mask ``drop`` [N], without the most opaque row (the lower of equal rows) if it covers every row.

    An empty model cannot learn any more.
    """
    if len(drop) == 0:
        return drop
    # Without a branch on the values, which would make the program wait for a GPU.
    return torch.where(drop.all(), drop.index_fill(0, opacities.argmax(), False), drop)
