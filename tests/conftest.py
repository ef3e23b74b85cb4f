"""What several test files share: the real scenes, where they are at hand, and one small sample scene.

The invariant: nobody writes into a folder that a fixture here hands out; a test that wants to break a scene copies it first.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gs_train.scene.sample import write_sample_scene

PROJECT_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_scenes() -> Path:
    """Folder of small real scenes that are not part of the repository."""
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
