"""A new density controller takes one new file and one line of the registry, as a copy of the package shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, environment

from gs_train.density.config import DensityConfig
from gs_train.density.registry import CONTROLLERS, controller_class
from gs_train.errors import UserError

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

    def observe(self, render):
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


def run(project: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "gs_train", *map(str, arguments)]
    # The copy in the current folder precedes the installed package.
    settings = {"cwd": project, "env": environment() | {"PYTHONPATH": str(project)}, "timeout": 300}
    return subprocess.run(call, capture_output=True, text=True, check=False, **settings)


def test_a_new_controller_reaches_the_command_line(tiny_run: Path, tiny_scene: Path, tmp_path: Path) -> None:
    assert tiny_run.is_dir(), "the kernels are compiled by now"
    for folder in ("gs_train", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "gs_train" / "density" / "toy.py").write_text(TOY)
    registry = tmp_path / "gs_train" / "density" / "registry.py"
    lines = registry.read_text().splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith("CONTROLLERS"))
    lines.insert(start + 1, '    "toy": "gs_train.density.toy:ToyDensity",\n')
    registry.write_text("".join(lines))

    shown = run(tmp_path, "train", "--help").stdout
    assert "--density.kind {toy,classic," in shown
    flags = ("--density.kind", "toy", "--iterations", 10, "--save-every", 5, "--device", "cpu", "--max-gaussians", 2000)
    done = run(tmp_path, "train", tiny_scene, "--out", tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    points = next(line for line in run(tmp_path, "info", tiny_scene).stdout.splitlines() if line.startswith("points"))
    assert f"Trained 10 iterations: {2 * int(points.split()[1])} Gaussians" in done.stdout
    resumed = run(tmp_path, "train", "--resume", tmp_path / "run", "--iterations", 12)
    assert resumed.returncode == 0, resumed.stderr


def test_every_kind_in_the_registry_is_a_controller() -> None:
    for kind in CONTROLLERS:
        members = set(dir(controller_class(kind)))
        assert {"needs_absgrad", "regulariser", "observe", "plan", "state_dict", "load_state_dict"} <= members
        assert DensityConfig(kind=kind).kind == kind


def test_an_unknown_kind_is_refused_with_the_nearest_kind() -> None:
    with pytest.raises(UserError, match=r"--density.kind is mcm \(did you mean mcmc\?\): give one of classic, absgrad"):
        DensityConfig(kind="mcm")
