"""Trainings on a pretended GPU: they train, wait for the GPU only where they must, and keep no tensor of a step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pretended_device
import pytest
import torch
from small_trainings import KINDS, OPTIONS, config_of, ordinary

from gs_train.density import multiview
from gs_train.evaluate.evaluate import evaluate
from gs_train.model.gaussians import GaussianModel
from gs_train.render.cpu.rasterizer import CpuRasterizer
from gs_train.render.gsplat_cuda import GsplatRasterizer
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.types import Scene
from gs_train.training.loop import train
from gs_train.training.state import TrainState


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pretended_device.PretendedDevice]:
    # The tensors are so small that threads would only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield pretended_device.install(monkeypatch)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small_scene(tiny_scene: Path) -> Scene:
    """Photos of 16x12 px and 80 points, because the double of gsplat's kernels is slow."""
    scene = load_scene(tiny_scene, SceneConfig(resolution=4))
    points, few = scene.points, slice(None, None, 5)
    return replace(scene, points=replace(points, xyz=points.xyz[few], rgb=points.rgb[few], ids=points.ids[few]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_density_control_trains_and_waits_only_in_rounds(
    kind: str, gpu: pretended_device.PretendedDevice, small_scene: Scene, tmp_path: Path
) -> None:
    waits: dict[int, list[str]] = {}

    def note(state: TrainState) -> None:
        waits[state.iteration] = list(gpu.waits)
        gpu.waits.clear()

    with gpu:
        state = train(small_scene, config_of(kind, 100), tmp_path / "run", after_step=[note], progress=False)
        losses = state.smoothed
    assert state.model.device == pretended_device.DEVICE and losses["psnr"] > 10.0
    steps = [step for step in waits if ordinary(step)]
    assert len(steps) == 72
    assert {step: waits[step] for step in steps if waits[step]} == {}


@pytest.mark.parametrize(("kind", "most"), [("classic", 2), ("absgrad", 2), ("mcmc", 3), ("multiview", 3)])
def test_a_round_waits_for_the_numbers_of_rows_alone(
    kind: str,
    most: int,
    gpu: pretended_device.PretendedDevice,
    small_scene: Scene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(multiview, "PIXELS_PER_GAUSSIAN", 1)
    waits: dict[int, list[str]] = {}
    counts: dict[int, int] = {}

    def note(state: TrainState) -> None:
        waits[state.iteration], counts[state.iteration] = list(gpu.waits.elements()), len(state.model)
        gpu.waits.clear()

    # Steps 21, 31 and 41 begin with a round. Classic density control doubles all Gaussians until they are too many.
    config = config_of(kind, 100, max_gaussians=350, log_every=100, save_every=100)
    config = replace(config, density=replace(config.density, grad_threshold=0.0, absgrad_threshold=0.0))
    with gpu:
        run = tmp_path / "run"
        train(small_scene, config, run, after_step=[note], should_stop=lambda: 41 in counts, progress=False)
    assert len(small_scene.points.xyz) < counts[21] < counts[31] < counts[41] <= 350
    for step in (21, 31):
        assert 0 < len(waits[step]) <= most, waits[step]
    # Too many candidates take one more.
    assert len(waits[41]) <= 3, waits[41]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains_without_a_wait(
    name: str, gpu: pretended_device.PretendedDevice, small_scene: Scene, tmp_path: Path
) -> None:
    config = config_of("multiview", 30, **OPTIONS[name])
    waits: dict[int, list[str]] = {}

    def note(state: TrainState) -> None:
        waits[state.iteration] = list(gpu.waits)
        gpu.waits.clear()

    with gpu:
        train(small_scene, config, tmp_path / "run", after_step=[note], progress=False)
    steps = [step for step in waits if step > 20 and ordinary(step)]
    assert len(steps) == 8
    assert {step: waits[step] for step in steps if waits[step]} == {}


def test_photos_beyond_the_budget_give_the_same_bits_without_a_wait(
    gpu: pretended_device.PretendedDevice, small_scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for photo_memory in (pretended_device.PHOTO_MEMORY, 0):
        monkeypatch.setattr(pretended_device, "PHOTO_MEMORY", photo_memory)
        waits: dict[int, list[str]] = {}

        def note(state: TrainState, waits: dict[int, list[str]] = waits) -> None:
            waits[state.iteration] = list(gpu.waits)
            gpu.waits.clear()

        with gpu:
            # The photos double their size at iteration 6.
            config = config_of("multiview", 26, start_downscale=2, full_size_from=6)
            state = train(small_scene, config, tmp_path / f"{photo_memory}", after_step=[note], progress=False)
        assert {step: found for step, found in waits.items() if found and ordinary(step)} == {}
        results.append({name: pretended_device.to_cpu(each) for name, each in state.model.parameters.items()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("kind", ["absgrad", "mcmc"])
def test_a_run_resumes_to_equal_bits_and_moves_between_devices(
    kind: str, gpu: pretended_device.PretendedDevice, small_scene: Scene, tmp_path: Path
) -> None:
    config, run = replace(config_of(kind, 24), save_every=12, keep=5), tmp_path / "run"

    def parameters_after(device: str) -> dict[str, torch.Tensor]:
        (run / "checkpoints" / "iteration_000024.pt").unlink()
        state = train(small_scene, replace(config, device=device), run, resume=True, progress=False)
        return {name: pretended_device.to_cpu(p).detach() for name, p in state.model.parameters.items()}

    with gpu:
        train(small_scene, config, run, progress=False)
        first, second = parameters_after("auto"), parameters_after("auto")
        for name in first:
            assert torch.equal(first[name], second[name]), name
    on_cpu = parameters_after("cpu")
    for name in first:
        assert on_cpu[name].device.type == "cpu" and on_cpu[name].isfinite().all()
        if kind != "mcmc":  # A GPU draws other noise.
            assert (on_cpu[name] - first[name]).norm() < 0.05 * first[name].norm(), name
    with gpu:
        back = train(small_scene, replace(config, iterations=26), run, resume=True, progress=False)
    assert back.model.device == pretended_device.DEVICE


def test_memory_does_not_grow(gpu: pretended_device.PretendedDevice, small_scene: Scene, tmp_path: Path) -> None:
    """After each step, only Gaussians, their moments, photos and constants are in memory."""
    config = config_of("absgrad", 200, start_downscale=1)
    # A first round later than the last step.
    config = replace(config, density=replace(config.density, from_iteration=500, opacity_reset_interval=0))
    alive: dict[int, int] = {}

    def note(state: TrainState) -> None:
        if state.iteration % 50 == 0:
            gc.collect()
            alive[state.iteration] = gpu.living_bytes()

    with gpu:
        train(small_scene, config, tmp_path / "run", after_step=[note], progress=False)
    assert list(alive) == [50, 100, 150, 200]
    assert len(set(alive.values())) == 1, alive


def test_the_pretended_device_behaves_like_a_gpu(gpu: pretended_device.PretendedDevice) -> None:
    with gpu:
        tensor = torch.arange(4.0).to(pretended_device.DEVICE)
        assert list(gpu.waits) == ["copy to the GPU"]
        gpu.waits.clear()
        assert tensor.device == pretended_device.DEVICE and (tensor + 1.0).device == pretended_device.DEVICE
        torch.ones(3).to(pretended_device.DEVICE, non_blocking=True)
        torch.ones(10**5).pin_memory().to(pretended_device.DEVICE, non_blocking=True)
        assert not gpu.waits
        with pytest.raises(RuntimeError, match="same device"):
            tensor + torch.ones(4)
        with pytest.raises(TypeError, match="numpy"):
            tensor.numpy()
        torch.ones(10**5).to(pretended_device.DEVICE, non_blocking=True)
        for wait in (
            lambda: tensor.sum().item(),
            lambda: bool((tensor > 0).any()),
            (tensor > 0).nonzero,
            lambda: tensor[tensor > 0],
            tensor.cpu,
            lambda: torch.tensor([1.0], device=pretended_device.DEVICE),
            lambda: tensor[torch.tensor([0, 1])],
        ):
            wait()
        assert gpu.waits.total() == 8
        before = gpu.living_bytes()
        kept = tensor * 2.0
        assert gpu.living_bytes() == before + kept.nbytes


@pytest.mark.parametrize("kind", ["classic", "mcmc"])
def test_a_gaussian_that_becomes_nan_ends_the_training_at_the_next_logging_step(
    kind: str, gpu: pretended_device.PretendedDevice, small_scene: Scene, tmp_path: Path
) -> None:
    """gsplat leaves it out of the render, so the loss stays finite."""

    def spoil(state: TrainState) -> None:
        if state.iteration == 13:
            pretended_device.to_cpu(state.model.xyz.data)[3] = torch.nan

    with gpu, pytest.raises(FloatingPointError, match=r"at iteration 20; 3 of \d+ values of xyz are not finite"):
        train(small_scene, config_of(kind, 30), tmp_path / "run", after_step=[spoil], progress=False)
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pt"))


def test_evaluation_gives_the_figures_of_the_cpu(
    gpu: pretended_device.PretendedDevice, small_scene: Scene, tmp_path: Path
) -> None:
    config, run = config_of("multiview", 20), tmp_path / "run"
    with gpu:
        state = train(small_scene, config, run, progress=False)
        background = state.background.eval_color()
        views, renders = small_scene.train_views[:2], tmp_path / "renders"
        renders.mkdir()
        rasterizer = GsplatRasterizer()
        on_gpu = evaluate(state.model, views, rasterizer, background=background, renders=renders)
        saved = state.model.state_dict()
    saved["parameters"] = {name: pretended_device.to_cpu(each) for name, each in saved["parameters"].items()}
    model, background = GaussianModel.from_state_dict(saved), pretended_device.to_cpu(background)
    on_cpu = evaluate(model, views, CpuRasterizer(), background=background)
    assert all(path.exists() for path in on_gpu.images) and len(on_gpu.images) == 2
    assert on_gpu.mean.psnr == pytest.approx(on_cpu.mean.psnr, abs=1e-3)
    assert on_gpu.mean.ssim == pytest.approx(on_cpu.mean.ssim, abs=1e-4)
