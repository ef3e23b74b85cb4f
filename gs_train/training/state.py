"""``TrainState``: everything that changes while a run trains, and how it is saved and restored.

Two states with equal ``state_dict`` continue to the same bits on a CPU, so every value that the next step depends on
lives here, and every random draw of a run comes from the generators here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gs_train.config.settings import TrainConfig
from gs_train.density.apply import apply_plan
from gs_train.density.registry import CONTROLLERS, controller_class
from gs_train.density.types import DensityController, DensityPlan
from gs_train.errors import UserError
from gs_train.model.gaussians import GaussianModel, check_model_state
from gs_train.model.morton import morton_codes
from gs_train.run.structure import Anything, DictOf, ListOf, check_like
from gs_train.scene.photos.cache import READ_AHEAD
from gs_train.training.background import Background
from gs_train.training.corrections import Corrections

_SMOOTHING = 0.9
"""Weight of the past in the running means of the progress bar, per logging step."""


@dataclass(kw_only=True, eq=False)
class TrainState:
    """A run between two steps."""

    model: GaussianModel
    """The Gaussians and their Adam."""
    density: DensityController
    """Density control with its statistics."""
    background: Background
    """The colour behind the Gaussians."""
    corrections: Corrections
    """Learned exposures and poses of the training views."""
    view_generator: torch.Generator
    """Draws the order of the training views."""
    density_generator: torch.Generator
    """Draws everything else: random starting points, density control, background colours."""
    iteration: int = 0
    """Number of steps taken."""
    view_order: list[int] = field(default_factory=list)
    """Training views of the coming steps as far as they are drawn; the next view is last."""
    smoothed: dict[str, float] = field(default_factory=dict)
    """Running means for the progress bar, and under ``best_psnr`` the best running mean of the PSNR."""
    elapsed_s: float = 0.0
    """Seconds in the loop, summed over all resumes."""

    def next_view(self, count: int) -> int:
        """The training view of the next render. Each of ``count`` views comes once in random order, then again in a new
        order."""
        # The next permutation is drawn early enough that the coming views are always known. Nothing else uses this
        # generator.
        while len(self.view_order) <= READ_AHEAD:
            self.view_order = torch.randperm(count, generator=self.view_generator).tolist() + self.view_order
        return self.view_order.pop()

    def coming_views(self) -> list[int]:
        """The training views of the ``READ_AHEAD`` renders after this one, the next one first."""
        return self.view_order[: -READ_AHEAD - 1 : -1]

    def draw_batch(self, size: int, count: int) -> list[tuple[int, Tensor]]:
        """View and background colour ([3] RGB, 0 to 1) of each of the ``size`` renders of a step, of ``count`` training
        views. Every process draws all of them."""
        return [(self.next_view(count), self.background.sample()) for _ in range(size)]

    def step_corrections(self, iteration: int) -> None:
        """Take an optimizer step on the background, the exposures and the poses, after ``backward``."""
        self.background.step()
        self.corrections.step(iteration)

    def apply_plan(self, plan: DensityPlan, config: TrainConfig) -> None:
        """Change the Gaussians as planned, and sort the rows along a Morton curve if their number changes.

        Raises:
            ValueError: the plan grows the model beyond ``config.max_gaussians``, or does not fit the model.
        """
        count = plan.row_count(len(self.model))
        if count > max(config.max_gaussians, len(self.model)):
            name = type(self.density).__qualname__
            raise ValueError(f"{name} plans {count:,} Gaussians but max_gaussians is {config.max_gaussians:,}")
        apply_plan(plan, self.model, self.density_generator, reset_opacity_to=config.density.reset_opacity_to)
        if plan.changes_rows():
            self.model.sort_optimizer(morton_codes(self.model.xyz))

    def finish_step(self, iteration: int, elapsed_s: float) -> None:
        """Record that the step at ``iteration`` is done, ``elapsed_s`` seconds into the loop."""
        self.iteration, self.elapsed_s = iteration, elapsed_s

    def smooth(self, name: str, value: float) -> None:
        """Update a running mean; the first value is its start."""
        past = self.smoothed.get(name, value)
        self.smoothed[name] = _SMOOTHING * past + (1.0 - _SMOOTHING) * value

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, text, lists and dicts only, so that a checkpoint loads with ``weights_only=True``. Tensors
        are not copied."""
        return {
            "iteration": self.iteration,
            "elapsed_s": self.elapsed_s,
            "smoothed": dict(self.smoothed),
            "view_order": list(self.view_order),
            "view_generator": self.view_generator.get_state(),
            "density_generator": self.density_generator.get_state(),
            "model": self.model.state_dict(),
            "density": self.density.state_dict(),
            "density_controller": type(self.density).__qualname__,
            "background": self.background.state_dict(),
            "corrections": self.corrections.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state on the device of this one.

        The state of this object is the template of the saved one: names, types and shapes must be the same, apart from
        the number of Gaussians.

        Raises:
            UserError: another class of density controller saved it.
            ValueError, RuntimeError: it is not the state of such a run. Parts of it may be restored.
        """
        saved, own = state.get("density_controller"), type(self.density).__qualname__
        if saved != own:
            raise UserError(
                f"the run was trained with the density controller {saved}, not {own}: resume it from Python with "
                f"train(..., resume=True, density={saved})."
            )
        template = self.state_dict() | {"smoothed": DictOf(0.0), "view_order": ListOf(0)}
        if type(self.density) not in map(controller_class, CONTROLLERS):
            # The state of a controller of the user's own may grow.
            template["density"] = Anything()
        check_model_state(state["model"])
        check_like(state, template, rows=(len(self.model), len(state["model"]["parameters"]["xyz"])))
        self.model.load_state_dict(state["model"])
        self.density.load_state_dict(state["density"])
        self.background.load_state_dict(state["background"])
        self.corrections.load_state_dict(state["corrections"])
        self.view_generator.set_state(state["view_generator"])
        self.density_generator.set_state(state["density_generator"])
        self.iteration = state["iteration"]
        self.elapsed_s = state["elapsed_s"]
        self.smoothed = dict(state["smoothed"])
        self.view_order = list(state["view_order"])
