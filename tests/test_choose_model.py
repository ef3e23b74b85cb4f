"""Scenes that hold several models, a part of a model, or a model in an unusual place."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from altered_scenes import Content, write_points
from colmap_files import Model
from command_line import gs_train_here

from gs_train.cameras.distortion import project
from gs_train.errors import UserError
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.readers.colmap import find, read_model
from gs_train.scene.types import Scene

ALL = SceneConfig(test_every=0)
SHORT = ("--preset", "tiny", "--iterations", 2, "--device", "cpu")


@pytest.fixture
def scene(tiny_scene: Path, tmp_path: Path) -> Path:
    """A copy of the tiny scene without its model."""
    shutil.copytree(tiny_scene / "images", tmp_path / "scene/images")
    return tmp_path / "scene"


@pytest.fixture
def content(tiny_scene: Path) -> Content:
    return Content.of(tiny_scene)


@pytest.fixture
def scrap(tiny_scene: Path) -> Content:
    return Content.of(tiny_scene).keep(3, 60)


def _count(scene: Scene) -> int:
    return len(scene.train_views) + len(scene.test_views)


# ---- several models


@pytest.mark.parametrize("write", [Content.write_text, Content.write_binary])
@pytest.mark.parametrize(
    ("small", "large"),
    [("sparse/0", "sparse/1"), ("sparse/1", "sparse/0"), ("sparse/0", "sparse/10"), ("sparse", "colmap/sparse/0")],
)
def test_the_model_with_the_most_photos_is_used(
    scene: Path, content: Content, scrap: Content, small: str, large: str, write: object
) -> None:
    scrap.write_text(scene / small)
    write(content, scene / large)  # type: ignore[operator]
    loaded = load_scene(scene, ALL)
    assert _count(loaded) == 8 and len(loaded.points.xyz) == len(content.xyz)
    (notice,) = loaded.notices
    assert f"holds 2 models: {large} is used, because no other registers more photos (8)" in notice
    assert f"--model NAME`: {small} (3)." in notice
    chosen = load_scene(scene, SceneConfig(test_every=0, model=small))
    assert _count(chosen) == 3 and len(chosen.points.xyz) == 60 and chosen.notices == ()


def test_only_photos_on_disk_count(scene: Path, content: Content, scrap: Content) -> None:
    """A model of other photos is larger, and photos under another spelling count too."""
    content.rename(lambda name: f"elsewhere_{name}").write_text(scene / "sparse/0")
    scrap.rename(str.upper).write_text(scene / "sparse/1")
    loaded = load_scene(scene, ALL)
    assert _count(loaded) == 3 and "sparse/1 is used" in loaded.notices[0]
    assert "sparse/0 (0 of 8 on disk)" in loaded.notices[0]


def test_a_model_in_place_that_nothing_else_has(scene: Path, content: Content) -> None:
    for place in ("sparse/1", "sparse/geo", "colmap/sparse/3", "colmap/sparse", "."):
        files = scene / place
        if place == ".":
            content.write_text(scene / "new")
            for file in (scene / "new").iterdir():
                file.rename(scene / file.name)
        else:
            content.write_text(files)
        loaded = load_scene(scene, ALL)
        assert _count(loaded) == 8 and loaded.notices == (), place
        shutil.rmtree(files) if place != "." else None


@pytest.mark.parametrize("place", ["dense", "dense/0"])
def test_the_photos_and_masks_of_an_undistorted_model_lie_beside_it(scene: Path, content: Content, place: str) -> None:
    shutil.copytree(scene / "images", scene / place / "images")
    shutil.copytree(scene / "images", scene / "masks")
    content.write_binary(scene / place / "sparse")
    loaded = load_scene(scene, ALL)
    assert {view.image_path.parent for view in loaded.train_views} == {scene / place / "images"}
    assert all(view.mask is not None for view in loaded.train_views), "the scene's masks are used without others"
    for view in loaded.train_views:
        (scene / place / "masks").mkdir(exist_ok=True)
        shutil.copy(view.image_path, scene / place / "masks" / view.name)
    masks = [view.mask for view in load_scene(scene, ALL).train_views]
    assert {mask.path.parent for mask in masks if mask is not None} == {scene / place / "masks"}
    # The original model has the same photos and comes first.
    shutil.rmtree(scene / "masks")
    content.write_text(scene / "sparse/0")
    loaded = load_scene(scene, ALL)
    assert {view.image_path.parent for view in loaded.train_views} == {scene / "images"}
    chosen = load_scene(scene, SceneConfig(test_every=0, model=f"{place}/sparse"))
    assert {view.image_path.parent for view in chosen.train_views} == {scene / place / "images"}


def test_transforms_beside_a_colmap_model(scene: Path, content: Content) -> None:
    """nerfstudio leaves COLMAP's model beside its transforms.json, which its users then edit."""
    content.write_text(scene / "colmap/sparse/0")
    names = [f"images/{name}" for name in content.poses]
    content.write_transforms(scene / "transforms.json", train_filenames=names[:5], test_filenames=names[5:])
    loaded = load_scene(scene, SceneConfig())
    assert (len(loaded.train_views), len(loaded.test_views)) == (7, 1)
    assert "colmap/sparse/0 is used" in loaded.notices[0] and "transforms.json (8)" in loaded.notices[0]
    edited = load_scene(scene, SceneConfig(model="transforms.json"))
    assert (len(edited.train_views), len(edited.test_views)) == (5, 3) and edited.notices == ()
    # A damaged file counts no photo.
    (scene / "transforms.json").write_text("{")
    assert "transforms.json (0)" in load_scene(scene, ALL).notices[0]
    with pytest.raises(UserError, match="is not JSON"):
        load_scene(scene, SceneConfig(model="transforms.json"))


