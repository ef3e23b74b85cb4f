"""Poses and points in conventions that disagree are refused before the first step, and the message names the cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from altered_scenes import Content
from command_line import gs_train_here

from gs_train.errors import UserError
from gs_train.formats.ply import read_ply, write_ply
from gs_train.scene.agreement import check_agreement
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.types import PointCloud, Scene

FLIP = np.diag((1.0, -1.0, -1.0, 1.0))
SHORT = ("--preset", "tiny", "--iterations", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def scene(tiny_scene: Path) -> Scene:
    return load_scene(tiny_scene, SceneConfig())


def findings(scene: Scene, points: PointCloud | None = None) -> str:
    """The message of the check; empty if it passes without a remark."""
    told: list[str] = []
    try:
        check_agreement(scene, scene.points if points is None else points, "points.ply", told.append)
    except UserError as error:
        return str(error)
    return " ".join(told)


def with_poses(scene: Scene, change: Callable[[np.ndarray], np.ndarray]) -> Scene:
    views = tuple(replace(view, world_to_camera=change(view.world_to_camera)) for view in scene.train_views)
    return replace(scene, train_views=views)


def test_a_right_scene_passes(scene: Scene) -> None:
    assert findings(scene) == ""


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda pose: FLIP @ pose, "y and z axes of the cameras are flipped"),
        (np.linalg.inv, "the poses are inverted"),
        (lambda pose: FLIP @ np.linalg.inv(FLIP @ pose), "the poses are inverted (camera-to-world"),
        (lambda pose: np.linalg.inv(pose) @ FLIP, "the poses are inverted and the y and z axes"),
    ],
    ids=["opencv_axes", "inverse", "inverse_opengl", "both"],
)
def test_poses_of_another_convention_are_named(
    scene: Scene, change: Callable[[np.ndarray], np.ndarray], cause: str
) -> None:
    told = findings(with_poses(scene, change))
    assert cause in told and "--ignore-pose-check" in told and "points.ply" in told


def test_points_in_other_axes_are_named_with_the_axes_that_fit(scene: Scene) -> None:
    wrong = replace(scene.points, xyz=scene.points.xyz[:, [0, 2, 1]] * (1.0, 1.0, -1.0))
    # Read as (x, -z, y), these points are the right points.
    assert "the points (x, y, z) are read as (x, -z, y)" in findings(scene, wrong)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0)])
def test_other_orders_and_signs_of_the_axes_are_noticed(scene: Scene, order: tuple[int, int, int]) -> None:
    for signs in ((1.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, 1.0, -1.0)):
        told = findings(scene, replace(scene.points, xyz=scene.points.xyz[:, order] * signs))
        assert bool(told) == (order != (0, 1, 2) or min(signs) < 0), (signs, told)


def test_points_that_no_photo_sees_are_refused_and_false_colours_only_noticed(scene: Scene) -> None:
    elsewhere = replace(scene.points, xyz=scene.points.xyz + 1000.0)
    assert "see 0% of the points" in findings(scene, elsewhere)
    shuffled = np.random.default_rng(0).permutation(scene.points.rgb)
    assert findings(scene, replace(scene.points, rgb=shuffled)).startswith("The colours of the points in points.ply")


def test_no_points_few_points_and_grey_points_decide_nothing(scene: Scene) -> None:
    few = PointCloud(xyz=scene.points.xyz[:40] + 1000.0, rgb=scene.points.rgb[:40])
    assert findings(scene, few) == ""
    assert findings(scene, PointCloud(xyz=np.empty((0, 3)), rgb=np.empty((0, 3), np.uint8))) == ""
    assert findings(scene, replace(scene.points, rgb=np.full_like(scene.points.rgb, 128))) == ""


def test_train_refuses_and_info_reports_and_the_flag_goes_on(tiny_scene: Path, tmp_path: Path) -> None:
    content = Content.of(tiny_scene)
    document = content.write_transforms(tmp_path / "right.json")
    (tmp_path / "images").symlink_to(tiny_scene / "images")
    wrong = (tmp_path / "right.json").read_text()
    for frame in document["frames"]:
        matrix = np.array(frame["transform_matrix"])
        wrong = wrong.replace(str(matrix.tolist()), str((matrix @ FLIP).tolist()))
    (tmp_path / "wrong.json").write_text(wrong)
    for name, code in (("right.json", 0), ("wrong.json", 2)):
        described = gs_train_here("info", tmp_path / name)
        trained = gs_train_here("train", tmp_path / name, "--out", tmp_path / f"run_{name}", *SHORT, "--allow-outside")
        assert (described.returncode, trained.returncode) == (code, code), trained.stderr
        assert ("axes of the cameras are flipped" in trained.stderr) == (code == 2)
        assert ("axes of the cameras are flipped" in described.stdout) == (code == 2)
    assert not (tmp_path / "run_wrong.json").exists()
    flags = ("--allow-outside", "--ignore-pose-check")
    ignored = gs_train_here("train", tmp_path / "wrong.json", "--out", tmp_path / "run", *SHORT, *flags)
    assert ignored.returncode == 0, ignored.stderr


def test_a_splat_in_other_axes_or_of_absurd_size_does_not_start_a_training(
    tiny_scene: Path, tiny_run: Path, tmp_path: Path
) -> None:
    (splat,) = tiny_run.glob("point_cloud/*/point_cloud.ply")
    data = read_ply(splat)
    write_ply(tmp_path / "flipped.ply", replace(data, xyz=data.xyz[:, [0, 2, 1]].copy()))
    write_ply(tmp_path / "huge.ply", replace(data, scaling=data.scaling + 20))
    for name, told in (("flipped.ply", "are read as (x, z, y)"), ("huge.ply", "times as large as the scene")):
        done = gs_train_here(
            "train", tiny_scene, "--out", tmp_path / "run", *SHORT, "--sh-degree", 3, "--init-from", tmp_path / name
        )
        assert done.returncode == 2 and told in done.stderr and name in done.stderr, done.stderr
