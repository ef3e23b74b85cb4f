"""The reader of transforms.json and Blender files: poses, intrinsics, splits, and errors for bad files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colmap_files import Model
from command_line import gs_train_here
from PIL import Image
from plyfile import PlyData
from transforms_files import SIZE, document, look_at, ply_vertices, ring, write, write_blender

from gs_train.cameras.camera import Camera
from gs_train.errors import UserError
from gs_train.scene.extent import place_random_points
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.readers.colmap import read_model
from gs_train.scene.readers.transforms import read_transforms

ALL = SceneConfig(test_every=0)


def _camera(tmp_path: Path, **changes: Any) -> Camera:
    model = read_transforms(write(tmp_path, document(**changes)), allow_outside=False)
    assert len(model.cameras) == 1
    return model.cameras[model.images[0].camera_id]


# ---- poses


def test_poses_become_opencv_world_to_camera(tmp_path: Path) -> None:
    write(tmp_path, document(4))
    for pose, view in zip(ring(4), load_scene(tmp_path, ALL).train_views, strict=True):
        rotation, move = view.world_to_camera[:3, :3], view.world_to_camera[:3, 3]
        np.testing.assert_allclose(-rotation.T @ move, pose[:3, 3], atol=1e-12)
        # The camera looks at the origin. A point above it in the world is above it in the image, where y points down.
        np.testing.assert_allclose(move, (0, 0, math.sqrt(17)), atol=1e-12)
        above = view.world_to_camera @ (0, 0, 0.1, 1)
        assert above[1] < 0 and above[0] == pytest.approx(0, abs=1e-12)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)


def test_three_rows_work_and_a_scale_is_ignored_with_a_notice(tmp_path: Path) -> None:
    content = document(4)
    plain = load_scene(write(tmp_path / "plain", content).parent, ALL)
    for number, frame in enumerate(content["frames"]):
        matrix = np.array(frame["transform_matrix"])
        matrix[:3, :3] *= 2.5 if number else 1.0
        frame["transform_matrix"] = matrix[:3].tolist()
    scaled = load_scene(write(tmp_path / "scaled", content).parent, ALL)
    for one, other in zip(plain.train_views, scaled.train_views, strict=True):
        np.testing.assert_allclose(one.world_to_camera, other.world_to_camera, atol=1e-12)
    assert "3 of 4 poses" in scaled.notices[0] and "(from 2.5 to 2.5)" in scaled.notices[0]


def test_an_applied_transform_is_ignored(tmp_path: Path) -> None:
    """Nerfstudio has applied it to both poses and points."""
    PlyData([ply_vertices([(0.5, 0.25, -1.0)])]).write(str(tmp_path / "points.ply"))
    write(
        tmp_path, document(4, applied_transform=[[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]], ply_file_path="points.ply")
    )
    scene = load_scene(tmp_path, ALL)
    np.testing.assert_allclose(scene.train_views[0].world_to_camera[:3, 3], (0, 0, math.sqrt(17)), atol=1e-12)
    np.testing.assert_array_equal(scene.points.xyz, [(0.5, 0.25, -1.0)])


# ---- intrinsics


def test_intrinsics_for_all_and_of_a_frame(tmp_path: Path) -> None:
    content = document(4)
    content["frames"][1] |= {"fl_x": 50.0, "cx": 19.0}
    content["frames"][2] |= {"camera_angle_x": 0.8}
    views = load_scene(write(tmp_path, content).parent, ALL).train_views
    plain = Camera(width=40, height=30, fx=42.0, fy=43.0, cx=21.0, cy=14.0)
    assert views[0].camera == views[3].camera == plain
    assert (views[1].camera.fx, views[1].camera.fy, views[1].camera.cx, views[1].camera.cy) == (50.0, 50.0, 19.0, 14.0)
    assert views[2].camera.fx == pytest.approx(20 / math.tan(0.4)) == views[2].camera.fy


def test_angles_of_view_and_sizes_from_the_photo(tmp_path: Path) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("fl_x", "fl_y", "cx", "cy", "w", "h"))
    one = _camera(tmp_path / "one", **nothing, camera_angle_x=0.8)
    focal = 20 / math.tan(0.4)
    assert one == Camera(width=40, height=30, fx=focal, fy=focal, cx=20.0, cy=15.0)
    two = _camera(tmp_path / "two", **nothing, camera_angle_x=0.8, camera_angle_y=0.7)
    assert two.pinhole_intrinsics() == (focal, 15 / math.tan(0.35), 20.0, 15.0)
    # Focal lengths take precedence over angles, and sizes may be floats.
    three = _camera(tmp_path / "three", camera_angle_x=0.8, w=40.0, h=30.0)
    assert three.pinhole_intrinsics() == (42.0, 43.0, 21.0, 14.0)


@pytest.mark.parametrize(
    ("changes", "model", "distortion"),
    [
        ({"camera_model": "OPENCV"}, "PINHOLE", ()),
        ({"camera_model": "PINHOLE", "k1": 0.0}, "PINHOLE", ()),
        ({"camera_model": "SIMPLE_PINHOLE"}, "PINHOLE", ()),
        ({"k1": 0.1, "k2": -0.2, "p1": 0.01, "p2": 0.02}, "OPENCV", (0.1, -0.2, 0.01, 0.02)),
        ({"camera_model": "OPENCV", "k1": 0.1, "k3": 0.3}, "FULL_OPENCV", (0.1, 0.0, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0)),
        ({"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k3": 0.3, "k4": 0.4}, "OPENCV_FISHEYE", (0.1, 0.0, 0.3, 0.4)),
        ({"is_fisheye": True}, "OPENCV_FISHEYE", (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_distortion_becomes_a_colmap_model(
    tmp_path: Path, changes: dict[str, Any], model: str, distortion: tuple[float, ...]
) -> None:
    camera = _camera(tmp_path, **changes)
    assert (camera.model, camera.distortion) == (model, distortion)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (42.0, 43.0, 21.0, 14.0)


# ---- which views


def test_blender_has_its_own_split(tmp_path: Path) -> None:
    scene = load_scene(write_blender(tmp_path, {"train": 5, "test": 3, "val": 2}), SceneConfig())
    assert [view.name for view in scene.train_views] == [f"train/{i}.png" for i in range(5)]
    assert [view.name for view in scene.test_views] == [f"test/{i}.png" for i in range(3)]
    assert scene.test_views[0].image_path == tmp_path / "test/0.png"
    assert "transforms_val.json is not used" in scene.notices[0] and "no points" in scene.notices[1]
    everything = load_scene(tmp_path, ALL)
    assert len(everything.train_views) == 8 and everything.test_views == ()


def test_blender_with_fewer_files(tmp_path: Path) -> None:
    assert len(load_scene(write_blender(tmp_path / "a", {"train": 5, "val": 2}), SceneConfig()).test_views) == 2
    alone = load_scene(write_blender(tmp_path / "b", {"train": 5}), SceneConfig(test_every=3))
    assert [view.name for view in alone.test_views] == ["train/0.png", "train/3.png"]


def test_lists_of_file_names_are_the_split(tmp_path: Path) -> None:
    names = [f"images/{i}.png" for i in range(6)]
    write(
        tmp_path,
        document(
            6, train_filenames=[f"./{name}" for name in names[:3]], val_filenames=names[3:4], test_filenames=names[4:5]
        ),
    )
    scene = load_scene(tmp_path, SceneConfig())
    assert [view.name for view in scene.train_views] == names[:3]
    assert [view.name for view in scene.test_views] == names[4:5]
    assert "assigns 2 photos neither to training nor to testing" in scene.notices[0]
    write(tmp_path, document(6, val_filenames=names[3:4]))
    scene = load_scene(tmp_path, SceneConfig())
    assert len(scene.train_views) == 5 and [view.name for view in scene.test_views] == names[3:4]


def test_lists_that_name_no_photo_give_a_notice(tmp_path: Path) -> None:
    """Without the notice, training would silently use views meant for testing."""
    scene = load_scene(write(tmp_path, document(test_filenames=["3.png", "4.png"])).parent, SceneConfig())
    assert scene.test_views == ()
    assert "lists 2 file names for training or testing that are not among its photos (3.png, ...)" in scene.notices[0]


def test_the_order_of_formats_and_a_named_file(tmp_path: Path) -> None:
    """Formats with equally many photos are taken in the order COLMAP, transforms.json, Blender."""
    write_blender(tmp_path, {"train": 3, "test": 1})
    assert load_scene(tmp_path, ALL).train_views[0].name == "test/0.png"
    write(tmp_path, document(4))
    assert load_scene(tmp_path, ALL).train_views[0].name == "images/0.png"
    Model().write_binary(tmp_path / "sparse/0")
    Model().write_photos(tmp_path / "images")
    assert load_scene(tmp_path, ALL).train_views[0].name == "a.png"
    named = load_scene(tmp_path / "transforms_train.json", ALL)
    assert len(named.train_views) == 3 and named.path == tmp_path / "transforms_train.json"


def test_missing_photos_are_named_and_skipped_when_asked(tmp_path: Path) -> None:
    write(tmp_path, document(6, w=None, h=None))
    for number in (1, 4):
        (tmp_path / f"images/{number}.png").unlink()
    _refused(tmp_path, r"2 of 6 images .*transforms\.json lists .*\(images/1\.png, images/4\.png\).*--skip-missing")
    scene = load_scene(tmp_path, SceneConfig(test_every=0, skip_missing=True))
    assert len(scene.train_views) == 4 and "continues without them" in scene.notices[0]


def test_endings_are_found(tmp_path: Path) -> None:
    content = document(3, ending="")
    write(tmp_path, content, photos=False)
    (tmp_path / "images").mkdir()
    for number, ending in enumerate((".jpg", ".webp", ".png")):
        Image.new("RGB", SIZE).save(tmp_path / f"images/{number}{ending}")
    assert [view.name for view in load_scene(tmp_path, ALL).train_views] == [
        "images/0.jpg",
        "images/1.webp",
        "images/2.png",
    ]


# ---- errors for bad files


def _refused(path: Path, message: str, config: SceneConfig = ALL) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_scene(path, config)
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "transforms.json is not JSON"),
        ("", "transforms.json is not JSON"),
        ("\udcff", "transforms.json is not JSON"),
        ("[" * 100_000, "transforms.json is not JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "has no frames"),
        ('{"frames": []}', "has no frames"),
        ('{"frames": {"a": 1}}', "has no frames"),
        ('{"frames": [3]}', "frame 0: expected an object with the text file_path"),
        ('{"frames": [{"file_path": 3}]}', "frame 0: expected an object with the text file_path"),
        ('{"frames": [{"file_path": "./"}]}', "frame 0: expected an object with the text file_path"),
    ],
)
def test_no_transforms_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "transforms.json").write_text(text, errors="surrogateescape")
    _refused(tmp_path, message)


_POSE = look_at((4.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (None, "is not 4 .or 3. rows of 4 numbers"),
        (_POSE[:2].tolist(), "is not 4 .or 3. rows of 4 numbers"),
        (_POSE[:, :3].tolist(), "is not 4 .or 3. rows of 4 numbers"),
        ([["1", 0, 0, 0], *_POSE[1:].tolist()], "is not 4 .or 3. rows of 4 numbers"),
        ([[True, 0, 0, 0], *_POSE[1:].tolist()], "is not 4 .or 3. rows of 4 numbers"),
        ([[10**400, 0, 0, 0], *_POSE[1:].tolist()], "is not 4 .or 3. rows of 4 numbers"),
        ([[float("nan"), 0, 0, 0], *_POSE[1:].tolist()], "not finite"),
        ([[float("inf"), 0, 0, 0], *_POSE[1:].tolist()], "not finite"),
        ([*_POSE[:3].tolist(), [0, 0, 1, 1]], "last row"),
        ([[0, 0, 0, 1], *_POSE[1:].tolist()], "cannot be inverted"),
        (np.zeros((3, 4)).tolist(), "cannot be inverted"),
        ((_POSE * (1, 1.01, 1, 1)).tolist(), "stretches its axes unevenly"),
        ((_POSE + np.eye(4, k=1) * 0.1 * [[1], [1], [0], [0]]).tolist(), "stretches its axes unevenly"),
        ((_POSE * (-1, 1, 1, 1)).tolist(), "mirrors"),
    ],
)
def test_no_pose(tmp_path: Path, matrix: Any, message: str) -> None:
    content = document(4)
    content["frames"][2]["transform_matrix"] = matrix
    write(tmp_path, content)
    _refused(tmp_path, rf"transforms\.json, frame 2 \(images/2\.png\): .*{message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fl_x": None, "fl_y": None}, "neither the frame nor the file has fl_x or camera_angle_x"),
        ({"fl_x": "42"}, "fl_x is '42', not a finite number"),
        ({"fl_x": float("nan")}, "fl_x is nan"),
        ({"fl_x": 0}, "is not positive"),
        ({"fl_x": None, "fl_y": None, "camera_angle_x": 3.2}, "camera_angle_x is 3.2, not between 0 and pi"),
        (
            {"fl_x": None, "fl_y": None, "camera_angle_x": 5e-324},
            "camera_angle_x is 4.94066e-324, not between 0 and pi",
        ),
        ({"w": -40}, "invalid image size -40x30"),
        ({"w": 40.5}, "invalid image size 40.5x30"),
        ({"camera_model": "EQUIRECTANGULAR"}, "camera_model 'EQUIRECTANGULAR' is unknown"),
        ({"k1": 0.1, "k4": 0.1}, "camera_model OPENCV has no k4"),
        ({"camera_model": "OPENCV_FISHEYE", "p1": 0.1}, "camera_model OPENCV_FISHEYE has no p1"),
        ({"train_filenames": "images/0.png"}, "train_filenames is not a list of file names"),
        (
            {"train_filenames": ["0.png"], "test_filenames": ["1.png"]},
            "its lists of train and test filenames name none of its own photos",
        ),
        (
            {"test_filenames": [f"images/{i}.png" for i in range(4)]},
            "leaves 1 of its 5 views to train on with its own split",
        ),
        ({"ply_file_path": 3}, "ply_file_path is 3"),
        ({"ply_file_path": "gone.ply"}, "gone.ply, which .*transforms.json names as its points, cannot be read"),
        ({"ply_file_path": "transforms.json"}, "transforms.json, which .* is not a PLY file of points"),
        ({"ply_file_path": "../points.ply"}, "'../points.ply' leads out of"),
        ({"w": 42}, "0.png is 40x30 px, but its camera in .*transforms.json is 42x30"),
    ],
)
def test_bad_keys(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, document(**changes))
    _refused(tmp_path, message, SceneConfig())


def test_a_photo_named_twice_and_no_photo_at_all(tmp_path: Path) -> None:
    content = document(3)
    content["frames"][2]["file_path"] = "images/../images/1.png"
    _refused(write(tmp_path / "twice", content, photos=True), r"lists photo 'images/1\.png' twice")
    write(tmp_path / "none", document(3, w=None, h=None), photos=False)
    _refused(tmp_path / "none", "none of its 3 photos exists")


def test_each_photo_without_a_readable_size_is_reported(tmp_path: Path) -> None:
    write(tmp_path, document(5, w=None, h=None))
    (tmp_path / "images/1.png").write_text("no photo")
    (tmp_path / "images/3.png").unlink()
    faults: list[UserError] = []
    load_scene(tmp_path, ALL, faults.append)
    assert [
        name for fault in faults for name in ("1.png cannot be decoded", "(images/3.png)") if name in str(fault)
    ] == [
        "(images/3.png)",
        "1.png cannot be decoded",
    ]


def test_files_outside_the_scene_only_when_allowed(tmp_path: Path) -> None:
    photos = write(tmp_path / "elsewhere", document(3)).parent / "images"
    for name, path in (
        ("up", "../elsewhere/images"),
        ("up_and_back", "deeper/../../elsewhere/images"),
        ("absolute", str(photos)),
    ):
        content = document(3, folder=path)
        scene = write(tmp_path / name, content, photos=False).parent
        _refused(scene, r"frame 0: .* leads out of .*--allow-outside")
        loaded = load_scene(scene, SceneConfig(test_every=0, allow_outside=True))
        assert [view.image_path.resolve() for view in loaded.train_views] == [photos / f"{i}.png" for i in range(3)]
    inside = write(tmp_path / "inside", document(3, folder=str(tmp_path / "inside/images"))).parent
    assert [view.name for view in load_scene(inside, ALL).train_views] == [f"images/{i}.png" for i in range(3)]


def test_images_does_not_go_with_a_transforms_file(tmp_path: Path) -> None:
    write(tmp_path, document(3))
    _refused(tmp_path, "--images is other, but", SceneConfig(images="other"))


# ---- from the command line


def test_a_named_file_trains_resumes_evaluates_and_informs(tmp_path: Path) -> None:
    file = write(tmp_path / "scene", document(6), "transforms_some.json")
    (tmp_path / "scene/transforms.json").write_text("nothing that could be read")
    run = tmp_path / "run"
    flags = ("--iterations", 3, "--device", "cpu", "--max-gaussians", 100, "--preset", "tiny")
    trained = gs_train_here("train", file, "--out", run, *flags)
    assert trained.returncode == 0, trained.stderr
    assert f'scene_path = "{file.resolve()}"' in (run / "config.toml").read_text()
    resumed = gs_train_here("train", "--resume", run, "--iterations", 5)
    assert resumed.returncode == 0 and "Trained 5 iterations" in resumed.stdout, resumed.stderr
    evaluated = gs_train_here("eval", run)
    assert evaluated.returncode == 0 and "1 test view" in evaluated.stdout, evaluated.stderr
    message = gs_train_here("info", file)
    assert message.returncode == 0 and "5 to train on, 1 to test on" in message.stdout


def test_a_bad_file_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    content = document(4)
    content["frames"][1]["transform_matrix"][0] = [1, 2]
    done = gs_train_here("train", write(tmp_path / "scene", content).parent, "--out", tmp_path / "run")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "frame 1 (images/1.png)" in done.stderr and not (tmp_path / "run").exists()


# ---- the real scenes


def test_fox_is_the_same_in_both_formats(shared_scenes: Path) -> None:
    """COLMAP's copy of the poses and the camera is the oracle."""
    colmap = read_model(shared_scenes / "fox_colmap/sparse/0")
    ours = read_transforms(shared_scenes / "fox/transforms.json", allow_outside=False)
    expected = {image.name: image.world_to_camera for image in colmap.images}
    found = {Path(image.name).name: image.world_to_camera for image in ours.images}
    assert found.keys() == expected.keys()
    for name, pose in found.items():
        np.testing.assert_allclose(pose, expected[name], atol=1e-6)
    (camera,), (other,) = ours.cameras.values(), colmap.cameras.values()
    assert (camera.model, camera.width, camera.height) == ("OPENCV", 360, 640)
    assert (other.model, other.width, other.height) == ("OPENCV", 360, 640)
    for key in ("fx", "fy", "cx", "cy", "distortion"):
        np.testing.assert_allclose(getattr(camera, key), getattr(other, key), rtol=1e-6)


def test_fox_with_missing_photos(shared_scenes: Path) -> None:
    model = read_transforms(shared_scenes / "fox/transforms_67frames_17missing.json", allow_outside=False)
    assert len(model.images) == 67
    missing = [image.name for image in model.images if not (shared_scenes / "fox" / image.name).is_file()]
    assert len(missing) == 17


def test_lego(shared_scenes: Path) -> None:
    scene = load_scene(shared_scenes / "blender_lego", SceneConfig())
    assert (len(scene.train_views), len(scene.test_views), len(scene.points.xyz)) == (50, 20, 0)
    assert scene.train_views[0].camera.fx == pytest.approx(200 / math.tan(0.5 * json.loads("0.6911112070083618")))
    # The usual cube of the NeRF-synthetic scenes.
    corners = place_random_points(np.array([[0.0] * 3, [1.0] * 3]), scene.train_views, scene.extent)
    np.testing.assert_allclose(corners, [(-1.3,) * 3, (1.3,) * 3], atol=0.02)