def test_a_truncated_model_is_not_replaced_by_a_scrap(scene: Path, content: Content, scrap: Content) -> None:
    content.write_binary(scene / "sparse/0")
    scrap.write_binary(scene / "sparse/1")
    images = scene / "sparse/0/images.bin"
    images.write_bytes(images.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"sparse/0/images\.bin \(byte \d+\) is truncated or corrupt"):
        load_scene(scene, ALL)
    assert _count(load_scene(scene, SceneConfig(test_every=0, model="sparse/1"))) == 3


@pytest.mark.parametrize("write", [Content.write_text, Content.write_binary])
def test_names_are_read_without_the_rest(scene: Path, content: Content, write: object) -> None:
    write(content, scene / "sparse/0")  # type: ignore[operator]
    (model,) = find(scene, False)
    assert model.names() == [image.name for image in read_model(model.path).images] == list(content.poses)


@pytest.mark.parametrize("name", ["cameras", "images"])
def test_names_of_damaged_models(tmp_path: Path, name: str) -> None:
    Model().write_binary(tmp_path / "sparse/0")
    file = tmp_path / f"sparse/0/{name}.bin"
    whole = file.read_bytes()
    (model,) = find(tmp_path, False)
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert len(model.names()) <= 4
    file.write_bytes(b"\xff" * len(whole))
    assert len(model.names()) <= 4


# ---- --model


@pytest.mark.parametrize("name", ["sparse/1", "sparse/1/", "./sparse/1", "sparse\\1"])
def test_spellings_of_a_model(scene: Path, content: Content, scrap: Content, name: str) -> None:
    content.write_text(scene / "sparse/0")
    scrap.write_text(scene / "sparse/1")
    assert _count(load_scene(scene, SceneConfig(test_every=0, model=name))) == 3


def test_a_model_in_a_folder_that_is_not_searched(scene: Path, content: Content, scrap: Content) -> None:
    content.write_text(scene / "sparse/0")
    scrap.write_text(scene / "distorted/sparse/0")
    scrap.write_transforms(scene / "transforms_2.json")
    assert load_scene(scene, ALL).notices == ()
    for name in ("distorted", "distorted/sparse/0", "transforms_2.json"):
        assert _count(load_scene(scene, SceneConfig(test_every=0, model=name))) == 3


