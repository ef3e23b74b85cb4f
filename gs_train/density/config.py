"""The configuration of density control. Only data and its checks: no torch, so that the command line can build its help from it quickly.

The invariant: a field typed ``int | float`` is a point in the schedule. A whole number is an iteration, a number with a decimal point a
fraction of ``--iterations``; the controllers take whole numbers only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gs_train.errors import UserError

SCHEDULE_POINTS = ("from_iteration", "until_iteration", "interval", "opacity_reset_interval", "refine_until_iteration")
"""The fields that may be fractions of --iterations until the config is resolved."""
_NOT_NEGATIVE = (
    "grad_threshold", "absgrad_threshold", "percent_dense", "max_world_scale",
    "growth", "noise_lr", "opacity_reg", "scale_reg", "high_error", "min_contribution",
)  # fmt: skip
_BETWEEN_0_AND_1 = ("min_opacity", "reset_opacity_to")


@dataclass(frozen=True, kw_only=True)
class DensityConfig:
    """When Gaussians are cloned, split, dropped and made transparent again.

    A field whose help begins with kinds in brackets is read by those kinds alone. The defaults are the original papers'. The window of
    densification is a fraction of the run. The intervals are not: however short the run, a decision to grow needs some hundred views behind
    it, and opacities need some hundred steps to come back from a reset.
    """

    kind: Literal["classic", "absgrad", "mcmc", "multiview"] = "classic"
    """classic clones and splits by the mean screen-space gradient, absgrad by absolute gradients; mcmc moves transparent Gaussians to where
    errors remain; multiview grows where several training views still have errors, at most to one for 40 pixels of the photos, and drops
    what none of them needs."""
    from_iteration: int | float = 0.01667
    """Change Gaussians only after this iteration, or with a decimal point after this fraction of --iterations."""
    until_iteration: int | float = 0.5
    """(classic, absgrad, multiview) Clone, split, drop and reset only until this iteration, or with a decimal point until this
    fraction of --iterations."""
    refine_until_iteration: int | float = 0.8333
    """(mcmc) Move Gaussians only before this iteration, or with a decimal point before this fraction of --iterations."""
    interval: int | float = 100
    """Iterations, or with a decimal point the fraction of --iterations, from one round to the next; 0 for never."""
    opacity_reset_interval: int | float = 3000
    """(classic, absgrad) Iterations, or with a decimal point the fraction of --iterations, from one opacity reset to the next; 0 for
    never."""
    grad_threshold: float = 0.0002
    """(classic) Mean screen-space gradient from which a Gaussian is cloned or split."""
    absgrad_threshold: float = 0.0008
    """(absgrad) The same for absolute gradients."""
    percent_dense: float = 0.01
    """(classic, absgrad, multiview) A Gaussian larger than this fraction of the scene's extent is split, a smaller one cloned."""
    min_opacity: float = 0.005
    """A Gaussian with less opacity than this is dropped, or moved."""
    reset_opacity_to: float = 0.01
    """(classic, absgrad) An opacity reset lowers every opacity to at most this."""
    max_world_scale: float = 0.1
    """(classic, absgrad) After the first opacity reset, a Gaussian larger than this fraction of the scene's extent is dropped."""
    growth: float = 0.05
    """(mcmc) Grow by this fraction a round, up to --max-gaussians."""
    noise_lr: float = 5e5
    """(mcmc) Strength of the noise on positions, times their learning rate."""
    opacity_reg: float = 0.01
    """(mcmc) Weight of the mean opacity in the loss."""
    scale_reg: float = 0.01
    """(mcmc) Weight of the mean scale in the loss."""
    score_views: int = 10
    """(mcmc, multiview) Training views that a round looks at; the last one of multiview looks at ten times as many."""
    high_error: float = 0.05
    """(mcmc, multiview) Mean absolute error of a pixel, of 1, from which on it asks for more Gaussians."""
    min_contribution: float = 1.0
    """(multiview) When growth ends, a Gaussian that has less than this share in the pixels of every view, in px, is dropped."""

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
        if self.score_views < 1:
            raise UserError(f"--density.score-views is {self.score_views}; give at least 1.")

    def is_round(self, iteration: int, until: float) -> bool:
        """Whether ``iteration`` is one of the rounds after ``from_iteration`` and before ``until``."""
        return self.from_iteration < iteration < until and self.interval > 0 and iteration % self.interval == 0


def check_resolved(config: DensityConfig, max_gaussians: int) -> None:
    """What every controller refuses: ValueError where a schedule field is still a fraction, or ``max_gaussians`` is below 1."""
    fractions = [name for name in SCHEDULE_POINTS if isinstance(getattr(config, name), float)]
    if fractions:
        raise ValueError(
            f"{', '.join(fractions)}: still fractions of the iterations; resolve them to whole iterations first"
        )
    if max_gaussians < 1:
        raise ValueError(f"max_gaussians: expected at least 1, got {max_gaussians}")


def _flag(name: str) -> str:
    return f"--density.{name.replace('_', '-')}"
