"""Per-view corrections learned with the Gaussians: exposure of the photos and poses of the training cameras.

Each view has small parameters with Adam moments and a step count of its own, so a view seen every hundredth iteration
learns like a view seen every second one. The mean over all views is held fixed, so that what the views have in common
stays in the Gaussians: the mean colour transform is the identity, the mean pose change is zero. Test views have no
corrections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from gs_train.cameras.poses import camera_centre
from gs_train.config.settings import TrainConfig
from gs_train.model import optimizer as door
from gs_train.model.schedule import get_expon_lr_func
from gs_train.scene.types import Scene, View

_EXPOSURE_LR_INIT, _EXPOSURE_LR_FINAL = 0.01, 0.001
"""At this rate a view needs some thirty visits to learn a gain of 30 %."""
_POSE_LR = 5e-4
"""Radians per step for rotations, scene extents per step for shifts."""
_POSES_FROM = 0.1
"""Fraction of the run before pose refinement starts. Earlier the render is a blur, whose gradients move cameras at
random."""


class PerViewParameter:
    """A learned tensor for each of V views."""

    def __init__(self, start: Tensor, rate_at: Callable[[int], float]) -> None:
        """Start every view from its row of ``start``.

        Args:
            start: [V, ...]; copied.
            rate_at: iteration -> learning rate.
        """
        self._values, self._rate_at = start.detach().clone(), rate_at
        # Each parameter is a view of its row, so the mean over all rows needs no copy.
        self._parameters = [Parameter(row) for row in self._values]
        self._optimizer = torch.optim.Adam(self._parameters)
        door.start_moments(self._optimizer)

    def zero_mean(self, index: int, mean: Tensor) -> Tensor:
        """The tensor of view ``index``, shifted so that the mean over all views is ``mean``.

        It is differentiable with respect to the view's own parameters. No gradient flows through the mean.
        """
        return self._parameters[index] - (self._values.mean(dim=0) - mean)

    def step(self, iteration: int) -> None:
        """Take an Adam step on the views used since the last step, after ``backward``."""
        self._optimizer.param_groups[0]["lr"] = self._rate_at(iteration)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Values and moments; the values are copied."""
        return {"values": self._values.clone(), "moments": door.dump_moments(self._optimizer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict`` for the same number of views."""
        with torch.no_grad():
            self._values.copy_(state["values"])
        door.load_moments(self._optimizer, state["moments"])


class Exposure(PerViewParameter):
    """An affine colour transform per training view, [V, 3, 4]: a camera's metering does not become part of the
    scene."""

    def __init__(self, views: int, iterations: int, device: torch.device | str) -> None:
        """Start from the identity; the learning rate decays over ``iterations``."""
        self._identity = torch.eye(3, 4, device=device)
        rate_at = get_expon_lr_func(_EXPOSURE_LR_INIT, _EXPOSURE_LR_FINAL, max_steps=iterations)
        super().__init__(self._identity.expand(views, 3, 4), rate_at)

    def exposed(self, image: Tensor, index: int) -> Tensor:
        """A render of training view ``index`` under the exposure of its photo; [H, W, 3], not clamped."""
        transform = self.zero_mean(index, self._identity)
        return image @ transform[:, :3].T + transform[:, 3]


class PoseRefinement(PerViewParameter):
    """A rotation vector (radians) and a shift of the camera centre (scene extents) per training view, [V, 6].

    Rotations turn a camera about its own centre. Rotations and shifts are along the world's axes, so their mean is a
    motion of the whole rig, which the Gaussians would only follow.
    """

    def __init__(self, views: int, iterations: int, extent: float, device: torch.device | str) -> None:
        """Start from unchanged poses.

        Args:
            views: number of training views.
            iterations: length of the run.
            extent: the scene's extent, world units.
            device: device of the parameters.
        """
        self._extent, self._zero = extent, torch.zeros(6, device=device)

        def rate_at(iteration: int) -> float:
            # Linear: after an exponential decay the cameras could not come back from early errors.
            progress = iteration / iterations
            return 0.0 if progress < _POSES_FROM else _POSE_LR * max(0.0, 1.0 - progress) / (1.0 - _POSES_FROM)

        super().__init__(self._zero.expand(views, 6), rate_at)

    def refined(self, world_to_camera: Tensor, index: int) -> Tensor:
        """The refined pose of training view ``index``.

        Args:
            world_to_camera: [4, 4] rigid, the scene's pose, world -> OpenCV camera.
            index: the view.

        Returns:
            [4, 4] rigid, world -> OpenCV camera; differentiable.
        """
        change = self.zero_mean(index, self._zero)
        turn = torch.linalg.matrix_exp(_cross_matrix(change[:3]))
        rotation = world_to_camera[:3, :3] @ turn
        centre = camera_centre(world_to_camera) + self._extent * change[3:]
        return torch.cat([torch.cat([rotation, -(rotation @ centre)[:, None]], dim=1), world_to_camera[3:]])


class Corrections:
    """The corrections that a run learns: exposure, poses, both or neither."""

    def __init__(self, scene: Scene, config: TrainConfig, device: torch.device) -> None:
        """Start from no change.

        Args:
            scene: gives the training views and the extent.
            config: resolved settings; ``exposure`` and ``refine_poses`` say which corrections are learned.
            device: device of the parameters.
        """
        self._device = device
        count, iterations = len(scene.train_views), int(config.corrections_until)
        self._exposure = Exposure(count, iterations, device) if config.exposure == "affine" else None
        self._poses = PoseRefinement(count, iterations, scene.extent, device) if config.refine_poses else None

    def exposed(self, image: Tensor, index: int) -> Tensor:
        """A render of training view ``index``, [H, W, 3], as it is compared with its photo."""
        return image if self._exposure is None else self._exposure.exposed(image, index)

    def pose(self, world_to_camera: Tensor, index: int) -> Tensor:
        """[4, 4] world -> OpenCV camera, the pose that training view ``index`` is rendered from."""
        return world_to_camera if self._poses is None else self._poses.refined(world_to_camera, index)

    def refined(self, views: Sequence[View]) -> list[View] | None:
        """The training views with refined poses; None if poses are not refined."""
        if self._poses is None:
            return None
        refined = []
        for index, view in enumerate(views):
            with torch.no_grad():
                pose = self._poses.refined(
                    torch.from_numpy(view.world_to_camera).to(self._device, torch.float32), index
                )
            refined.append(replace(view, world_to_camera=pose.cpu().numpy().astype(np.float64)))
        return refined

    def step(self, iteration: int) -> None:
        """Take an Adam step on each correction, after ``backward``."""
        for part in (self._exposure, self._poses):
            if part is not None:
                part.step(iteration)

    def state_dict(self) -> dict[str, Any]:
        """The state of each correction, or None."""
        parts = {"exposure": self._exposure, "poses": self._poses}
        return {name: None if part is None else part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict`` for the same settings."""
        for name, part in (("exposure", self._exposure), ("poses", self._poses)):
            if part is not None:
                part.load_state_dict(state[name])


def _cross_matrix(vector: Tensor) -> Tensor:
    """[3, 3] matrix whose product with any x is the cross product of ``vector`` and x."""
    x, y, z = vector
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
