"""Test views named by a list: given with ``--test-list``, which the run keeps, or beside the scene."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import gs_train_here

from gs_train.errors import UserError
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.types import Scene

TEST = ["view_002.png", "view_005.png"]


def names(scene: Scene) -> list[str]:
    return [view.name for view in scene.test_views]


@pytest.fixture
def own_scene(tiny_scene: Path, tmp_path: Path) -> Path:
    """A copy of the tiny scene that the test may change."""
    return Path(shutil.copytree(tiny_scene, tmp_path / "scene"))


@pytest.mark.parametrize(
    "text",
    ["view_002.png\nview_005.png\n", "# held out\r\n\r\nview_005\r\nview_002\r\n", "\ufeffview_005.png\nview_002"],
)
def test_a_list_names_the_test_views(tiny_scene: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_text(text, encoding="utf-8", newline="")
    assert names(load_scene(tiny_scene, SceneConfig(test_list=str(tmp_path / "list.txt")))) == TEST


def test_lists_beside_the_scene(own_scene: Path, tmp_path: Path) -> None:
    everything = [view.name for view in load_scene(own_scene, SceneConfig(test_every=0)).train_views]
    (own_scene / "train_list.txt").write_text("\n".join(name for name in everything if name not in TEST))
    assert names(load_scene(own_scene)) == TEST
    (own_scene / "test_list.txt").write_text("view_003.png\n")
    assert names(load_scene(own_scene)) == ["view_003.png"]
    (tmp_path / "mine.txt").write_text("view_001.png\n")
    assert names(load_scene(own_scene, SceneConfig(test_list=str(tmp_path / "mine.txt")))) == ["view_001.png"]
    assert names(load_scene(own_scene, SceneConfig(test_every=0))) == []


def test_an_unknown_name_and_a_missing_list_are_refused(tiny_scene: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("view_002.png\nview_999.png\n")
    with pytest.raises(UserError, match=r"list.txt names 1 images .*view_999.png.*for example view_000.png"):
        load_scene(tiny_scene, SceneConfig(test_list=str(tmp_path / "list.txt")))
    with pytest.raises(UserError, match=r"none.txt cannot be read"):
        load_scene(tiny_scene, SceneConfig(test_list=str(tmp_path / "none.txt")))
    (tmp_path / "latin.txt").write_bytes(b"k\xfcche.png\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load_scene(tiny_scene, SceneConfig(test_list=str(tmp_path / "latin.txt")))


def test_a_run_keeps_its_list(tiny_scene: Path, tmp_path: Path) -> None:
    """The run is resumed and measured after the list is gone and the run has moved."""
    (tmp_path / "list.txt").write_text("\n".join(TEST))
    flags = ("--preset", "tiny", "--device", "cpu", "--iterations", 4, "--test-list", tmp_path / "list.txt")
    done = gs_train_here("train", tiny_scene, "--out", tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    (tmp_path / "list.txt").unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    for arguments in (("train", "--resume", tmp_path / "moved", "--iterations", 6), ("eval", tmp_path / "moved")):
        done = gs_train_here(*arguments)
        assert done.returncode == 0, done.stderr
    assert "2 test views" in done.stdout
    assert (tmp_path / "moved" / "test_list.txt").read_text().split() == TEST
