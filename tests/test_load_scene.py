"""Loading scenes: sizes, intrinsics, split, extent, and the errors for bad input."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from colmap_files import Model
from command_line import gs_train
from PIL import Image

from gs_train.cameras.camera import Camera
from gs_train.cameras.poses import look_at
from gs_train.errors import UserError
from gs_train.scene.extent import camera_centres
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.readers import registry
from gs_train.scene.readers.reconstruction import NO_POINTS, FoundModel, Reconstruction, RegisteredImage

ALL = SceneConfig(test_every=0)


def _scene(folder: Path, model: Model | None = None, photos: str | None = "images") -> Path:
    model = model or Model()
    model.write_binary(folder / "sparse/0")
    if photos is not None:
        model.write_photos(folder / photos)
    return folder


def _large(width: int, height: int) -> Model:
    return Model(
        cameras=[(i, 1, width, height, (width * 1.1, height * 1.3, width * 0.6, height * 0.4)) for i in (1, 7)]
    )


def test_a_scene_as_it_is(tmp_path: Path) -> None:
    scene = load_scene(_scene(tmp_path), SceneConfig(test_every=2))
    assert [view.name for view in scene.test_views] == ["a.png", "e.png"]
    assert [view.name for view in scene.train_views] == ["b.png", "sub/c d.png"]
    assert scene.train_views[1].image_path == tmp_path / "images/sub/c d.png"
    assert scene.train_views[0].camera == Camera(width=40, height=30, fx=42.0, fy=43.0, cx=21.0, cy=14.0)
    assert scene.test_views[0].camera == Camera(width=20, height=30, fx=33.0, fy=33.0, cx=10.5, cy=15.5)
    assert scene.points.xyz.shape == (9, 3)
    assert scene.notices == ()


@pytest.mark.parametrize("every", [0, 2, 3, 8])
def test_split(tmp_path: Path, every: int) -> None:
    scene = load_scene(_scene(tmp_path), SceneConfig(test_every=every))
    names = ["a.png", "b.png", "e.png", "sub/c d.png"]
    held_out = names[::every] if every else []
    assert [view.name for view in scene.test_views] == held_out
    assert [view.name for view in scene.train_views] == [name for name in names if name not in held_out]


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((1601, 1201), -1, (1600, 1200)),
        ((3000, 1001), -1, (1600, 534)),
        ((1600, 31), -1, (1600, 31)),
        ((900, 2000), -1, (900, 2000)),
        ((1601, 1201), 1, (1601, 1201)),
        ((101, 67), 2, (50, 34)),
        ((101, 67), 4, (25, 17)),
        ((117, 92), 8, (15, 12)),
    ],
)
def test_resolution_scales_each_axis_by_its_true_ratio(
    tmp_path: Path, size: tuple[int, int], resolution: int, expected: tuple[int, int]
) -> None:
    config = SceneConfig(resolution=resolution, test_every=0)  # type: ignore[arg-type]
    scene = load_scene(_scene(tmp_path, _large(*size)), config)
    camera = scene.train_views[0].camera
    assert (camera.width, camera.height) == expected
    # Intrinsics as fractions of the image size must not change by resizing.
    np.testing.assert_allclose((camera.fx / camera.width, camera.fy / camera.height), (1.1, 1.3), rtol=1e-12)
    np.testing.assert_allclose((camera.cx / camera.width, camera.cy / camera.height), (0.6, 0.4), rtol=1e-12)


def test_a_folder_of_reduced_photos_is_used_when_it_fits(tmp_path: Path) -> None:
    model = _large(101, 91)
    _scene(tmp_path, model, photos=None)
    for rounded in ((50, 45), (51, 46)):
        for *_, name in model.images:
            (tmp_path / "images_2" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", rounded, (90, 120, 150)).save(tmp_path / "images_2" / name)
        # images/ need not exist at all.
        for config in (SceneConfig(resolution=2, test_every=0), SceneConfig(images="images_2", test_every=0)):
            scene = load_scene(tmp_path, config)
            camera = scene.train_views[0].camera
            assert scene.train_views[0].image_path.parent == tmp_path / "images_2"
            assert (camera.width, camera.height) == rounded
            np.testing.assert_allclose((camera.fx, camera.fy), (1.1 * rounded[0], 1.3 * rounded[1]), rtol=1e-12)
            assert scene.notices == ()
    camera = load_scene(tmp_path, SceneConfig(images="images_2", resolution=4, test_every=0)).train_views[0].camera
    assert (camera.width, camera.height) == (13, 12), "a quarter of the 51x46 px in images_2, rounded half to even"


@pytest.mark.parametrize("fault", ["size", "missing"])
def test_a_folder_of_reduced_photos_that_does_not_fit_is_reported(tmp_path: Path, fault: str) -> None:
    model = _large(40, 30)
    _scene(tmp_path, model)
    model.write_photos(tmp_path / "images_2", divided_by=2 if fault == "missing" else 3)
    if fault == "missing":
        (tmp_path / "images_2/e.png").unlink()
    scene = load_scene(tmp_path, SceneConfig(resolution=2, test_every=0))
    assert scene.train_views[0].image_path.parent == tmp_path / "images"
    assert (scene.train_views[1].camera.width, scene.train_views[1].camera.height) == (20, 15)
    assert len(scene.notices) == 1
    assert "images_2 is not used, because" in scene.notices[0]


def test_one_pixel_of_rounding_is_accepted_and_enters_the_intrinsics(tmp_path: Path) -> None:
    _scene(tmp_path)
    Image.new("RGB", (41, 30)).save(tmp_path / "images/b.png")
    camera = load_scene(tmp_path, ALL).train_views[1].camera
    assert (camera.width, camera.height) == (41, 30)
    np.testing.assert_allclose((camera.fx, camera.cx, camera.fy), (42 * 41 / 40, 21 * 41 / 40, 43), rtol=1e-12)


def test_a_scene_format_is_one_entry_of_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_toy(file: Path) -> Reconstruction:
        names = file.read_text().split()
        poses = [look_at(np.array((4.0, index, 1.0)), np.zeros(3)) for index in range(len(names))]
        images = [
            RegisteredImage(name=name, camera_id=0, world_to_camera=pose)
            for name, pose in zip(names, poses, strict=True)
        ]
        camera = Camera(width=40, height=30, fx=42.0, fy=43.0, cx=21.0, cy=14.0)
        return Reconstruction(
            cameras_path=file, images_path=file, cameras={0: camera}, images=tuple(images), points=NO_POINTS
        )

    def find_toy(path: Path, allow_outside: bool) -> list[FoundModel]:
        file = path / "toy.txt"
        return [FoundModel(path=file, read=lambda: read_toy(file), names=list)] if file.is_file() else []

    toy = registry.SceneReader(find=find_toy, folder_holds="toy.txt")
    monkeypatch.setattr(registry, "READERS", (*registry.READERS, toy))
    assert "or toy.txt" in _refused(tmp_path, "is not a scene")
    (tmp_path / "toy.txt").write_text("a.png b.png")
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name)
    scene = load_scene(tmp_path, ALL)
    assert [view.name for view in scene.train_views] == ["a.png", "b.png"]
    np.testing.assert_allclose(camera_centres(scene.train_views), [(4, 0, 1), (4, 1, 1)], atol=1e-12)


# ---- errors for bad input


def _refused(folder: Path, message: str, config: SceneConfig = ALL) -> str:
    with pytest.raises(UserError, match=message) as caught:
        load_scene(folder, config)
    text = str(caught.value)
    assert text.count("\n") == 0 and text.endswith(".")
    return text


def test_a_missing_folder_and_a_wrong_file(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in _refused(tmp_path / "nowhere", "does not exist")
    (tmp_path / "file").write_text("")
    _refused(tmp_path / "file", r"is a file: give a transforms \.json file, or the scene folder")


def test_a_folder_that_is_not_a_scene_names_all_formats(tmp_path: Path) -> None:
    text = _refused(tmp_path, "is not a scene")
    assert all(folder in text for folder in ("sparse/0", "sparse", "colmap/sparse/0", ".bin", ".txt"))
    assert "transforms.json" in text and "transforms_train.json" in text


def test_no_images_folder(tmp_path: Path) -> None:
    _refused(_scene(tmp_path, photos=None), r"images does not exist: .* --images")


def test_missing_images_are_counted_and_five_are_named(tmp_path: Path) -> None:
    model = Model()
    model.images = [(i, (1.0, 0, 0, 0), (float(i), 0, 0), 1, f"{i:02d}.png") for i in range(12)]
    _scene(tmp_path, model)
    (tmp_path / "images/03.png").unlink()
    assert "(03.png)" in _refused(tmp_path, "1 of 12 images")
    for i in range(4, 10):
        (tmp_path / f"images/{i:02d}.png").unlink()
    text = _refused(
        tmp_path, r"7 of 12 images .* \(03\.png, 04\.png, 05\.png, 06\.png, 07\.png, \.\.\.\).*--skip-missing"
    )
    assert "08.png" not in text
    scene = load_scene(tmp_path, SceneConfig(test_every=0, skip_missing=True))
    assert [view.name for view in scene.train_views] == ["00.png", "01.png", "02.png", "10.png", "11.png"]
    assert "training continues without them" in scene.notices[0]


def test_a_photo_name_too_long_for_any_disk_is_a_missing_photo(tmp_path: Path) -> None:
    model = _large(40, 30)
    _scene(tmp_path, model)
    model.write_photos(tmp_path / "images_2", divided_by=2)
    long = "x" * 300 + ".png"
    model.images.append((99, (1.0, 0, 0, 0), (9.0, 0, 0), 1, long))
    model.write_binary(tmp_path / "sparse/0")
    assert long in _refused(tmp_path, "1 of 5 images .* are not in")
    assert len(load_scene(tmp_path, SceneConfig(test_every=0, resolution=2, skip_missing=True)).train_views) == 4
    _refused(tmp_path / long, r"cannot be read \(File name too long\)")


@pytest.mark.parametrize(
    "params",
    [
        (1e-300, 43, 21, 14),
        (42, 1e30, 21, 14),
        (42, 43, 1e300, 14),
        (42, 43, 21, -301),
        (42, 43, 441, 14),
        (0.03, 43, 21, 14),
    ],
)
def test_intrinsics_of_no_lens_are_refused(tmp_path: Path, params: tuple[float, ...]) -> None:
    model = Model()
    model.cameras[0] = (1, 1, 40, 30, params)
    _refused(_scene(tmp_path, model), r"cameras\.bin: camera 1 of 40x30 px has the focal length .* which no lens has")


@pytest.mark.parametrize("params", [(0.041, 39_999, 21, 14), (42, 43, -399, 329)])
def test_odd_intrinsics_that_a_lens_could_have_are_kept(tmp_path: Path, params: tuple[float, ...]) -> None:
    model = Model()
    model.cameras[0] = (1, 1, 40, 30, params)
    camera = load_scene(_scene(tmp_path, model), ALL).train_views[1].camera
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx(params)


def test_views_too_small_for_the_metrics_are_refused(tmp_path: Path) -> None:
    _scene(tmp_path, _large(90, 85))
    assert load_scene(tmp_path, SceneConfig(resolution=8, test_every=0)).train_views[0].camera.height == 11
    _scene(tmp_path, _large(90, 83))
    text = _refused(
        tmp_path, r"a\.png would be trained at 11x10 px with --resolution 8", SceneConfig(resolution=8, test_every=0)
    )
    assert "at least 11" in text


def test_zero_registered_images(tmp_path: Path) -> None:
    _refused(_scene(tmp_path, Model(images=[])), r"images\.bin registers no images")


@pytest.mark.parametrize(("every", "left"), [(1, 0), (2, 1)])
def test_fewer_than_two_training_views(tmp_path: Path, every: int, left: int) -> None:
    model = Model()
    model.images = model.images[:3]
    text = _refused(_scene(tmp_path, model), f"leaves {left} of its 3 views", SceneConfig(test_every=every))
    assert f"--test-every {every}" in text and "--test-every 0" in text


@pytest.mark.parametrize("size", [(42, 30), (40, 28), (30, 40), (20, 15)])
def test_a_photo_of_another_size_than_its_camera(tmp_path: Path, size: tuple[int, int]) -> None:
    _scene(tmp_path)
    Image.new("RGB", size).save(tmp_path / "images/e.png")
    text = _refused(tmp_path, rf"e\.png is {size[0]}x{size[1]} px, but its camera in .*cameras\.bin is 40x30")
    assert "--images" in text


def test_a_file_that_is_no_photo(tmp_path: Path) -> None:
    _scene(tmp_path)
    (tmp_path / "images/e.png").write_text("not a photo")
    _refused(tmp_path, r"e\.png cannot be decoded")
    (tmp_path / "images/e.png").write_bytes(b"")
    _refused(tmp_path, r"e\.png cannot be decoded")


def test_a_distorted_camera_that_no_image_uses_does_no_harm(tmp_path: Path) -> None:
    model = Model()
    model.cameras.append((9, 4, 40, 30, (42.0, 43.0, 21.0, 14.0, -9.0, 0.1, 0.0, 0.0)))
    assert len(load_scene(_scene(tmp_path, model), ALL).train_views) == 4


def test_missing_and_bad_points_are_reported(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    good = ((1.0, 2.0, 3.0), (1, 2, 3), 0)
    bad = [((nan, 0.0, 0.0), (0, 0, 0), 1), ((0.0, inf, 0.0), (0, 0, 0), 2), ((0.0, 0.0, -1e300), (0, 0, 0), 0)]
    scene = load_scene(_scene(tmp_path / "some", Model(points=[bad[0], good, *bad[1:]])), ALL)
    np.testing.assert_array_equal(scene.points.xyz, [good[0]])
    np.testing.assert_array_equal(scene.points.rgb, [good[1]])
    assert scene.notices == ("3 of 4 points are NaN or infinite: dropped.",)
    for name, points in (("none", []), ("all_bad", bad)):
        scene = load_scene(_scene(tmp_path / name, Model(points=points)), ALL)  # type: ignore[arg-type]
        assert scene.points.xyz.shape == (0, 3)
        assert "no points" in scene.notices[-1]


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"resolution": 3}, "--resolution"),
        ({"test_every": -1}, "--test-every"),
        ({"images": ""}, "--images"),
        ({"undistort": "no"}, "--undistort"),
    ],
)
def test_config_refuses_by_flag(changes: dict[str, object], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        SceneConfig(**changes)  # type: ignore[arg-type]


# ---- the package and the real scenes


def test_the_scene_package_does_not_import_torch() -> None:
    modules = "scene.load scene.photos.cache sample.scene prepare.pipeline cameras.undistort"
    code = f"import sys, importlib\nfor m in {modules.split()}: importlib.import_module('gs_train.' + m)\n"
    code += "print([m for m in ('torch', 'numba', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "train", "test", "points", "size"),
    [
        ("desk", 25, 4, 7562, (572, 321)),
        ("llff_fern_undistorted", 17, 3, 3996, (497, 372)),
        ("m360_bonsai93", 81, 12, 28950, (540, 360)),
        ("desk_distorted", 25, 4, 7562, (640, 358)),
        ("llff_fern", 17, 3, 3996, (498, 373)),
        ("fox_colmap", 43, 7, 8958, (355, 634)),
    ],
)
def test_real_scenes(shared_scenes: Path, name: str, train: int, test: int, points: int, size: tuple[int, int]) -> None:
    scene = load_scene(shared_scenes / name, SceneConfig())
    assert (len(scene.train_views), len(scene.test_views), len(scene.points.xyz)) == (train, test, points)
    assert all((view.camera.width, view.camera.height) == size for view in scene.train_views)
    assert scene.notices == ()


def test_every_fault_is_reported_to_on_fault(tiny_scene: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_scene, tmp_path / "scene")
    photos = sorted((tmp_path / "scene" / "images").iterdir())
    photos[1].unlink()
    Image.new("RGB", (10, 90)).save(photos[3])
    photos[5].write_bytes(photos[5].read_bytes()[:-200])
    faults: list[UserError] = []
    scene = load_scene(tmp_path / "scene", SceneConfig(), faults.append)
    assert [word for word in (photos[1].name, photos[3].name) if not any(word in str(fault) for fault in faults)] == []
    assert len(faults) == 2 and len(scene.train_views) + len(scene.test_views) == len(photos) - 2
    with pytest.raises(UserError, match=photos[1].name):
        load_scene(tmp_path / "scene", SceneConfig())
    message = gs_train("info", tmp_path / "scene")
    assert message.returncode == 2
    for photo in (photos[1], photos[3], photos[5]):
        assert sum(photo.name in line for line in message.stdout.splitlines() if line.startswith("fault")) == 1
