"""Points for a scene without points, from the agreement of its photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_trainings import config_of

from gs_train.cameras.camera import Camera
from gs_train.sample.scene import write_sample_scene
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.sweep import SWEEP_POINTS, sweep_points
from gs_train.scene.types import PointCloud, View
from gs_train.training.loop import train

CAMERA = Camera(width=80, height=60, fx=70, fy=75, cx=41, cy=29)
WALL, SLOPE = 5.0, 0.3
"""The wall z = WALL + SLOPE x."""
Photo = NDArray[np.uint8]


def views_beside(count: int, step: float = 0.3) -> list[View]:
    """Views along x that look along z, each turned a little."""
    views = []
    for index in range(count):
        angle = 0.05 * (index % 3 - 1)
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        pose[:3, 3] = -pose[:3, :3] @ (step * index, 0.1 * step * index, 0.0)
        views.append(View(name=str(index), image_path=Path(), camera=CAMERA, world_to_camera=pose))
    return views


def colour_at(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., 3] colours of the wall, 0 to 1: waves of a period between 0.6 and 2.5 world units."""
    x, y = xyz[..., 0], xyz[..., 1]
    waves = [np.sin(2.5 * x + 1.0) * np.cos(4.0 * y), np.sin(6.0 * x - 3.0 * y), np.cos(9.0 * x) * np.sin(7.0 * y)]
    return 0.5 + 0.3 * np.stack(waves, axis=-1)


def photo_of(view: View) -> Photo:
    y, x = np.mgrid[:60, :80] + 0.5
    rays = np.stack([(x - 41) / 70, (y - 29) / 75, np.ones_like(x)], axis=2) @ view.world_to_camera[:3, :3]
    centre = -view.world_to_camera[:3, :3].T @ view.world_to_camera[:3, 3]
    away = (WALL + SLOPE * centre[0] - centre[2]) / (rays[..., 2] - SLOPE * rays[..., 0])
    return np.round(255 * colour_at(centre + away[..., None] * rays)).astype(np.uint8)


def sweep(views: list[View], change: Callable[[Photo], Photo] = lambda photo: photo) -> PointCloud:
    photos = [change(photo_of(view)) for view in views]
    return sweep_points(views, lambda index: photos[index], 1.0, seed=0)


def test_points_lie_on_the_wall_and_have_its_colours() -> None:
    points = sweep(views_beside(5))
    assert 3000 < len(points.xyz) <= SWEEP_POINTS
    error = np.abs(points.xyz[:, 2] - (WALL + SLOPE * points.xyz[:, 0])) / points.xyz[:, 2]
    assert np.median(error) < 0.005 and np.quantile(error, 0.95) < 0.03
    difference = np.abs(points.rgb / 255 - colour_at(points.xyz))
    assert np.median(difference) < 0.03
    assert points.xyz[:, 0].min() < -1.5 and points.xyz[:, 0].max() > 3
    again = sweep(views_beside(5))
    assert np.array_equal(again.xyz, points.xyz) and np.array_equal(again.rgb, points.rgb)


def test_brighter_photos_agree_too() -> None:
    dim = iter([1.0, 0.8, 0.6, 0.9, 0.7])
    points = sweep(views_beside(5), lambda photo: np.round(next(dim) * photo).astype(np.uint8))
    assert len(points.xyz) > 3000
    error = np.abs(points.xyz[:, 2] - (WALL + SLOPE * points.xyz[:, 0])) / points.xyz[:, 2]
    assert np.median(error) < 0.01


def test_masked_pixels_become_no_points() -> None:
    """The mask hides the upper half of each photo, which sees y below 0."""
    mask = np.full((60, 80, 2), 255, np.uint8)
    mask[:30, :, 1] = 0
    points = sweep(views_beside(5, step=0.2), lambda photo: np.concatenate([photo, mask], axis=2))
    assert len(points.xyz) > 1000
    assert np.mean(points.xyz[:, 1] > -0.1) > 0.9


@pytest.mark.parametrize(
    "views",
    [views_beside(1), views_beside(2), views_beside(6, step=0.0)],
    ids=["one", "two", "no parallax"],
)
def test_views_that_cannot_tell_depths_give_no_points(views: list[View]) -> None:
    assert len(sweep(views).xyz) == 0


def test_photos_of_a_plain_wall_give_no_points() -> None:
    assert len(sweep(views_beside(5), lambda photo: np.full_like(photo, 90)).xyz) == 0


def test_a_training_without_points_starts_from_the_sweep(tmp_path: Path) -> None:
    write_sample_scene(tmp_path / "scene", views=16, width=96, height=72, points=1000)
    scene = load_scene(tmp_path / "scene", SceneConfig())
    sparse = scene.points.xyz
    scene = replace(scene, points=PointCloud(xyz=np.empty((0, 3)), rgb=np.empty((0, 3), np.uint8)))
    notes: list[str] = []
    config = config_of("classic", 2, max_gaussians=SWEEP_POINTS)
    state = train(scene, config, tmp_path / "run", notify=notes.append, progress=False)
    assert f"Training starts from {len(state.model):,} points on which photos agree." in notes
    found = state.model.xyz.detach().numpy()
    away = np.linalg.norm(found[:, None] - sparse[None, :], axis=2).min(axis=1)
    assert np.median(away) < 0.1 * scene.extent
