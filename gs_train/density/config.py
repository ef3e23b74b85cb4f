"""The configuration of density control. Only data and its checks: no torch, so that the command line can build its help from it quickly.

The invariant: a field typed ``int | float`` is a point in the schedule. A whole number is an iteration, a number with a decimal point a
fraction of ``--iterations``; the controllers take whole numbers only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gs_train.errors import UserError

SCHEDULE_POINTS = ("from_iteration", "until_iteration", "interval", "opacity_reset_interval")
"""The fields that may be fractions of --iterations until the config is resolved."""
_NOT_NEGATIVE = ("grad_threshold", "percent_dense", "max_world_scale")
_BETWEEN_0_AND_1 = ("min_opacity", "reset_opacity_to")


@dataclass(frozen=True, kw_only=True)
class DensityConfig:
    """When Gaussians are cloned, split, dropped and made transparent again.

    The defaults are the original's. The window of densification is a fraction of the run. The intervals are not: however short the run, a
    decision to grow needs some hundred views behind it, and opacities need some hundred steps to come back from a reset.
    """

    from_iteration: int | float = 0.01667
    """Clone and split only after this iteration, or with a decimal point after this fraction of --iterations."""
    until_iteration: int | float = 0.5
    """Clone, split, drop and reset only before this iteration, or with a decimal point before this fraction of --iterations."""
    interval: int | float = 100
    """Iterations, or with a decimal point the fraction of --iterations, from one round to the next; 0 for never."""
    opacity_reset_interval: int | float = 3000
    """Iterations, or with a decimal point the fraction of --iterations, from one opacity reset to the next; 0 for never."""
    grad_threshold: float = 0.0002
    """Mean screen-space gradient from which a Gaussian is cloned or split."""
    percent_dense: float = 0.01
    """A Gaussian larger than this fraction of the scene's extent is split, a smaller one cloned."""
    min_opacity: float = 0.005
    """A Gaussian with less opacity than this is dropped."""
    reset_opacity_to: float = 0.01
    """An opacity reset lowers every opacity to at most this."""
    max_world_scale: float = 0.1
    """After the first opacity reset, a Gaussian larger than this fraction of the scene's extent is dropped."""

    def __post_init__(self) -> None:
        for name in SCHEDULE_POINTS:
            value = getattr(self, name)
            if isinstance(value, float) and not 0.0 <= value <= 1.0:
                raise UserError(
                    f"{_flag(name)} is {value}; with a decimal point it is a fraction of --iterations, so give 0.0 to 1.0, "
                    "or a whole number of iterations."
                )
            if value < 0:
                raise UserError(f"{_flag(name)} is {value}; give a number of iterations of at least 0.")
        for name in _NOT_NEGATIVE:
            if not 0.0 <= getattr(self, name) < math.inf:
                raise UserError(f"{_flag(name)} is {getattr(self, name)}; give a number of at least 0.")
        for name in _BETWEEN_0_AND_1:
            if not 0.0 < getattr(self, name) < 1.0:
                raise UserError(f"{_flag(name)} is {getattr(self, name)}; give a number between 0 and 1.")


def _flag(name: str) -> str:
    return f"--density.{name.replace('_', '-')}"
