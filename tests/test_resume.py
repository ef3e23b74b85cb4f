"""A stopped and resumed run equals an uninterrupted run bit for bit: parameters, moments, statistics, generators,
metrics and the .ply file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gs_train.config.settings import TrainConfig
from gs_train.density.config import DensityConfig
from gs_train.errors import UserError
from gs_train.run.checkpoint import list_checkpoints, read_checkpoint
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.types import Scene
from gs_train.training.loop import train
from gs_train.training.state import TrainState

# The run densifies and resets opacities both before and after the stop at 150. At the stop, the statistics of a round
# are incomplete and no metrics are due.
CONFIG = TrainConfig(
    iterations=300,
    device="cpu",
    background="black",
    start_downscale=1,
    sh_degree_interval=60,
    max_gaussians=4000,
    save_every=40,
    log_every=7,
    density=DensityConfig(
        kind="classic",
        from_iteration=20,
        until_iteration=290,
        interval=40,
        opacity_reset_interval=60,
        grad_threshold=1e-4,
    ),
).resolved()
STOP = 150


@pytest.fixture(scope="module")
def scene(tiny_scene: Path) -> Scene:
    return load_scene(tiny_scene, SceneConfig())


class Trace:
    """The number of Gaussians and the highest opacity after every step."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.highest_opacity: list[float] = []

    def __call__(self, state: TrainState) -> None:
        self.counts.append(len(state.model))
        self.highest_opacity.append(float(state.model.opacities().detach().max()))


@pytest.fixture(scope="module")
def at_once(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trace]:
    out, trace = tmp_path_factory.mktemp("resume") / "at_once", Trace()
    state = train(scene, CONFIG, out, after_step=[trace])
    assert state.iteration == CONFIG.iterations
    return out, trace


@pytest.fixture(scope="module")
def in_two_parts(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, steps = tmp_path_factory.mktemp("resume") / "parts", Trace()
    stopped = train(scene, CONFIG, out, after_step=[steps], should_stop=lambda: len(steps.counts) == STOP)
    assert stopped.iteration == STOP
    assert not (out / "point_cloud").exists()
    train(scene, CONFIG, out, resume=True)
    return out


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """Paths at which two state dicts differ by at least one bit. Elapsed times are ignored."""
    if where.endswith("elapsed_s"):
        return []
    if isinstance(left, torch.Tensor):
        same = (
            isinstance(right, torch.Tensor)
            and left.dtype == right.dtype
            and left.numpy().tobytes() == right.numpy().tobytes()
        )
        return [] if same else [where]
    if isinstance(left, dict):
        if left.keys() != right.keys():
            return [f"{where}: keys"]
        return [path for key in left for path in differences(left[key], right[key], f"{where}/{key}")]
    return [] if left == right else [where]


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "elapsed_s"} for line in lines]


def ply(run: Path, iteration: int = CONFIG.iterations) -> bytes:
    return (run / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply").read_bytes()


def test_the_run_densifies_and_resets_on_both_sides_of_the_stop(at_once: tuple[Path, Trace]) -> None:
    counts, opacity = at_once[1].counts, at_once[1].highest_opacity
    assert counts[STOP - 1] != counts[0], "no densification before the stop"
    assert counts[-1] != counts[STOP - 1], "no densification after the stop"
    for reset in (120, 180):
        # The reset belongs to the beginning of the next step, whose Adam step moves each logit by a few hundredths.
        assert opacity[reset] <= 0.012 < opacity[reset - 1]
    # Steps after the last round and the last reset fit what they left.
    assert CONFIG.density.until_iteration == 200 and counts[200] == counts[-1]


@pytest.mark.parametrize(("stop", "after_the_reset"), [(120, False), (121, True)])
def test_a_checkpoint_precedes_the_round_and_the_reset_of_its_iteration(
    scene: Scene, tmp_path: Path, stop: int, after_the_reset: bool
) -> None:
    """They leave what no step has fitted yet."""
    trace = Trace()
    train(scene, CONFIG, tmp_path / "run", should_stop=lambda: len(trace.counts) == stop, after_step=[trace])
    saved = read_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[0])
    assert saved.iteration == stop
    assert (saved.state["model"]["parameters"]["opacity"].sigmoid().max() < 0.011) == after_the_reset


def test_the_state_is_the_same_to_the_bit(at_once: tuple[Path, Trace], in_two_parts: Path) -> None:
    left, right = (read_checkpoint(list_checkpoints(run / "checkpoints")[0]) for run in (at_once[0], in_two_parts))
    assert left.iteration == right.iteration == CONFIG.iterations
    assert {"model", "density", "view_generator", "density_generator", "view_order", "smoothed"} <= left.state.keys()
    assert differences(left.state, right.state) == []
    assert left.config == right.config


def test_the_comparison_sees_a_single_bit(at_once: tuple[Path, Trace]) -> None:
    path = list_checkpoints(at_once[0] / "checkpoints")[0]
    left, right = read_checkpoint(path).state, read_checkpoint(path).state
    xyz = right["model"]["parameters"]["xyz"]
    xyz[0, 0] = torch.nextafter(xyz[0, 0], torch.tensor(torch.inf))
    assert differences(left, right) == ["/model/parameters/xyz"]


