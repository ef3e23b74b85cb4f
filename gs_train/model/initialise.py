"""Initial Gaussians: one per sparse point, or random Gaussians if the scene has no points.

Every random draw comes from the generator argument, so the same points and seed give the same model on every device.
Learning rates are in ``schedule.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from gs_train.model.gaussians import GaussianModel
from gs_train.model.spherical_harmonics import rest_count, rgb_to_f_dc
from gs_train.scene.types import PointCloud

RANDOM_COUNT = 100_000
"""Number of random Gaussians for a scene without points (original: 100000)."""
START_OPACITY = 0.1
"""Opacity of an initial Gaussian (original: 0.1)."""
NEIGHBOURS = 3
"""The initial scale is the root mean square distance to this many nearest points (original: 3)."""
MIN_SQUARED_DISTANCE = 1e-7
"""Lower limit of the mean squared distance. It keeps the log scale of coinciding points finite (original: 1e-7)."""
LONELY_FRACTION = 0.01
"""Initial scale of a single point, which has no neighbours, as a fraction of the extent. It equals the default of
``percent_dense``, density control's limit between small and large Gaussians."""


def initialise_model(
    points: PointCloud,
    *,
    sh_degree: int,
    extent: float,
    lr_scale: Callable[[NDArray[np.float64]], float],
    place: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    max_gaussians: int,
    generator: torch.Generator,
    device: torch.device | str,
) -> GaussianModel:
    """Build the model at the start of training.

    Args:
        points: sparse points. More than ``max_gaussians`` points are reduced to a random subset; an empty cloud is
            replaced by random points.
        sh_degree: highest spherical-harmonics degree of the model. Degree 0 is active at first.
        extent: the scene's extent, world units.
        lr_scale: gives the model's ``spatial_lr_scale``, world units, from the positions [N, 3] of its Gaussians.
        place: turns [N, 3] uniform random numbers, 0 to 1, into positions, world units; unused if the scene has points.
        max_gaussians: upper limit of the number of Gaussians, at least 1.
        generator: source of every random draw; on the CPU.
        device: device of the model.

    Raises:
        ValueError: ``max_gaussians`` is below 1.
    """
    if max_gaussians < 1:
        raise ValueError(f"max_gaussians: expected at least 1, got {max_gaussians}")
    if len(points.xyz) == 0:
        unit = torch.rand(min(RANDOM_COUNT, max_gaussians), 3, generator=generator, dtype=torch.float64)
        xyz = place(unit.numpy())
        rgb = torch.full(xyz.shape, 0.5)
    else:
        rows = np.arange(len(points.xyz))
        if len(rows) > max_gaussians:
            # Sorting keeps the reader's order, in which neighbours are often close together.
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
    return GaussianModel({name: tensor.to(device) for name, tensor in tensors.items()}, spatial_lr_scale=lr_scale(xyz))


def _mean_squared_distance(xyz: NDArray[np.float64], extent: float) -> NDArray[np.float64]:
    """[P] mean squared distance of each point to its nearest neighbours, at least ``MIN_SQUARED_DISTANCE``."""
    neighbours = min(NEIGHBOURS, len(xyz) - 1)
    if neighbours == 0:
        return np.full(len(xyz), max((LONELY_FRACTION * extent) ** 2, MIN_SQUARED_DISTANCE))
    # The first match is the point itself or a coinciding point, at distance 0 in both cases.
    distances, _ = cKDTree(xyz).query(xyz, k=neighbours + 1, workers=-1)
    mean: NDArray[np.float64] = np.mean(distances[:, 1:] ** 2, axis=1)
    return np.maximum(mean, MIN_SQUARED_DISTANCE)
