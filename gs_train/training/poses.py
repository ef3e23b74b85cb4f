"""Pose refinement: the training cameras are aligned to the scene's points before training, and to the splat during it.

Poses that the points confirm are kept: even motions of a tenth of a pixel cost a decibel where they let a haze grow in
front of a camera.

Every step aligns the cameras of its views to the renders it has just made (``alignment/photo.py``); gradients and
learning rates take no part. The splat follows the cameras, so cameras that follow the splat drift. Two things hold
right poses in place: each pose is the mean of its start and of the present estimate, weighted by their expected errors,
and the common motion of all cameras is undone, because no photo shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gs_train.alignment.gauge import is_common, without_common_motion
from gs_train.alignment.motion import mean_square_px, motion_between, moved
from gs_train.alignment.photo import align_to_photo
from gs_train.alignment.points import align_to_points
from gs_train.cameras.camera import Camera
from gs_train.render.types import RenderOutput
from gs_train.scene.types import Scene, View

_FROM, _UNTIL = 0.1, 0.8
"""First and last fraction of the schedule. Earlier, silhouettes of the blurred render pull all cameras upwards; at the
end, the splat settles on cameras that stand still."""
_REDUCTIONS = (4, 4, 2, 2)
"""Factors by which images are reduced at the first visits of a view, when errors are largest; 1 afterwards."""
_STEP = 0.7
"""Fraction of a displacement to move by. The splat has adapted to the view, so a whole step is rather too short."""
_SPLAT_ERROR = 0.001
"""Of every estimate, as a fraction of the image's width: an error of the splat that all parts of the image share, so
that ``PhotoFit.covariance`` does not contain it. Without it, right poses follow the splat and lose 0.6 dB."""
_ERROR_AT_POINTS, _ERROR_ELSEWHERE = 0.001, 0.01
"""Expected errors of the poses at the start as fractions of the image's width: of poses that the points confirm or
correct, and of poses whose photos see too few points."""
_ENOUGH_JUDGED = 0.5
"""If more than this share of the photos see enough points and all of them fit, the poses are right."""
_LARGEST_MOVE = 0.04
"""Longest step, as a fraction of the image's width."""


