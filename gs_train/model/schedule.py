"""Learning rates of the six Adam groups, and their schedules: an exponential decay for the positions, and a late decay
for the other five groups.

``rates.py`` applies both to the optimizer. This module imports no torch, so that ``gs-train --help`` stays fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gs_train.options import LEARNING_RATES, check, setting


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Learning rates of the six parameter groups. A training has other defaults for the positions and a late decay; see
    ``TrainConfig``."""

    xyz_lr_unit: Literal["extent", "pixel"] = setting("extent", group=LEARNING_RATES)
    """Unit of the learning rates of the positions. pixel: the width of a pixel of the training photos at the median
    depth of the first Gaussians. extent: the scene's extent, as in the original."""
    xyz_lr_init: float = setting(4e-4, group=LEARNING_RATES, at_least=0)
    """Learning rate of the positions at the start, in --optimizer.xyz-lr-unit. Lower it for runs of 30000; the
    original has 1.6e-4 extents."""
    xyz_lr_final: float = setting(1.6e-6, group=LEARNING_RATES, at_least=0)
    """Learning rate of the positions at the end of their decay, in --optimizer.xyz-lr-unit. Lower it if the picture
    still flickers at the end; the original has 1.6e-6 extents."""
    xyz_lr_delay_steps: int = setting(0, group=LEARNING_RATES, at_least=0)
    """Iterations over which the learning rate of the positions warms up; 0 for no warm-up. Try 500 if training from a
    splat destroys it."""
    xyz_lr_delay_mult: float = setting(0.01, group=LEARNING_RATES, at_least=0)
    """Factor on the learning rate of the positions at the start of the warm-up; only with
    --optimizer.xyz-lr-delay-steps."""
    xyz_lr_max_steps: int | float = setting(1.0, group=LEARNING_RATES, above=0)
    """Iteration at which the learning rate of the positions reaches its final value; 30000, or 1.0 for a fraction of
    --iterations."""
    f_dc_lr: float = setting(0.0025, group=LEARNING_RATES, at_least=0)
    """Learning rate of the base colour. The original's value suits most scenes."""
    f_rest_lr: float = setting(0.0005, group=LEARNING_RATES, at_least=0)
    """Learning rate of the view-dependent colour. Lower it (0.000125, the original's) for runs of 30000, or if colours
    change too much between views."""
    opacity_lr: float = setting(0.05, group=LEARNING_RATES, at_least=0)
    """Learning rate of the opacity (logit). Lower it (0.025, the original's) for runs of 30000."""
    scaling_lr: float = setting(0.02, group=LEARNING_RATES, at_least=0)
    """Learning rate of the scales (log). Lower it (0.005, the original's) for runs of 30000."""
    rotation_lr: float = setting(0.004, group=LEARNING_RATES, at_least=0)
    """Learning rate of the rotations (quaternion). Lower it (0.001, the original's) for runs of 30000."""
    late_lr_factor: float = setting(1.0, group=LEARNING_RATES, at_least=0, at_most=1)
    """Factor on the learning rates of all groups except the positions at --optimizer.xyz-lr-max-steps. They fall to it
    along a half cosine over the last 40 % of these steps; 1 keeps them constant, as the original does."""
    batch_rule: Literal["none", "sqrt"] = setting("none", group=LEARNING_RATES)
    """How a step of B views changes Adam. none: not at all. sqrt: learning rates times the root of B, and a memory that
    is B times shorter; try it with a --batch-size of 4 or more and B times fewer --iterations."""

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a value outside its range."""
        check(self, "optimizer.")


LATE = 0.6
"""Fraction of ``xyz_lr_max_steps`` at which the late decay starts."""


def late_factor(step: int, factor: float, max_steps: int) -> float:
    """Factor on a learning rate that is constant at first: exactly 1 up to ``LATE * max_steps``, then a half cosine
    down to ``factor`` at ``max_steps``, and ``factor`` afterwards."""
    t = min(max((step / max_steps - LATE) / (1.0 - LATE), 0.0), 1.0)
    return 1.0 if t == 0.0 else factor + (1.0 - factor) * 0.5 * (1.0 + math.cos(math.pi * t))


def get_expon_lr_func(
    lr_init: float,
    lr_final: float,
    lr_delay_steps: int = 0,
    lr_delay_mult: float = 1.0,
    max_steps: int = 1_000_000,
) -> Callable[[int], float]:
    """Log-linear decay from ``lr_init`` to ``lr_final`` with an optional warm-up, as in JaxNeRF and Plenoxels.

    The rate at a step is ``delay * lr_init^(1 - t) * lr_final^t`` with ``t = clip(step / max_steps, 0, 1)``. ``delay``
    rises along a quarter sine from ``lr_delay_mult`` to 1 over ``lr_delay_steps``. The rate is exactly 0 before step 0,
    and exactly 0 if both rates are 0.

    Args:
        lr_init: rate at step 0.
        lr_final: rate at ``max_steps`` and afterwards.
        lr_delay_steps: number of warm-up steps; 0 means no warm-up.
        lr_delay_mult: factor on the rate at step 0 of a warm-up.
        max_steps: step at which the rate reaches ``lr_final``.

    Returns:
        A function from the step to the learning rate.

    Raises:
        ValueError: a rate or ``lr_delay_steps`` is negative, or ``max_steps`` is below 1.
    """
    if lr_init < 0 or lr_final < 0:
        raise ValueError(f"learning rates must not be negative, got lr_init {lr_init} and lr_final {lr_final}")
    if lr_delay_steps < 0 or max_steps <= 0:
        raise ValueError(
            f"lr_delay_steps must be at least 0 and max_steps at least 1, got {lr_delay_steps} and {max_steps}"
        )

    def rate_at(step: int) -> float:
        if step < 0 or (lr_init == 0.0 and lr_final == 0.0):
            return 0.0
        delay = 1.0
        if lr_delay_steps > 0:
            eased = min(max(step / lr_delay_steps, 0.0), 1.0)
            delay = lr_delay_mult + (1.0 - lr_delay_mult) * math.sin(0.5 * math.pi * eased)
        t = min(max(step / max_steps, 0.0), 1.0)
        # Unlike exp of logarithms, powers are exact at both ends and need no special case for a single rate of 0.
        return float(delay * lr_init ** (1.0 - t) * lr_final**t)

    return rate_at