def test_a_model_in_an_unusual_folder_is_named(scene: Path, content: Content) -> None:
    content.write_text(scene / "distorted/sparse/0")
    for path, model in ((scene, "distorted/sparse/0"), (scene.parent, "scene/distorted/sparse/0")):
        with pytest.raises(
            UserError, match=rf"holds no model itself, but {model}: choose one with .* --model {model}`"
        ):
            load_scene(path)
        assert _count(load_scene(path, SceneConfig(test_every=0, model=model))) == 8


def test_the_model_folder_in_place_of_the_scene(scene: Path, content: Content) -> None:
    content.write_text(scene / "colmap/sparse/0")
    with pytest.raises(UserError, match=rf"images does: name the scene .* {scene} --model colmap/sparse/0`"):
        load_scene(scene / "colmap/sparse/0")


def test_no_such_model(scene: Path, content: Content, scrap: Content) -> None:
    content.write_text(scene / "sparse/0")
    scrap.write_text(scene / "sparse/1")
    scrap.write_text(scene.parent / "other/sparse/0")
    for name in ("sparse/2", "images", "../other", str(scene / "sparse/7")):
        with pytest.raises(
            UserError, match=r"--model is .*, which is no model in .*: name one of sparse/0, sparse/1\."
        ):
            load_scene(scene, SceneConfig(model=name))
    scrap.write_transforms(scene / "transforms.json")
    with pytest.raises(UserError, match=r"is a file: leave --model out"):
        load_scene(scene / "transforms.json", SceneConfig(model="sparse/0"))


def test_the_choice_stays_with_the_run(scene: Path, content: Content, scrap: Content) -> None:
    content.write_text(scene / "sparse/0")
    Content.of(scene).keep(5, 300).write_text(scene / "sparse/1")
    run = scene.parent / "run"
    trained = gs_train_here("train", scene, "--out", run, "--model", "sparse/1", *SHORT)
    assert trained.returncode == 0 and "models" not in trained.stderr, trained.stderr
    assert 'model = "sparse/1"' in (run / "config.toml").read_text()
    resumed = gs_train_here("train", "--resume", run, "--iterations", 3)
    assert resumed.returncode == 0, resumed.stderr
    assert gs_train_here("eval", run).stdout.startswith("Iteration 3, 1 test view:")


# ---- a part of a model


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        (["images.bin"], "needs images.bin"),
        (["cameras.bin"], "needs cameras.bin"),
        (["cameras.bin", "images.bin"], "needs cameras.bin and images.bin"),
    ],
)
@pytest.mark.parametrize("place", ["sparse/0", "colmap/sparse/0", "dense/sparse"])
def test_a_missing_file_is_named(scene: Path, content: Content, place: str, removed: list[str], named: str) -> None:
    content.write_binary(scene / place)
    saved = {name: (scene / place / name).read_bytes() for name in removed}
    for name in removed:
        (scene / place / name).unlink()
    with pytest.raises(UserError, match=rf"{place} holds .*, but a COLMAP model also {named}: export") as caught:
        load_scene(scene, ALL)
    assert "\n" not in str(caught.value)
    for name, data in saved.items():
        (scene / place / name).write_bytes(data)
    assert _count(load_scene(scene, ALL)) == 8


# ---- points


@pytest.mark.parametrize("place", ["sparse/0/points3D.ply", "sparse/0/points3d.PLY", "points3D.ply", "pointcloud.ply"])
def test_points_of_a_colmap_model_in_a_ply_file(scene: Path, content: Content, place: str) -> None:
    content.write_text(scene / "sparse/0", points=False)
    write_points(scene / place, content.xyz, content.rgb)
    loaded = load_scene(scene, ALL)
    np.testing.assert_allclose(loaded.points.xyz, content.xyz, rtol=1e-6)
    np.testing.assert_array_equal(loaded.points.rgb, content.rgb)
    assert loaded.notices == (f"{scene / 'sparse/0'} has no points of its own: training starts from {scene / place}.",)
    # COLMAP's known poses come with an empty file of points.
    (scene / "sparse/0/points3D.txt").write_text("# 3D point list\n")
    assert len(load_scene(scene, ALL).points.xyz) == len(content.xyz)


