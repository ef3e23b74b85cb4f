"""LPIPS and FLIP through their packages, with a stand-in for the package ``lpips``."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import gs_train_here
from evaluated_runs import page_data
from PIL import Image

from gs_train.evaluate.evaluate import evaluate_splat
from gs_train.evaluate.perceptual import NAMES, find_perceptual
from gs_train.run.open import open_splat

WEIGHTS = "alexnet-owt-7be5be79.pth"
needs_flip = pytest.mark.skipif(
    importlib.util.find_spec("flip_evaluator") is None, reason="needs the extra metrics: flip-evaluator"
)


class StandIn(torch.nn.Module):
    """Takes the arguments of ``lpips.LPIPS``; the distance is the mean difference of pictures [1, 3, H, W]."""

    fault: Exception | None = None

    def __init__(self, *, net: str, verbose: bool) -> None:
        super().__init__()
        assert (net, verbose) == ("alex", False)
        if self.fault is not None:
            raise self.fault

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        assert first.shape == second.shape and first.shape[:2] == (1, 3)
        assert min(float(first.min()), float(second.min())) >= -1.0
        return (first - second).abs().mean().reshape(1, 1, 1, 1)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The stand-in with its weights in the cache of torch.hub; returns their path."""
    module = types.ModuleType("lpips")
    monkeypatch.setitem(module.__dict__, "LPIPS", StandIn)
    monkeypatch.setitem(sys.modules, "lpips", module)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    weights = tmp_path / "hub" / "checkpoints" / WEIGHTS
    weights.parent.mkdir(parents=True)
    weights.touch()
    return weights


def reason(name: str, **options: bool) -> str:
    return find_perceptual([name], "cpu", smallest_px=48, **options).missing[name]


def test_lpips_gets_pictures_from_minus_one_to_one(cache: Path) -> None:
    measure = find_perceptual(["lpips"], "cpu", smallest_px=48).lpips
    assert measure is not None
    assert measure(torch.ones(48, 64, 3), torch.zeros(48, 64, 3)) == 2.0
    assert measure(torch.full((48, 64, 3), 0.75), torch.full((48, 64, 3), 0.5)) == 0.5


def test_weights_are_downloaded_on_request_only(cache: Path) -> None:
    cache.unlink()
    expected = (
        f"LPIPS is not measured because {WEIGHTS} is not in {cache.parent}: put it there, or add --download-weights."
    )
    assert reason("lpips") == expected
    # The package itself downloads them.
    assert find_perceptual(["lpips"], "cpu", smallest_px=48, download=True).lpips is not None


def test_a_download_that_fails_is_a_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.unlink()
    monkeypatch.setattr(StandIn, "fault", urllib.error.URLError("no network"))
    assert f"cannot be loaded (<urlopen error no network>): put it in {cache.parent}." in reason("lpips", download=True)


