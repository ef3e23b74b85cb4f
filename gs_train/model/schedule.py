"""Learning rates: the configuration of the six Adam groups and the exponential decay of the positions' rate.

It does not touch an optimizer, and it does not import torch, so that the command line can build its help from it quickly. The invariant:
only the group ``xyz`` has a schedule; the other five rates stay as configured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gs_train.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Learning rates of the six parameter groups (defaults: the original trainer's)."""

    xyz_lr_init: float = 1.6e-4
    """Learning rate of the positions at the start, times the scene's extent."""
    xyz_lr_final: float = 1.6e-6
    """Learning rate of the positions at the end of their decay, times the scene's extent."""
    xyz_lr_delay_steps: int = 0
    """Iterations over which the positions' rate is eased in; 0 leaves the easing out."""
    xyz_lr_delay_mult: float = 0.01
    """Factor on the positions' rate at the start of the easing."""
    xyz_lr_max_steps: int | float = 1.0
    """When the positions' rate reaches its final value: an iteration, or with a decimal point a fraction of --iterations."""
    f_dc_lr: float = 0.0025
    """Learning rate of the base colour."""
    f_rest_lr: float = 0.000125
    """Learning rate of the view-dependent colour."""
    opacity_lr: float = 0.025
    """Learning rate of the opacity (logit)."""
    scaling_lr: float = 0.005
    """Learning rate of the scales (log)."""
    rotation_lr: float = 0.001
    """Learning rate of the rotations (quaternion)."""
    f_rest_interval: int = 1
    """Step the view-dependent colour every so many iterations only."""
    visible_only: bool = False
    """Step only the Gaussians that the view sees, each with moments and a bias correction of its own."""

    def __post_init__(self) -> None:
        for name in (
            "xyz_lr_init",
            "xyz_lr_final",
            "xyz_lr_delay_mult",
            "f_dc_lr",
            "f_rest_lr",
            "opacity_lr",
            "scaling_lr",
            "rotation_lr",
        ):
            value = getattr(self, name)
            if not (0.0 <= value < math.inf):
                raise UserError(f"--optimizer.{name.replace('_', '-')} is {value}; give a number of at least 0.")
        if self.f_rest_interval < 1:
            raise UserError(
                f"--optimizer.f-rest-interval is {self.f_rest_interval}; give a number of iterations of at least 1."
            )
        if self.xyz_lr_delay_steps < 0:
            raise UserError(
                f"--optimizer.xyz-lr-delay-steps is {self.xyz_lr_delay_steps}; give 0 or a number of iterations."
            )
        if isinstance(self.xyz_lr_max_steps, float) and not (0.0 < self.xyz_lr_max_steps <= 1.0):
            raise UserError(
                f"--optimizer.xyz-lr-max-steps is {self.xyz_lr_max_steps}; with a decimal point it is a fraction of --iterations, "
                "so give one above 0.0 and up to 1.0, or a whole number of iterations."
            )
        if self.xyz_lr_max_steps <= 0:
            raise UserError(f"--optimizer.xyz-lr-max-steps is {self.xyz_lr_max_steps}; give at least 1 iteration.")


def get_expon_lr_func(
    lr_init: float,
    lr_final: float,
    lr_delay_steps: int = 0,
    lr_delay_mult: float = 1.0,
    max_steps: int = 1_000_000,
) -> Callable[[int], float]:
    """Log-linear decay from ``lr_init`` to ``lr_final`` with an optional eased start (the schedule of JaxNeRF and Plenoxels).

    The rate at a step is ``delay * lr_init^(1 - t) * lr_final^t`` with ``t = clip(step / max_steps, 0, 1)``, and ``delay`` rises on a
    quarter sine from ``lr_delay_mult`` to 1 over ``lr_delay_steps``. It is exactly 0 before step 0 and where both rates are 0.

    Args:
        lr_init: rate at step 0.
        lr_final: rate from ``max_steps`` on.
        lr_delay_steps: steps of easing; 0 means none.
        lr_delay_mult: factor at step 0 when there is easing.
        max_steps: step at which ``lr_final`` is reached.

    Raises:
        ValueError: a negative rate, a negative ``lr_delay_steps``, or ``max_steps`` below 1.
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
        # Powers instead of exp of logarithms: both ends are then exact, and a single rate of 0 needs no special case.
        return float(delay * lr_init ** (1.0 - t) * lr_final**t)

    return rate_at
