"""Turned, scaled and moved splats: spherical harmonics turn as well, and a moved camera sees the same picture."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from splats import assert_close, assert_same_bits, covariances, trained_splat

from gs_train.cameras.camera import Camera
from gs_train.formats.splat_data import SplatData
from gs_train.formats.turn import (
    half_turn,
    quaternion_of,
    rotation_about_axes,
    rotation_between,
    transformed,
)
from gs_train.render.reference import render_reference

ROTATION = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
HALF_TURNS = [(1, -1, -1), (-1, 1, -1), (-1, -1, 1)]


def picture(splat: SplatData, world_to_camera: np.ndarray) -> torch.Tensor:  # type: ignore[type-arg]
    arrays = {name: torch.from_numpy(array).double() for name, array in vars(splat).items() if name != "antialiased"}
    return render_reference(
        means=arrays["xyz"],
        quats=torch.nn.functional.normalize(arrays["rotation"], dim=1),
        scales=arrays["scaling"].exp(),
        opacities=arrays["opacity"][:, 0].sigmoid(),
        sh=torch.cat([arrays["f_dc"], arrays["f_rest"]], dim=1),
        sh_degree=splat.sh_degree,
        view=torch.from_numpy(world_to_camera),
        camera=Camera(width=40, height=30, fx=30.0, fy=30.0, cx=20.0, cy=15.0),
        background=torch.zeros(3, dtype=torch.float64),
    ).image


@pytest.mark.parametrize("degree", [1, 3, 4])
def test_the_moved_camera_sees_the_same_picture(degree: int) -> None:
    splat = trained_splat(60, degree)
    splat.scaling[:] += 2.5
    splat.f_rest[:] *= 3
    pose = np.eye(4)
    pose[2, 3] = 6
    before = picture(splat, pose)
    assert before.std() > 0.1
    scale, shift = 1.7, (0.3, -2.0, 5.0)
    turned = transformed(splat, ROTATION, scale, shift)
    # x' = s R x + t, so the camera that saw x at R_c x + t_c sees x' at s (R_c x + t_c).
    moved = np.eye(4)
    moved[:3, :3] = pose[:3, :3] @ ROTATION.T
    moved[:3, 3] = scale * pose[:3, 3] - moved[:3, :3] @ shift
    after = picture(turned, moved)
    assert float((after - before).abs().max()) < 2e-4
    without_sh = SplatData(**{**vars(turned), "f_rest": splat.f_rest})
    assert float((picture(without_sh, moved) - before).abs().max()) > 0.05


@pytest.mark.parametrize("signs", HALF_TURNS)
def test_a_half_turn_is_the_rotation_by_its_signs(signs: tuple[int, int, int]) -> None:
    splat = trained_splat(50, 4)
    turned = half_turn(splat, signs)
    assert_same_bits(half_turn(turned, signs), splat)
    assert_close(
        turned, transformed(splat, np.diag(signs).astype(np.float64)), xyz=0, covariance=1e-5, colour=0, sh=1e-6
    )
    expected = np.diag(signs) @ covariances(splat) @ np.diag(signs)
    np.testing.assert_allclose(covariances(turned), expected, atol=1e-9)


def test_rotations_compose_and_have_an_inverse() -> None:
    splat = trained_splat(50, 3)
    back = transformed(transformed(splat, ROTATION, 2.0, (1, 2, 3)), ROTATION.T, 0.5)
    shift = -0.5 * ROTATION.T @ (1, 2, 3)
    assert_close(transformed(back, np.eye(3), 1.0, tuple(shift)), splat, xyz=1e-5, covariance=1e-4, colour=0, sh=1e-5)
    same = transformed(splat, np.eye(3), 1.0, (0, 0, 0))
    assert_same_bits(same, splat)
    scaled = transformed(splat, np.eye(3), 4.0)
    np.testing.assert_allclose(covariances(scaled), 16 * covariances(splat), rtol=1e-4, atol=1e-9)


def test_rotations_by_angles() -> None:
    for angles in itertools.product((0, 90, -90, 180, 270, 30.5), repeat=3):
        expected = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        np.testing.assert_allclose(rotation_about_axes(*angles), expected, atol=1e-12)
    assert set(np.abs(rotation_about_axes(90, 180, 450)).ravel()) == {0.0, 1.0}


def test_quaternions_and_rotations_between_directions() -> None:
    rng = np.random.default_rng(0)
    for rotation in Rotation.random(50, rng=1).as_matrix():
        w, x, y, z = quaternion_of(rotation)
        np.testing.assert_allclose(Rotation.from_quat([x, y, z, w]).as_matrix(), rotation, atol=1e-12)
    for _ in range(50):
        a, b = rng.normal(size=(2, 3))
        rotation = rotation_between(a, b)
        np.testing.assert_allclose(rotation @ a / np.linalg.norm(a), b / np.linalg.norm(b), atol=1e-9)
        angle = math.acos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
        between = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert angle == pytest.approx(between, abs=1e-6)
    for axis in np.vstack([np.eye(3), -np.eye(3), rng.normal(size=(5, 3))]):
        rotation = rotation_between(axis, -axis)
        np.testing.assert_allclose(rotation @ axis, -axis, atol=1e-9)
        assert np.linalg.det(rotation) == pytest.approx(1)
        np.testing.assert_allclose(rotation_between(axis, axis), np.eye(3), atol=1e-12)
