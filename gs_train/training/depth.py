"""Depth supervision by the sparse points: a rendered depth should agree with the points that the photo was matched by.

Each view uses only the points that were matched in it, because other points may be hidden there. The error has no unit,
so a weight means the same in every scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gs_train.errors import UserError
from gs_train.scene.types import Scene, View


@dataclass(frozen=True, kw_only=True, eq=False)
class _SeenPoints:
    """The points that a view sees."""

    places: Tensor
    """[K, 2] float32, px at the training size, pixel centres at +0.5."""
    inverse_depth: Tensor
    """[K] float32, inverse depth along the camera's axis divided by its mean; no unit."""
    mean: float
    """Mean inverse depth, 1 / world units."""


class PointDepths:
    """For every training view, the depths of the points it sees."""

    def __init__(self, scene: Scene, device: torch.device | str) -> None:
        """Project the points into the views that saw them.

        Raises:
            UserError: the scene does not record which view saw which point.
        """
        self._views = [_seen(view, scene, device) for view in scene.train_views]
        if not any(len(seen.inverse_depth) for seen in self._views):
            raise UserError(
                f"--depth-weight needs points and the photos that saw them, which {scene.path} does not record: leave "
                "the "
                "flag out, or train on a COLMAP model with its points3D."
            )

    def error(self, depth: Tensor, index: int, downscale: int = 1) -> Tensor:
        """Mean absolute difference of inverse depths, divided by the view's mean inverse depth; scalar.

        Args:
            depth: [H, W] rendered depth of training view ``index`` at 1/``downscale`` of its size, world units.
            index: the view.
            downscale: pixels of the view per pixel of ``depth`` along one axis (``Camera.reduced``).
        """
        seen = self._views[index]
        if len(seen.inverse_depth) == 0:
            return depth.new_zeros(())
        # Errors of triangulated points are even in inverse depth, and far points do not outweigh near points.
        size = torch.tensor([depth.shape[1], depth.shape[0]]).to(depth.device, non_blocking=True)
        grid = (2.0 * seen.places / (downscale * size) - 1.0)[None, None]
        at_points = torch.nn.functional.grid_sample(
            depth[None, None], grid, padding_mode="border", align_corners=False
        ).flatten()
        inverse = 1.0 / (seen.mean * at_points).clamp(min=1e-2)
        return (inverse - seen.inverse_depth).abs().mean()


def _seen(view: View, scene: Scene, device: torch.device | str) -> _SeenPoints:
    """Project the points matched in ``view`` into it."""
    points, camera = scene.points, view.camera
    if view.point_ids is None or points.ids is None:
        xyz = points.xyz[:0]
    else:
        xyz = points.xyz[np.isin(points.ids, view.point_ids)]
    in_camera = xyz @ view.world_to_camera[:3, :3].T + view.world_to_camera[:3, 3]
    in_camera = in_camera[in_camera[:, 2] > 0]
    z = in_camera[:, 2]
    x, y = camera.fx * in_camera[:, 0] / z + camera.cx, camera.fy * in_camera[:, 1] / z + camera.cy
    inside = (x > 0) & (x < camera.width) & (y > 0) & (y < camera.height)
    places = np.stack([x, y], axis=1)[inside]
    inverse = 1.0 / z[inside]
    mean = float(inverse.mean()) if len(inverse) else 1.0
    return _SeenPoints(
        places=torch.from_numpy(places).to(device, torch.float32),
        inverse_depth=torch.from_numpy(inverse / mean).to(device, torch.float32),
        mean=mean,
    )
