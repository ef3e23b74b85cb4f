"""The frame of training: scenes in other units or far from the origin give the result of the plain scene."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from altered_scenes import Content
from command_line import gs_train_here
from splats import finite_splat

from gs_train.cameras.poses import camera_centre, pose_at
from gs_train.formats.ply import read_ply, write_ply
from gs_train.run.open import open_run, open_splat
from gs_train.run.splat_frame import moved, offset_path, read_offset, write_offset
from gs_train.scene.extent import camera_centres, far_photos, near_cameras, scene_extent
from gs_train.scene.frame import Frame, training_frame
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.types import Scene

UTM = (448251.2, 5411943.8, 35.0)


def rescaled(scene: Scene, scale: float = 1.0, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Scene:
    """The scene as a file in other coordinates gives it: X' = scale * X + offset."""
    frame = Frame(offset=tuple(-value / scale for value in offset), scale=scale)  # type: ignore[arg-type]
    return frame.apply(scene)


@pytest.fixture
def scene(tiny_scene: Path) -> Scene:
    """A scene around the origin."""
    return load_scene(tiny_scene, SceneConfig())


def test_a_scene_around_the_origin_keeps_its_coordinates(scene: Scene) -> None:
    assert training_frame(scene) == Frame()
    assert Frame().apply(scene) is scene


@pytest.mark.parametrize("scale", [1e-3, 0.3048, 1.0, 1000.0])
@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (3000.0, -20.0, 0.0), UTM])
def test_training_coordinates_do_not_depend_on_units_and_place(
    scene: Scene, scale: float, offset: tuple[float, float, float]
) -> None:
    other = rescaled(scene, scale, offset)
    trained = training_frame(other).apply(other)
    # Powers of two leave a factor below 1.5 in the extent, the grid an offset of a few extents.
    assert 5.0 / 2**0.51 <= trained.extent <= 5.0 * 2**0.51
    centres = camera_centres(trained.train_views)
    assert np.abs(centres.mean(axis=0)).max() <= 0.5 * 8 * 5.0 + 1e-6
    # The shape is the same, to a millionth of the extent.
    plain = camera_centres(scene.train_views)
    factor = trained.extent / scene.extent
    np.testing.assert_allclose(centres - centres[0], factor * (plain - plain[0]), atol=1e-5)


def test_a_frame_and_its_inverse_meet() -> None:
    frame = Frame(offset=UTM, scale=0.25)
    points = np.array([[448250.0, 5411940.0, 30.0], [448260.5, 5411950.25, 41.0]])
    np.testing.assert_allclose(frame.to_scene(frame.to_training(points)), points, rtol=1e-15)
    pose = pose_at(points[0], np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0])
    inside = frame.pose_to_training(pose)
    np.testing.assert_allclose(camera_centre(inside), frame.to_training(points[:1])[0], atol=1e-9)
    np.testing.assert_allclose(frame.pose_to_scene(inside), pose, atol=1e-7)


def test_splats_move_between_frames_with_their_sizes() -> None:
    data = finite_splat(20)
    frame = Frame(offset=(16.0, 0.0, -8.0), scale=4.0)
    outside = moved(data, frame, frame.of_files)
    np.testing.assert_allclose(outside.xyz, data.xyz / 4.0 + (16.0, 0.0, -8.0), rtol=1e-6)
    np.testing.assert_allclose(np.exp(outside.scaling), np.exp(data.scaling) / 4.0, rtol=1e-5)
    assert moved(data, frame, frame) is data


def test_an_offset_beyond_float32_lies_beside_the_splat(tmp_path: Path) -> None:
    data, path = finite_splat(3), tmp_path / "a.ply"
    frame = Frame(offset=UTM, scale=0.5)
    assert frame.of_files == Frame(offset=UTM)
    write_ply(path, moved(data, frame, frame.of_files))
    told = write_offset(path, frame.of_files)
    assert told is not None and "448251.2, 5411943.8, 35" in told and "a.ply.offset.json" in told
    opened = open_splat(path)
    assert opened.frame == Frame(offset=UTM)
    np.testing.assert_allclose(opened.splat(frame).xyz, data.xyz, atol=1e-5)
    # A scene near the origin leaves no offset, and removes that of an older file.
    assert write_offset(path, Frame()) is None
    assert read_offset(path) == Frame() and not offset_path(path).exists()


