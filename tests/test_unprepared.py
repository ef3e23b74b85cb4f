"""Photos or a video in place of a scene: the message has the commands that make a scene, and they work as pasted."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, gs_train_here
from PIL import Image

from gs_train.commands.prepare import PrepareCommand
from gs_train.errors import UserError
from gs_train.flags import parse
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.unprepared import find_unprepared

SHORT = ("--preset", "tiny", "--iterations", "2", "--device", "cpu")


def write_photos(folder: Path, count: int = 6, ending: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"IMG_{number}{ending}")
    return folder


def commands(sentence: str) -> list[list[str]]:
    """The commands of the sentence, as a shell takes them apart."""
    found = [shlex.split(text) for text in re.findall("`([^`]*)`", sentence)]
    assert [words[:2] for words in found] == [["gs-train", "prepare"], ["gs-train", "train"]], sentence
    return [words[1:] for words in found]


@pytest.fixture
def fake_colmap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``gs-train prepare`` with a COLMAP that registers every photo."""
    fake = ROOT / "tests/fake_pycolmap"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests", fake))))
    monkeypatch.syspath_prepend(fake)
    monkeypatch.setenv("FAKE_PYCOLMAP", json.dumps({"log": str(tmp_path / "log")}))


@pytest.mark.parametrize(
    ("name", "inside"), [("photos", ""), ("photos", "images"), ("it's my $HOME; (new)", "walk 1/day")]
)
def test_a_folder_of_photos_gets_commands_that_work(
    tmp_path: Path, fake_colmap: None, monkeypatch: pytest.MonkeyPatch, inside: str, name: str
) -> None:
    write_photos(tmp_path / name / inside)
    monkeypatch.chdir(tmp_path)
    refused = gs_train_here("info", name)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert f"{Path(name, 'images' if inside == 'images' else '')} holds 6 photos without camera poses" in refused.stderr
    prepare, train = commands(refused.stderr)
    assert train[1] == f"{name}_scene"
    prepared = gs_train_here(*prepare)
    assert prepared.returncode == 0, prepared.stderr
    if (name, inside) == ("photos", ""):
        trained = gs_train_here(*train, *SHORT)
        assert trained.returncode == 0, trained.stderr
    else:
        assert len(load_scene(tmp_path / train[1], SceneConfig(test_every=0)).train_views) == 6


def test_the_new_scene_gets_a_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "photos")
    (tmp_path / "photos_scene").mkdir()
    assert commands(str(find_unprepared(tmp_path / "photos")))[1] == ["train", str(tmp_path / "photos_scene_2")]
    monkeypatch.chdir(tmp_path / "photos")
    # prepare refuses a scene inside the folder of the photos.
    for here in (".", "../photos/.", "../photos"):
        prepare, _ = commands(str(find_unprepared(Path(here))))
        assert Path(prepare[2]).resolve() == tmp_path / "photos_scene_2"


def test_train_makes_a_scene_of_photos_first(
    tmp_path: Path, fake_colmap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "my photos")
    monkeypatch.chdir(tmp_path)
    trained = gs_train_here("train", "my photos", *SHORT)
    assert trained.returncode == 0, trained.stderr
    assert "`gs-train prepare 'my photos' 'runs/my photos/scene'`" in trained.stderr
    run = tmp_path / "runs/my photos"
    assert (run / "scene/sparse/0").is_dir() and list(run.glob("point_cloud/iteration_2/*.ply"))
    shown = [line.split("gs-train ")[1] for line in trained.stdout.splitlines() if "gs-train " in line]
    assert [shlex.split(line)[:2] for line in shown] == [
        [name, "runs/my photos"] for name in ("view", "eval", "export")
    ]
    again = gs_train_here("train", "my photos", *SHORT, "--overwrite")
    assert again.returncode == 0 and "is prepared already" in again.stderr
    resumed = gs_train_here("train", "--resume", "runs/my photos", "--iterations", 3)
    assert resumed.returncode == 0, resumed.stderr


def test_the_same_command_goes_on_after_a_stop_before_the_training(
    tmp_path: Path, fake_colmap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    command = ("train", "photos", "--out", "run", *SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gs_train.prepare.pipeline._map", lambda *_: (_ for _ in ()).throw(UserError("stopped")))
        assert gs_train_here(*command).returncode == 2
    assert (tmp_path / "run/scene/prepare.json").is_file() and not (tmp_path / "run/config.toml").exists()
    done = gs_train_here(*command)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("place", ["walk.MP4", "my walk/clip.mov"])
def test_a_video(tmp_path: Path, place: str) -> None:
    video = tmp_path / place
    video.parent.mkdir(exist_ok=True)
    video.write_bytes(b"\0\0\0\x20ftypmp42")
    for path in {video, video if video.parent == tmp_path else video.parent}:
        refused = gs_train_here("info", path)
        assert refused.returncode == 2 and f"{video} is a video without camera poses" in refused.stderr
        prepare, _ = commands(refused.stderr)
        parsed = parse(prepare)
        assert isinstance(parsed, PrepareCommand) and parsed.source == video and not parsed.scene.exists()


def test_too_few_photos_and_a_single_photo(tmp_path: Path) -> None:
    write_photos(tmp_path / "two", 2)
    with pytest.raises(UserError, match=r"two holds 2 photos without camera poses: take at least 3, better twenty"):
        load_scene(tmp_path / "two")
    with pytest.raises(UserError, match=r"IMG_0\.png is a single photo: give a folder of overlapping photos"):
        load_scene(tmp_path / "two/IMG_0.png")


def test_other_folders_and_files(tmp_path: Path) -> None:
    for name in ("notes.txt", ".hidden.png", "a.gif"):
        (tmp_path / name).touch()
        assert find_unprepared(tmp_path) is None
        assert name == ".hidden.png" or find_unprepared(tmp_path / "notes.txt") is None
    with pytest.raises(UserError, match="is not a scene: give a folder that holds photos and a COLMAP model"):
        load_scene(tmp_path)


@pytest.mark.parametrize("folder", ["images", "my photos"])
def test_the_photos_of_a_scene_name_the_scene(
    tiny_scene: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str
) -> None:
    scene = Path(shutil.copytree(tiny_scene, tmp_path / "my scene"))
    (scene / "images").rename(scene / folder)
    monkeypatch.chdir(tmp_path)
    refused = gs_train_here("train", Path(scene.name, folder))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert f"{scene.name}/{folder} holds photos of the scene {scene.name}: name the scene" in refused.stderr
    (command,) = re.findall("`([^`]*)`", refused.stderr)
    trained = gs_train_here(*shlex.split(command)[1:], "--out", tmp_path / "run", *SHORT)
    assert trained.returncode == 0, trained.stderr
    # Other photos beside the model are not the scene's.
    others = write_photos(scene / "others")
    assert "without camera poses" in gs_train_here("info", others).stderr
