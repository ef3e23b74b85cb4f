"""The subcommands end to end, by subprocess: output, files, exit codes, signals. Bad input is in test_bad_input.py."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import command, environment, gs_train
from PIL import Image
from splats import ARRAYS

from gs_train import __version__ as release
from gs_train import cli
from gs_train.commands.info import InfoCommand, describe
from gs_train.config.toml import read_config
from gs_train.formats.ply import read_ply, write_ply
from gs_train.scene.load import SceneConfig, load_scene

CPU = ("--device", "cpu")


def test_a_run_folder_holds_what_it_should(tiny_run: Path, tiny_scene: Path) -> None:
    names = {str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*") if path.is_file()}
    assert names == {
        "config.toml",
        "metrics.jsonl",
        "cameras.json",
        "cfg_args",
        "run.json",
        "checkpoints/iteration_000016.pt",
        "checkpoints/iteration_000024.pt",
        "point_cloud/iteration_24/point_cloud.ply",
    }
    config, scene = read_config(tiny_run / "config.toml")
    assert scene == tiny_scene
    assert config == config.resolved()
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert set(lines[0]) == {"iteration", "loss", "psnr", "gaussians", "lr_xyz", "sh_degree", "elapsed_s"}


def test_cameras_json_is_camera_to_world_in_the_original_layout(tiny_run: Path, tiny_scene: Path) -> None:
    entries = json.loads((tiny_run / "cameras.json").read_text())
    scene = load_scene(tiny_scene, SceneConfig())
    assert [entry["img_name"] for entry in entries] == [view.name for view in (*scene.test_views, *scene.train_views)]
    assert set(entries[0]) == {"id", "img_name", "width", "height", "position", "rotation", "fx", "fy"}
    for entry, view in zip(entries, (*scene.test_views, *scene.train_views), strict=True):
        centre = view.world_to_camera[:3, :3] @ np.array(entry["position"]) + view.world_to_camera[:3, 3]
        np.testing.assert_allclose(centre, 0.0, atol=1e-9)
        # A step along the camera's own z axis is its third column in the world.
        ahead = np.array(entry["position"]) + np.array(entry["rotation"])[:, 2]
        seen = view.world_to_camera @ np.array([*ahead, 1.0])
        np.testing.assert_allclose(seen[:3], [0.0, 0.0, 1.0], atol=1e-9)
        assert (entry["width"], entry["height"], entry["fx"]) == (view.camera.width, view.camera.height, view.camera.fx)


def test_the_same_command_twice_gives_the_same_bytes(tiny_run: Path, tiny_scene: Path, tmp_path: Path) -> None:
    flags = ("--iterations", 24, "--save-every", 8, "--log-every", 4, *CPU, "--max-gaussians", 2000)
    done = gs_train("train", tiny_scene, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # Without --out a run lands in runs/ under the name of its scene.
    run = tmp_path / "runs" / tiny_scene.name
    for name in ("point_cloud/iteration_24/point_cloud.ply", "cameras.json"):
        assert (run / name).read_bytes() == (tiny_run / name).read_bytes()
    first, second = (
        [{**json.loads(line), "elapsed_s": 0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tiny_run, run)
    )
    assert first == second
    # The recommended next commands work; `view` is in test_viewer.py.
    lines = [line.split("gs-train ")[1] for line in done.stdout.splitlines() if "gs-train " in line]
    assert lines[0] == f"view runs/{tiny_scene.name}"
    for line in lines[1:]:
        assert gs_train(*line.split(), cwd=tmp_path).returncode == 0
    assert (run / "results.json").is_file() and (run / "splat.html").is_file()


def test_the_smallest_preset_antialiased_over_a_learned_colour_all_the_way(tiny_scene: Path, tmp_path: Path) -> None:
    run, flags = tmp_path / "run", ("--preset", "tiny", "--antialiased", "--background", "learned", *CPU)
    done = gs_train("train", tiny_scene, "--out", run, *flags)
    assert done.returncode == 0, done.stderr
    done = gs_train("eval", run)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "results.json").read_text())["psnr"] > 15.0
    assert read_ply(run / "point_cloud" / "iteration_300" / "point_cloud.ply").antialiased
    for source in (run, run / "checkpoints" / "iteration_000300.pt"):
        assert gs_train("export", source, tmp_path / "out.ply").returncode == 0
        assert read_ply(tmp_path / "out.ply").antialiased
    assert gs_train("export", tmp_path / "out.ply", tmp_path / "again.ply").returncode == 0
    assert (tmp_path / "again.ply").read_bytes() == (tmp_path / "out.ply").read_bytes()
    assert "antialiased" in gs_train("info", tmp_path / "again.ply").stdout


def test_eval_writes_figures_and_pictures(own_run: Path, tiny_scene: Path) -> None:
    done = gs_train("eval", own_run)
    assert done.returncode == 0, done.stderr
    results = json.loads((own_run / "results.json").read_text())
    per_view = json.loads((own_run / "per_view.json").read_text())
    scene = load_scene(tiny_scene, SceneConfig())
    assert list(per_view) == [view.name for view in scene.test_views]
    assert results["psnr"] == pytest.approx(np.mean([view["psnr"] for view in per_view.values()]))
    assert results["ssim"] == pytest.approx(np.mean([view["ssim"] for view in per_view.values()]))
    assert (results["iteration"], results["split"], results["ssim_region"]) == (24, "test", "valid")
    assert f"{results['psnr']:.2f} dB" in done.stdout
    assert "1 test view:" in done.stdout
    for view in scene.test_views:
        picture = own_run / "renders" / "iteration_24" / Path(view.name).with_suffix(".png").name
        both = np.asarray(Image.open(picture))
        assert both.shape == (view.camera.height, 2 * view.camera.width, 3)
        np.testing.assert_array_equal(both[:, : view.camera.width], np.asarray(Image.open(view.image_path)))
        # The picture gives the same PSNR, up to its rounding to 8 bits.
        photo, render = (half.astype(np.float64) / 255 for half in np.split(both, 2, axis=1))
        assert per_view[view.name]["psnr"] == pytest.approx(-10 * np.log10(((photo - render) ** 2).mean()), abs=0.05)


def test_eval_without_test_views_says_so(tiny_scene: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = gs_train("train", tiny_scene, "--out", run, "--iterations", 2, "--test-every", 0, *CPU)
    assert trained.returncode == 0, trained.stderr
    done = gs_train("eval", run)
    assert done.returncode == 0, done.stderr
    assert "no test views" in done.stderr
    assert json.loads((run / "results.json").read_text())["split"] == "train"


def test_export_from_run_checkpoint_and_ply_is_the_same(tiny_run: Path, tmp_path: Path) -> None:
    splat = tiny_run / "point_cloud" / "iteration_24" / "point_cloud.ply"
    for number, source in enumerate((tiny_run, tiny_run / "checkpoints" / "iteration_000024.pt", splat)):
        target = tmp_path / "deep" / f"{number}.ply"
        done = gs_train("export", source, target)
        assert done.returncode == 0, done.stderr
        assert target.read_bytes() == splat.read_bytes()
        assert str(target) in done.stdout


def test_info_on_all_four(tiny_run: Path, tiny_scene: Path) -> None:
    splat = tiny_run / "point_cloud" / "iteration_24" / "point_cloud.ply"
    count = len(read_ply(splat))
    for path, expected in (
        (tiny_scene, ("7 to train on, 1 to test on", "64x48 px (8)", "extent")),
        (tiny_run, (str(tiny_scene), "iteration_000024.pt, intact", f"{count:,}")),
        (tiny_run / "checkpoints" / "iteration_000016.pt", ("intact", "16", "torch")),
        (splat, (f"{count:,}", "SH degree", "box")),
    ):
        done = gs_train("info", path)
        assert done.returncode == 0, done.stderr
        for words in expected:
            assert words in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"gs-train {release}\n"


def test_a_fault_of_a_file_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fault(_: object) -> int:
        raise PermissionError(errno.EACCES, "No way", "some/file")

    monkeypatch.setattr(InfoCommand, "run", fault)
    with pytest.raises(SystemExit) as done:
        cli.main(["info", "scene"])
    assert done.value.code == 2
    assert capsys.readouterr().err.startswith("gs-train: some/file cannot be read or written (No way): ")


@pytest.mark.parametrize("content", [b"{", b"{}", b"[]", b'{"psnr": null}', b"\xff"])
def test_info_tells_of_damaged_results(own_run: Path, content: bytes) -> None:
    (own_run / "results.json").write_bytes(content)
    facts = dict(describe(own_run, print))
    assert "results.json is damaged: write it again with gs-train eval" in facts["results"]
    assert facts["iteration"] == "24"


def test_info_of_an_empty_splat_and_of_huge_logits(
    tiny_run: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    data = read_ply(tiny_run / "point_cloud" / "iteration_24" / "point_cloud.ply")
    write_ply(tmp_path / "none.ply", replace(data, **{name: getattr(data, name)[:0] for name in ARRAYS}))
    assert dict(describe(tmp_path / "none.ply", print))["Gaussians"] == "0"
    write_ply(tmp_path / "huge.ply", replace(data, opacity=data.opacity * 0 - 1e30, scaling=data.scaling * 0 + 1e30))
    assert dict(describe(tmp_path / "huge.ply", print))["opacity"] == "median 0.000"
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_has_gone_is_no_fault(tiny_scene: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command("info", tiny_scene), env=environment(), stdout=writing, stderr=subprocess.PIPE, timeout=100, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_sample_writes_a_scene(tmp_path: Path) -> None:
    done = gs_train("sample", tmp_path / "scene", "--views", 4, "--width", 32, "--height", 24, "--points", 50)
    assert done.returncode == 0, done.stderr
    assert len(load_scene(tmp_path / "scene", SceneConfig(test_every=0)).train_views) == 4
    assert f"gs-train train {tmp_path / 'scene'}" in done.stdout


def test_the_console_script_is_main(tiny_scene: Path) -> None:
    code = f"import sys; from gs_train.cli import main; sys.argv = ['gs-train', 'info', {str(tiny_scene)!r}]; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "points" in done.stdout


# ---- stopping


def started(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """A process that does not ignore SIGHUP, even if the tests run under nohup."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    listen = None if os.name == "nt" else lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    return subprocess.Popen(command(*arguments), env=environment(), cwd=cwd, text=True, preexec_fn=listen, **pipes)  # noqa: PLW1509


