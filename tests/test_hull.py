"""Points for a scene without points, from transparent photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from small_trainings import config_of
from transforms_files import ring, write_blender

from gs_train.cameras.camera import Camera
from gs_train.scene.hull import HULL_POINTS, hull_points
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.types import View
from gs_train.training.loop import train

SIZE, FOCAL, RADIUS = 80, 90.0, 0.6
DISTANCE = 17**0.5
Photos = list[NDArray[np.uint8]]


def views_around(count: int) -> list[View]:
    """Views from a circle around the origin, whose width at the origin is 3.7 world units."""
    camera = Camera(width=SIZE, height=SIZE, fx=FOCAL, fy=FOCAL, cx=SIZE / 2, cy=SIZE / 2)
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    poses = [np.asarray(np.linalg.inv(pose @ flip), np.float64) for pose in ring(count)]
    return [View(name="", image_path=Path(), camera=camera, world_to_camera=pose) for pose in poses]


def photo_of_ball(size: int = SIZE, colour: tuple[int, int, int] = (200, 100, 50)) -> NDArray[np.uint8]:
    """A ball of ``RADIUS`` at the origin with a half transparent edge; RGB premultiplied by alpha, and alpha."""
    across = (np.arange(size) + 0.5 - size / 2) / size * SIZE
    radius = np.hypot(across[:, None], across[None, :])
    edge = FOCAL * RADIUS / (DISTANCE**2 - RADIUS**2) ** 0.5
    alpha = np.where(radius < edge, 1.0, np.where(radius < edge + 1, 0.5, 0.0))[..., None]
    return np.round(np.concatenate([alpha * colour, 255 * alpha], axis=2)).astype(np.uint8)


def of(photos: Photos) -> Callable[[int], NDArray[np.uint8]]:
    return lambda index: photos[index]


@pytest.mark.parametrize("size", [SIZE, SIZE // 2, 1040])
def test_points_lie_in_the_object_and_have_its_colour(size: int) -> None:
    views = views_around(24)
    points = hull_points(views, of([photo_of_ball(size)] * 24), 4.0, seed=0)
    assert points is not None and len(points.xyz) == HULL_POINTS
    away = np.linalg.norm(points.xyz, axis=1)
    # A ring of cameras sees the hull of a ball: a little more than the ball above and below it. A pixel is 0.05 wide.
    assert np.quantile(away, 0.9) < RADIUS + 0.05 and away.max() < 1.5 * RADIUS
    assert np.mean(away < RADIUS) > 0.7
    # They fill it: a ball has half of its volume beyond 0.79 of its radius.
    assert 0.4 < np.mean(away[away < RADIUS] > 0.79 * RADIUS) < 0.6
    assert (abs(points.rgb.astype(int) - (200, 100, 50)) <= 2).all()
    again = hull_points(views, of([photo_of_ball(size)] * 24), 4.0, seed=0)
    assert again is not None and np.array_equal(again.xyz, points.xyz)


def test_one_wrong_photo_of_many_does_not_remove_the_object() -> None:
    photos: Photos = [photo_of_ball() for _ in range(24)]
    photos[5] = np.zeros_like(photos[5])
    points = hull_points(views_around(24), of(photos), 4.0, seed=0)
    assert points is not None and len(points.xyz) == HULL_POINTS


def test_photos_that_contradict_each_other_leave_no_points() -> None:
    left, right = photo_of_ball(), photo_of_ball()
    left[:, SIZE // 2 :] = 0
    right[:] = 0
    points = hull_points(views_around(4), of([left, right, left, right]), 4.0, seed=0)
    assert points is not None and len(points.xyz) == 0


def test_photos_that_are_hardly_transparent_say_nothing() -> None:
    rgb = np.full((SIZE, SIZE, 3), 90, np.uint8)
    hidden = np.concatenate([photo_of_ball(), np.zeros((SIZE, SIZE, 1), np.uint8)], axis=2)
    corners = np.concatenate([rgb, np.full((SIZE, SIZE, 1), 255, np.uint8)], axis=2)
    corners[:9, :9] = corners[-9:, -9:] = 0
    for photo in (rgb, hidden, corners):
        assert hull_points(views_around(4), of([photo] * 4), 4.0, seed=0) is None
    # Opaque photos remove no points.
    photos = [photo_of_ball(), rgb] * 6
    points = hull_points(views_around(12), of(photos), 4.0, seed=0)
    assert points is not None and len(points.xyz) == HULL_POINTS


@pytest.fixture
def transparent_scene(tmp_path: Path) -> Path:
    """A Blender scene whose photos show a disc."""
    scene = write_blender(tmp_path / "scene", {"train": 6, "test": 2})
    rows, columns = np.ogrid[:30, :40]
    disc = ((rows - 15) ** 2 + (columns - 20) ** 2 < 50)[..., None]
    for photo in scene.glob("*/*.png"):
        Image.fromarray(np.where(disc, (200, 100, 50, 255), (0, 0, 0, 0)).astype(np.uint8)).save(photo)
    return scene


def test_a_training_starts_from_the_hull_also_when_resumed(transparent_scene: Path, tmp_path: Path) -> None:
    scene = load_scene(transparent_scene, SceneConfig())
    assert len(scene.points.xyz) == 0
    config = config_of("classic", 12, max_gaussians=20_000)
    notes: list[str] = []
    whole = train(scene, config, tmp_path / "whole", notify=notes.append, progress=False)
    assert "Training starts from 10,000 points where no photo is transparent." in notes
    assert whole.model.xyz.detach().abs().max() < 1.2
    random = train(scene, replace(config, random_points=True), tmp_path / "random", progress=False)
    assert len(random.model) == 20_000

    asked = iter(range(9))
    train(scene, config, tmp_path / "halves", should_stop=lambda: next(asked) == 6, progress=False)
    notes.clear()
    resumed = train(scene, config, tmp_path / "halves", resume=True, notify=notes.append, progress=False)
    assert not any("starts from" in note for note in notes)
    assert all(whole.model.parameters[n].equal(p) for n, p in resumed.model.parameters.items())


def test_a_training_says_when_the_photos_leave_no_room(transparent_scene: Path, tmp_path: Path) -> None:
    scene = load_scene(transparent_scene, SceneConfig())
    for view in scene.train_views:
        Image.new("RGBA", (40, 30)).save(view.image_path)
    notes: list[str] = []
    config = replace(config_of("classic", 2), max_gaussians=500)
    state = train(scene, config, tmp_path / "run", notify=notes.append, progress=False)
    assert len(state.model) == 500
    assert any("hardly any where no photo is transparent" in note for note in notes)
