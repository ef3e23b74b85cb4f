"""The size of a scene: extent and initial bounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transforms_files import ring

from gs_train.cameras.camera import Camera
from gs_train.scene.extent import camera_centres, pixel_width, place_random_points, scene_extent
from gs_train.scene.types import PointCloud, View


def _views(centres: list[tuple[float, float, float]]) -> list[View]:
    views = []
    for index, centre in enumerate(centres):
        angle = 0.7 * index
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        pose[:3, 3] = -pose[:3, :3] @ centre
        camera = Camera(width=4, height=4, fx=4, fy=4, cx=2, cy=2)
        views.append(View(name=str(index), image_path=Path(str(index)), camera=camera, world_to_camera=pose))
    return views


def test_extent() -> None:
    nothing = PointCloud(xyz=np.empty((0, 3)), rgb=np.empty((0, 3), np.uint8))
    centres = [(0.0, 0.0, 0.0), (4.0, 0.0, 0.0), (2.0, 3.0, 0.0), (2.0, -3.0, 0.0)]
    np.testing.assert_allclose(camera_centres(_views(centres)), centres, atol=1e-12)
    assert scene_extent(_views(centres), nothing) == pytest.approx(1.1 * 3.0)
    on_the_spot = _views([(500.1, -20.3, 7.7)] * 3)
    assert scene_extent(on_the_spot, nothing) == 1.0
    points = PointCloud(xyz=np.array([[500.1, -20.3, z] for z in (8.7, 9.7, 107.7)]), rgb=np.zeros((3, 3), np.uint8))
    assert scene_extent(on_the_spot, points) == pytest.approx(1.1 * 2.0)


def test_the_width_of_a_pixel_is_that_at_the_median_depth_of_the_points_in_the_picture() -> None:
    """Four views at the origin, turned about their axis, see from -0.5 to 0.5 at depth 1; the focal length is 4 px."""
    views = _views([(0.0, 0.0, 0.0)] * 4)
    depths = np.array([1.0, 2.0, 3.0, 8.0, 9.0])
    seen = np.stack([0.1 * depths, np.zeros(5), depths], axis=1)
    assert pixel_width(views, seen, 5.0) == pytest.approx(3.0 / 4)
    beside = np.concatenate([seen, [[9.0, 0.0, 10.0]] * 50, [[0.0, 0.0, -1.0]] * 50])
    assert pixel_width(views, beside, 5.0) == pytest.approx(3.0 / 4)
    many = np.repeat(seen, 10_000, axis=0)
    assert pixel_width(views * 100, many, 5.0) == pytest.approx(3.0 / 4)
    for unseen in (np.empty((0, 3)), beside[5:], np.zeros((7, 3))):
        assert pixel_width(views, unseen, 5.0) == pytest.approx(5.0 / 4)


def _opengl_views(poses: list[Any]) -> list[View]:
    camera = Camera(width=400, height=400, fx=555.6, fy=555.6, cx=200, cy=200)
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    return [
        View(name="", image_path=Path(), camera=camera, world_to_camera=np.linalg.inv(pose @ flip)) for pose in poses
    ]


def test_cameras_around_a_target_give_the_cube_that_they_see() -> None:
    poses = ring(12)
    for pose in poses:
        pose[:3, 3] += (7.0, 8.0, 9.0)
    box = place_random_points(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), _opengl_views(poses), 4.4)
    half = 0.9 * math.sqrt(17) * 200 / 555.6
    np.testing.assert_allclose(box, [(7 - half, 8 - half, 9 - half), (7 + half, 8 + half, 9 + half)], atol=1e-9)


def test_other_cameras_see_their_random_points() -> None:
    """Points between forward-facing cameras would never be seen, and never learn."""
    outward = [pose @ np.diag([-1.0, 1.0, -1.0, 1.0]) for pose in ring(12)]
    forward = []
    for x, y in ((0, 0), (4, 0), (0, 2), (4, 2)):
        pose = np.eye(4)
        pose[:3, 3] = (x, y, 1)
        forward.append(pose)
    unit = np.random.default_rng(0).random((1000, 3))
    for poses in (outward, forward, forward[:1]):
        views = _opengl_views(poses)
        points = place_random_points(unit, views, 3.0)
        for index, view in enumerate(views):
            x, y, z = view.world_to_camera[:3, :3] @ points[index :: len(views)].T + view.world_to_camera[:3, 3:]
            assert (z >= 1.5 - 1e-9).all() and (z <= 36.0 + 1e-9).all()
            assert 0.3 < np.mean(z < np.sqrt(1.5 * 36.0)) < 0.7
            column, row = view.camera.fx * x / z + view.camera.cx, view.camera.fy * y / z + view.camera.cy
            for pixel in (column, row):
                assert (pixel >= -1e-9).all() and (pixel <= 400 + 1e-9).all() and pixel.max() - pixel.min() > 300
