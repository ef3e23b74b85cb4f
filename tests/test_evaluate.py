"""Evaluation: metrics of views, their files, and the names of the pictures. ``gs-train eval`` is in test_cli.py."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import gs_train_here
from transforms_files import document, write

from gs_train.evaluate.evaluate import Evaluation, write_figures
from gs_train.evaluate.metrics import ViewMetrics, view_metrics
from gs_train.evaluate.pictures import png_names
from gs_train.formats.ply import read_ply, write_ply

METRICS = [entry.name for entry in fields(ViewMetrics)]


def test_every_metric_reaches_both_files_as_itself_and_as_a_mean(tmp_path: Path) -> None:
    # Distinct values, so that two metrics cannot be swapped.
    first = ViewMetrics(**{name: float(2**i) for i, name in enumerate(METRICS)})
    second = ViewMetrics(**{name: 3.0 * 2**i for i, name in enumerate(METRICS)})
    evaluation = Evaluation(
        per_view={"a": first, "b": second}, images=(), gaussians=7, rasterizer="cpu", not_measured={"x": "No x."}
    )
    results, per_view = write_figures(evaluation, tmp_path, iteration=5, split="test")
    assert json.loads(per_view.read_text()) == {
        "a": {name: 2.0**i for i, name in enumerate(METRICS)},
        "b": {name: 3.0 * 2**i for i, name in enumerate(METRICS)},
    }
    assert json.loads(results.read_text()) == {
        "iteration": 5,
        "split": "test",
        "views": 2,
        **{name: 2.0 * 2**i for i, name in enumerate(METRICS)},
        "ssim_region": "valid",
        "lpips_net": "alex",
        "lpips_input": "-1..1",
        "flip_pixels_per_degree": pytest.approx(67.02, abs=0.01),
        "not_measured": {"x": "No x."},
        "gaussians": 7,
        "rasterizer": "cpu",
    }


def test_a_metric_that_one_view_lacks_has_no_mean() -> None:
    with_flip = ViewMetrics(psnr=1.0, psnr_colour_matched=2.0, ssim=0.5, counted=1.0, flip=0.25)
    views = {"a": with_flip, "b": replace(with_flip, flip=None, psnr=3.0)}
    mean = Evaluation(per_view=views, images=(), gaussians=7, rasterizer="cpu").mean
    assert (mean.psnr, mean.flip, mean.lpips) == (2.0, None, None)


def test_metrics_of_known_images() -> None:
    target = torch.rand(24, 32, 3, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    exact = view_metrics(target, target)
    assert (exact.psnr, exact.ssim) == (100.0, pytest.approx(1.0))
    shifted = view_metrics(target + 0.1, target)
    assert shifted.psnr == pytest.approx(20.0, abs=1e-3)  # a constant error of 0.1
    assert shifted.psnr_colour_matched > 60.0  # an affine map of the colours removes it
    assert view_metrics(target * 0.0 + 9.0, target).psnr == view_metrics(torch.ones_like(target), target).psnr


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "b.JPG"], ["a.png", "b.png"]),
        (["left/a.jpg", "right/a.jpg"], ["left__a.png", "right__a.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]),
        (["../../out.png"], ["..__..__out.png"]),
    ],
)
def test_pictures_get_flat_and_different_names(names: list[str], expected: list[str]) -> None:
    assert png_names(names) == expected


@pytest.mark.parametrize("character", ["x", "ä", "日", "\ud800"])
def test_long_names_become_short_and_stay_different(character: str) -> None:
    """Names that differ in their last character only, and in folders that together are longer than a name may be."""
    size = len(character.encode("utf-8", "surrogatepass"))
    names = [f"{character * (243 // size)}{end}.png" for end in "ab"]
    names += [f"{character * (150 // size)}/{character * (150 // size)}/{end}.png" for end in "ab"]
    found = png_names(names)
    assert len(set(found)) == 4
    assert all(len(name.encode("utf-8", "surrogatepass")) <= 200 and name.endswith(".png") for name in found)
    assert found == png_names(names), "the names do not change from one evaluation to the next"
    assert png_names(["a" * 196 + ".jpg"]) == ["a" * 196 + ".png"]


def test_photos_with_the_longest_names_are_evaluated(tmp_path: Path) -> None:
    content = document(4)
    for number, frame in enumerate(content["frames"]):
        frame["file_path"] = f"images/{'p' * 242}{number}.png"
    run = tmp_path / "run"
    trained = gs_train_here(
        "train", write(tmp_path / "scene", content), "--out", run, *"--iterations 2 --device cpu".split()
    )
    assert trained.returncode == 0, trained.stderr
    evaluated = gs_train_here("eval", run)
    assert evaluated.returncode == 0, evaluated.stderr
    assert len(list((run / "renders").rglob("*.png"))) == 1


def test_the_share_of_pixels_that_count() -> None:
    image, target = torch.rand(2, 24, 32, 3, generator=torch.Generator().manual_seed(0))
    assert view_metrics(image, target).counted == 1.0
    weight = torch.ones(24, 32, 1)
    weight[:6], weight[6:12] = 0.0, 0.5
    assert view_metrics(image, target, weight).counted == pytest.approx(0.625)


@pytest.mark.parametrize("scale", [np.nan, 1e30])  # the exponential of 1e30 overflows
def test_a_splat_that_cannot_be_rendered_is_named(own_run: Path, scale: float) -> None:
    shutil.rmtree(own_run / "checkpoints")
    splat = own_run / "point_cloud" / "iteration_24" / "point_cloud.ply"
    data = read_ply(splat)
    scaling = data.scaling.copy()
    scaling[0] = scale
    write_ply(splat, replace(data, scaling=scaling))
    done = gs_train_here("eval", own_run)
    assert done.returncode == 2
    assert f"gs-train: {own_run} is damaged (" in done.stderr and "copy it again, or train again." in done.stderr
