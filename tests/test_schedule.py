"""The learning-rate schedule and the checks of its settings."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from gs_train.errors import UserError
from gs_train.model.schedule import OptimizerConfig, get_expon_lr_func, late_factor


def by_the_formula(step: float, init: float, final: float, delay_steps: int, mult: float, max_steps: int) -> float:
    delay = mult + (1 - mult) * np.sin(0.5 * np.pi * np.clip(step / delay_steps, 0, 1)) if delay_steps > 0 else 1.0
    t = np.clip(step / max_steps, 0, 1)
    return float(delay * np.exp(np.log(init) * (1 - t) + np.log(final) * t))


@pytest.mark.parametrize("delay_steps", [0, 40])
@pytest.mark.parametrize("step", [0, 1, 20, 40, 99, 100, 500])
def test_the_schedule_matches_the_formula(step: int, delay_steps: int) -> None:
    rate = get_expon_lr_func(1.6e-4, 1.6e-6, delay_steps, 0.01, 100)
    assert rate(step) == pytest.approx(by_the_formula(step, 1.6e-4, 1.6e-6, delay_steps, 0.01, 100), rel=1e-12)


def test_both_ends_are_exact() -> None:
    rate = get_expon_lr_func(1.6e-4, 1.6e-6, max_steps=30_000)
    assert rate(0) == 1.6e-4 and rate(30_000) == rate(60_000) == 1.6e-6
    assert rate(15_000) == pytest.approx(1.6e-5)


def test_the_late_decay_is_exact_at_both_ends_and_falls_between() -> None:
    factors = [late_factor(step, 0.1, 3000) for step in range(3002)]
    assert factors[:1801] == [1.0] * 1801
    assert factors[3000] == factors[3001] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in pairwise(factors[1800:3001]))
    assert {late_factor(step, 1.0, 3000) for step in range(3002)} == {1.0}


def test_zero_before_the_start_and_for_zero_rates() -> None:
    assert get_expon_lr_func(1.0, 0.1, max_steps=10)(-1) == 0.0
    assert get_expon_lr_func(0.0, 0.0, max_steps=10)(5) == 0.0


def test_one_rate_of_zero_gives_no_nan() -> None:
    to_zero = get_expon_lr_func(1.0, 0.0, max_steps=10)
    assert [to_zero(0), to_zero(5), to_zero(10)] == [1.0, 0.0, 0.0]


def test_the_delay_multiplier_is_inert_without_delay_steps() -> None:
    assert get_expon_lr_func(1.0, 0.1, lr_delay_mult=0.01, max_steps=10)(0) == 1.0


@pytest.mark.parametrize("arguments", [(-1.0, 1.0, 0, 1.0, 10), (1.0, 1.0, -1, 1.0, 10), (1.0, 1.0, 0, 1.0, 0)])
def test_senseless_arguments_are_refused(arguments: tuple[float, float, int, float, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        get_expon_lr_func(*arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [("xyz_lr_init", -1.0), ("f_rest_lr", math.nan), ("opacity_lr", math.inf), ("xyz_lr_delay_steps", -1),
    ("xyz_lr_max_steps", 1.5), ("late_lr_factor", 1.1), ("late_lr_factor", -0.1),
     ("xyz_lr_max_steps", 0), ("xyz_lr_max_steps", 0.0), ("xyz_lr_max_steps", -5)],
)  # fmt: skip
def test_config_names_the_flag(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--optimizer.{name.replace('_', '-')} is"):
        OptimizerConfig(**{name: value})  # type: ignore[arg-type]


def test_the_config_classes_do_not_import_torch() -> None:
    code = "import gs_train.model.schedule, gs_train.density.config, sys; "
    code += "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
