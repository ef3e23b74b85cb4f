"""Undistortion of whole scenes: loading, training, and the points of real scenes."""

from __future__ import annotations

import json
import math
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colmap_files import Model, read_observations
from command_line import gs_train_here
from scipy.ndimage import map_coordinates
from test_distortion import DISTORTIONS, lens_of
from test_undistort import BARREL, in_camera

from gs_train.cameras.camera import Camera
from gs_train.cameras.undistort import pinhole_for, sampling_map
from gs_train.errors import UserError
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.photos.decode import decode_image
from gs_train.scene.readers.colmap import read_model
from gs_train.scene.types import View


def _scene(
    folder: Path, camera: tuple[int, int, int, int, tuple[float, ...]], photos: str = "images", divided_by: int = 1
) -> Path:
    model = Model(cameras=[camera, (7, *camera[1:])])
    model.write_binary(folder / "sparse/0")
    model.write_photos(folder / photos, divided_by)
    return folder


def test_resolution_and_folders_of_smaller_photos(tmp_path: Path) -> None:
    row = (1, 4, 160, 120, (120.0, 118.0, 83.0, 57.0, *BARREL.distortion))
    scene = _scene(tmp_path, row)
    view = load_scene(scene, SceneConfig(test_every=0)).train_views[0]
    assert view.distorted_camera == BARREL and view.camera == pinhole_for(BARREL, "crop")
    half = SceneConfig(test_every=0, resolution=2)
    resized = load_scene(scene, half).train_views[0]
    _scene(tmp_path, row, "images_2", 2)
    stored = load_scene(scene, half).train_views[0]
    named = load_scene(scene, SceneConfig(test_every=0, images="images_2")).train_views[0]
    assert (resized.image_path.parent.name, stored.image_path.parent.name) == ("images", "images_2")
    for smaller in (resized, stored, named):
        assert smaller.distorted_camera == BARREL.resized(80, 60)
        assert smaller.camera == pinhole_for(BARREL.resized(80, 60), "crop")
        assert abs(2 * smaller.camera.width - view.camera.width) <= 2 and smaller.camera.fx == view.camera.fx / 2
        assert decode_image(smaller).shape == (smaller.camera.height, smaller.camera.width, 3)


@pytest.mark.parametrize("model_id", range(2, 12))
def test_every_model_loads(tmp_path: Path, model_id: int) -> None:
    model = list(DISTORTIONS)[model_id]
    lens = lens_of(model)
    focal = [lens.fx] if lens.fx == lens.fy else [lens.fx, lens.fy]
    scene = _scene(tmp_path, (1, model_id, 800, 600, (*focal, lens.cx, lens.cy, *lens.distortion)))
    loaded = load_scene(scene, SceneConfig(test_every=0, undistort="full"))
    assert all(view.distorted_camera == lens for view in loaded.train_views)
    assert loaded.train_views[0].camera == pinhole_for(lens, "full")


def test_no_distortion_in_a_distorted_model_is_a_pinhole(tmp_path: Path) -> None:
    loaded = load_scene(_scene(tmp_path, (1, 2, 40, 30, (42.0, 21.0, 14.0, 0.0))), SceneConfig(test_every=0))
    assert loaded.train_views[0].distorted_camera is None
    assert loaded.train_views[0].camera == Camera(width=40, height=30, fx=42.0, fy=42.0, cx=21.0, cy=14.0)


def test_a_lens_that_cannot_be_inverted_is_refused(tmp_path: Path) -> None:
    scene = _scene(tmp_path, (1, 2, 40, 30, (33.0, 20.5, 15.5, -0.9)))
    with pytest.raises(
        UserError, match=r"cameras\.bin: the distortion \(-0\.9,\) of camera [17] \(SIMPLE_RADIAL\) cannot be inverted"
    ):
        load_scene(scene, SceneConfig(test_every=0))


def test_narrowed_photos_give_one_notice(tmp_path: Path) -> None:
    scene = _scene(tmp_path, (1, 8, 60, 60, (18.0, 30.0, 30.0, 0.0)))
    assert load_scene(scene, SceneConfig(test_every=0)).notices == (
        "4 of 4 photos see more than 120 degrees across: undistortion crops them to that.",
    )


def test_the_command_line_trains_and_measures_distorted_photos(tiny_scene: Path, tmp_path: Path) -> None:
    scene = shutil.copytree(tiny_scene, tmp_path / "scene")
    cameras = scene / "sparse/0/cameras.bin"
    (camera_id, camera), *others = read_model(cameras.parent).cameras.items()
    assert not others
    params = (*camera.pinhole_intrinsics(), -0.1, 0.01, 0.001, 0.0)
    cameras.write_bytes(struct.pack("<QIiQQ8d", 1, camera_id, 4, camera.width, camera.height, *params))
    run = tmp_path / "run"
    flags = (
        "--iterations",
        6,
        "--device",
        "cpu",
        "--max-gaussians",
        1000,
        "--undistort",
        "full",
        "--start-downscale",
        2,
    )
    for arguments in (("train", scene, "--out", run, *flags), ("eval", run), ("info", scene)):
        done = gs_train_here(*arguments)
        assert done.returncode == 0, done.stderr
    assert "OPENCV, undistorted when read (8)" in done.stdout
    expected = load_scene(scene, SceneConfig(undistort="full")).train_views[0].camera
    entry = json.loads((run / "cameras.json").read_text())[0]
    assert (entry["width"], entry["height"]) == (expected.width, expected.height) != (camera.width, camera.height)
    assert 'undistort = "full"' in (run / "config.toml").read_text()


