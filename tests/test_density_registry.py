"""A new density controller takes one new file and one line of the registry, as a copy of the package shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, environment, exit_code

from gs_train.density import registry
from gs_train.density.config import DensityConfig
from gs_train.density.registry import CONTROLLERS, controller_class
from gs_train.errors import UserError
from gs_train.scene.load import SceneConfig, load_scene

TOY = '''
"""Clone every Gaussian once, at iteration 5."""

import torch

from gs_train.density.types import DensityPlan


class ToyDensity:
    needs_absgrad = False

    def __init__(self, setup):
        self.rounds = 0

    def regulariser(self, model):
        return None

    def measure(self, render):
        return torch.zeros(0)

    def observe(self, measured):
        pass

    def plan(self, model, iteration, background):
        if iteration != 5:
            return None
        self.rounds += 1
        return DensityPlan(clone=torch.arange(len(model)))

    def state_dict(self):
        return {"rounds": self.rounds}

    def load_state_dict(self, state):
        self.rounds = state["rounds"]
'''


def test_one_new_file_and_one_line_offer_a_controller(tmp_path: Path) -> None:
    for folder in ("gs_train", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "gs_train" / "density" / "toy.py").write_text(TOY)
    file = tmp_path / "gs_train" / "density" / "registry.py"
    lines = file.read_text().splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith("CONTROLLERS"))
    lines.insert(start + 1, '    "toy": "gs_train.density.toy:ToyDensity",\n')
    file.write_text("".join(lines))
    # Python takes the package of the current folder first.
    call = [sys.executable, "-m", "gs_train", "train", "--help"]
    shown = subprocess.run(
        call,
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--density.kind {toy,classic," in shown.stdout


def test_a_new_controller_trains_and_resumes(
    tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # In this process, because the kernels of a copied package would compile again.
    (tmp_path / "toy_density.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.CONTROLLERS, "toy", "toy_density:ToyDensity")
    out = tmp_path / "run"
    flags = ("--density.kind", "toy", "--iterations", 10, "--save-every", 5, "--device", "cpu", "--max-gaussians", 2000)
    assert exit_code("train", tiny_scene, "--out", out, *flags) == 0
    points = len(load_scene(tiny_scene, SceneConfig()).points.xyz)
    assert f"Trained 10 iterations: {2 * points} Gaussians" in capsys.readouterr().out
    assert exit_code("train", "--resume", out, "--iterations", 12) == 0


def test_every_kind_in_the_registry_is_a_controller() -> None:
    for kind in CONTROLLERS:
        members = set(dir(controller_class(kind)))
        assert {
            "needs_absgrad",
            "regulariser",
            "measure",
            "observe",
            "plan",
            "state_dict",
            "load_state_dict",
        } <= members
        assert DensityConfig(kind=kind).kind == kind


def test_an_unknown_kind_is_refused_with_the_nearest_kind() -> None:
    with pytest.raises(UserError, match=r"--density.kind is mcm \(did you mean mcmc\?\): give one of classic, absgrad"):
        DensityConfig(kind="mcm")
