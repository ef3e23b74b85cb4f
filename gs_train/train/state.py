"""TrainState: everything that changes while a run trains, and how it starts, is saved and is taken up again.

Not the loop and not the files. The invariant: two states with equal ``state_dict`` go on to the same bits on a CPU, so nothing that the
next step depends on may live elsewhere. Every random draw of a run comes from the generators held here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gs_train.density import mcmc
from gs_train.density.classic import ClassicDensity
from gs_train.density.multiview import MultiviewDensity
from gs_train.density.types import DensityController, Views
from gs_train.model.gaussians import GaussianModel
from gs_train.model.initialise import START_OPACITY, initialise_model
from gs_train.scene.cache import READ_AHEAD
from gs_train.scene.load import camera_centres
from gs_train.scene.types import Scene
from gs_train.train.background import Background
from gs_train.train.config import TrainConfig

_SMOOTHING = 0.9
"""Weight of the past in the smoothed numbers of the progress bar, per logging step."""


@dataclass(kw_only=True, eq=False)
class TrainState:
    """A run between two steps."""

    model: GaussianModel
    """The Gaussians and their Adam."""
    density: DensityController
    """Where to add and remove, with its statistics."""
    background: Background
    """What is rendered over."""
    view_generator: torch.Generator
    """Draws the order of the training views."""
    density_generator: torch.Generator
    """Draws all else that is random: starting points, what density control draws, backgrounds."""
    iteration: int = 0
    """Steps taken."""
    view_order: list[int] = field(default_factory=list)
    """Training views to come, as far as they are drawn; taken from the end."""
    smoothed: dict[str, float] = field(default_factory=dict)
    """Running means of what the progress bar shows."""
    elapsed_s: float = 0.0
    """Seconds spent in the loop so far, over all resumes."""

    def next_view(self, count: int) -> int:
        """The training view of the next step: each of ``count`` views once, in random order, then again in another."""
        # The next permutation is drawn early enough that the steps to come are always known; the generator serves nothing else.
        while len(self.view_order) <= READ_AHEAD:
            self.view_order = torch.randperm(count, generator=self.view_generator).tolist() + self.view_order
        return self.view_order.pop()

    def coming_views(self) -> list[int]:
        """The training views of the ``READ_AHEAD`` steps after this one, the next one first."""
        return self.view_order[: -READ_AHEAD - 1 : -1]

    def smooth(self, name: str, value: float) -> None:
        """Blend a new value into a running mean; the first value stands for itself."""
        past = self.smoothed.get(name, value)
        self.smoothed[name] = _SMOOTHING * past + (1.0 - _SMOOTHING) * value

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, text, lists and dicts only, so that a checkpoint loads with ``weights_only=True``. Tensors are not copied."""
        return {
            "iteration": self.iteration,
            "elapsed_s": self.elapsed_s,
            "smoothed": dict(self.smoothed),
            "view_order": list(self.view_order),
            "view_generator": self.view_generator.get_state(),
            "density_generator": self.density_generator.get_state(),
            "model": self.model.state_dict(),
            "density": self.density.state_dict(),
            "background": self.background.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state, on the device of this one.

        Raises:
            KeyError, ValueError: the state is not one of ours, or does not fit.
        """
        self.model.load_state_dict(state["model"])
        self.density.load_state_dict(state["density"])
        self.background.load_state_dict(state["background"])
        self.view_generator.set_state(state["view_generator"])
        self.density_generator.set_state(state["density_generator"])
        self.iteration = state["iteration"]
        self.elapsed_s = state["elapsed_s"]
        self.smoothed = dict(state["smoothed"])
        self.view_order = list(state["view_order"])


def start_state(scene: Scene, config: TrainConfig, device: torch.device, views: Views) -> TrainState:
    """The state before the first step.

    Args:
        scene: where to take the points and the extent from.
        config: resolved.
        device: where the Gaussians live. The generators live on the CPU, so that a seed means the same everywhere.
        views: the training views, for a density control that looks at several of them.
    """
    # Two streams, so that a change of density control does not change the order of the views. Even and odd seeds keep them apart.
    view_generator = torch.Generator().manual_seed(2 * config.seed)
    density_generator = torch.Generator().manual_seed(2 * config.seed + 1)
    sampled = config.density.kind == "mcmc"
    model = initialise_model(
        scene.points,
        sh_degree=config.sh_degree,
        extent=scene.extent,
        camera_centres=camera_centres(scene.train_views),
        max_gaussians=config.max_gaussians,
        generator=density_generator,
        device=device,
        opacity=mcmc.START_OPACITY if sampled else START_OPACITY,
        scale=mcmc.START_SCALE if sampled else 1.0,
    )
    model.training_setup(config.optimizer)
    return TrainState(
        model=model,
        density=_density(scene, config, model, views, density_generator),
        background=Background(config.background, density_generator, device),
        view_generator=view_generator,
        density_generator=density_generator,
    )


def _density(scene: Scene, config: TrainConfig, model: GaussianModel, views: Views, generator: torch.Generator) -> DensityController:
    if config.density.kind == "mcmc":
        return mcmc.McmcDensity(config.density, max_gaussians=config.max_gaussians, generator=generator)
    if config.density.kind == "multiview":
        return MultiviewDensity(
            config.density,
            extent=scene.extent,
            max_gaussians=config.max_gaussians,
            start=len(model),
            views=views,
            generator=generator,
        )
    return ClassicDensity(
        config.density,
        extent=scene.extent,
        max_gaussians=config.max_gaussians,
        count=len(model),
        device=model.device,
        white_background=config.background == "white",
    )
