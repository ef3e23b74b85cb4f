"""The notice about a round that prunes most Gaussians: given if the photos miss them, not if they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from splats import ARRAYS

from gs_train.config.settings import TrainConfig
from gs_train.density.config import DensityConfig
from gs_train.formats.ply import read_ply, write_ply
from gs_train.formats.splat_data import SplatData
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.training.loop import train


def notices(scene: Path, start: Path, out: Path, min_opacity: float) -> tuple[list[str], list[int]]:
    """Train from a splat with one round of density control, which only prunes.

    Returns:
        The notices of density control, and the number of Gaussians before and after the round.
    """
    density = DensityConfig(
        kind="classic", from_iteration=1, interval=60, until_iteration=61, grad_threshold=1e9, min_opacity=min_opacity
    )
    config = TrainConfig(
        iterations=96, device="cpu", background="black", start_downscale=1, init_from=str(start), density=density
    )
    told: list[str] = []
    counts: list[int] = []
    train(
        load_scene(scene, SceneConfig(test_every=0)),
        config,
        out,
        notify=told.append,
        after_step=[lambda state: counts.append(len(state.model))],
    )
    return [each for each in told if each.startswith("Density control")], [counts[59], counts[60]]


def test_only_a_loss_of_quality_is_told(tiny_run: Path, tiny_scene: Path, tmp_path: Path) -> None:
    trained = read_ply(tiny_run / "point_cloud" / "iteration_24" / "point_cloud.ply")
    rows = len(trained.xyz)
    start = SplatData(**{name: np.repeat(getattr(trained, name), 3, axis=0) for name in ARRAYS})
    opacity = np.full((rows, 3, 1), -9.0, np.float32)
    opacity[:, 0] = trained.opacity
    write_ply(tmp_path / "start.ply", replace(start, opacity=opacity.reshape(-1, 1)))

    told, (before, after) = notices(tiny_scene, tmp_path / "start.ply", tmp_path / "transparent", 0.001)
    assert before == 3 * rows and 0.9 * rows < after <= rows
    assert told == []

    told, (before, after) = notices(tiny_scene, tmp_path / "start.ply", tmp_path / "all", 0.999)
    assert (before, after) == (3 * rows, 1)
    (sentence,) = told
    assert f"leaves 1 of {before:,} Gaussians after iteration 60" in sentence and "--density.kind mcmc" in sentence