def wait_for(ready: Any, process: subprocess.Popen[str]) -> None:
    """Wait until ``ready()`` is true; fail if the process ends first."""
    deadline = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (1, 129)])
def test_a_signal_stops_after_the_step_and_saves(
    tiny_run: Path, tiny_scene: Path, tmp_path: Path, number: int, code: int
) -> None:
    assert tiny_run.is_dir()  # so the kernels are compiled and steps are short
    run = tmp_path / "run"
    process = started(
        "train", tiny_scene, "--out", run, "--iterations", 1_000_000, "--log-every", 1, *CPU, cwd=tmp_path
    )
    metrics = run / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") > 2, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    (checkpoint,) = (run / "checkpoints").iterdir()
    steps = int(checkpoint.stem.removeprefix("iteration_"))
    assert f"Stopped after iteration {steps} of 1000000" in out
    assert f"--resume {run}" in out
    assert json.loads(metrics.read_text().splitlines()[-1])["iteration"] == steps
    if number == signal.SIGTERM:
        again = gs_train("train", "--resume", run, "--iterations", steps + 2)
        assert again.returncode == 0, again.stderr
        assert f"Resuming from {checkpoint}" in again.stderr
        assert "s in the loop over all resumes)" in again.stdout
        assert (run / "point_cloud" / f"iteration_{steps + 2}" / "point_cloud.ply").is_file()


def test_resume_at_the_end_only_completes_the_run(own_run: Path) -> None:
    (own_run / "cameras.json").unlink()
    done = gs_train("train", "--resume", own_run)
    assert done.returncode == 0, done.stderr
    assert (own_run / "cameras.json").is_file()
    assert "Already at iteration 24: give a larger --iterations to go on." in done.stdout
    assert "Trained" not in done.stdout


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, time\nfrom gs_train.console import stop_signals\n"
        "with stop_signals() as stop_signal:\n"
        "    assert stop_signal() is None\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    assert stop_signal() == 2\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(30)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr.count("\n") == 2  # the note after the first signal, and no traceback