@pytest.mark.parametrize("content", ["", "[]", '{"offset": [1, 2]}', '{"offset": [1, 2, NaN]}', '{"offset": "far"}'])
def test_a_damaged_offset_is_named(tmp_path: Path, content: str) -> None:
    write_ply(tmp_path / "a.ply", finite_splat(3))
    offset_path(tmp_path / "a.ply").write_text(content)
    done = gs_train_here("export", tmp_path / "a.ply", tmp_path / "b.ply")
    assert done.returncode == 2 and "a.ply.offset.json" in done.stderr


def test_one_far_camera_does_not_stretch_the_extent(scene: Scene) -> None:
    view = scene.train_views[3]
    far = replace(view, world_to_camera=pose_at(np.array([1e5, 2e5, 0.0]), view.world_to_camera[:3, :3]))
    views = (*scene.train_views[:3], far, *scene.train_views[4:])
    assert near_cameras(camera_centres(views)).tolist() == [index != 3 for index in range(len(views))]
    assert scene_extent(views, scene.points) == pytest.approx(scene.extent, rel=0.3)
    (notice,) = far_photos(views)
    assert view.name in notice and "2.24e+05 world units" in notice
    assert far_photos(scene.train_views) == []


def test_cameras_on_a_line_or_in_one_place_are_not_far() -> None:
    line = np.zeros((40, 3))
    line[:, 0] = np.arange(40) ** 2
    assert near_cameras(line).all()
    assert near_cameras(np.full((5, 3), 1e6) + 1e-9 * np.random.default_rng(0).normal(size=(5, 3))).all()
    assert near_cameras(np.zeros((1, 3))).all()


@pytest.mark.parametrize(
    "change", [{"offset": UTM}, {"scale": 1000.0}, {"scale": 1e-3, "offset": (0.0, 0.5, 0.0)}], ids=str
)
def test_a_scene_elsewhere_trains_like_the_plain_one(
    tiny_scene: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    """Trained at the origin, measured, exported and written as cameras in the scene's own coordinates."""
    shutil.copytree(tiny_scene, tmp_path / "scene")
    content = Content.of(tiny_scene)
    content.write_text(tmp_path / "scene" / "sparse" / "0")
    shutil.copytree(tmp_path / "scene", tmp_path / "elsewhere")
    content.move(**change).write_text(tmp_path / "elsewhere" / "sparse" / "0")  # type: ignore[arg-type]
    psnr, splats = {}, {}
    for name in ("scene", "elsewhere"):
        flags = ("--preset", "tiny", "--iterations", 60, "--device", "cpu")
        done = gs_train_here("train", tmp_path / name, "--out", tmp_path / f"run_{name}", *flags)
        assert done.returncode == 0, done.stderr
        assert gs_train_here("eval", tmp_path / f"run_{name}", "--device", "cpu").returncode == 0
        psnr[name] = json.loads((tmp_path / f"run_{name}" / "results.json").read_text())["psnr"]
        assert gs_train_here("export", tmp_path / f"run_{name}", tmp_path / f"{name}.ply").returncode == 0
        splats[name] = read_ply(tmp_path / f"{name}.ply")
    assert psnr["elsewhere"] == pytest.approx(psnr["scene"], abs=0.3)
    scale, offset = change.get("scale", 1.0), np.array(change.get("offset", (0.0, 0.0, 0.0)))
    # The exported file has its offset beside it, and cameras.json leaves out the same offset.
    kept = np.array(read_offset(tmp_path / "elsewhere.ply").offset)
    assert bool(kept.any()) == (change.get("offset") == UTM)
    median = [np.median(splats[name].xyz, axis=0) for name in ("scene", "elsewhere")]
    np.testing.assert_allclose(median[1] + kept, scale * median[0] + offset, atol=0.2 * scale)
    size = [np.median(splats[name].scaling) for name in ("scene", "elsewhere")]
    assert size[1] == pytest.approx(size[0] + math.log(scale), abs=0.2)
    cameras = json.loads((tmp_path / "run_elsewhere" / "cameras.json").read_text())
    for entry in cameras:
        expected = camera_centre(content.poses[entry["img_name"]]) - kept
        np.testing.assert_allclose(entry["position"], expected, atol=1e-6 * scale)
    assert open_run(tmp_path / "run_elsewhere").load_scene().extent == pytest.approx(5.0, rel=0.5)
