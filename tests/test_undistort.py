"""Undistortion: the pinhole camera and the resampled photo match each other and COLMAP's undistorter."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from test_distortion import DISTORTIONS, lens_of

from gs_train.cameras.camera import Camera
from gs_train.cameras.distortion import project, unproject
from gs_train.cameras.undistort import FoldedLensError, is_narrowed, pinhole_for, resample, sampling_map
from gs_train.scene.photos.cache import ImageCache
from gs_train.scene.photos.decode import decode_image
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


def in_camera(camera: Camera, plane: np.ndarray) -> np.ndarray:
    return plane * (camera.fx, camera.fy) + (camera.cx, camera.cy)


# ---- the camera


@pytest.mark.parametrize("model", [model for model in DISTORTIONS if not lens_of(model).is_pinhole()])
def test_crop_has_a_source_everywhere_and_full_has_all_of_the_photo(model: str) -> None:
    lens = lens_of(model)
    crop, full = (pinhole_for(lens, undistort) for undistort in ("crop", "full"))
    assert sampling_map(lens, crop)[1].all()
    edges = unproject(lens, _edges(lens))
    shown = in_camera(full, edges[~np.isnan(edges).any(axis=1)])
    assert shown.min() >= -0.01 and (shown <= (full.width + 0.01, full.height + 0.01)).all()
    inside = sampling_map(lens, full)[1]
    # The photo's corners may be thinner than a pixel.
    assert inside.any(axis=0)[3:-3].all() and inside.any(axis=1)[3:-3].all(), "no row or column is empty"
    assert 0.5 * lens.width < crop.width <= full.width < 2 * lens.width
    for camera in (crop, full):
        assert (camera.fx, camera.fy) == (lens.fx, lens.fy)


@pytest.mark.parametrize("name", ["barrel", "pincushion"])
def test_crop_is_as_large_as_it_can_be(name: str) -> None:
    """A crop that is larger on any side has pixels without a source."""
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
    assert lens.width / lens.fx > math.pi, "the field of view exceeds 180 degrees"
    camera = pinhole_for(lens, undistort)  # type: ignore[arg-type]
    assert is_narrowed(lens, undistort)  # type: ignore[arg-type]
    for side, focal, centre in ((camera.width, camera.fx, camera.cx), (camera.height, camera.fy, camera.cy)):
        across = math.degrees(math.atan(centre / focal) + math.atan((side - centre) / focal))
        assert across == pytest.approx(120, abs=0.2)
    assert sampling_map(lens, camera)[1].all()
    assert not is_narrowed(replace(lens, fx=400.0, fy=400.0), "crop")


def test_no_side_grows_to_more_than_twice_the_photos() -> None:
    """The lens sees nearly 120 degrees and compresses most of that into its rim."""
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
def test_a_lens_that_folds_inside_the_photo_is_refused(lens: Camera, undistort: str) -> None:
    with pytest.raises(FoldedLensError):
        pinhole_for(lens, undistort)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
def test_damaged_parameters_raise_or_give_a_camera() -> None:
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
def test_a_tiny_parameter_counts_as_zero(model: str) -> None:
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
        # Squares of 31.7 px in the middle. With a whole number, all edges would lie on the same side of the nearest
        # ray.
        return np.where(np.floor(plane * (lens.fx / 31.7)).sum(axis=-1) % 2 == 0, 215.0, 40.0)

    distorted = _picture(lens.width, lens.height, lambda pixels: unproject(lens, pixels), board)
    Image.fromarray(distorted).save(tmp_path / "a.png")
    expected = _picture(
        camera.width, camera.height, lambda pixels: (pixels - (camera.cx, camera.cy)) / (camera.fx, camera.fy), board
    )
    view = _view(tmp_path / "a.png", lens, camera)

    def error(at: Camera) -> float:
        """Mean difference after an equal blur of both pictures, because resampling blurs the edges of the squares."""
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


def test_full_gives_pixels_without_a_source_weight_0(tmp_path: Path) -> None:
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
            # RGB is premultiplied and interpolated like alpha.
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
    assert sampling_map.cache_info().currsize == 0, "decoding drops its maps at the end"
    assert cache.get(0, 2).shape == (-(-camera.height // 2), -(-camera.width // 2), 3)
    shared, again = sampling_map(replace(BARREL), camera), sampling_map(BARREL, replace(camera))
    assert shared[0] is again[0] and not shared[0].flags.writeable


# ---- COLMAP's undistorter


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
    """With a centred principal point and symmetric distortion, COLMAP too reaches the edges on all sides."""
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