# ---- real scenes


def _by_formula(camera: Camera, points: np.ndarray) -> np.ndarray:
    """[n, 2] pixels of points [n, 3] in camera axes, as an independent formula for the models of the real scenes."""
    x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    r2 = x**2 + y**2
    fx, fy, cx, cy = camera.fx, camera.fy, camera.cx, camera.cy
    if camera.model == "SIMPLE_RADIAL":
        (k,) = camera.distortion
        return np.stack((fx * x * (1 + k * r2) + cx, fy * y * (1 + k * r2) + cy), axis=1)
    k1, k2, p1, p2 = camera.distortion
    radial = 1 + k1 * r2 + k2 * r2**2
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    v = y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y**2)
    return np.stack((fx * u + cx, fy * v + cy), axis=1)


@pytest.mark.parametrize("name", ["desk_distorted", "llff_fern", "fox_colmap"])
@pytest.mark.parametrize("undistort", ["crop", "full"])
def test_reprojection_errors_of_real_points_stay(shared_scenes: Path, name: str, undistort: str) -> None:
    """Undistortion keeps the mean reprojection error of the scene's points, in pixels of the photo.

    The error before uses the distorted camera. The error after projects a point by the pinhole camera, and looks up the
    position in the photo in the sampling map.
    """
    folder = shared_scenes / name / "sparse/0"
    model, observations = read_model(folder), read_observations(folder)
    cameras = {image.name: model.cameras[image.camera_id] for image in model.images}
    scene = load_scene(shared_scenes / name, SceneConfig(undistort=undistort))  # type: ignore[arg-type]
    before, after = [], []
    for view in (*scene.train_views, *scene.test_views):
        seen = np.array([(x, y) for x, y, _ in observations[view.name]])
        points = model.points.xyz[[row for *_, row in observations[view.name]]]
        points = points @ view.world_to_camera[:3, :3].T + view.world_to_camera[:3, 3]
        camera = cameras[view.name]
        by_lens = _by_formula(camera, points)
        shown = in_camera(view.camera, points[:, :2] / points[:, 2:])
        # The map is interpolated between pixel centres, so a margin at the edges of both images is left out.
        kept = ((shown >= 1) & (shown <= (view.camera.width - 1, view.camera.height - 1))).all(axis=1)
        kept &= ((by_lens >= 2) & (by_lens <= (camera.width - 2, camera.height - 2))).all(axis=1)
        assert kept.mean() > 0.9
        places, _ = sampling_map(view.distorted_camera, view.camera)  # type: ignore[arg-type]
        sources = (
            np.stack(
                [map_coordinates(plane, shown[kept].T[::-1] - 0.5, float, order=1) for plane in places[::-1]], axis=1
            )
            + 0.5
        )
        np.testing.assert_allclose(sources, by_lens[kept], atol=0.01)
        before.append(np.linalg.norm(by_lens[kept] - seen[kept], axis=1))
        after.append(np.linalg.norm(sources - seen[kept], axis=1))
    mean_before, mean_after = np.concatenate(before).mean(), np.concatenate(after).mean()
    assert mean_after == pytest.approx(mean_before, rel=0.02)
    assert mean_before < 0.5


def test_the_undistorted_desk_is_the_desk(shared_scenes: Path) -> None:
    """``desk`` holds frames undistorted by COLMAP. Resampling to the same camera gives the same images."""
    theirs = {view.name: view for view in load_scene(shared_scenes / "desk", SceneConfig(test_every=0)).train_views}
    ours = load_scene(shared_scenes / "desk_distorted", SceneConfig(test_every=0)).train_views
    for view in ours[::9]:
        truth = decode_image(theirs[view.name]).astype(float)

        def error(at: View, truth: np.ndarray = truth) -> float:
            return float(np.square(decode_image(at).astype(float) - truth)[5:-5, 5:-5].mean())

        camera = theirs[view.name].camera
        psnr = 10 * math.log10(255**2 / error(replace(view, camera=camera)))
        assert psnr > 35
        for moved in (
            replace(camera, cx=camera.cx + 0.5),
            replace(camera, cy=camera.cy - 0.5),
            replace(camera, fx=camera.fx * 1.005),
        ):
            assert error(replace(view, camera=moved)) > 1.2 * error(replace(view, camera=camera))
