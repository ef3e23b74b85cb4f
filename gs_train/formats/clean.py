"""Gaussians that are left out of an export: outside a box, too large, nearly transparent, or far from all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError
from gs_train.formats.packing import linear_scales, opacities
from gs_train.formats.splat_data import SplatData
from gs_train.options import CLEANING, check, parse_numbers, setting

_OUTLIER_PERCENTILE = 95
_OUTLIER_FACTOR = 100.0
"""Sky and background stay nearer than this many times the distance of the farthest usual Gaussians."""


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """Which Gaussians to leave out. Lengths are world units of the scene, before the placement."""

    box: str = setting("", group=CLEANING)
    """Keep only Gaussians with centres in this box: x,y,z,X,Y,Z in the scene's coordinates, for example
    -1,-1,0,1,1,2."""
    max_scale: float = setting(0.0, at_least=0, group=CLEANING)
    """Leave out Gaussians whose largest standard deviation is above this, world units. 0 keeps all; use it against
    large blurs in front of the scene."""
    min_opacity: float = setting(0.0, at_least=0, at_most=1, group=CLEANING)
    """Leave out Gaussians of less opacity. 0 keeps all; Gaussians below 0.004 are never drawn."""
    drop_outliers: bool = setting(False, group=CLEANING)
    """Leave out Gaussians that are over 100 times as far from the middle of the splat as 95 % of the Gaussians. Use it
    when a format loses precision or a viewer starts far away."""

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a value outside its range."""
        check(self)
        self.corners()

    def corners(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """The smallest and largest x, y, z of the box; None without a box."""
        if not self.box:
            return None
        values = np.array(parse_numbers("--box", self.box, "x,y,z,X,Y,Z"))
        if (values[:3] > values[3:]).any():
            raise UserError(f"--box is {self.box}: give the smallest x,y,z first, then the largest X,Y,Z.")
        return values[:3], values[3:]


def clean(
    data: SplatData, config: CleanConfig, offset: tuple[float, ...] = (0.0, 0.0, 0.0)
) -> tuple[SplatData, list[tuple[int, str]]]:
    """Leave out Gaussians.

    Args:
        data: all values finite.
        config: which Gaussians.
        offset: added to positions gives the scene's coordinates.

    Returns:
        The remaining Gaussians, and for each rule in use the number of Gaussians that it left out and the reason. A
        Gaussian counts for the first rule only.
    """
    reasons: list[tuple[int, str]] = []

    def drop(mask: Any, reason: str) -> None:
        nonlocal data
        reasons.append((int(mask.sum()), reason))
        data = data.keep(~mask)

    corners = config.corners()
    if corners is not None:
        positions = data.xyz.astype(np.float64) + offset
        # A float32 position on a side of the box counts as inside: 0.1 as float32 is above 0.1.
        low, high = ((corner - offset).astype(np.float32).astype(np.float64) + offset for corner in corners)
        drop(((positions < low) | (positions > high)).any(axis=1), "outside --box")
    if config.max_scale > 0:
        drop(linear_scales(data.scaling).max(axis=1, initial=0) > config.max_scale, "larger than --max-scale")
    if config.min_opacity > 0:
        drop(opacities(data.opacity)[:, 0] < config.min_opacity, "below --min-opacity")
    if config.drop_outliers and len(data):
        distance = np.linalg.norm(data.xyz.astype(np.float64) - np.median(data.xyz, axis=0), axis=1)
        limit = _OUTLIER_FACTOR * np.percentile(distance, _OUTLIER_PERCENTILE)
        drop((distance > limit) & (limit > 0), "far from all others (--drop-outliers)")
    return data, reasons
