"""Every program in examples/ runs in its own process, as its docstring says, and has the described effect."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, environment, gs_train_here
from PIL import Image

from gs_train.formats.ply import read_ply

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LIMIT_S = 120
CPU = {"CUDA_VISIBLE_DEVICES": ""}


def run(name: str, *arguments: object) -> str:
    """Standard output of an example. The time limit applies to the whole process."""
    call = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(call, env=environment() | CPU, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train(tiny_run: Path, tiny_scene: Path, tmp_path: Path) -> None:
    assert tiny_run.is_dir(), "the kernels are compiled by now"
    shown = run("01_train.py", tiny_scene, tmp_path / "run", 50)
    assert re.search(r"iteration 50: [\d,]+ Gaussians, PSNR \d+\.\d\d dB", shown)
    assert list((tmp_path / "run" / "point_cloud").rglob("point_cloud.ply"))


def test_density_controller(tiny_run: Path, tiny_scene: Path, tmp_path: Path) -> None:
    assert tiny_run.is_dir()
    shown = run("02_density_controller.py", tiny_scene, tmp_path / "run", 100)
    counts = re.search(r"([\d,]+) points became ([\d,]+) Gaussians", shown)
    assert counts is not None
    points, gaussians = (int(count.replace(",", "")) for count in counts.groups())
    assert gaussians > 1.05 * points
    # The run resumes only with its own controller.
    refused = gs_train_here("train", "--resume", tmp_path / "run", "--iterations", 120)
    assert refused.returncode == 2
    assert "LargestFirst" in refused.stderr


def test_render_view(own_run: Path, tmp_path: Path) -> None:
    run("03_render_view.py", own_run, tmp_path / "view.png", tmp_path / "depth.png")
    assert gs_train_here("eval", own_run).returncode == 0
    (beside,) = (own_run / "renders").rglob("*.png")
    with Image.open(tmp_path / "view.png") as view, Image.open(beside) as both:
        np.testing.assert_array_equal(np.asarray(view), np.asarray(both)[:, both.width // 2 :])
    with Image.open(tmp_path / "depth.png") as depth:
        assert depth.size == (64, 48)
        assert np.asarray(depth).std() > 10


def test_plot_metrics(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs the extra 'plots'")
    run("04_plot_metrics.py", tmp_path / "plot.png", tiny_run)
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.size == (800, 600)
        assert len(plot.convert("RGB").getcolors(2**16) or ()) > 10


def test_rasterization(tiny_scene: Path, tmp_path: Path) -> None:
    photo = next((tiny_scene / "images").iterdir())
    shown = run("05_rasterization.py", photo, tmp_path / "fitted.png", 60)
    first, *_, last = map(float, re.findall(r"PSNR (\S+) dB", shown))
    assert last > first + 5.0
    with Image.open(tmp_path / "fitted.png") as fitted:
        assert fitted.size == (128, 128)


def test_edit_splat(tiny_run: Path, tmp_path: Path) -> None:
    (source,) = tiny_run.rglob("point_cloud.ply")
    before = read_ply(source)
    radius = float(np.median(np.linalg.norm(before.xyz - np.median(before.xyz, axis=0), axis=1)))
    run("06_edit_splat.py", source, tmp_path / "edited.ply", radius, 0.1)
    after = read_ply(tmp_path / "edited.ply")
    assert 0.4 * len(before) < len(after) < 0.6 * len(before)
    kept = {xyz.tobytes(): colour for xyz, colour in zip(before.xyz, before.f_dc, strict=True)}
    brightened = [colour - kept[xyz.tobytes()] for xyz, colour in zip(after.xyz, after.f_dc, strict=True)]
    np.testing.assert_allclose(brightened, 0.1 / 0.28209479, atol=1e-5)


def test_every_example_has_a_test_and_a_place_in_the_readme() -> None:
    tests, readme = Path(__file__).read_text(encoding="utf-8"), (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) >= 6
    for path in EXAMPLES:
        assert f'run("{path.name}"' in tests
        assert f"examples/{path.name}" in readme
