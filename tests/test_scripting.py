"""For scripts: ``--json`` prints one object, ``--eval-every`` writes test figures, run.json tells the costs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import gs_train, gs_train_here
from PIL import Image

SHORT = ("--preset", "tiny", "--device", "cpu", "--log-every", 5, "--save-every", 10)


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one object on stdout."""
    assert done.stdout.count("\n") == 1, done.stdout
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def test_train_eval_info_and_doctor_print_one_object(tiny_scene: Path, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    trained = gs_train_here("train", tiny_scene, "--out", run, *SHORT, "--iterations", 20, "--json")
    result = result_of(trained)
    assert (result["run"], result["finished"], result["iteration"]) == (str(run), True, 20)
    assert Path(result["splat"]).is_file() and result["gaussians"] > 100 and result["train_psnr"] > 5
    # The text goes to stderr, and its commands can be pasted.
    assert "Trained 20 iterations" in trained.stderr and f"gs-train eval '{run}'" in trained.stderr

    measured = result_of(gs_train_here("eval", run, "--json"))
    figures = json.loads((run / "results.json").read_text())
    assert {name: measured[name] for name in figures} == figures and Path(measured["images"][0]).is_file()

    described = result_of(gs_train_here("info", tiny_scene, "--json"))
    assert described["faults"] == [] and isinstance(described["points"], int) and described["points"] > 100
    (tiny := tmp_path / "broken").mkdir()
    assert gs_train_here("info", tiny, "--json").returncode == 2

    checked = gs_train("doctor", "--json")
    assert result_of(checked)["torch"]["remedy"] is None and checked.returncode == 0


def test_faults_of_a_scene_are_in_the_object(tiny_scene: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    (scene / "images").mkdir(parents=True)
    (scene / "sparse").symlink_to(tiny_scene / "sparse")
    for photo in (tiny_scene / "images").iterdir():
        (scene / "images" / photo.name).write_bytes(photo.read_bytes()[:500])
    done = gs_train_here("info", scene, "--json")
    assert done.returncode == 2 and len(result_of(done)["faults"]) >= 1


def test_evaluations_during_training_are_in_the_metrics_and_change_nothing(tiny_scene: Path, tmp_path: Path) -> None:
    for name, flags in (("plain", ()), ("measured", ("--eval-every", 10))):
        done = gs_train_here("train", tiny_scene, "--out", tmp_path / name, *SHORT, "--iterations", 30, *flags)
        assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "measured" / "metrics.jsonl").read_text().splitlines()]
    tests = [line for line in lines if "test_psnr" in line]
    assert [line["iteration"] for line in tests] == [10, 20, 30] and all(0 < line["test_ssim"] < 1 for line in tests)
    assert gs_train_here("eval", tmp_path / "measured").returncode == 0
    final = json.loads((tmp_path / "measured" / "results.json").read_text())["psnr"]
    assert tests[-1]["test_psnr"] == pytest.approx(final, abs=1e-6)
    splat = "point_cloud/iteration_30/point_cloud.ply"
    assert (tmp_path / "plain" / splat).read_bytes() == (tmp_path / "measured" / splat).read_bytes()


def test_evaluations_need_test_views(tiny_scene: Path, tmp_path: Path) -> None:
    flags = ("--iterations", 20, "--eval-every", 10, "--test-every")
    done = gs_train_here("train", tiny_scene, "--out", tmp_path / "run", *SHORT, *flags, 0)
    assert done.returncode == 2 and "--eval-every needs test views" in done.stderr
    assert gs_train_here("train", tiny_scene, "--out", tmp_path / "run", *SHORT, *flags, 8).returncode == 0


def test_run_json_tells_time_memory_device_and_versions(tiny_run: Path) -> None:
    facts = json.loads((tiny_run / "run.json").read_text())
    assert facts["iteration"] == 24 and facts["device"] == "cpu" and facts["loop_s"] > 0
    assert facts["peak_memory_bytes"] > 10**8 and set(facts["versions"]) == {"gs_train", "python", "torch", "numpy"}


def test_photos_of_varying_exposure_get_a_hint(tiny_scene: Path, own_run: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    (scene / "images").mkdir(parents=True)
    (scene / "sparse").symlink_to(tiny_scene / "sparse")
    for number, photo in enumerate(sorted((tiny_scene / "images").iterdir())):
        pixels = np.asarray(Image.open(photo), np.float64) * (0.4 if number % 8 == 0 else 1.0)
        Image.fromarray(pixels.astype(np.uint8)).save(scene / "images" / photo.name)
    assert "--exposure affine" in gs_train_here("eval", own_run, "--scene", scene).stdout
