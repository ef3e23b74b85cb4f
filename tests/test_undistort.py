"""Undistortion: the pinhole camera and the resampled picture fit each other, the points of real scenes and COLMAP's own undistorter."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colmap_files import Model, read_observations
from command_line import gs_train
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from test_distortion import DISTORTIONS, lens_of

from gs_train.cameras.camera import Camera
from gs_train.cameras.distortion import project, unproject
from gs_train.cameras.undistort import FoldedLensError, is_narrowed, pinhole_for, resample, sampling_map
from gs_train.errors import UserError
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.photos.cache import ImageCache
from gs_train.scene.photos.decode import decode_image
from gs_train.scene.readers.colmap import read_model
from gs_train.scene.types import View

BARREL = Camera(
    model="OPENCV", width=160, height=120, fx=120.0, fy=118.0, cx=83.0, cy=57.0, distortion=(-0.2, 0.03, 0.004, -0.003)
)
PINCUSHION = replace(BARREL, model="RADIAL", distortion=(0.15, 0.02))
FISHEYE = replace(BARREL, model="OPENCV_FISHEYE", fx=90.0, fy=90.0, distortion=(0.02, -0.004, 0.0, 0.0))
LENSES = {"barrel": BARREL, "pincushion": PINCUSHION, "fisheye": FISHEYE}


def _edges(lens: Camera) -> np.ndarray:
    x, y = np.linspace(0, lens.width, 500), np.linspace(0, lens.height, 500)
    sides = [(x, 0 * x), (x, 0 * x + lens.height), (0 * y, y), (0 * y + lens.width, y)]
    return np.concatenate([np.stack(side, axis=1) for side in sides])


def _in_camera(camera: Camera, plane: np.ndarray) -> np.ndarray:
    return plane * (camera.fx, camera.fy) + (camera.cx, camera.cy)


# ---- the camera


@pytest.mark.parametrize("model", [model for model in DISTORTIONS if not lens_of(model).is_pinhole()])
def test_crop_has_a_source_everywhere_and_full_has_all_of_the_photo(model: str) -> None:
    lens = lens_of(model)
    crop, full = (pinhole_for(lens, undistort) for undistort in ("crop", "full"))
    assert sampling_map(lens, crop)[1].all()
    edges = unproject(lens, _edges(lens))
    shown = _in_camera(full, edges[~np.isnan(edges).any(axis=1)])
    assert shown.min() >= -0.01 and (shown <= (full.width + 0.01, full.height + 0.01)).all()
    inside = sampling_map(lens, full)[1]
    # The photo's corners may be spikes thinner than a pixel.
    assert inside.any(axis=0)[3:-3].all() and inside.any(axis=1)[3:-3].all(), "no row and no column is empty"
    assert 0.5 * lens.width < crop.width <= full.width < 2 * lens.width
    for camera in (crop, full):
        assert (camera.fx, camera.fy) == (lens.fx, lens.fy)


@pytest.mark.parametrize("name", ["barrel", "pincushion"])
def test_crop_is_as_large_as_it_can_be(name: str) -> None:
    """One more pixel on any side would lack a source, or that side already is where the photo's edge is at its tightest."""
    lens = LENSES[name]
    camera = pinhole_for(lens, "crop")
    for left, right, top, bottom in np.eye(4, dtype=int) * 3:
        larger = replace(
            camera,
            width=camera.width + left + right,
            height=camera.height + top + bottom,
            cx=camera.cx + left,
            cy=camera.cy + top,
        )
        assert not sampling_map(lens, larger)[1].all()


def test_a_lens_without_distortion_stays_as_it_is() -> None:
    lens = replace(BARREL, distortion=(0.0,) * 4)
    assert pinhole_for(lens, "crop") == Camera(width=160, height=120, fx=120.0, fy=118.0, cx=83.0, cy=57.0)
    assert not is_narrowed(lens, "crop")


