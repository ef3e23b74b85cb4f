"""TrainState: everything that changes while a run trains, and how it starts, is saved and is taken up again.

Not the loop and not the files. The invariant: two states with equal ``state_dict`` go on to the same bits on a CPU, so nothing that the
next step depends on may live elsewhere. Every random draw of a run comes from the generators held here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gs_train.config.settings import TrainConfig
from gs_train.density.classic import ClassicDensity
from gs_train.density.mcmc import McmcDensity
from gs_train.density.multiview import MultiviewDensity
from gs_train.density.types import DensityController, Views
from gs_train.errors import UserError
from gs_train.formats.ply import read_ply
from gs_train.model.gaussians import GaussianModel, describe_non_finite
from gs_train.model.initialise import initialise_model
from gs_train.model.spherical_harmonics import rest_count
from gs_train.scene.extent import initial_bounds
from gs_train.scene.photos.cache import READ_AHEAD
from gs_train.scene.types import Scene
from gs_train.training.background import Background
from gs_train.training.exposure import Exposure
from gs_train.training.poses import PoseRefinement

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
    exposure: Exposure | None
    """The photos' exposures, where they are learned."""
    poses: PoseRefinement | None
    """The cameras' corrections, where they are learned."""
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

    def step_corrections(self, iteration: int) -> None:
        """Take a step on what is learned besides the Gaussians, after ``backward``."""
        self.background.step()
        for each in (self.exposure, self.poses):
            if each is not None:
                each.step(iteration)

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
            "exposure": None if self.exposure is None else self.exposure.state_dict(),
            "poses": None if self.poses is None else self.poses.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state, on the device of this one.

        Raises:
            KeyError, ValueError: the state is not one of ours, or does not fit.
        """
        self.model.load_state_dict(state["model"])
        self.density.load_state_dict(state["density"])
        self.background.load_state_dict(state["background"])
        for name, each in (("exposure", self.exposure), ("poses", self.poses)):
            if each is not None:
                each.load_state_dict(state[name])
        self.view_generator.set_state(state["view_generator"])
        self.density_generator.set_state(state["density_generator"])
        self.iteration = state["iteration"]
        self.elapsed_s = state["elapsed_s"]
        self.smoothed = dict(state["smoothed"])
        self.view_order = list(state["view_order"])


def start_state(
    scene: Scene, config: TrainConfig, device: torch.device, views: Views, *, resumed: bool = False
) -> TrainState:
    """The state before the first step.

    Args:
        scene: where to take the points and the extent from.
        config: resolved.
        device: where the Gaussians live. The generators live on the CPU, so that a seed means the same everywhere.
        views: the training views, for a density control that looks at several of them.
        resumed: a saved state is loaded next, so the splat of ``config.init_from`` need not be there any more.

    Raises:
        UserError: the splat to start from cannot be read, or does not fit ``config``.
    """
    # Two streams, so that a change of density control does not change the order of the views. Even and odd seeds keep them apart.
    view_generator = torch.Generator().manual_seed(2 * config.seed)
    density_generator = torch.Generator().manual_seed(2 * config.seed + 1)
    if config.init_from and not resumed:
        model = _model_of(Path(config.init_from), config, scene.extent, device)
    else:
        model = initialise_model(
            scene.points,
            sh_degree=config.sh_degree,
            extent=scene.extent,
            box=initial_bounds(scene.train_views, scene.extent),
            max_gaussians=config.max_gaussians,
            generator=density_generator,
            device=device,
        )
    model.training_setup(config.optimizer)
    count = len(scene.train_views)
    return TrainState(
        model=model,
        density=_density(scene, config, model, views, density_generator),
        background=Background(config.background, density_generator, device),
        exposure=Exposure(count, config.iterations, device) if config.exposure == "affine" else None,
        poses=PoseRefinement(count, config.iterations, scene.extent, device) if config.refine_poses else None,
        view_generator=view_generator,
        density_generator=density_generator,
    )


def _model_of(path: Path, config: TrainConfig, extent: float, device: torch.device) -> GaussianModel:
    """A splat file as the model to start from, with room for the SH degree of ``config``."""
    data = read_ply(path)
    if not 0 < len(data) <= config.max_gaussians:
        raise UserError(
            f"--init-from {path} holds {len(data):,} Gaussians, and --max-gaussians {config.max_gaussians} allows 1 to that many: "
            "raise it, or choose another splat."
        )
    if data.sh_degree > config.sh_degree:
        raise UserError(
            f"--init-from {path} has SH degree {data.sh_degree}: train it with --sh-degree {data.sh_degree}, not less."
        )
    if data.antialiased != config.antialiased:
        raise UserError(
            f"--init-from {path} was trained {'with' if data.antialiased else 'without'} --antialiased: go on in the same way."
        )
    wanting = rest_count(config.sh_degree) - data.f_rest.shape[1]
    roomy = replace(data, f_rest=np.pad(data.f_rest, ((0, 0), (0, wanting), (0, 0))))
    model = GaussianModel.from_splat_data(
        roomy, device=device, spatial_lr_scale=extent, active_sh_degree=data.sh_degree
    )
    fault = describe_non_finite(model.parameters)
    if fault:
        raise UserError(f"--init-from {path} is damaged ({fault}): choose another splat.")
    return model


def _density(
    scene: Scene, config: TrainConfig, model: GaussianModel, views: Views, generator: torch.Generator
) -> DensityController:
    if config.density.kind == "mcmc":
        return McmcDensity(config.density, max_gaussians=config.max_gaussians, views=views, generator=generator)
    if config.density.kind == "multiview":
        return MultiviewDensity(
            config.density,
            extent=scene.extent,
            max_gaussians=config.max_gaussians,
            pixels=sum(view.camera.width * view.camera.height for view in scene.train_views),
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
