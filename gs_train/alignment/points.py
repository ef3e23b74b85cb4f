"""Aligns the training cameras to the scene's coloured points, before a splat exists.

Every camera is moved until the points lie on pixels of their colours. No render takes part, so the points hold the
cameras in their own coordinates: cameras that follow a splat, which follows the cameras, drift instead. From errors of
half a degree and 1 % of the extent, cameras come back to a few tenths of a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gs_train.alignment.estimate import robust_step, without_exposure
from gs_train.alignment.motion import moved, pixel_flow, pixel_metric
from gs_train.alignment.photo import image_gradient, reduced_image
from gs_train.cameras.camera import Camera
from gs_train.scene.photos.composite import composite, pixel_weights
from gs_train.scene.types import PointCloud, View

_STEPS = (8, 8, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1, 1)
"""Factors by which the photo is reduced in the steps, from coarse to fine."""
_SOFTNESS = 0.05
_JUDGED_AT = 2
"""Factor at which the errors before and after are compared. At full size, noise decides the colour of a pixel."""
_FEWEST = 50
"""A photo that sees fewer points keeps its pose."""
_LARGEST_ERROR = 0.9
_LARGEST_ERROR_UNSURE = 0.65
"""A camera is moved if the error falls to less than this fraction: the first number if the scene records which photo
saw which point, else the second. Right poses have 0.95 to 1.0 and 0.78 to 1.0, poses wrong by half a degree mostly 0.2
to 0.6 and 0.25 to 0.75."""
_CELL_POINTS = 4
_BEHIND = 1.1
"""Points this much farther than the nearest point around them are hidden. A cell for the comparison has
``_CELL_POINTS`` points on average."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PointAlignment:
    """Cameras aligned to points."""

    poses: Tensor
    """[V, 4, 4] float64 world-to-camera."""
    metric: Tensor
    """[V, 6, 6] float64, see ``pixel_metric``; zeros for a photo that sees too few points."""
    aligned: Tensor
    """[V] bool: the camera was moved."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """Points in the frame of a photo, K of them."""

    colours: Tensor
    """[K, 3] of the points, 0 to 1."""
    flow: Tensor
    """[2, 6, K] from ``pixel_flow``, px of the full size."""
    position: Tensor
    """[K, 2] column and row, px of the full size."""


def align_to_points(
    views: Sequence[View], points: PointCloud, photo_of: Callable[[int], NDArray[np.uint8]]
) -> PointAlignment:
    """Move the cameras of ``views`` until the points have the colours of their pixels.

    Args:
        views: with right intrinsics and approximate poses.
        points: coloured points.
        photo_of: index of a view -> its pixels at the camera's size, in the format of ``decode_image``.
    """
    poses = torch.stack([torch.from_numpy(view.world_to_camera) for view in views]).double()
    metric, aligned = torch.zeros(len(views), 6, 6, dtype=torch.float64), torch.zeros(len(views), dtype=torch.bool)
    for index, view in enumerate(views):
        chosen, sure = _points_of(view, points)
        xyz = torch.from_numpy(points.xyz[chosen]).double()
        colours = torch.from_numpy(points.rgb[chosen]).float() / 255.0
        photo = _Photo(photo_of(index), view.camera, hidden_points=not sure)
        seen = photo.project(xyz, colours, poses[index])
        if len(seen.colours) < _FEWEST:
            continue
        metric[index] = pixel_metric(seen.flow, torch.ones(len(seen.colours)))
        pose = poses[index]
        for reduction in _STEPS:
            pose = photo.step(xyz, colours, pose, reduction)
        largest = _LARGEST_ERROR if sure else _LARGEST_ERROR_UNSURE
        if photo.error(xyz, colours, pose) < largest * photo.error(xyz, colours, poses[index]):
            poses[index], aligned[index] = pose, True
    return PointAlignment(poses=poses, metric=metric, aligned=aligned)


def _points_of(view: View, points: PointCloud) -> tuple[NDArray[np.bool_], bool]:
    """[P] which points to use in a view, and whether the scene records that the view saw them."""
    if view.point_ids is None or points.ids is None:
        return np.ones(len(points.xyz), bool), False
    return np.isin(points.ids, view.point_ids), True


class _Photo:
    """A photo at several sizes, to compare with coloured points."""

    def __init__(self, pixels: NDArray[np.uint8], camera: Camera, *, hidden_points: bool) -> None:
        """``hidden_points``: whether some points may be hidden behind others."""
        self._camera, self._hidden_points = camera, hidden_points
        grey = torch.full((3,), 0.5)
        photo, self._weights = composite(pixels, grey), pixel_weights(pixels, grey.device)
        self._levels = {factor: self._planes(photo, factor) for factor in set(_STEPS)}

    @staticmethod
    def _planes(photo: Tensor, factor: int) -> Tensor:
        """[9, h, w]: three colours, then their derivatives along columns and along rows, per px of the full size."""
        image = reduced_image(photo, factor)
        return torch.cat([image.permute(2, 0, 1), *(gradient / factor for gradient in image_gradient(image))])

    def project(self, xyz: Tensor, colours: Tensor, pose: Tensor) -> _Seen:
        """The points that lie inside the photo and are not hidden."""
        camera = self._camera
        across, down, depth = (xyz @ pose[:3, :3].T + pose[:3, 3]).T
        x, y = across / depth, down / depth
        position = torch.stack([camera.fx * x + camera.cx, camera.fy * y + camera.cy], dim=1)
        size = torch.tensor([camera.width, camera.height])
        inside = (depth > 0) & (position > 1.0).all(dim=1) & (position < size - 1.0).all(dim=1)
        if self._weights is not None:
            column, row = torch.where(inside[:, None], position, 0.0).long().unbind(1)
            inside &= self._weights[row, column, 0] > 0.5
        if self._hidden_points:
            inside[inside.clone()] = self._in_front(position[inside], depth[inside])
        flow = pixel_flow(camera, x[inside].float(), y[inside].float(), 1.0 / depth[inside].float())
        return _Seen(colours=colours[inside], flow=flow, position=position[inside].float())

    def _in_front(self, position: Tensor, depth: Tensor) -> Tensor:
        """[K] bool: no point in the neighbourhood is much nearer."""
        camera = self._camera
        cell = max(4.0, (camera.width * camera.height * _CELL_POINTS / max(len(depth), 1)) ** 0.5)
        column, row = (position / cell).long().unbind(1)
        across = int(camera.width / cell) + 1
        nearest = torch.full(((int(camera.height / cell) + 1) * across,), torch.inf, dtype=depth.dtype)
        nearest.scatter_reduce_(0, row * across + column, depth, "amin")
        around = -functional.max_pool2d(-nearest.view(1, 1, -1, across), 3, stride=1, padding=1)
        return depth < _BEHIND * around.flatten()[row * across + column]

    def _residual(self, seen: _Seen, factor: int) -> tuple[Tensor, Tensor]:
        """[K, 3] colours of the pixels less the points' at a photo reduced by ``factor``, and [6, K, 3] the derivative
        by a motion of the camera. A gain and an offset of each colour channel are removed."""
        planes = self._levels[factor]
        height, width = planes.shape[1:]
        grid = 2.0 * seen.position / (factor * torch.tensor([width, height])) - 1.0
        sampled = functional.grid_sample(planes[None], grid[None, None], padding_mode="border", align_corners=False)[
            0, :, 0
        ]
        pixel, across, down = sampled.T.split(3, dim=1)
        flow = seen.flow[..., None]
        residual = without_exposure(pixel, seen.colours, softness=_SOFTNESS)
        return residual, flow[0] * across + flow[1] * down

    def step(self, xyz: Tensor, colours: Tensor, pose: Tensor, factor: int) -> Tensor:
        """The pose after one step at a photo reduced by ``factor``."""
        residual, jacobian = self._residual(seen := self.project(xyz, colours, pose), factor)
        if len(seen.colours) < _FEWEST:
            return pose
        return moved(pose, robust_step(jacobian.flatten(1), residual.flatten(), softness=_SOFTNESS))

    def error(self, xyz: Tensor, colours: Tensor, pose: Tensor) -> Tensor:
        """Mean robust error of the colours; infinite if too few points lie inside the photo."""
        seen = self.project(xyz, colours, pose)
        if len(seen.colours) < _FEWEST:
            return torch.tensor(torch.inf)
        residual, _ = self._residual(seen, _JUDGED_AT)
        return (residual.square() + _SOFTNESS**2).sqrt().mean() - _SOFTNESS
