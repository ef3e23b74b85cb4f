"""The COLMAP reader: both formats, real models against their own observations, and damaged files."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from colmap_files import MODEL_NAMES, Model, read_observations
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gs_train.errors import UserError
from gs_train.scene.readers.colmap import find_model, read_model
from gs_train.scene.readers.reconstruction import Reconstruction

WRITERS = {"bin": Model.write_binary, "txt": Model.write_text}


@pytest.fixture(params=["bin", "txt"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _check_matches(read: Reconstruction, model: Model) -> None:
    assert {i: (c.model, c.width, c.height) for i, c in read.cameras.items()} == {
        i: (MODEL_NAMES[m], w, h) for i, m, w, h, _ in model.cameras
    }
    for camera_id, _, _, _, params in model.cameras:
        fx, fy = (params[0], params[1]) if len(params) == 4 else (params[0], params[0])
        assert read.cameras[camera_id].pinhole_intrinsics() == (fx, fy, *params[-2:])
    assert [(image.name, image.camera_id) for image in read.images] == [(row[4], row[3]) for row in model.images]
    for image, (_, wxyz, translation, _, _) in zip(read.images, model.images, strict=True):
        expected = Rotation.from_quat(wxyz, scalar_first=True).as_matrix()
        np.testing.assert_allclose(image.world_to_camera[:3, :3], expected, atol=1e-12)
        np.testing.assert_array_equal(image.world_to_camera[:3, 3], translation)
        np.testing.assert_array_equal(image.world_to_camera[3], (0, 0, 0, 1))
    np.testing.assert_array_equal(read.points.xyz, np.array([row[0] for row in model.points]).reshape(-1, 3))
    np.testing.assert_array_equal(read.points.rgb, np.array([row[1] for row in model.points]).reshape(-1, 3))


def test_reads_what_was_written(tmp_path: Path, suffix: str) -> None:
    model = Model()
    WRITERS[suffix](model, tmp_path)
    read = read_model(tmp_path)
    _check_matches(read, model)
    assert read.cameras[1].pinhole_intrinsics() == (42.0, 43.0, 21.0, 14.0)
    assert read.cameras[7].pinhole_intrinsics() == (33.0, 33.0, 10.5, 15.5)
    assert read.points.rgb.dtype == np.uint8


def test_empty_points_and_no_points_file(tmp_path: Path, suffix: str) -> None:
    model = Model(points=[])
    WRITERS[suffix](model, tmp_path)
    assert read_model(tmp_path).points.xyz.shape == (0, 3)
    (tmp_path / f"points3D.{suffix}").unlink()
    assert read_model(tmp_path).points.rgb.shape == (0, 3)


def test_text_survives_windows_line_ends_blank_lines_and_no_last_line(tmp_path: Path) -> None:
    model = Model()
    model.write_text(tmp_path)
    for name in ("cameras", "points3D"):
        file = tmp_path / f"{name}.txt"
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n\r\n"))
    images = tmp_path / "images.txt"
    images.write_bytes(images.read_bytes().replace(b"\n", b"\r\n").rstrip())
    _check_matches(read_model(tmp_path), model)


def test_model_folders_and_bin_before_txt(tmp_path: Path) -> None:
    assert find_model(tmp_path) is None
    for folder in ("colmap/sparse/0", "sparse", "sparse/0"):
        Model().write_text(tmp_path / folder)
        assert find_model(tmp_path) == tmp_path / folder
    Model(points=[]).write_binary(tmp_path / "sparse/0")
    assert len(read_model(tmp_path / "sparse/0").points.xyz) == 0
    (tmp_path / "sparse/0/images.bin").unlink()
    assert len(read_model(tmp_path / "sparse/0").points.xyz) == len(Model().points)
    with pytest.raises(UserError, match=r"neither cameras\.bin and images\.bin nor"):
        read_model(tmp_path)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_binary_cut_anywhere_names_file_and_byte(tmp_path: Path, name: str) -> None:
    Model().write_binary(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for length in range(len(whole)):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"{name} \(byte \d+\) is truncated or corrupt, because") as caught:
            read_model(tmp_path)
        assert int(str(caught.value).split("byte ")[1].split(")")[0]) <= length
    (tmp_path / name).write_bytes(whole + b"\0")
    with pytest.raises(UserError, match=rf"{name} \(byte {len(whole)}\) is corrupt, because 1 bytes follow"):
        read_model(tmp_path)


@pytest.mark.parametrize("name", ["cameras.txt", "images.txt", "points3D.txt"])
def test_text_cut_anywhere_is_refused_or_loses_no_record(tmp_path: Path, name: str) -> None:
    """A cut inside the last number may go unnoticed, but a missing record must raise an error."""
    Model().write_text(tmp_path)
    whole = (tmp_path / name).read_text()
    whole_model = read_model(tmp_path)
    header_end = whole.index("Number of") + len("Number of points: 9,")
    refused = 0
    for length in range(header_end, len(whole)):
        (tmp_path / name).write_text(whole[:length])
        try:
            read = read_model(tmp_path)
        except UserError as error:
            refused += 1
            assert f"{name} (line " in str(error) or "has no camera" in str(error)
        else:
            assert (len(read.cameras), len(read.images), len(read.points.xyz)) == (
                len(whole_model.cameras), len(whole_model.images), len(whole_model.points.xyz))  # fmt: skip
    assert refused > 0.8 * (len(whole) - header_end)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
@pytest.mark.parametrize("count", [2**60, 2**64 - 1, 10**6])
def test_absurd_counts_allocate_nothing(tmp_path: Path, name: str, count: int) -> None:
    Model().write_binary(tmp_path)
    file = tmp_path / name
    file.write_bytes(struct.pack("<Q", count) + file.read_bytes()[8:])
    with pytest.raises(
        UserError, match=rf"{name} \(byte 0\) is truncated or corrupt, because the file announces {count} "
    ):
        read_model(tmp_path)


def test_absurd_track_and_observation_counts(tmp_path: Path) -> None:
    Model().write_binary(tmp_path)
    points = tmp_path / "points3D.bin"
    data = bytearray(points.read_bytes())
    data[8 + 43 : 8 + 51] = struct.pack("<Q", 2**61 + 1)
    points.write_bytes(data)
    with pytest.raises(UserError, match=r"points3D\.bin \(byte 8\) is truncated or corrupt"):
        read_model(tmp_path)
    Model().write_binary(tmp_path)
    images = tmp_path / "images.bin"
    data = bytearray(images.read_bytes())
    at = data.index(b"b.png\0") + 6
    data[at : at + 8] = struct.pack("<Q", 2**60)
    images.write_bytes(data)
    with pytest.raises(UserError, match=rf"images\.bin \(byte {at}\) .* announces {2**60} observations"):
        read_model(tmp_path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_gives_a_model_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    suffix = data.draw(st.sampled_from(("bin", "txt")))
    WRITERS[suffix](Model(), folder)
    file = folder / f"{data.draw(st.sampled_from(('cameras', 'images', 'points3D')))}.{suffix}"
    raw = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=9))
    raw[at : at + len(patch)] = patch
    file.write_bytes(raw)
    try:
        read_model(folder)
    except UserError as error:
        assert str(folder) in str(error)


Change = Callable[[Model], None]


def _set_camera(**changes: object) -> Change:
    def change(model: Model) -> None:
        row = dict(zip(("id", "model", "width", "height", "params"), model.cameras[0], strict=True)) | changes
        model.cameras[0] = tuple(row.values())  # type: ignore[assignment]

    return change


def _set_image(**changes: object) -> Change:
    def change(model: Model) -> None:
        row = dict(zip(("id", "wxyz", "translation", "camera_id", "name"), model.images[1], strict=True)) | changes
        model.images[1] = tuple(row.values())  # type: ignore[assignment]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set_camera(width=0), "invalid image size 0x30"),
        (_set_camera(height=2**40), "invalid image size 40x1099511627776"),
        (_set_camera(params=(0.0, 43.0, 1.0, 1.0)), "positive focal length"),
        (_set_camera(params=(42.0, -43.0, 1.0, 1.0)), "positive focal length"),
        (_set_camera(params=(42.0, 43.0, float("nan"), 1.0)), "finite numbers"),
        (_set_image(wxyz=(0.0, 0.0, 0.0, 0.0)), "is not a rotation and a position"),
        (_set_image(wxyz=(float("nan"), 0.0, 0.0, 1.0)), "is not a rotation and a position"),
        (_set_image(translation=(0.0, float("inf"), 0.0)), "is not a rotation and a position"),
        (_set_image(camera_id=5), "uses camera 5 for image 'a.png', but"),
        (_set_image(name="b.png"), "lists image 'b.png' twice"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, suffix: str, change: Change, message: str) -> None:
    model = Model()
    change(model)
    WRITERS[suffix](model, tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        read_model(tmp_path)
    assert f".{suffix}" in str(caught.value)


def test_unknown_camera_models(tmp_path: Path) -> None:
    Model(cameras=[(1, 99, 40, 30, (1.0,) * 4)]).write_binary(tmp_path)
    with pytest.raises(UserError, match=r"cameras\.bin \(byte 8\) has the camera model 99, which gs_train does not"):
        read_model(tmp_path)
    (tmp_path / "cameras.bin").unlink()
    Model().write_text(tmp_path)
    cameras = tmp_path / "cameras.txt"
    cameras.write_text(cameras.read_text().replace(" PINHOLE", " LENSBABY"))
    with pytest.raises(UserError, match=r"cameras\.txt \(line 4\) has the camera model LENSBABY, which"):
        read_model(tmp_path)


def test_a_header_comment_with_thousands_of_digits(tmp_path: Path) -> None:
    Model().write_text(tmp_path)
    file = tmp_path / "cameras.txt"
    file.write_text(file.read_text().replace("Number of cameras: 2", "Number of cameras: " + "9" * 5000))
    with pytest.raises(UserError, match=r"cameras\.txt \(line \d+\) ends after 2 cameras, but .* announces 9+:"):
        read_model(tmp_path)


def test_text_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    model = Model()
    model.write_text(tmp_path)
    for stem in ("cameras", "images", "points3D"):
        file = tmp_path / f"{stem}.txt"
        # Without comments, so that the mark comes directly before a number.
        rows = [line for line in file.read_text().split("\n") if not line.startswith("#")]
        file.write_text("\n".join(rows), encoding="utf-8-sig")
    _check_matches(read_model(tmp_path), model)


@pytest.mark.parametrize("kind", ["folder", "dead link"])
def test_points_that_are_not_a_file(tmp_path: Path, suffix: str, kind: str) -> None:
    WRITERS[suffix](Model(), tmp_path)
    points = tmp_path / f"points3D.{suffix}"
    points.unlink()
    if kind == "folder":
        points.mkdir()
    else:
        points.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"points3D\.{suffix} cannot be read \("):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "old", "new", "line"),
    [
        ("cameras.txt", "43.0 21.0", "43.0", 4),
        ("cameras.txt", "PINHOLE 40", "PINHOLE forty", 4),
        ("images.txt", "1.5 2.5 -1 3.5", "1.5 2.5 3.5", 6),
        ("images.txt", " 7 a.png", " a.png", 5),
        ("points3D.txt", " 2 253 7", " 2 256 7", 5),
        ("points3D.txt", " 2 253 7", " 2 x 7", 5),
        ("points3D.txt", "\n1 ", f"\n{2**64} ", 3),
        ("points3D.txt", "0.7 0 1 2 3\n", "0.7 0 1 2\n", 5),
    ],
)
def test_corrupt_text_names_the_line(tmp_path: Path, name: str, old: str, new: str, line: int) -> None:
    Model().write_text(tmp_path)
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"{name} \(line {line}\) does not hold "):
        read_model(tmp_path)


def test_bytes_that_are_no_text_name_the_line(tmp_path: Path) -> None:
    Model().write_text(tmp_path)
    file = tmp_path / "points3D.txt"
    file.write_bytes(file.read_bytes() + b"\xff\xfe")
    with pytest.raises(UserError, match=r"points3D\.txt \(line 12\) does not hold POINT3D_ID"):
        read_model(tmp_path)


# ---- real models: their observations check every convention independently


def _reprojection_errors(folder: Path) -> np.ndarray:
    model = read_model(folder)
    observed = read_observations(folder)
    errors = []
    for image in model.images:
        x, y, rows = np.array(observed[image.name]).T
        fx, fy, cx, cy = model.cameras[image.camera_id].pinhole_intrinsics()
        local = model.points.xyz[rows.astype(int)] @ image.world_to_camera[:3, :3].T + image.world_to_camera[:3, 3]
        assert (local[:, 2] > 0).all()
        errors.append(np.hypot(fx * local[:, 0] / local[:, 2] + cx - x, fy * local[:, 1] / local[:, 2] + cy - y))
    return np.concatenate(errors)


@pytest.mark.parametrize("scene", ["desk", "m360_bonsai93"])
def test_real_points_fall_on_their_observations(shared_scenes: Path, scene: str) -> None:
    errors = _reprojection_errors(shared_scenes / scene / "sparse/0")
    assert len(errors) > 10_000
    assert np.median(errors) < 1.0


def test_sample_points_fall_on_their_observations(tiny_scene: Path) -> None:
    errors = _reprojection_errors(tiny_scene / "sparse/0")
    assert len(errors) > 800
    assert np.median(errors) < 0.2


def test_a_real_text_model(shared_scenes: Path) -> None:
    model = read_model(shared_scenes / "llff_fern_undistorted/sparse/0")
    assert len(model.images) == 20
    assert model.points.xyz.shape == (3996, 3)
    assert model.images_path.name == "images.txt"


def test_reading_is_fast(shared_scenes: Path) -> None:
    def seconds() -> float:
        start = time.process_time()
        read_model(shared_scenes / "m360_bonsai93/sparse/0")
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 0.5