@pytest.mark.parametrize("undistort", ["crop", "full"])
def test_a_fisheye_is_narrowed_to_120_degrees(undistort: str) -> None:
    lens = Camera(
        model="OPENCV_FISHEYE", width=600, height=600, fx=180.0, fy=180.0, cx=300.0, cy=300.0, distortion=(0.0,) * 4
    )
    assert lens.width / lens.fx > math.pi, "it sees more than half of everything"
    camera = pinhole_for(lens, undistort)  # type: ignore[arg-type]
    assert is_narrowed(lens, undistort)  # type: ignore[arg-type]
    for side, focal, centre in ((camera.width, camera.fx, camera.cx), (camera.height, camera.fy, camera.cy)):
        across = math.degrees(math.atan(centre / focal) + math.atan((side - centre) / focal))
        assert across == pytest.approx(120, abs=0.2)
    assert sampling_map(lens, camera)[1].all()
    assert not is_narrowed(replace(lens, fx=400.0, fy=400.0), "crop")


def test_no_side_grows_to_more_than_twice_the_photos() -> None:
    """A lens that sees nearly 120 degrees and squeezes most of that into the rim."""
    lens = replace(BARREL, model="FOV", fx=100.0, fy=100.0, distortion=(2.6,))
    camera = pinhole_for(lens, "full")
    assert max(camera.width / lens.width, camera.height / lens.height) <= 2.0
    assert camera.fx < lens.fx and camera.fx / camera.fy == pytest.approx(1)


@pytest.mark.parametrize(
    "lens",
    [
        replace(BARREL, model="SIMPLE_RADIAL", distortion=(-0.9,)),
        replace(BARREL, distortion=(0.0, 0.0, 2.0, 2.0)),
        replace(BARREL, model="FULL_OPENCV", distortion=(0.0, 0, 0, 0, 0, 9.0, 0, 0)),
        replace(BARREL, model="FOV", distortion=(7.0,)),
        replace(FISHEYE, distortion=(-0.8, 0.0, 0.0, 0.0)),
    ],
)
@pytest.mark.parametrize("undistort", ["crop", "full"])
def test_a_lens_that_folds_inside_the_photo_is_told(lens: Camera, undistort: str) -> None:
    with pytest.raises(FoldedLensError):
        pinhole_for(lens, undistort)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
def test_damaged_parameters_are_told_and_never_crash() -> None:
    rng = np.random.default_rng(0)
    lens = replace(BARREL, width=24, height=18)
    folded = 0
    for model, (terms, _) in DISTORTIONS.items():
        for _ in range(6):
            wild = tuple((rng.standard_normal(len(terms)) * 10.0 ** rng.integers(-3, 300, len(terms))).tolist())
            damaged = replace(
                lens, model=model, distortion=wild, cx=float(rng.normal(12, 30)), cy=float(rng.normal(9, 30))
            )
            for undistort in ("crop", "full"):
                try:
                    camera = pinhole_for(damaged, undistort)  # type: ignore[arg-type]
                except FoldedLensError:
                    folded += 1
                else:
                    assert 1 <= camera.width <= 2 * 24 + 1 and 1 <= camera.height <= 2 * 18 + 1
                    assert np.isfinite(sampling_map(damaged, camera)[0]).all()
    assert folded > 30


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("model", DISTORTIONS)
def test_a_parameter_next_to_nothing_is_nothing(model: str) -> None:
    values = (0.001,) * len(DISTORTIONS[model][0])
    for at in range(len(values)):
        without, with_it = (
            replace(BARREL, model=model, distortion=(*values[:at], least, *values[at + 1 :])) for least in (0.0, 5e-324)
        )
        expected, camera = pinhole_for(without, "crop"), pinhole_for(with_it, "crop")
        assert (camera.width, camera.height) == (expected.width, expected.height)
        assert (camera.cx, camera.cy) == pytest.approx((expected.cx, expected.cy))


# ---- the picture


def _picture(width: int, height: int, plane_of: object, shade: object) -> np.ndarray:
    """[H, W, 3] uint8, each pixel the mean of 4 x 4 rays."""
    fine = [(np.arange(4 * side) + 0.5) / 4 for side in (width, height)]
    pixels = np.stack(np.meshgrid(*fine), axis=-1)
    values = np.nan_to_num(shade(plane_of(pixels)))  # type: ignore[operator]
    grey = values.reshape(height, 4, width, 4).mean(axis=(1, 3))
    return np.repeat(np.round(grey).astype(np.uint8)[:, :, None], 3, axis=2)


def _view(path: Path, lens: Camera, camera: Camera) -> View:
    return View(name=path.name, image_path=path, camera=camera, world_to_camera=np.eye(4), distorted_camera=lens)