def test_two_files_of_points(scene: Path, content: Content) -> None:
    content.write_binary(scene / "sparse/0")
    own, ply = scene / "sparse/0/points3D.bin", scene / "sparse/0/points3D.ply"
    write_points(ply, content.xyz[:100], content.rgb[:100])
    loaded = load_scene(scene, ALL)
    assert len(loaded.points.xyz) == len(content.xyz)
    (notice,) = loaded.notices
    assert "holds points3D.bin and points3D.ply: points3D.bin is used" in notice
    assert "to start from points3D.ply, move points3D.bin out of the folder" in notice
    own.rename(scene / own.name)
    assert len(load_scene(scene, ALL).points.xyz) == 100


def test_points_in_the_other_format_of_the_model(scene: Path, content: Content) -> None:
    content.write_text(scene / "text")
    content.write_binary(scene / "sparse/0", points=False)
    shutil.copy(scene / "text/points3D.txt", scene / "sparse/0")
    assert len(load_scene(scene, ALL).points.xyz) == len(content.xyz)


def test_points_that_are_not_used_are_named(scene: Path, content: Content, tiny_run: Path) -> None:
    content.write_text(scene / "sparse/0", points=False)
    write_points(scene / "sparse/0/scan.ply", content.xyz, content.rgb)
    splat = next(tiny_run.glob("point_cloud/*/point_cloud.ply"))
    shutil.copy(splat, scene / "point_cloud.ply")
    loaded = load_scene(scene, ALL)
    assert len(loaded.points.xyz) == 0
    assert f"is a splat and not a point cloud: to start from it, train with --init-from {scene}" in loaded.notices[0]
    assert "scan.ply is not used: to start from its points, rename it to points3D.ply." in loaded.notices[1]
    (scene / "sparse/0/scan.ply").rename(scene / "sparse/0/points3D.ply")
    assert len(load_scene(scene, ALL).points.xyz) == len(content.xyz)


def test_a_damaged_ply_file_beside_the_model(scene: Path, content: Content) -> None:
    content.write_text(scene / "sparse/0", points=False)
    (scene / "sparse/0/points3D.ply").write_text("ply\n")
    with pytest.raises(UserError, match=r"points3D\.ply, which lies beside .*images\.txt, is not a PLY .*: replace it"):
        load_scene(scene, ALL)
    (scene / "sparse/0/points3D.ply").unlink()
    assert len(load_scene(scene, ALL).points.xyz) == 0


# ---- camera models, numbers in text


@pytest.mark.parametrize(
    ("name", "number", "params"), [("SIMPLE_DIVISION", 12, 4), ("DIVISION", 13, 5), ("EUCM", 16, 6)]
)
def test_models_of_colmap_4_get_a_remedy_that_works(tmp_path: Path, name: str, number: int, params: int) -> None:
    """The real undistorter makes the photos and the model that the message asks for."""
    pycolmap = pytest.importorskip("pycolmap")
    from gs_train.sample.scene import write_sample_scene

    scene, new = tmp_path / "a scene", tmp_path / "new"
    write_sample_scene(scene, views=6, width=64, height=48, points=200)
    model = pycolmap.Reconstruction(scene / "sparse/0")
    (camera,) = model.cameras.values()
    focal = [camera.focal_length_x, camera.focal_length_y]
    camera.model = getattr(pycolmap.CameraModelId, name)
    camera.params = [
        *focal[: params - (4 if name == "EUCM" else 3)],
        32.0,
        24.0,
        *([0.1, 1.0] if name == "EUCM" else [0.001]),
    ]
    assert len(camera.params) == params
    model.write_binary(scene / "sparse/0")
    with pytest.raises(UserError, match=rf"cameras\.bin \(byte 8\) has the camera model {name}, which") as caught:
        load_scene(scene, ALL)
    assert f"--input_path '{scene / 'sparse/0'}'` and train NEW_SCENE" in str(caught.value)
    pycolmap.undistort_images(output_path=new, input_path=scene / "sparse/0", image_path=scene / "images")
    assert _count(load_scene(new, ALL)) == 6
    model.write_text(scene / "sparse/0")
    for file in (scene / "sparse/0").glob("*.bin"):
        file.unlink()
    with pytest.raises(UserError, match=rf"camera model {name}, which"):
        load_scene(scene, ALL)
    # The undistorter leaves a camera without distortion as it is.
    cameras = scene / "sparse/0/cameras.txt"
    words = cameras.read_text().splitlines()[-1].split()
    words[-2 if name == "EUCM" else -1] = "0"
    cameras.write_text(" ".join(words) + "\n")
    assert load_scene(scene, ALL).train_views[0].camera.model == "PINHOLE"


