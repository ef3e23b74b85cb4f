"""Pose refinement: a small rotation and shift of every training camera, learned with the Gaussians.

A camera turns about its own centre and its centre moves, both along the world's axes, so that the mean over all cameras, which is kept at
nothing, is the rotation and the shift of the whole rig that the Gaussians would only follow. The invariant: the poses of the test views
are not touched and still fit the splat.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gs_train.training.per_view import PerView

_RATE = 5e-4
"""In radians, and in extents of the scene, a step."""
_FROM = 0.1
"""Of the run. Before that the image is a blur, whose gradients would send the cameras anywhere."""


class PoseRefinement(PerView):
    """A rotation vector (radians) and a shift of the centre (extents) per training view, [V, 6]."""

    def __init__(self, views: int, iterations: int, extent: float, device: torch.device | str) -> None:
        """Start from the poses as they are. ``iterations``: of the run; ``extent``: of the scene, world units."""
        self._extent, self._nothing = extent, torch.zeros(6, device=device)

        def rate_at(iteration: int) -> float:
            # Linear: an exponential decay would leave the cameras no way to come back from early errors.
            progress = iteration / iterations
            return 0.0 if progress < _FROM else _RATE * max(0.0, 1.0 - progress) / (1.0 - _FROM)

        super().__init__(self._nothing.expand(views, 6), rate_at)

    def refined(self, world_to_camera: Tensor, index: int) -> Tensor:
        """[4, 4] rigid, of training view ``index``, from its pose as the scene has it ([4, 4], world -> OpenCV camera)."""
        change = self.zero_mean(index, self._nothing)
        turn = torch.linalg.matrix_exp(_cross_matrix(change[:3]))
        rotation = world_to_camera[:3, :3] @ turn
        centre = -world_to_camera[:3, :3].T @ world_to_camera[:3, 3] + self._extent * change[3:]
        return torch.cat([torch.cat([rotation, -(rotation @ centre)[:, None]], dim=1), world_to_camera[3:]])

    def refined_array(self, world_to_camera: NDArray[np.float64], index: int) -> NDArray[np.float64]:
        """The same for whoever writes it down."""
        with torch.no_grad():
            pose: NDArray[np.float64] = (
                self.refined(torch.from_numpy(world_to_camera).to(self._nothing), index).cpu().numpy()
            )
        return pose.astype(np.float64)


def _cross_matrix(vector: Tensor) -> Tensor:
    """[3, 3] such that its product with any x is the cross product of ``vector`` and x."""
    x, y, z = vector
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