def test_damaged_weights_are_a_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "fault", EOFError("Ran out\nof input"))
    assert f"(Ran out of input): remove {cache} and add --download-weights." in reason("lpips")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (ModuleNotFoundError("No module named 'lpips'", name="lpips"), "the package lpips is not installed: install "),
        (ModuleNotFoundError("No module named 'torchvision'", name="torchvision"), "(No module named 'torchvision'): "),
        (RuntimeError("operator torchvision::nms does not exist"), "lpips does not work (operator torchvision::nms"),
    ],
)
def test_a_package_that_does_not_load_is_a_reason(
    fault: Exception, words: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lpips.py").write_text(f"raise {type(fault).__name__}(*{fault.args!r}, **{_keywords(fault)!r})")
    monkeypatch.delitem(sys.modules, "lpips")
    monkeypatch.syspath_prepend(tmp_path)
    assert words in reason("lpips") and "pip install --no-deps lpips" in reason("lpips")


def _keywords(fault: Exception) -> dict[str, str]:
    return {"name": str(fault.name)} if isinstance(fault, ImportError) else {}


def test_flip_without_its_package_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    assert reason("flip") == (
        "FLIP is not measured because the package flip_evaluator is not installed: pip install flip-evaluator."
    )


def test_pictures_too_small_for_the_network_are_a_reason(cache: Path) -> None:
    found = find_perceptual(NAMES, "cpu", smallest_px=30)
    assert found.lpips is None and "at least 31 px, and a side has 30." in found.missing["lpips"]


@needs_flip
def test_flip_of_known_pictures() -> None:
    measure = find_perceptual(["flip"], "cpu", smallest_px=11).flip
    assert measure is not None
    photo = torch.rand(24, 32, 3, generator=torch.Generator().manual_seed(0))
    same, black = measure(photo, photo)
    assert same == 0.0 and black.shape == (24, 32, 3) and black.dtype == np.uint8
    assert len(np.unique(black.reshape(-1, 3), axis=0)) == 1 and black.max() < 5  # magma begins at black
    mean, error_map = measure(torch.zeros(24, 32, 3), torch.ones(24, 32, 3))
    assert 0.9 < mean <= 1.0 and error_map.mean() > 200
    # Views may have any size, and be views of larger tensors.
    assert measure(photo[:11, :11], photo[:11, 1:12])[0] > 0.0


def test_eval_measures_both_and_says_how(own_run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("flip_evaluator")

    def evaluate(
        target: object, image: object, kind: str, *, parameters: dict[str, float]
    ) -> tuple[object, float, object]:
        assert isinstance(target, np.ndarray) and isinstance(image, np.ndarray) and target.shape == image.shape
        assert kind == "LDR" and parameters["ppd"] == pytest.approx(67.02, abs=0.01)
        return np.full(target.shape, 0.5, np.float32), 0.25, parameters

    monkeypatch.setitem(module.__dict__, "evaluate", evaluate)
    monkeypatch.setitem(sys.modules, "flip_evaluator", module)
    done = gs_train_here("eval", own_run)
    assert done.returncode == 0 and "not measured" not in done.stderr, done.stderr
    results = json.loads((own_run / "results.json").read_text())
    (figures,) = json.loads((own_run / "per_view.json").read_text()).values()
    assert figures["flip"] == results["flip"] == 0.25 and 0.0 < figures["lpips"] == results["lpips"] < 2.0
    assert (results["lpips_net"], results["lpips_input"], results["not_measured"]) == ("alex", "-1..1", {})
    assert f"LPIPS {results['lpips']:.4f} (AlexNet), FLIP 0.2500" in done.stdout
    (error_map,) = (own_run / "error_maps" / "iteration_24").iterdir()
    assert np.asarray(Image.open(error_map)).mean() == 128
    assert page_data((own_run / "report.html").read_text())["views"][0]["error_map"] is not None


def test_eval_without_the_packages_says_why_once(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lpips", "flip_evaluator"):
        monkeypatch.setitem(sys.modules, name, None)
    done = gs_train_here("eval", own_run)
    assert done.returncode == 0
    results = json.loads((own_run / "results.json").read_text())
    assert (results["lpips"], results["flip"]) == (None, None) and list(results["not_measured"]) == ["lpips", "flip"]
    assert [done.stderr.count(f"{name.upper()} is not measured because") for name in NAMES] == [1, 1]
    assert "LPIPS is not measured because" in (own_run / "report.html").read_text()


@pytest.mark.parametrize(("flag", "notes"), [("none", 0), ("flip", 1)])
def test_metrics_that_nobody_asks_for_need_no_note(
    own_run: Path, monkeypatch: pytest.MonkeyPatch, flag: str, notes: int
) -> None:
    for name in ("lpips", "flip_evaluator"):
        monkeypatch.setitem(sys.modules, name, None)
    done = gs_train_here("eval", own_run, "--metrics", flag)
    assert done.returncode == 0 and done.stderr.count("is not measured") == notes
    assert "--metrics leaves it out" in json.loads((own_run / "results.json").read_text())["not_measured"]["lpips"]


@pytest.mark.parametrize("value", ["vgg", "", "none,flip", "lpips flip", "LPIPS"])
def test_unknown_metrics_are_refused(own_run: Path, value: str) -> None:
    done = gs_train_here("eval", own_run, "--metrics", value)
    assert done.returncode == 2 and f"--metrics is {value}: give lpips, flip, lpips,flip or none." in done.stderr


def test_masked_pixels_cause_no_perceptual_error(tiny_run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_splat(tiny_run)
    views, selection = opened.load_scene().test_views, opened.select_rasterizer("cpu")
    monkeypatch.setattr("gs_train.evaluate.evaluate.pixel_weights", lambda photo, _: torch.zeros(*photo.shape[:2], 1))
    perceptual = find_perceptual(["lpips"], "cpu", smallest_px=48)
    assert evaluate_splat(opened, views, selection, perceptual=perceptual).mean.lpips == 0.0