@pytest.mark.parametrize("name", list(LENSES))
def test_a_checkerboard_becomes_the_one_that_a_pinhole_sees(tmp_path: Path, name: str) -> None:
    lens = LENSES[name]
    camera = pinhole_for(lens, "crop")

    def board(plane: np.ndarray) -> np.ndarray:
        # Squares of 31.7 px in the middle: no whole number, or their edges would all fall on the same side of the nearest ray.
        return np.where(np.floor(plane * (lens.fx / 31.7)).sum(axis=-1) % 2 == 0, 215.0, 40.0)

    distorted = _picture(lens.width, lens.height, lambda pixels: unproject(lens, pixels), board)
    Image.fromarray(distorted).save(tmp_path / "a.png")
    expected = _picture(
        camera.width, camera.height, lambda pixels: (pixels - (camera.cx, camera.cy)) / (camera.fx, camera.fy), board
    )
    view = _view(tmp_path / "a.png", lens, camera)

    def error(at: Camera) -> float:
        """Mean difference, both pictures blurred alike: resampling blurs the squares' edges, and here it is their places that count."""
        difference = decode_image(replace(view, camera=at))[:, :, 0].astype(float) - expected[:, :, 0]
        return float(np.abs(gaussian_filter(difference, 5.0)).mean())

    assert np.median(np.abs(decode_image(view).astype(float) - expected)) == 0
    assert error(camera) < 0.7
    for moved in (
        replace(camera, cx=camera.cx + 0.25),
        replace(camera, cy=camera.cy - 0.25),
        replace(camera, fx=camera.fx * 1.01),
    ):
        assert error(moved) > 1.8 * error(camera)


@pytest.mark.parametrize("name", list(LENSES))
def test_a_straight_line_becomes_straight(name: str) -> None:
    lens = LENSES[name]
    camera = pinhole_for(lens, "crop")

    def bar(plane: np.ndarray) -> np.ndarray:
        return 255.0 * (np.abs(plane[..., 1] - 0.05 * plane[..., 0] - 0.22) < 0.03)

    def bend(picture: np.ndarray) -> float:
        """Largest deviation of the bar's middle from a straight line, px."""
        grey = picture[:, :, 0].astype(float)
        columns = np.arange(5, grey.shape[1] - 5)
        middle = (grey * np.arange(len(grey))[:, None]).sum(axis=0)[columns] / grey.sum(axis=0)[columns]
        return float(np.abs(middle - np.polyval(np.polyfit(columns, middle, 1), columns)).max())

    distorted = _picture(lens.width, lens.height, lambda pixels: unproject(lens, pixels), bar)
    assert bend(distorted) > 0.8
    assert bend(resample(distorted, lens, camera)) < 0.12


def test_full_says_which_pixels_count(tmp_path: Path) -> None:
    camera = pinhole_for(BARREL, "full")
    rgba = np.full((120, 160, 4), 200, np.uint8)
    Image.fromarray(rgba[:, :, :3]).save(tmp_path / "rgb.png")
    rgba[:, :80, 3] = 51
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    for name in ("rgb.png", "rgba.png"):
        pixels = decode_image(_view(tmp_path / name, BARREL, camera))
        assert pixels.shape == (camera.height, camera.width, 5) and pixels.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(pixels[:, :, 4], np.where(sampling_map(BARREL, camera)[1], 255, 0))
        assert 0 < (pixels[:, :, 4] == 0).mean() < 0.3
        if name == "rgb.png":
            assert (pixels[:, :, :3] == 200).all() and (pixels[:, :, 3] == 255).all()
        else:
            # Premultiplied: a fifth of the colour where alpha is a fifth, and all channels alike in between.
            np.testing.assert_array_equal(np.unique(pixels[:, :10, 3]), [51])
            np.testing.assert_allclose(pixels[:, :, 0], 200 / 255 * pixels[:, :, 3], atol=1.5)
            assert 51 < pixels[60, :, 3].mean() < 255
    assert decode_image(_view(tmp_path / "rgba.png", BARREL, pinhole_for(BARREL, "crop"))).shape[2] == 4