@pytest.mark.parametrize(("line", "number"), [("SIMPLE_FISHEYE 64 48 50 31 24", 14), ("FISHEYE 64 48 50 51 31 24", 15)])
def test_fisheye_models_of_colmap_4_are_those_of_opencv(scene: Path, content: Content, line: str, number: int) -> None:
    """COLMAP's undistorter passes them on unchanged."""
    content.write_text(scene / "sparse/0")
    (scene / "sparse/0/cameras.txt").write_text(f"1 {line}\n")
    camera = read_model(scene / "sparse/0").cameras[1]
    assert (camera.model, camera.distortion, camera.fx, camera.cx) == ("OPENCV_FISHEYE", (0.0,) * 4, 50.0, 31.0)
    assert camera.fy == (51.0 if number == 15 else 50.0)
    params = [float(word) for word in line.split()[3:]]
    data = struct.pack("<QIiQQ", 1, 1, number, 64, 48) + struct.pack(f"<{len(params)}d", *params)
    content.write_binary(scene / "sparse/0")
    (scene / "sparse/0/cameras.bin").write_bytes(data)
    assert read_model(scene / "sparse/0").cameras[1] == camera
    pycolmap = pytest.importorskip("pycolmap")
    oracle = pycolmap.Camera(model=line.split(maxsplit=1)[0], width=64, height=48, params=params)
    rays = np.random.default_rng(0).normal(size=(50, 3)) * (1, 1, 0.2) + (0, 0, 1)
    expected = oracle.img_from_cam(rays)
    np.testing.assert_allclose(project(camera, rays[:, :2] / rays[:, 2:]), expected, atol=1e-9)


def test_panoramas_are_cut_first(scene: Path, content: Content) -> None:
    content.write_text(scene / "sparse/0")
    (scene / "sparse/0/cameras.txt").write_text("1 EQUIRECTANGULAR 64 48 64 48\n")
    with pytest.raises(UserError, match="cut the panoramas into perspective photos") as caught:
        load_scene(scene, ALL)
    assert "undistort" not in str(caught.value)
    shutil.rmtree(scene / "sparse")
    content.write_transforms(scene / "transforms.json", camera_model="EQUIRECTANGULAR")
    with pytest.raises(UserError, match="cut the panoramas into perspective photos"):
        load_scene(scene, ALL)


def test_numbers_of_other_programs_in_text(scene: Path, content: Content) -> None:
    """Sizes and colours as 64.0, and commas in place of points."""
    content.write_text(scene / "sparse/0")
    cameras, points = scene / "sparse/0/cameras.txt", scene / "sparse/0/points3D.txt"
    cameras.write_text(cameras.read_text().replace(" 64 48 ", " 64.0 48.0 "))
    r, g, b = content.rgb[0].tolist()
    points.write_text(points.read_text().replace(f" {r} {g} {b} ", f" {r}.0 {g}.0 {b}.0 ", 1))
    assert load_scene(scene, ALL).points.rgb[0].tolist() == [r, g, b]
    cameras.write_text(cameras.read_text().replace("64.0 48.0", "64,5 48"))
    with pytest.raises(
        UserError, match=r"cameras\.txt \(line 1\) does not hold .*: write points and spaces in place of"
    ):
        load_scene(scene, ALL)
