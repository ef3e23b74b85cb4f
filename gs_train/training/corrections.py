"""Per-view corrections learned with the Gaussians: exposure of the photos and poses of the training cameras.

``poses.py`` refines the poses. Test views have no corrections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from gs_train.cameras.camera import Camera
from gs_train.config.settings import TrainConfig
from gs_train.model import optimizer as door
from gs_train.model.schedule import get_expon_lr_func
from gs_train.render.types import RenderOutput
from gs_train.scene.types import Scene, View
from gs_train.training.poses import PoseRefinement

_EXPOSURE_LR_INIT, _EXPOSURE_LR_FINAL = 0.01, 0.001
"""At this rate a view needs some thirty visits to learn a gain of 30 %."""


class Exposure:
    """An affine colour transform per training view, [V, 3, 4]: a camera's metering does not become part of the scene.

    Each view has Adam moments and a step count of its own, so a view seen every hundredth iteration learns like a view
    seen every second one. The mean over all views is held at the identity, so that what the views have in common stays
    in the Gaussians.
    """

    def __init__(self, views: int, iterations: int, device: torch.device | str) -> None:
        """Start from the identity; the learning rate decays over ``iterations``."""
        self._identity = torch.eye(3, 4, device=device)
        self._rate_at = get_expon_lr_func(_EXPOSURE_LR_INIT, _EXPOSURE_LR_FINAL, max_steps=iterations)
        self._values = self._identity.repeat(views, 1, 1)
        # Each parameter is a view of its row, so the mean over all rows needs no copy.
        self._parameters = [Parameter(row) for row in self._values]
        self._optimizer = torch.optim.Adam(self._parameters)
        door.start_moments(self._optimizer)

    def exposed(self, image: Tensor, index: int) -> Tensor:
        """A render of training view ``index`` under the exposure of its photo; [H, W, 3], not clamped.

        It is differentiable with respect to the view's own transform. No gradient flows through the mean.
        """
        transform = self._parameters[index] - (self._values.mean(dim=0) - self._identity)
        return image @ transform[:, :3].T + transform[:, 3]

    def parameters(self, indices: Sequence[int]) -> list[Parameter]:
        """The parameters that training views send gradients to, each once."""
        return [self._parameters[index] for index in dict.fromkeys(indices)]

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


class Corrections:
    """The corrections that a run learns: exposure, poses, both or neither."""

    def __init__(self, scene: Scene, config: TrainConfig, device: torch.device) -> None:
        """Start from no change.

        Args:
            scene: gives the training views.
            config: resolved settings; ``exposure`` and ``refine_poses`` say which corrections are learned.
            device: device of the parameters.
        """
        count, until = len(scene.train_views), int(config.corrections_until)
        self._exposure = Exposure(count, until, device) if config.exposure == "affine" else None
        self._poses = PoseRefinement(scene, until, device) if config.refine_poses else None

    @property
    def need_depth(self) -> bool:
        """Whether ``measure`` reads the depth of renders."""
        return self._poses is not None and self._poses.active

    def start(self, scene: Scene, photo_of: Callable[[int], NDArray[np.uint8]], notify: Callable[[str], None]) -> None:
        """Align the poses to the scene's points before the first step, as ``PoseRefinement.align_to_points`` does."""
        if self._poses is not None:
            self._poses.align_to_points(scene, photo_of, notify)

    def exposed(self, image: Tensor, index: int) -> Tensor:
        """A render of training view ``index``, [H, W, 3], as it is compared with its photo."""
        return image if self._exposure is None else self._exposure.exposed(image, index)

    def pose(self, world_to_camera: Tensor, index: int) -> Tensor:
        """[4, 4] world -> OpenCV camera, the pose that training view ``index`` is rendered from."""
        return world_to_camera if self._poses is None else self._poses.pose(index)

    def measure(
        self,
        index: int,
        iteration: int,
        camera: Camera,
        render: RenderOutput,
        image: Tensor,
        photo: Tensor,
        weights: Tensor | None,
    ) -> Tensor:
        """Align the pose of a training view to its render, as ``PoseRefinement.measure`` does; else empty."""
        if self._poses is None:
            return torch.zeros(0)
        return self._poses.measure(index, iteration, camera, render, image, photo, weights)

    def move(self, indices: Sequence[int], measured: Sequence[Tensor]) -> None:
        """Move cameras by the results of ``measure`` for the views of a step, as ``PoseRefinement.move`` does."""
        if self._poses is not None:
            self._poses.move(indices, measured)

    def parameters(self, indices: Sequence[int]) -> list[Parameter]:
        """The parameters that renders of training views send gradients to."""
        return [] if self._exposure is None else self._exposure.parameters(indices)

    def refined(self, views: tuple[View, ...]) -> list[View] | None:
        """The training views with refined poses; None if poses are not refined."""
        return None if self._poses is None else self._poses.views(views)

    def step(self, iteration: int) -> None:
        """Take an Adam step on the exposures, after ``backward``."""
        if self._exposure is not None:
            self._exposure.step(iteration)

    def state_dict(self) -> dict[str, Any]:
        """The state of each correction, or None."""
        parts = {"exposure": self._exposure, "poses": self._poses}
        return {name: None if part is None else part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict`` for the same settings."""
        for name, part in (("exposure", self._exposure), ("poses", self._poses)):
            if part is not None:
                part.load_state_dict(state[name])