class PoseRefinement:
    """The poses of V training cameras, refined."""

    def __init__(self, scene: Scene, until: int, device: torch.device) -> None:
        """Start from the poses of ``scene``.

        Args:
            scene: gives the training views.
            until: length of the schedule, in iterations.
            device: device of the renders.
        """
        poses = torch.stack([torch.from_numpy(view.world_to_camera) for view in scene.train_views])
        self._poses = poses.to(device, torch.float64)
        self._start = self._poses.clone()
        self._metric = torch.zeros(len(poses), 6, 6, dtype=torch.float64, device=device)
        self._visits = torch.zeros(len(poses), dtype=torch.int64)
        self._expected = torch.full((len(poses),), _ERROR_ELSEWHERE, dtype=torch.float64)
        self._first, self._last = round(_FROM * until), round(_UNTIL * until)
        self._confirmed = False

    @property
    def active(self) -> bool:
        """Whether ``measure`` may align cameras: the points have not confirmed all poses."""
        return not self._confirmed

    def align_to_points(
        self, scene: Scene, photo_of: Callable[[int], NDArray[np.uint8]], notify: Callable[[str], None]
    ) -> None:
        """Align the cameras to the scene's points, before the first step.

        Args:
            scene: the scene of the constructor.
            photo_of: index of a training view -> its pixels.
            notify: takes a sentence about cameras that have moved.
        """
        given = self._poses.cpu()
        result = align_to_points(scene.train_views, scene.points, photo_of)
        poses, device = result.poses, self._poses.device
        count, judged = int(result.aligned.sum()), result.metric.any(dim=(1, 2))
        if count == 0 and judged.float().mean() > _ENOUGH_JUDGED:
            self._confirmed = True
            notify("The scene's points confirm the poses to a fraction of a pixel, so --refine-poses keeps them.")
        if count > 0:
            # Points that lie beside all photos together have another origin than the cameras, which test views share.
            if is_common(poses, given, result.metric):
                poses = without_common_motion(poses, given, result.metric)
            px = mean_square_px(motion_between(given, poses), result.metric)[result.aligned].mean().sqrt()
            notify(f"{count} of {len(given)} photos fit the scene's points better after a move by {px:.1f} px (mean).")
        self._poses, self._start = poses.to(device), poses.to(device, copy=True)
        self._metric = result.metric.to(device)
        self._expected[judged] = _ERROR_AT_POINTS

    def pose(self, index: int) -> Tensor:
        """[4, 4] float32 world -> OpenCV camera, the pose of training view ``index``."""
        return self._poses[index].float()

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
        """Align training view ``index`` to its render. The camera moves in ``move``, after all views of the step.

        Args:
            index: the view.
            iteration: of this step, from 1.
            camera: of the render.
            render: with depth.
            image: [H, W, 3] the render as it is compared with the photo.
            photo, weights: [H, W, 3] and [H, W, 1] or None.

        Returns:
            The pose [4, 4] and the metric [6, 6], float64 whose bytes are float32 values; empty if cameras stand still
            at ``iteration``.
        """
        if self._confirmed or not self._first <= iteration < self._last:
            return torch.zeros(0)
        visit = int(self._visits[index])
        reduction = _REDUCTIONS[visit] if visit < len(_REDUCTIONS) else 1
        assert render.depth is not None
        with torch.no_grad():
            depth, alpha = render.depth.detach(), render.alpha.detach()
            fit = align_to_photo(camera, image.detach(), photo, depth, alpha, weights, reduction=reduction)
            pose = self._poses[index]
            unit = torch.eye(6, dtype=pose.dtype, device=pose.device)
            so_far = motion_between(self._start[index], pose)
            # The weighted mean of the start, which has one error, and of this estimate, which has another.
            start_px, splat_px = float(self._expected[index]) * camera.width, _SPLAT_ERROR * camera.width
            ratio = (fit.covariance @ fit.metric + splat_px**2 * unit) / start_px**2
            mean = torch.linalg.solve_ex(unit + ratio, so_far + fit.motion).result
            change = _STEP * (mean - so_far)
            displaced = mean_square_px(change, fit.metric).clamp(min=1e-12).sqrt()
            aligned = moved(pose, change * (_LARGEST_MOVE * camera.width / displaced).clamp(max=1.0))
            return torch.cat([aligned.flatten(), fit.metric.flatten()]).view(torch.float32)

    def move(self, indices: Sequence[int], measured: Sequence[Tensor]) -> None:
        """Move the cameras of training views to their aligned poses.

        Args:
            indices: the views of a step. A view that comes twice takes its last pose.
            measured: their results of ``measure``.
        """
        moving = [(index, values) for index, values in zip(indices, measured, strict=True) if len(values) > 0]
        for index, values in moving:
            # A copy, because 4 bytes may lie before the values in their memory.
            pose, metric = values.clone().view(torch.float64).split((16, 36))
            self._poses[index], self._metric[index] = pose.view(4, 4), metric.view(6, 6)
            self._visits[index] += 1
        if moving:
            self._poses = without_common_motion(self._poses, self._start, self._metric)

    def views(self, views: tuple[View, ...]) -> list[View]:
        """The training views with refined poses."""
        poses = self._poses.cpu().numpy()
        return [replace(view, world_to_camera=pose) for view, pose in zip(views, poses, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Poses, their start, its expected errors, metrics and numbers of visits; copied."""
        return {
            "confirmed": self._confirmed,
            "poses": self._poses.clone(),
            "start": self._start.clone(),
            "expected": self._expected.clone(),
            "metric": self._metric.clone(),
            "visits": self._visits.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict`` for the same number of views."""
        device = self._poses.device
        self._poses, self._start, self._metric = (
            state[name].to(device, copy=True) for name in ("poses", "start", "metric")
        )
        self._confirmed = state["confirmed"]
        self._visits, self._expected = state["visits"].cpu().clone(), state["expected"].cpu().clone()
