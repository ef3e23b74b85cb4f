"""Whole trainings on a GPU: they learn, wait only where they must, keep no memory, and move between devices."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_trainings import KINDS, OPTIONS, config_of, ordinary

from gs_train.config.settings import TrainConfig
from gs_train.evaluate.evaluate import evaluate
from gs_train.render import gsplat_cuda, select
from gs_train.render.select import select_rasterizer
from gs_train.scene.load import load_scene
from gs_train.scene.types import Scene
from gs_train.training.loop import train
from gs_train.training.state import TrainState

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    fault = gsplat_cuda.why_unusable(print)
    if fault is not None:
        pytest.skip(fault)


@pytest.fixture(scope="module")
def scene(tiny_scene: Path) -> Scene:
    return load_scene(tiny_scene)


def waits_of(scene: Scene, config: TrainConfig, run: Path) -> tuple[TrainState, dict[int, list[str]]]:
    """Train; returns the state and by step the lines at which torch waits for the GPU. The wait inside gsplat's tile
    kernel does not pass through Python's warnings."""
    waits: dict[int, list[str]] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def note(state: TrainState) -> None:
            waits[state.iteration] = [
                f"{each.filename}:{each.lineno}" for each in caught if "synchron" in str(each.message)
            ]
            caught.clear()

        torch.cuda.set_sync_debug_mode("warn")
        try:
            state = train(scene, config, run, after_step=[note], progress=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return state, waits


@pytest.mark.parametrize("name", [*KINDS, *OPTIONS])
def test_it_trains_without_waits(name: str, scene: Scene, tmp_path: Path) -> None:
    kind = name if name in KINDS else "multiview"
    config = config_of(kind, 100, max_gaussians=2000, **OPTIONS.get(name, {}))
    state, waits = waits_of(scene, config, tmp_path / "run")
    assert state.model.device.type == "cuda"
    assert all(parameter.isfinite().all() for parameter in state.model.parameters.values())
    assert state.smoothed["psnr"] > 11.0
    assert {step: found for step, found in waits.items() if found and ordinary(step)} == {}

    selection = select_rasterizer("cuda", print, antialiased=config.antialiased)
    background = state.background.eval_color()
    result = evaluate(state.model, scene.train_views[:2], selection.rasterizer, background=background)
    assert result.mean.psnr > 13.0


@pytest.mark.parametrize("kind", ["absgrad", "mcmc"])
def test_a_run_resumes_and_moves_between_devices(kind: str, scene: Scene, tmp_path: Path) -> None:
    config, run = replace(config_of(kind, 40, max_gaussians=2000), save_every=20, keep=5), tmp_path / "run"
    state = train(scene, config, run, progress=False)
    count = len(state.model)
    for device in ("cuda", "cpu", "cuda"):
        (run / "checkpoints" / "iteration_000040.pt").unlink()
        state = train(scene, replace(config, device=device), run, resume=True, progress=False)
        assert state.model.device.type == device and state.iteration == 40
        # Sums on a GPU depend on the order of its threads, so a few decisions of density control differ.
        assert abs(len(state.model) - count) <= 0.05 * count
        assert all(parameter.isfinite().all() for parameter in state.model.parameters.values())


def test_photos_beyond_the_budget_train_the_same_splat(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for no photo, every photo is copied ahead of its step."""
    config = config_of("multiview", 60, max_gaussians=2000, start_downscale=2, full_size_from=20)
    config = replace(config, density=replace(config.density, from_iteration=1000))
    start = train(scene, replace(config, iterations=1), tmp_path / "start", progress=False).model.f_dc
    trained = []
    for share in (0.2, 0.0, 0.2):
        monkeypatch.setattr(select, "_PHOTO_SHARE", share)
        state, waits = waits_of(scene, config, tmp_path / f"run_{len(trained)}")
        assert {step: found for step, found in waits.items() if found and ordinary(step)} == {}
        trained.append(state.model.f_dc)
    # Sums on a GPU depend on the order of its threads; a wrong photo would change far more.
    moved = (trained[0] - start).norm()
    assert (trained[1] - trained[0]).norm() < 0.02 * moved + 3.0 * (trained[2] - trained[0]).norm()


def test_memory_does_not_grow(scene: Scene, tmp_path: Path) -> None:
    config = config_of("absgrad", 2000, save_every=2000)
    config = replace(config, density=replace(config.density, from_iteration=3000, opacity_reset_interval=0))
    allocated: dict[int, int] = {}

    def note(state: TrainState) -> None:
        if state.iteration in (50, 2000):
            allocated[state.iteration] = torch.cuda.memory_allocated()

    train(scene, config, tmp_path / "run", after_step=[note], progress=False)
    # Nothing of a step outlives it; the allocator rounds sizes.
    assert abs(allocated[2000] - allocated[50]) < 2**20
