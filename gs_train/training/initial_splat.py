"""The splat that ``--init-from`` names: read, checked, and compared with the photos."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gs_train.config.settings import TrainConfig
from gs_train.errors import UserError
from gs_train.formats.splat_data import SplatData
from gs_train.model.gaussians import PARAMETER_NAMES, GaussianModel, describe_non_finite
from gs_train.model.spherical_harmonics import SH_C0, rest_count
from gs_train.run.open import open_splat
from gs_train.scene.frame import Frame
from gs_train.scene.types import PointCloud

_LARGEST_SCALE = 1000.0
"""Largest standard deviation of a Gaussian in scene extents. Sky and far background stay below 100."""


def initial_splat(
    config: TrainConfig, extent: float, frame: Frame, notify: Callable[[str], None] = lambda _: None
) -> SplatData:
    """The splat of ``config.init_from``, checked, in the coordinates of ``frame``.

    Args:
        config: resolved.
        extent: the scene's extent, training units.
        frame: coordinates of training.
        notify: takes a sentence about a file whose name promises another format than it holds.

    Raises:
        UserError: it cannot be read, or does not fit ``config``.
    """
    named = f"--init-from {config.init_from}"
    data = open_splat(Path(config.init_from), notify).splat(frame)
    if len(data) == 0:
        raise UserError(f"{named} has no Gaussians: choose another splat.")
    if len(data) > config.max_gaussians:
        limit = f"but --max-gaussians is {config.max_gaussians}"
        raise UserError(f"{named} has {len(data):,} Gaussians {limit}: raise it or choose another splat.")
    if data.sh_degree > config.sh_degree:
        limit = f"but --sh-degree is {config.sh_degree}"
        raise UserError(f"{named} has SH degree {data.sh_degree} {limit}: raise it to {data.sh_degree}.")
    if data.antialiased != config.antialiased:
        trained, flag = ("with", "--antialiased") if data.antialiased else ("without", "--no-antialiased")
        raise UserError(f"{named} was trained {trained} --antialiased: continue with {flag}.")
    fault = describe_non_finite({name: torch.from_numpy(getattr(data, name)) for name in PARAMETER_NAMES})
    if fault:
        raise UserError(f"{named} is damaged ({fault}): choose another splat.")
    largest = float(data.scaling.max())
    if largest > math.log(_LARGEST_SCALE * extent):
        size = f"a Gaussian {math.exp(min(largest, 700.0)) / extent:.3g} times as large as the scene"
        raise UserError(f"{named} has {size}: choose another splat, or a splat in the units of the scene.")
    return data


def splat_points(splat: SplatData) -> PointCloud:
    """The centres of the more opaque half of the Gaussians, with their degree-0 colours."""
    opaque = splat.opacity[:, 0] >= np.median(splat.opacity)
    colours = np.clip(0.5 + SH_C0 * splat.f_dc[opaque, 0].astype(np.float64), 0.0, 1.0)
    return PointCloud(xyz=splat.xyz[opaque].astype(np.float64), rgb=np.round(255.0 * colours).astype(np.uint8))


def model_of(splat: SplatData, sh_degree: int, spatial_lr_scale: float, device: torch.device) -> GaussianModel:
    """The model to train, with coefficients up to ``sh_degree``; the coefficients that ``splat`` lacks are 0.

    Args:
        splat: of ``sh_degree`` or less, its active degree.
        sh_degree: highest degree of the model.
        spatial_lr_scale: unit of the learning rate of the positions, training units.
        device: of the model.
    """
    added = rest_count(sh_degree) - splat.f_rest.shape[1]
    padded = replace(splat, f_rest=np.pad(splat.f_rest, ((0, 0), (0, added), (0, 0))))
    return GaussianModel.from_splat_data(
        padded, device=device, spatial_lr_scale=spatial_lr_scale, active_sh_degree=splat.sh_degree
    )