def test_views_of_one_camera_share_the_map(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    camera = pinhole_for(BARREL, "crop")
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    cache = ImageCache([_view(tmp_path / name, replace(BARREL), replace(camera)) for name in ("a.png", "b.png")])
    np.testing.assert_array_equal(cache.get(0), cache.get(1))
    assert sampling_map.cache_info().currsize == 0, "no map outlives the decoding"
    assert cache.get(0, 2).shape == (-(-camera.height // 2), -(-camera.width // 2), 3)
    shared, again = sampling_map(replace(BARREL), camera), sampling_map(BARREL, replace(camera))
    assert shared[0] is again[0] and not shared[0].flags.writeable


# ---- scenes


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


def test_narrowed_photos_are_told_once(tmp_path: Path) -> None:
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
        done = gs_train(*arguments)
        assert done.returncode == 0, done.stderr
    assert "OPENCV, undistorted when read (8)" in done.stdout
    expected = load_scene(scene, SceneConfig(undistort="full")).train_views[0].camera
    entry = json.loads((run / "cameras.json").read_text())[0]
    assert (entry["width"], entry["height"]) == (expected.width, expected.height) != (camera.width, camera.height)
    assert 'undistort = "full"' in (run / "config.toml").read_text()


# ---- real scenes and COLMAP itself


def _by_formula(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Pixels of points [n, 3] in camera axes, written down afresh for the two models of the real scenes."""
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
def test_points_meet_their_pixels_as_before(shared_scenes: Path, name: str, undistort: str) -> None:
    """Mean reprojection error of the scene's points, in pixels of the photo: by the distorted camera, and by the way of training, where
    the pinhole camera puts a point at a place of its picture, and the map says which place of the photo is shown there.
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
        shown = _in_camera(view.camera, points[:, :2] / points[:, 2:])
        # Between pixel centres the map is read off linearly, and not at all within a pixel of either picture's edge.
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
    """COLMAP undistorted the frames of ``desk``: ours, resampled to the same camera, must be the same pictures."""
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


_ORACLE = """
import json, sys
import pycolmap
answer = {}
for model, (size, params) in json.load(sys.stdin).items():
    camera = pycolmap.Camera(model=model, width=size[0], height=size[1], params=params)
    answer[model] = []
    for blank in (0.0, 1.0):
        pinhole = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(blank_pixels=blank), camera)
        answer[model].append([pinhole.width, pinhole.height, *pinhole.params])
print(json.dumps(answer))
"""


def test_colmaps_undistorter_chooses_the_same_camera() -> None:
    """Where the principal point is in the middle and the distortion is symmetric, so that COLMAP too reaches the edges on all sides."""
    lenses = {
        model: replace(lens_of(model), cx=400.0, cy=300.0)
        for model in ("SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV", "FOV", "RADIAL_FISHEYE", "OPENCV_FISHEYE")
    }
    lenses["FULL_OPENCV"] = replace(lenses["FULL_OPENCV"], distortion=(0.4, 0.05, 0.0, 0.0, 0.01, 0.7, 0.09, 0.02))
    question = {
        model: (
            (800, 600),
            [*([lens.fx] if lens.fx == lens.fy else [lens.fx, lens.fy]), lens.cx, lens.cy, *lens.distortion],
        )
        for model, lens in lenses.items()
    }
    ran = subprocess.run(
        [sys.executable, "-c", _ORACLE],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    if re.search("No module named 'pycolmap'", ran.stderr):
        pytest.skip("pycolmap is not installed (pip install pycolmap)")
    assert ran.returncode == 0, ran.stderr
    for model, cameras in json.loads(ran.stdout).items():
        for undistort, (width, height, *params) in zip(("crop", "full"), cameras, strict=True):
            camera = pinhole_for(lenses[model], undistort)  # type: ignore[arg-type]
            ours = (camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy)
            np.testing.assert_allclose(ours, (width, height, *params), atol=4.5, err_msg=f"{model} {undistort}")


def test_the_map_is_the_projection() -> None:
    camera = pinhole_for(BARREL, "crop")
    places, _ = sampling_map(BARREL, camera)
    plane = np.array([[(7.5 - camera.cx) / camera.fx, (100.5 - camera.cy) / camera.fy]])
    np.testing.assert_allclose(places[:, 100, 7][::-1] + 0.5, project(BARREL, plane)[0], atol=1e-4)
