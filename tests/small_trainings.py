"""Settings of short trainings for the tests on a GPU, pretended or real."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gs_train.config.settings import TrainConfig
from gs_train.config.toml import load_preset

KINDS = ("classic", "absgrad", "mcmc", "multiview")


def config_of(kind: str, iterations: int, **settings: Any) -> TrainConfig:
    """Rounds of density control every ten iterations from 10 to 60, and opacity resets."""
    base = load_preset("default")
    density = replace(
        base.density,
        kind=kind,
        from_iteration=10,
        until_iteration=60,
        refine_until_iteration=60,
        interval=10,
        opacity_reset_interval=40,
        score_views=2,
    )
    settings = {"max_gaussians": 100, "log_every": 10, "save_every": 40, "start_downscale": 1} | settings
    # With rates that fall late, so few steps would not bring opacities back after a reset. Pixels of small photos are
    # wide, so the rate of the positions is smaller than that of a training.
    optimizer = replace(base.optimizer, xyz_lr_init=0.02, late_lr_factor=1.0)
    return replace(base, iterations=iterations, density=density, optimizer=optimizer, **settings)


OPTIONS: dict[str, dict[str, Any]] = {
    "antialiased": {"antialiased": True},
    "depth": {"depth_weight": 0.1},
    "exposure": {"exposure": "affine"},
    "poses": {"refine_poses": True, "start_downscale": 2},
    "learned background": {"background": "learned"},
    "batch": {"batch_size": 2, "batch_from": 20},
}


def ordinary(step: int) -> bool:
    """Whether a step of such a training only steps. The first ten copy photos and constants; steps at multiples of ten
    log, and the steps after them change Gaussians."""
    return step > 10 and step % 10 > 1
