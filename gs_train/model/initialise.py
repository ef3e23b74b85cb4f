"""The first Gaussians: one per sparse point, or random ones in a box when there are no points.

It does not train and does not choose the learning rates. The invariant: every draw comes from the generator handed in, so the same points
and seed give the same model on any device.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from gs_train.model.gaussians import GaussianModel
from gs_train.model.spherical_harmonics import rest_count, rgb_to_f_dc
from gs_train.scene.types import PointCloud

RANDOM_COUNT = 100_000
"""How many random Gaussians stand in for missing points (original: 100000)."""
START_OPACITY = 0.1
"""Opacity of a new Gaussian (original: 0.1)."""
NEIGHBOURS = 3
"""The start scale is the root mean square distance to this many nearest points (original: 3)."""
MIN_SQUARED_DISTANCE = 1e-7
"""Lower limit of the mean squared distance, so that coinciding points keep a finite log scale (original: 1e-7)."""
LONELY_FRACTION = 0.01
"""Start scale of a point without any neighbour, as a fraction of the extent: the border between small and large in density control."""


def initialise_model(
    points: PointCloud,
    *,
    sh_degree: int,
    extent: float,
    box: NDArray[np.float64],
    max_gaussians: int,
    generator: torch.Generator,
    device: torch.device | str,
) -> GaussianModel:
    """Make the model that training starts from.

    Args:
        points: sparse points; when there are more than ``max_gaussians``, a random subset is taken; when none, random ones are made.
        sh_degree: the degree the model has room for; 0 is active at first.
        extent: the scene's extent, world units; becomes ``spatial_lr_scale``.
        box: [2, 3] lower and upper corner, world units; only used when there are no points.
        max_gaussians: upper limit of the rows, at least 1.
        generator: on the CPU; the source of every draw.
        device: where the model goes.

    Raises:
        ValueError: ``max_gaussians`` is below 1.
    """
    if max_gaussians < 1:
        raise ValueError(f"max_gaussians: expected at least 1, got {max_gaussians}")
    if len(points.xyz) == 0:
        xyz = _random_points(box, min(RANDOM_COUNT, max_gaussians), generator)
        rgb = torch.full(xyz.shape, 0.5)
    else:
        rows = np.arange(len(points.xyz))
        if len(rows) > max_gaussians:
            # Sorted, because a reader's order of points often keeps neighbours together.
            rows = np.sort(torch.randperm(len(rows), generator=generator)[:max_gaussians].numpy())
        xyz = points.xyz[rows]
        rgb = torch.from_numpy(points.rgb[rows].astype(np.float32) / 255.0)
    count = len(xyz)
    log_scale = 0.5 * np.log(_mean_squared_distance(xyz, extent))
    tensors: dict[str, Tensor] = {
        "xyz": torch.from_numpy(xyz.astype(np.float32)),
        "f_dc": rgb_to_f_dc(rgb).unsqueeze(1),
        "f_rest": torch.zeros(count, rest_count(sh_degree), 3),
        "opacity": torch.full((count, 1), math.log(START_OPACITY / (1.0 - START_OPACITY))),
        "scaling": torch.from_numpy(log_scale.astype(np.float32)).unsqueeze(1).repeat(1, 3),
        "rotation": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
    }
    return GaussianModel({name: tensor.to(device) for name, tensor in tensors.items()}, spatial_lr_scale=extent)


def _random_points(box: NDArray[np.float64], count: int, generator: torch.Generator) -> NDArray[np.float64]:
    """[count, 3] uniform in the box."""
    unit = torch.rand(count, 3, generator=generator, dtype=torch.float64).numpy()
    points: NDArray[np.float64] = box[0] + unit * (box[1] - box[0])
    return points


def _mean_squared_distance(xyz: NDArray[np.float64], extent: float) -> NDArray[np.float64]:
    """[P] mean squared distance to the nearest other points, at least ``MIN_SQUARED_DISTANCE``."""
    neighbours = min(NEIGHBOURS, len(xyz) - 1)
    if neighbours == 0:
        return np.full(len(xyz), max((LONELY_FRACTION * extent) ** 2, MIN_SQUARED_DISTANCE))
    # The nearest of all is the point itself, or one that coincides with it: distance 0 either way.
    distances, _ = cKDTree(xyz).query(xyz, k=neighbours + 1, workers=-1)
    mean: NDArray[np.float64] = np.mean(distances[:, 1:] ** 2, axis=1)
    return np.maximum(mean, MIN_SQUARED_DISTANCE)
