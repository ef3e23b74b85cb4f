"""Adam's settings over a training: the learning rate of each parameter group, and the rule for larger batches."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer

from gs_train.model import optimizer as door
from gs_train.model.schedule import OptimizerConfig, get_expon_lr_func, late_factor

EPS = 1e-15
"""Adam's epsilon (original: 1e-15)."""
BETAS = (0.9, 0.999)
"""Adam's decay rates of the two moments (original, and torch's default)."""


class AdamSchedule:
    """Sets the rates of the six groups for a step."""

    def __init__(self, config: OptimizerConfig, spatial_lr_scale: float) -> None:
        """Prepare the schedule.

        Args:
            config: with whole iterations.
            spatial_lr_scale: factor on the learning rate of the positions.

        Raises:
            ValueError: ``config.xyz_lr_max_steps`` is still a fraction of the iterations.
        """
        if not isinstance(config.xyz_lr_max_steps, int):
            raise ValueError(
                f"xyz_lr_max_steps is the fraction {config.xyz_lr_max_steps}; resolve it to whole iterations first"
            )
        self._xyz_rate_at = get_expon_lr_func(
            config.xyz_lr_init * spatial_lr_scale,
            config.xyz_lr_final * spatial_lr_scale,
            lr_delay_steps=config.xyz_lr_delay_steps,
            lr_delay_mult=config.xyz_lr_delay_mult,
            max_steps=config.xyz_lr_max_steps,
        )
        self._late_factor_at = partial(late_factor, factor=config.late_lr_factor, max_steps=config.xyz_lr_max_steps)
        self._follows_batch = config.batch_rule == "sqrt"
        self.rates = {
            "xyz": config.xyz_lr_init * spatial_lr_scale,
            "f_dc": config.f_dc_lr,
            "f_rest": config.f_rest_lr,
            "opacity": config.opacity_lr,
            "scaling": config.scaling_lr,
            "rotation": config.rotation_lr,
        }
        """Learning rates of the groups before the first step."""

    def apply(self, optimizer: Optimizer, iteration: int, batch_size: int) -> float:
        """Set the rates for the step at ``iteration`` with ``batch_size`` views; returns the rate of ``xyz``.

        With the batch rule sqrt and B views, learning rates are sqrt(B) times as large and the decay rates of the
        moments are raised to the power of B (Grendel; Zhao et al. 2024, section 4). Its epsilon is divided by sqrt(B)
        for the mean of the gradients. Here they are summed, so it is multiplied by sqrt(B).
        """
        late = self._late_factor_at(iteration)
        rates = {name: late * rate for name, rate in self.rates.items()} | {"xyz": self._xyz_rate_at(iteration)}
        if not self._follows_batch:
            for name, rate in rates.items():
                door.set_lr(optimizer, name, rate)
            return rates["xyz"]
        factor = math.sqrt(batch_size)
        rates = {name: factor * rate for name, rate in rates.items()}
        door.set_rates(optimizer, rates, betas=(BETAS[0] ** batch_size, BETAS[1] ** batch_size), eps=factor * EPS)
        return rates["xyz"]
