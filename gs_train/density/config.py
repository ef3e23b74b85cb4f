"""The settings of density control. This module imports no torch, so that ``gs-train --help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from gs_train.density.registry import CONTROLLERS
from gs_train.errors import UserError, nearest
from gs_train.options import DENSITY, MOST_USED, check, resolve, schedule_points, setting

_STEPS_AFTER_RESET, _STEPS_AFTER_ROUND = 1000, 500
"""Steps between the last opacity reset or the last relocation and the end of a long run."""


@dataclass(frozen=True, kw_only=True)
class DensityConfig:
    """When and where Gaussians are added, moved and removed.

    Kinds in brackets at the start of a field's help are the only kinds that read the field. Defaults are the papers'
    values, except for ``noise_lr``. Most schedule points are fractions of the run. The intervals are whole iterations,
    because a decision to densify needs some hundred views and opacities need some hundred steps to recover from a
    reset, however short the run is.
    """

    kind: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(CONTROLLERS)}}}")] = setting(
        "multiview", group=MOST_USED, shapes_state=True
    )
    """How Gaussians are added and removed. classic: clone and split by the screen-space gradient. absgrad: the same
    with absolute gradients. mcmc: relocate transparent Gaussians to where errors remain, always up to --max-gaussians.
    multiview: densify where several training views have errors; the smallest splats."""
    from_iteration: int | float = setting(0.01667, group=DENSITY)
    """First iteration after which Gaussians change; 500, or 0.02 for a fraction of --iterations. Raise it if early
    growth follows a blurred picture."""
    until_iteration: int | float = setting(0.4, group=DENSITY)
    """(classic, absgrad, multiview) Iteration at which densification ends; 15000, or 0.5 for a fraction of
    --iterations. Lower it for fewer Gaussians."""
    refine_until_iteration: int | float = setting(0.8333, group=DENSITY)
    """(mcmc) Iteration at which relocation ends; 25000, or 0.8 for a fraction of --iterations. Lower it for more time
    to settle."""
    interval: int | float = setting(100, group=DENSITY)
    """Iterations between two rounds of densification, or a fraction of --iterations; 0 turns densification off, for
    example to refine a splat with --init-from."""
    opacity_reset_interval: int | float = setting(3000, group=DENSITY)
    """(classic, absgrad) Iterations between two opacity resets, or a fraction of --iterations; 0 turns resets off.
    Lower it against floating Gaussians near the cameras."""
    grad_threshold: float = setting(0.0002, group=DENSITY, at_least=0)
    """(classic) Mean screen-space gradient above which a Gaussian is cloned or split. Lower it for more Gaussians."""
    absgrad_threshold: float = setting(0.0008, group=DENSITY, at_least=0)
    """(absgrad) Mean absolute screen-space gradient above which a Gaussian is cloned or split. Lower it for more
    Gaussians."""
    percent_dense: float = setting(0.01, group=DENSITY, at_least=0)
    """(classic, absgrad, multiview) Gaussians larger than this fraction of the scene's extent are split, smaller
    Gaussians cloned. Lower it to split more."""
    min_opacity: float = setting(0.005, group=DENSITY, above=0, below=1)
    """Gaussians with a lower opacity are pruned, or with mcmc relocated. Raise it (0.02) for a smaller splat."""
    reset_opacity_to: float = setting(0.01, group=DENSITY, above=0, below=1)
    """(classic, absgrad) An opacity reset lowers every opacity to at most this value. Keep it above
    --density.min-opacity."""
    max_world_scale: float = setting(0.1, group=DENSITY, at_least=0)
    """(classic, absgrad) After the first opacity reset, Gaussians larger than this fraction of the scene's extent are
    split. Lower it for a scene that stays blurred in large plain parts."""
    growth: float = setting(0.05, group=DENSITY, at_least=0)
    """(mcmc) Fraction of new Gaussians per round, up to --max-gaussians. Raise it for short runs."""
    noise_lr: float = setting(3e4, group=DENSITY, at_least=0)
    """(mcmc) Strength of the noise on positions, times their learning rate. Use the paper's 5e5 with the original's
    learning rates."""
    opacity_reg: float = setting(0.01, group=DENSITY, at_least=0)
    """(mcmc) Weight of the mean opacity in the loss. Raise it if too few Gaussians become free to relocate."""
    scale_reg: float = setting(0.01, group=DENSITY, at_least=0)
    """(mcmc) Weight of the mean scale in the loss. Raise it against large blurred Gaussians."""
    score_views: int = setting(10, group=DENSITY, at_least=1)
    """(mcmc, multiview) Training views that one round renders to measure errors; the last round of multiview renders
    ten times as many. Fewer is faster, more is steadier."""
    high_error: float = setting(0.05, group=DENSITY, at_least=0)
    """(mcmc, multiview) Pixels with a mean absolute error (0 to 1) above this trigger densification. Lower it (0.02)
    for finer detail when there are many photos."""
    min_contribution: float = setting(1.0, group=DENSITY, at_least=0)
    """(multiview) After densification, Gaussians whose summed blending weight stays below this value (px) in every view
    are pruned. Raise it for a smaller splat."""

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a value outside its range."""
        if self.kind not in CONTROLLERS:
            known = list(CONTROLLERS)
            raise UserError(
                f"--density.kind is {self.kind}{nearest(self.kind, known)}: give one of {', '.join(known)}."
            )
        check(self, "density.")

    def resolved(self, iterations: int) -> DensityConfig:
        """The same schedule in whole iterations of a run of ``iterations`` steps.

        Density control ends some steps before the run does, because new Gaussians and reset opacities are worth nothing
        until steps have fitted them. An opacity reset needs the most; only kinds that end at ``until_iteration`` reset.
        """
        config = resolve(self, iterations)
        last_reset = iterations - min(_STEPS_AFTER_RESET, iterations // 3)
        last_round = iterations - min(_STEPS_AFTER_ROUND, iterations // 6)
        return replace(
            config,
            until_iteration=min(config.until_iteration, last_reset),
            refine_until_iteration=min(config.refine_until_iteration, last_round),
        )

    def is_round(self, iteration: int, until: float) -> bool:
        """Whether densification has a round at ``iteration``: after ``from_iteration``, before ``until``, every
        ``interval``."""
        return self.from_iteration < iteration < until and self.interval > 0 and iteration % self.interval == 0


def check_resolved(config: DensityConfig, max_gaussians: int) -> None:
    """Check the settings that a controller receives.

    Raises:
        ValueError: a schedule point is still a fraction, or ``max_gaussians`` is below 1.
    """
    fractions = [name for name in schedule_points(config) if isinstance(getattr(config, name), float)]
    if fractions:
        raise ValueError(f"{', '.join(fractions)}: still fractions of the run; resolve them to whole iterations first")
    if max_gaussians < 1:
        raise ValueError(f"max_gaussians: expected at least 1, got {max_gaussians}")