def test_metrics_and_splat_are_the_same(at_once: tuple[Path, Trace], in_two_parts: Path) -> None:
    lines = metrics(at_once[0])
    assert [line["iteration"] for line in lines] == list(range(7, 301, 7))
    assert metrics(in_two_parts) == lines
    assert set(lines[0]) == {"iteration", "loss", "psnr", "gaussians", "lr_xyz", "sh_degree"}
    assert ply(in_two_parts) == ply(at_once[0])


def test_resuming_a_killed_run_cuts_metrics_past_the_checkpoint(
    scene: Scene, at_once: tuple[Path, Trace], tmp_path: Path
) -> None:
    trace = Trace()

    def train_60(resume: bool) -> None:
        stop = len(trace.counts) + (20 if resume else 60)
        train(
            scene,
            CONFIG,
            tmp_path / "run",
            resume=resume,
            should_stop=lambda: len(trace.counts) == stop,
            after_step=[trace],
        )

    train_60(resume=False)
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert newest.name == "iteration_000060.pt"
    newest.unlink()  # like a run killed after step 60, before the checkpoint
    train_60(resume=True)
    assert metrics(tmp_path / "run") == metrics(at_once[0])[: 60 // 7]


def test_resuming_past_the_old_end_keeps_the_schedule(scene: Scene, tmp_path: Path) -> None:
    config = TrainConfig(iterations=20, device="cpu", density=DensityConfig(interval=0)).resolved()
    train(scene, config, tmp_path / "run")
    longer = replace(config, iterations=30)
    state = train(scene, longer, tmp_path / "run", resume=True)
    assert state.iteration == 30
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == [
        "iteration_000030.pt",
        "iteration_000020.pt",
    ]
    assert len(ply(tmp_path / "run", 30)) == len(ply(tmp_path / "run", 20))
    # The learning rate is fully decayed after 20 steps. Resuming does not raise it again.
    lr = [line["lr_xyz"] for line in metrics(tmp_path / "run")]
    assert lr[-1] == lr[-2] < lr[0]


def test_fewer_iterations_than_the_checkpoint_has_are_refused(scene: Scene, in_two_parts: Path) -> None:
    with pytest.raises(UserError, match=r"--iterations is 100 but .* already has 300"):
        train(scene, replace(CONFIG, iterations=100), in_two_parts, resume=True)


def test_a_taken_folder_is_refused_and_overwritten_only_when_asked(scene: Scene, tmp_path: Path) -> None:
    config = replace(CONFIG, iterations=2)
    out = tmp_path / "run"
    train(scene, config, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        train(scene, config, out)
    train(scene, replace(config, iterations=3), out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in list_checkpoints(out / "checkpoints")] == ["iteration_000003.pt"]
    assert not (out / "point_cloud" / "iteration_2").exists()


def test_a_folder_that_is_no_run_is_never_overwritten(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run"):
        train(scene, CONFIG, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


# ---- short runs with every density controller, schedule and background ----

VARIANTS: dict[str, dict[str, Any]] = {
    "absgrad": {"density": {"kind": "absgrad", "absgrad_threshold": 1e-4}},
    "mcmc": {"density": {"kind": "mcmc"}},
    "multiview": {"density": {"kind": "multiview", "score_views": 3}},
    "coarse to fine": {"start_downscale": 4, "full_size_from": 60, "density": {"kind": "multiview"}},
    "antialiased": {"antialiased": True},
    "random background": {"background": "random", "density": {"kind": "mcmc"}},
    "exposures": {"exposure": "affine", "density": {"kind": "multiview"}},
    "batches": {"batch_size": 3, "batch_from": 30, "background": "learned", "density": {"kind": "classic"}},
    "refined poses": {"refine_poses": True},
    "refined poses, multiview": {"refine_poses": True, "exposure": "affine", "density": {"kind": "multiview"}},
    "learned background": {"background": "learned", "density": {"kind": "multiview"}},
}
CAP = 450


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_variant_resumes_exactly_and_keeps_to_the_cap(scene: Scene, tmp_path: Path, variant: str) -> None:
    changes = dict(VARIANTS[variant])
    schedule = {
        "kind": "classic",
        "from_iteration": 10,
        "until_iteration": 60,
        "refine_until_iteration": 70,
        "interval": 20,
        "grad_threshold": 1e-5,
    }
    density = DensityConfig(**schedule | {"opacity_reset_interval": 0} | changes.pop("density", {}))
    common = {"background": "black", "start_downscale": 1} | changes
    config = TrainConfig(
        iterations=80, device="cpu", max_gaussians=CAP, save_every=30, log_every=20, density=density, **common
    ).resolved()
    whole, parts = Trace(), Trace()
    train(scene, config, tmp_path / "whole", after_step=[whole])
    train(scene, config, tmp_path / "parts", after_step=[parts], should_stop=lambda: len(parts.counts) == 45)
    train(scene, config, tmp_path / "parts", resume=True, after_step=[parts])
    left, right = (read_checkpoint(list_checkpoints(tmp_path / run / "checkpoints")[0]) for run in ("whole", "parts"))
    assert differences(left.state, right.state) == []
    assert parts.counts == whole.counts
    assert whole.counts[44] != whole.counts[0] and max(whole.counts) <= CAP
    assert variant != "learned background" or not torch.equal(
        left.state["background"]["eval_color"], torch.full((3,), 0.5)
    )
