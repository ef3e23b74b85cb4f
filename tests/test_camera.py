"""``Camera``: sizes, and the refusal to render a distorted camera as a pinhole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gs_train.cameras.camera import Camera
from gs_train.model.gaussians import GaussianModel
from gs_train.render.cpu.rasterizer import CpuRasterizer

CAMERA = Camera(width=41, height=30, fx=42.0, fy=43.0, cx=21.0, cy=14.0)


def test_resized_keeps_the_intrinsics_as_fractions_of_the_image() -> None:
    distorted = replace(CAMERA, model="OPENCV", distortion=(0.1, 0.2, 0.3, 0.4))
    resized = distorted.resized(82, 20)
    assert (resized.width, resized.height, resized.model, resized.distortion) == (
        82,
        20,
        "OPENCV",
        distorted.distortion,
    )
    np.testing.assert_allclose((resized.fx, resized.fy, resized.cx, resized.cy), (84, 43 / 1.5, 42, 14 / 1.5))


def test_reduced_rounds_the_size_up_and_divides_the_intrinsics() -> None:
    assert CAMERA.reduced(1) is CAMERA
    assert CAMERA.reduced(4) == Camera(width=11, height=8, fx=10.5, fy=10.75, cx=5.25, cy=3.5)


def test_equal_cameras_are_one_key() -> None:
    assert len({CAMERA, replace(CAMERA), replace(CAMERA, model="OPENCV", distortion=(0.0,) * 4)}) == 2


def test_a_rasterizer_refuses_a_distorted_camera() -> None:
    shapes = {
        "xyz": (1, 3),
        "f_dc": (1, 1, 3),
        "f_rest": (1, 0, 3),
        "opacity": (1, 1),
        "scaling": (1, 3),
        "rotation": (1, 4),
    }
    model = GaussianModel({name: torch.ones(shape) for name, shape in shapes.items()})
    view = torch.eye(4), torch.zeros(3)
    for pinhole in (CAMERA, replace(CAMERA, model="RADIAL", distortion=(0.0, 0.0))):
        assert CpuRasterizer().render(model, pinhole, *view).image.shape == (30, 41, 3)
    for distorted in (replace(CAMERA, model="RADIAL", distortion=(0.1, 0.0)), replace(CAMERA, model="OPENCV_FISHEYE")):
        with pytest.raises(ValueError, match=f"{distorted.model}.*undistort it first"):
            CpuRasterizer().render(model, distorted, *view)
