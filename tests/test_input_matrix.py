"""Scenes as other programs, cameras and people leave them: each gives the result of the plain scene, or one sentence
whose remedy, once followed, does.

Equal photos, cameras, poses and points give the same splat, so comparing the loaded scenes is enough for most of the
situations; the others train. The tests of the readers and of the photos cover the variants of each situation.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import gs_train_here
from input_situations import NEEDS, SITUATIONS, Alter
from test_unprepared import commands, fake_colmap, write_photos

from gs_train.commands.train import TrainCommand
from gs_train.errors import UserError
from gs_train.flags import parse
from gs_train.scene.agreement import check_agreement
from gs_train.scene.frame import training_frame
from gs_train.scene.load import load_scene
from gs_train.scene.photos.decode import decode_image
from gs_train.scene.types import Scene

__all__ = ["fake_colmap"]

TRAINING = ("--preset", "tiny", "--iterations", 60, "--device", "cpu", "--max-gaussians", 2000)
LARGEST_LOSS_DB = 0.3


class References:
    """Scenes to compare with, each made and trained once."""

    def __init__(self, plain: Path, folder: Path) -> None:
        self.plain, self.folder = plain, folder
        self.paths: dict[Alter | None, Path] = {}
        self.figures: dict[Alter | None, float] = {}

    def scene(self, alter: Alter | None) -> Path:
        if alter not in self.paths:
            self.paths[alter] = path = self.folder / f"{len(self.paths)}"
            shutil.copytree(self.plain, path)
            if alter is not None:
                alter(path)
        return self.paths[alter]

    def psnr(self, alter: Alter | None) -> float:
        if alter not in self.figures:
            self.figures[alter] = _psnr(self.scene(alter), self.folder / f"run_{len(self.figures)}")
        return self.figures[alter]


@pytest.fixture(scope="module")
def references(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tiny_scene, tmp_path_factory.mktemp("references"))


def _psnr(path: Path, run: Path, *flags: str) -> float:
    """PSNR on the test view after a short training."""
    done = gs_train_here("train", path, "--out", run, *TRAINING, *flags)
    assert done.returncode == 0, done.stderr
    done = gs_train_here("eval", run)
    assert done.returncode == 0, done.stderr
    return float(json.loads((run / "results.json").read_text())["psnr"])


def _load(path: Path, flags: tuple[str, ...]) -> tuple[Scene | None, str]:
    """The scene after all checks that come before training, None if it is refused; and all sentences."""
    command = parse(["train", str(path), *flags])
    assert isinstance(command, TrainCommand)
    told: list[str] = []
    try:
        scene = load_scene(path, command.config.scene)
        told += scene.notices
        if not command.config.scene.ignore_pose_check:
            check_agreement(scene, scene.points, "the scene", told.append)
    except UserError as error:
        assert "\n" not in str(error) and str(error).endswith(".")
        return None, "\n".join([*told, str(error)])
    return scene, "\n".join(told)


def _assert_equal(scene: Scene, reference: Scene, levels: float) -> None:
    """Photos, cameras, poses and points are the same in the coordinates of training."""
    scene, reference = (training_frame(each).apply(each) for each in (scene, reference))
    assert scene.extent == pytest.approx(reference.extent)
    for views, others in ((scene.train_views, reference.train_views), (scene.test_views, reference.test_views)):
        for view, other in zip(views, others, strict=True):
            assert view.camera == other.camera
            np.testing.assert_allclose(view.world_to_camera, other.world_to_camera, atol=1e-6)
            pixels, expected = decode_image(view).astype(float), decode_image(other).astype(float)
            assert np.abs(pixels - expected).mean() <= levels, view.name
    np.testing.assert_allclose(scene.points.xyz, reference.points.xyz, atol=1e-5)
    np.testing.assert_array_equal(scene.points.rgb, reference.points.rgb)


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation_gives_the_result_of_the_plain_scene(
    name: str, tiny_scene: Path, tmp_path: Path, references: References
) -> None:
    situation = SITUATIONS[name]
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    path = tmp_path / "scene"
    shutil.copytree(tiny_scene, path)
    situation.alter(path)
    scene, told = _load(path, ())
    assert re.search(situation.told, told, re.DOTALL), told
    if situation.remedy is not None:
        situation.remedy(path)
    if situation.remedy is not None or situation.flags:
        scene, told = _load(path, situation.flags)
    assert scene is not None, told
    if situation.trains:
        psnr = _psnr(path, tmp_path / "run", *situation.flags)
        assert psnr >= references.psnr(situation.like) - LARGEST_LOSS_DB
    else:
        _assert_equal(scene, load_scene(references.scene(situation.like)), situation.levels)


@pytest.mark.parametrize("inside", ["", "images"])
def test_photos_in_place_of_a_scene(
    tmp_path: Path, fake_colmap: None, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    """The fake COLMAP gives photos of noise some poses, so that the commands run, but no figure."""
    monkeypatch.chdir(tmp_path)
    write_photos(Path("my photos", inside))
    refused = gs_train_here("info", "my photos")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    for words in commands(refused.stderr):
        done = gs_train_here(*words, *(TRAINING if words[0] == "train" else ()))
        assert done.returncode == 0, done.stderr
    done = gs_train_here("train", "my photos", "--out", "run", *TRAINING)
    assert done.returncode == 0, done.stderr


def test_the_table_is_wide() -> None:
    kinds = [name.partition(":")[0] for name in SITUATIONS]
    assert len(kinds) >= 40 and min(map(kinds.count, kinds)) >= 2
