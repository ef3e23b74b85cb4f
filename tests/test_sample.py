"""The sample scene: it loads, is deterministic, and its points and photos agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from colmap_files import read_observations

from gs_train.errors import UserError
from gs_train.sample import scene as sample_module
from gs_train.sample.raycast import Box, Frustum, Shape, Solid, Sphere, cast, colours
from gs_train.sample.scene import write_sample_scene
from gs_train.sample.still_life import still_life
from gs_train.scene.extent import camera_centres
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.photos.cache import ImageCache


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_it_loads_like_any_scene(tiny_scene: Path) -> None:
    scene = load_scene(tiny_scene, SceneConfig())
    assert [view.name for view in scene.train_views] == [f"view_{i:03d}.png" for i in range(1, 8)]
    assert [view.name for view in scene.test_views] == ["view_000.png"]
    assert 350 < len(scene.points.xyz) <= 400
    assert scene.notices == ()
    heights = camera_centres(scene.train_views)[:, 2]
    assert (heights[:3] < 2.2).all() and (heights[3:] > 2.2).all(), "two rings"
    camera = scene.train_views[0].camera
    assert camera.cx != camera.width / 2 and camera.cy != camera.height / 2, "off the middle"


def test_the_same_bytes_each_time_and_other_bytes_for_another_seed(tmp_path: Path, tiny_scene: Path) -> None:
    write_sample_scene(tmp_path / "again", views=8, width=64, height=48, points=400)
    again, first = _files(tmp_path / "again"), _files(tiny_scene)
    assert len(first) == 8 + 3
    assert again == first
    write_sample_scene(tmp_path / "other", seed=1, views=8, width=64, height=48, points=400)
    other = _files(tmp_path / "other")
    assert all(other[name] != first[name] for name in first if name != "sparse/0/cameras.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]


def test_points_have_the_colour_of_the_pixels_they_were_seen_in(tiny_scene: Path) -> None:
    scene = load_scene(tiny_scene, SceneConfig(test_every=0))
    cache = ImageCache(scene.train_views)
    observed = read_observations(tiny_scene / "sparse/0")
    differences = []
    for index, view in enumerate(scene.train_views):
        x, y, rows = np.array(observed[view.name]).astype(int).T
        differences.append(np.abs(cache.get(index)[y, x].astype(int) - scene.points.rgb[rows]).max(axis=1))
    typical = np.median(np.concatenate(differences))
    shuffled = np.median(np.abs(scene.points.rgb.astype(int) - np.roll(scene.points.rgb, 7, axis=0)).max(axis=1))
    assert typical < 16
    assert shuffled > 40


def test_without_points(tmp_path: Path) -> None:
    write_sample_scene(tmp_path / "scene", views=3, width=24, height=18, points=0)
    scene = load_scene(tmp_path / "scene", SceneConfig(test_every=0))
    assert len(scene.points.xyz) == 0
    assert "no points" in scene.notices[0]


def test_only_gloss_depends_on_the_viewing_direction() -> None:
    """A position on a sphere is brighter along the mirrored sun, but only if the sphere is glossy."""

    def seen_from(eye: tuple[float, float, float], gloss: float) -> np.ndarray:
        ball = Solid(shape=Sphere(1.0), centre=(0, 0, 0), texture=lambda place: np.full_like(place, 0.5), gloss=gloss)
        top = np.array((0, 0, 1), np.float32)
        origin = np.array([eye], np.float32)
        direction = (top - origin) / np.linalg.norm(top - origin)
        distance, which = cast([ball], origin, direction)
        return colours([ball], origin, direction, distance, which)[0]

    mirrored, aside = (2.08, -1.52, 4.04), (-2.0, 0.0, 3.0)
    np.testing.assert_allclose(seen_from(mirrored, 0.0), seen_from(aside, 0.0), atol=1e-4)
    assert (seen_from(mirrored, 0.5) > seen_from(aside, 0.5) + 0.1).all()


def test_a_folder_that_is_not_empty_stays_untouched(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        write_sample_scene(tmp_path, views=2, width=16, height=12, points=10)
    assert _files(tmp_path) == {"note.txt": b"mine"}
    empty = tmp_path / "empty"
    empty.mkdir()
    write_sample_scene(empty, views=2, width=16, height=12, points=10)
    assert (empty / "images/view_001.png").is_file()
    assert sorted(path.name for path in empty.iterdir()) == ["images", "sparse"]


def test_the_current_folder_if_it_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_sample_scene(Path(), views=2, width=16, height=12, points=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "sparse"]


def test_a_folder_called_partial_stays_untouched(tmp_path: Path) -> None:
    (tmp_path / "scene.partial").mkdir()
    (tmp_path / "scene.partial" / "note.txt").write_text("mine")
    write_sample_scene(tmp_path / "scene", views=2, width=16, height=12, points=10)
    assert (tmp_path / "scene.partial" / "note.txt").read_text() == "mine"
    ordinary = tmp_path / "ordinary"
    ordinary.mkdir()
    assert (tmp_path / "scene").stat().st_mode == ordinary.stat().st_mode


def test_an_unwritable_folder_fails_before_rendering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_module, "bake", lambda *_: pytest.fail("rendered first"))
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "scene", tmp_path / "file" / "deeper" / "scene", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r" cannot be written \(.+\): choose another folder\.$") as caught:
            write_sample_scene(path, views=2, width=16, height=12, points=10)
        assert str(path) in str(caught.value)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample_module, "_write_model", fail)
    with pytest.raises(UserError, match=r"scene cannot be written \(No space left on device\)"):
        write_sample_scene(tmp_path / "scene", views=2, width=16, height=12, points=10)
    assert list(tmp_path.iterdir()) == []


SHAPES = [Sphere(0.7), Box((0.3, 0.5, 0.8)), Frustum(0.5, 0.5, 0.6), Frustum(0.6, 0.05, 0.4), Frustum(0.2, 0.5, 0.3)]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_rays_hit_each_shape_where_a_march_does(shape: Shape) -> None:
    rng = np.random.default_rng(3)
    origin = rng.standard_normal((400, 3))
    origin = (2.5 * origin / np.linalg.norm(origin, axis=1, keepdims=True)).astype(np.float32)
    direction = rng.uniform(-0.8, 0.8, (400, 3)) - origin
    direction = (direction / np.linalg.norm(direction, axis=1, keepdims=True)).astype(np.float32)
    distance = shape.distance(origin, direction)

    steps = np.linspace(0, 5, 5001)
    places = origin[:, None] + direction[:, None] * steps[:, None]
    x, y, z = np.moveaxis(places, -1, 0)
    if isinstance(shape, Sphere):
        inside = np.linalg.norm(places, axis=-1) < shape.r
    elif isinstance(shape, Box):
        inside = (np.abs(places) < shape.half).all(axis=-1)
    else:
        assert isinstance(shape, Frustum)
        inside = (np.abs(z) < shape.h) & (
            np.hypot(x, y) < shape.low + (shape.high - shape.low) * (z + shape.h) / (2 * shape.h)
        )
    marched = np.where(inside.any(axis=1), steps[inside.argmax(axis=1)], np.inf)
    # A march in steps may miss a grazing hit that the exact solution finds, but not the reverse.
    both = np.isfinite(marched)
    assert both.sum() > 60 and np.isfinite(distance[both]).all() and (np.isfinite(distance) & ~both).sum() <= 6
    np.testing.assert_allclose(distance[both], marched[both], atol=2e-3)

    place = origin[both] + direction[both] * distance[both, None]
    normal = shape.normal(place)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-5)
    assert (np.einsum("ij,ij->i", normal, direction[both]) < 1e-3).all(), "normals face the ray"


def test_cast_finds_the_nearest_solid() -> None:
    solids = still_life(np.random.default_rng(0))
    down = np.array([[0, 0, -1]], np.float32)
    distance, which = cast(solids, np.array([[0, 0.1, 5.0]], np.float32), down)
    assert which[0] == 2 and distance[0] == pytest.approx(5 - 0.68 - 0.52, abs=1e-4)
    distance, which = cast(solids, np.array([[1.95, 0, 5.0]], np.float32), down)
    assert which[0] == 0 and distance[0] == pytest.approx(5.0, abs=1e-4)
    distance, which = cast(solids, np.array([[3.0, 0, 5.0]], np.float32), down)
    assert which[0] == -1 and np.isinf(distance[0])
