"""COLMAP's camera models: projection and its inverse agree with each other, finite differences and pycolmap."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from gs_train.cameras import distortion
from gs_train.cameras.camera import Camera
from gs_train.cameras.distortion import fold_radius, project, unproject

# Per model: distortion with no parameter 0, and the radius on the plane up to which it is tested.
DISTORTIONS: dict[str, tuple[tuple[float, ...], float]] = {
    "SIMPLE_PINHOLE": ((), 3.0),
    "PINHOLE": ((), 3.0),
    "SIMPLE_RADIAL": ((-0.11,), 1.5),
    "RADIAL": ((0.09, -0.05), 1.2),
    "OPENCV": ((-0.15, 0.04, 0.002, -0.004), 1.2),
    "OPENCV_FISHEYE": ((-0.02, 0.013, -0.004, 0.0007), 8.0),
    "FULL_OPENCV": ((0.4, 0.05, 0.001, -0.002, 0.01, 0.7, 0.09, 0.02), 1.6),
    "FOV": ((0.9,), 5.0),
    "SIMPLE_RADIAL_FISHEYE": ((-0.03,), 8.0),
    "RADIAL_FISHEYE": ((0.05, -0.01), 8.0),
    "THIN_PRISM_FISHEYE": ((-0.03, 0.01, 0.002, -0.003, 0.004, -0.001, 0.003, -0.002), 3.0),
    "RAD_TAN_THIN_PRISM_FISHEYE": (
        (0.1, -0.05, 0.02, -0.01, 0.003, -0.0004, 0.001, -0.002, 0.003, -0.001, 0.002, 0.0005),
        3.0,
    ),
}
ONE_FOCAL_LENGTH = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")


def lens_of(model: str, distortion: tuple[float, ...] | None = None) -> Camera:
    fy = 500.0 if model in ONE_FOCAL_LENGTH else 480.0
    chosen = DISTORTIONS[model][0] if distortion is None else distortion
    return Camera(model=model, width=800, height=600, fx=500.0, fy=fy, cx=410.0, cy=293.0, distortion=chosen)


def _points(model: str, count: int = 3000) -> np.ndarray:
    """[count, 2] points in a disc on the plane, including the axis and points very close to it."""
    rng = np.random.default_rng(3)
    radius, turn = DISTORTIONS[model][1] * np.sqrt(rng.random(count)), 2 * math.pi * rng.random(count)
    radius[:3] = 0.0, 1e-9, 1e-5
    return np.stack((radius * np.cos(turn), radius * np.sin(turn)), axis=1)


@pytest.mark.parametrize("model", list(DISTORTIONS))
def test_unproject_inverts_project(model: str) -> None:
    lens, plane = lens_of(model), _points(model)
    assert fold_radius(lens) > DISTORTIONS[model][1]
    pixels = project(lens, plane)
    back = unproject(lens, pixels)
    np.testing.assert_allclose(back, plane, rtol=0, atol=1e-10 * (1 + DISTORTIONS[model][1] ** 2))
    np.testing.assert_allclose(project(lens, back), pixels, rtol=0, atol=1e-9)
    # Any leading shape works.
    np.testing.assert_array_equal(unproject(lens, pixels.reshape(60, 50, 2)), back.reshape(60, 50, 2))


@pytest.mark.parametrize("model", [model for model in DISTORTIONS if model != "FOV"])
def test_the_jacobian_matches_finite_differences(model: str) -> None:
    lens, points, step = lens_of(model), 0.3 * _points(model, 50) / DISTORTIONS[model][1], 1e-6
    by_point = distortion._distort_slope(lens, points)
    for axis in (0, 1):
        shift = step * np.eye(2)[axis]
        numeric = (distortion._distort(lens, points + shift) - distortion._distort(lens, points - shift)) / (2 * step)
        np.testing.assert_allclose(by_point[:, :, axis], numeric, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("model", "terms", "fold"),
    [
        ("SIMPLE_RADIAL", (-0.12,), math.sqrt(1 / 0.36)),
        ("SIMPLE_RADIAL", (0.12,), math.inf),
        ("RADIAL", (0.0, -0.2), 1.0),
        ("FULL_OPENCV", (0, 0, 0, 0, 0, -0.25, 0, 0), 2.0),
        ("FULL_OPENCV", (0, 0, 0, 0, 0, 0.25, 0, 0), 2.0),
        ("SIMPLE_RADIAL_FISHEYE", (-1 / 3,), math.tan(1.0)),
        ("SIMPLE_RADIAL_FISHEYE", (-0.01,), math.inf),
        ("FOV", (0.9,), math.inf),
        ("FOV", (3.2,), 0.0),
        ("OPENCV", (1e300, 1e300, 0, 0), math.inf),
        ("FULL_OPENCV", (1e300, 0, 0, 0, 1e300, 1e300, 0, -1e300), 0.0),
        ("PINHOLE", (), math.inf),
    ],
)
def test_where_a_lens_folds(model: str, terms: tuple[float, ...], fold: float) -> None:
    lens = lens_of(model, terms)
    assert fold_radius(lens) == pytest.approx(fold)
    if not 0 < fold < math.inf:
        return
    turn = np.linspace(0, 6, 40)
    around = np.stack((np.cos(turn), np.sin(turn)), axis=1)
    for share in (0.5, 0.99, 0.999999):
        pixels = project(lens, share * fold * around)
        if np.abs(pixels).max() < 1e5:  # Elsewhere the denominator is nearly 0.
            np.testing.assert_allclose(project(lens, unproject(lens, pixels)), pixels, atol=1e-9)
    furthest = abs((project(lens, fold * around) - (lens.cx, lens.cy)) / (lens.fx, lens.fy)).max()
    if furthest < 1e3:
        beyond = 1.01 * furthest * around * (lens.fx, lens.fy) + (lens.cx, lens.cy)
        assert np.isnan(unproject(lens, beyond)).all(), "the lens images nothing beyond its fold"


def test_beyond_ninety_degrees_there_is_no_plane() -> None:
    lens = lens_of("OPENCV_FISHEYE", (0.0, 0.0, 0.0, 0.0))
    degrees = np.array([0.0, 89.9, 90.1, 120.0])
    pixels = np.stack((lens.cx + lens.fx * np.radians(degrees), np.full(4, lens.cy)), axis=1)
    found = unproject(lens, pixels)
    np.testing.assert_allclose(found[:2, 0], np.tan(np.radians(degrees[:2])), rtol=1e-9)
    assert np.isnan(found[2:]).all()


def test_which_cameras_are_pinholes() -> None:
    for lens in (lens_of("PINHOLE"), lens_of("OPENCV", (0.0,) * 4), lens_of("FOV", (0.0,))):
        assert lens.is_pinhole() and lens.pinhole_intrinsics() == (500.0, lens.fy, 410.0, 293.0)
    for lens in (lens_of("OPENCV"), lens_of("RADIAL_FISHEYE", (0.0, 0.0))):
        assert not lens.is_pinhole()
        with pytest.raises(ValueError, match=f"{lens.model}.*undistort it first"):
            lens.pinhole_intrinsics()
    assert [model for model in DISTORTIONS if lens_of(model).is_fisheye()] == [m for m in DISTORTIONS if "FISHEYE" in m]
    np.testing.assert_array_equal(unproject(lens_of("FOV", (0.0,)), np.array([[410.0, 293.0]])), [[0.0, 0.0]])


_ORACLE = """
import json, sys
import numpy as np, pycolmap
answer = {}
for model, (size, params, plane) in json.load(sys.stdin).items():
    camera = pycolmap.Camera(model=model, width=size[0], height=size[1], params=params)
    plane = np.array(plane)
    pixels = camera.img_from_cam(np.concatenate((plane, np.ones((len(plane), 1))), axis=1))
    answer[model] = [pixels.tolist(), camera.cam_from_img(pixels).tolist()]
print(json.dumps(answer))
"""


def test_pycolmap_agrees() -> None:
    """pycolmap runs in its own process, because it and Pillow crash each other in one."""
    question = {}
    for model in DISTORTIONS:
        lens = lens_of(model)
        focal = [lens.fx] if model in ONE_FOCAL_LENGTH else [lens.fx, lens.fy]
        plane = _points(model, 400)
        question[model] = ((lens.width, lens.height), [*focal, lens.cx, lens.cy, *lens.distortion], plane.tolist())
    ran = subprocess.run(
        [sys.executable, "-c", _ORACLE],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    if "No module named 'pycolmap'" in ran.stderr:
        pytest.skip("pycolmap is not installed (pip install pycolmap)")
    assert ran.returncode == 0, ran.stderr
    for model, (pixels, plane) in json.loads(ran.stdout).items():
        lens = lens_of(model)
        np.testing.assert_allclose(
            project(lens, np.array(question[model][2])), pixels, rtol=1e-9, atol=1e-9, err_msg=model
        )
        # COLMAP's inverse stops at a larger error than ours.
        np.testing.assert_allclose(unproject(lens, np.array(pixels)), plane, rtol=1e-7, atol=1e-7, err_msg=model)
