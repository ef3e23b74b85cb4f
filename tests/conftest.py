"""Fixtures of several test files: the real scenes, if present, a small sample scene, and a short run on it.

Tests of one session share the folders of session fixtures, so no test writes into them. A test that changes files works
on a copy, for example on ``own_run``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from command_line import gs_train

from gs_train.sample.scene import write_sample_scene

PROJECT_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_scenes() -> Path:
    """Folder of small real scenes. They are not part of the repository; tests skip if the folder is missing."""
    named = os.environ.get("GS_TRAIN_SCENES")
    folder = Path(named) if named else PROJECT_ROOT.parent / "shared" / "scenes"
    if not folder.is_dir():
        pytest.skip(f"no real scenes at {folder}: name their folder in GS_TRAIN_SCENES")
    return folder


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample scene with 8 views of 64x48 px and about 400 points."""
    folder = tmp_path_factory.mktemp("tiny") / "scene"
    write_sample_scene(folder, views=8, width=64, height=48, points=400)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 iterations on the tiny scene, with checkpoints at 16 and 24. Afterwards the kernels are compiled and
    cached."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    flags = ("--iterations", 24, "--save-every", 8, "--log-every", 4, "--device", "cpu", "--max-gaussians", 2000)
    done = gs_train("train", tiny_scene, "--out", folder, *flags)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of ``tiny_run`` that the test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))
