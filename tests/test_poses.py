"""Camera poses: centre, inverse, look-at, quaternions, axis conventions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gs_train.cameras.poses import (
    camera_centre,
    camera_to_world,
    look_at,
    opengl_to_opencv,
    pose_at,
    quaternion_to_rotation,
    rotation_to_quaternion,
)

ROTATIONS = Rotation.from_quat(np.random.default_rng(0).standard_normal((20, 4))).as_matrix()


def test_the_centre_of_a_pose() -> None:
    for rotation in ROTATIONS:
        pose = pose_at(np.array((1.0, -2.0, 3.0)), rotation)
        np.testing.assert_array_equal(pose[3], (0, 0, 0, 1))
        np.testing.assert_allclose(pose @ (1.0, -2.0, 3.0, 1.0), (0, 0, 0, 1), atol=1e-14)
        np.testing.assert_allclose(camera_centre(pose), (1.0, -2.0, 3.0), atol=1e-14)
        np.testing.assert_allclose(camera_to_world(pose)[:3, 3], (1.0, -2.0, 3.0), atol=1e-14)
        np.testing.assert_allclose(camera_to_world(pose)[:3, :3], rotation.T, atol=1e-14)


def test_the_centre_of_a_tensor_has_a_gradient() -> None:
    pose = torch.from_numpy(pose_at(np.array((1.0, -2.0, 3.0)), ROTATIONS[0])).requires_grad_()
    centre = camera_centre(pose)
    assert centre.tolist() == camera_centre(pose.detach().numpy()).tolist()
    (gradient,) = torch.autograd.grad(centre[0], pose)
    np.testing.assert_allclose(gradient[:3, 3].numpy(), -ROTATIONS[0][:, 0], atol=1e-14)


def test_look_at_shows_the_target_in_the_middle_and_up_above() -> None:
    centre, target = np.array((3.0, -1.0, 2.0)), np.array((0.5, 0.25, -1.0))
    pose = look_at(centre, target)
    np.testing.assert_allclose(camera_centre(pose), centre, atol=1e-14)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-14)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    seen = pose @ (*target, 1.0)
    np.testing.assert_allclose(seen[:3], (0, 0, np.linalg.norm(target - centre)), atol=1e-14)
    above = pose @ (*(target + np.array((0, 0, 0.1))), 1.0)
    # In OpenCV axes y points down.
    assert above[1] < 0 and above[0] == pytest.approx(0, abs=1e-14)
    sideways = look_at(centre, target, up=(0.0, 1.0, 0.0)) @ (*(target + np.array((0, 0.1, 0))), 1.0)
    assert sideways[1] < 0 and sideways[0] == pytest.approx(0, abs=1e-14)


def test_quaternions_agree_with_scipy() -> None:
    for rotation in (*ROTATIONS, np.eye(3), np.diag((1.0, -1.0, -1.0)), np.diag((-1.0, -1.0, 1.0))):
        wxyz = rotation_to_quaternion(rotation)
        assert wxyz[0] >= 0
        np.testing.assert_allclose(Rotation.from_quat(wxyz, scalar_first=True).as_matrix(), rotation, atol=1e-14)
        np.testing.assert_allclose(quaternion_to_rotation(tuple(wxyz.tolist())), rotation, atol=1e-14)


def test_opengl_axes_become_opencv_axes() -> None:
    for rotation in ROTATIONS:
        right, up, backward = rotation.T
        np.testing.assert_array_equal(opengl_to_opencv(rotation).T, (right, -up, -backward))
