"""Reads a COLMAP sparse model, binary or text, as it stands on disk.

Not here: which images are on disk, at what size they are trained, what a distorted camera means; see ``load.py``. The invariant: whatever
bytes the files hold, the answer is a complete, checked ``ColmapModel`` or one ``UserError`` that names the file and the byte or line;
nothing is allocated on the word of a count that the file's size does not bear out.

Source of the layouts: https://colmap.github.io/format.html (COLMAP 4 adds rigs and frames in files of their own, which are not needed).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.distortion import DISTORTION_TERMS
from gs_train.errors import UserError
from gs_train.scene.types import PointCloud

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0")
"""Where a scene may keep its model, first match wins."""

_ONE_FOCAL_LENGTH = {"SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"}

CAMERA_MODELS: dict[int, tuple[str, int]] = {
    number: (name, (3 if name in _ONE_FOCAL_LENGTH else 4) + len(terms.split()))
    for number, (name, terms) in enumerate(DISTORTION_TERMS.items())
}
"""COLMAP's model id -> (name, number of parameters)."""

LARGEST_SIDE_PX = 1_000_000
"""No reader takes a larger image."""

LARGEST_IN_POSE = 1e18
"""No reader takes a larger number in a pose: its square still fits float32, and NaN fails the comparison."""

NO_POINTS = PointCloud(xyz=np.empty((0, 3)), rgb=np.empty((0, 3), np.uint8))
"""What a scene without points has."""

_PARAMETER_COUNTS = dict(CAMERA_MODELS.values())
_AGAIN = "export the model again or copy it afresh"

_CAMERA_HEAD = struct.Struct("<IiQQ")
_IMAGE_HEAD = struct.Struct("<I7dI")
_COUNT = struct.Struct("<Q")
_OBSERVATION = np.dtype([("x", "<f8"), ("y", "<f8"), ("point_id", "<i8")])
_TRACK_ELEMENT_BYTES = 8
_POINT_HEAD = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track_length", "<u8")])


@dataclass(frozen=True, kw_only=True)
class ColmapCamera:
    """One row of cameras.bin or cameras.txt; other readers say theirs in the same terms."""

    model: str
    """COLMAP's name of the camera model."""
    width: int
    """px."""
    height: int
    """px."""
    params: tuple[float, ...]
    """In the order of COLMAP's model: focal length(s), principal point, distortion."""

    def focal_and_centre(self) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy in px, whatever the model."""
        if self.model in _ONE_FOCAL_LENGTH:
            focal, cx, cy = self.params[:3]
            return focal, focal, cx, cy
        fx, fy, cx, cy = self.params[:4]
        return fx, fy, cx, cy

    def distortion(self) -> tuple[float, ...]:
        """The parameters after focal length(s) and principal point."""
        return self.params[3 if self.model in _ONE_FOCAL_LENGTH else 4 :]


@dataclass(frozen=True, kw_only=True, eq=False)
class ColmapImage:
    """One registered image."""

    name: str
    """Path inside the images folder, or inside the scene folder with ``ColmapModel.names_from_scene``; ``/`` between folders."""
    camera_id: int
    """Key into ``ColmapModel.cameras``; checked to be there."""
    world_to_camera: NDArray[np.float64]
    """[4, 4] rigid, OpenCV axes."""
    point_ids: NDArray[np.int64] | None = None
    """[K] ids of the points that were matched in it, -1 and ids that no point has among them; None where the format does not say."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ColmapModel:
    """A sparse model as read, by this reader or another. Its points may still hold NaN or infinity: dropping them is the caller's to do
    and to say."""

    cameras_path: Path
    """The file that the cameras came from, for messages."""
    images_path: Path
    """The file that the images came from, for messages."""
    cameras: dict[int, ColmapCamera]
    """By camera id."""
    images: tuple[ColmapImage, ...]
    """In the file's order."""
    points: PointCloud
    """As listed; empty where there is no file of them."""
    names_from_scene: bool = False
    """The images' names are paths inside the scene folder: the model itself says where the photos are."""
    test_names: frozenset[str] | None = None
    """Names of the images to hold out, where the model says which."""
    notices: tuple[str, ...] = ()
    """Sentences the user should hear."""


def find_model(scene: Path) -> Path | None:
    """The first of ``MODEL_FOLDERS`` under ``scene`` that holds cameras and images, both .bin or both .txt; None if there is none."""
    for folder in MODEL_FOLDERS:
        if _format_of(scene / folder) is not None:
            return scene / folder
    return None


def read_model(folder: Path) -> ColmapModel:
    """Read the model in ``folder``, .bin before .txt.

    Raises:
        UserError: a file is truncated, corrupt or contradicts another; the message names the file and the byte or line.
    """
    suffix = _format_of(folder)
    if suffix is None:
        raise UserError(
            f"{folder} holds neither cameras.bin and images.bin nor cameras.txt and images.txt: give a COLMAP model's folder."
        )
    cameras_path, images_path, points_path = (folder / f"{stem}{suffix}" for stem in ("cameras", "images", "points3D"))
    binary = suffix == ".bin"
    cameras = _cameras_binary(cameras_path) if binary else _cameras_text(cameras_path)
    images = _images_binary(images_path) if binary else _images_text(images_path)
    names: set[str] = set()
    for image in images:
        if image.camera_id not in cameras:
            message = (
                f"{images_path}: image {image.name!r} uses camera {image.camera_id}, which {cameras_path} does not list"
            )
            raise UserError(f"{message}: {_AGAIN}.")
        if image.name in names:
            raise UserError(f"{images_path} lists image {image.name!r} twice: {_AGAIN}.")
        names.add(image.name)
    if not points_path.exists() and not points_path.is_symlink():  # a folder or a dead link is a fault, not "no points"
        points = NO_POINTS
    else:
        points = _points_binary(points_path) if binary else _points_text(points_path)
    return ColmapModel(
        cameras_path=cameras_path, images_path=images_path, cameras=cameras, images=images, points=points
    )


def _format_of(folder: Path) -> str | None:
    for suffix in (".bin", ".txt"):
        if (folder / f"cameras{suffix}").is_file() and (folder / f"images{suffix}").is_file():
            return suffix
    return None


def read_bytes(path: Path) -> bytes:
    """All of a file; UserError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions and the disk.") from error


# ---- what both formats share: from raw fields to checked records; `where` is "<file>, byte N" or "<file>, line N"


def _camera(where: str, model: str, width: int, height: int, params: tuple[float, ...]) -> ColmapCamera:
    if not (0 < width <= LARGEST_SIDE_PX and 0 < height <= LARGEST_SIDE_PX):
        raise UserError(f"{where}: a camera of {width}x{height} px cannot be: {_AGAIN}.")
    camera = ColmapCamera(model=model, width=width, height=height, params=params)
    fx, fy, _, _ = camera.focal_and_centre()
    if not all(math.isfinite(value) for value in params) or fx <= 0 or fy <= 0:
        raise UserError(
            f"{where}: the camera's parameters {params} need a positive focal length and finite numbers: {_AGAIN}."
        )
    return camera


def _image(
    where: str,
    quaternion: tuple[float, ...],
    translation: tuple[float, ...],
    camera_id: int,
    name: str,
    point_ids: NDArray[np.int64],
) -> ColmapImage:
    parts = re.split(r"[/\\]", name)
    if not name or ".." in parts or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
        raise UserError(f"{where}: the image name {name!r} leads out of the images folder: rename it in the model.")
    norm = math.hypot(*quaternion)
    if not 1 / LARGEST_IN_POSE <= norm <= LARGEST_IN_POSE or not all(
        abs(component) <= LARGEST_IN_POSE for component in translation
    ):
        raise UserError(
            f"{where}: the pose of image {name!r} is no rotation and position ({quaternion}, {translation}): {_AGAIN}."
        )
    w, x, y, z = (component / norm for component in quaternion)
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    world_to_camera[:3, 3] = translation
    return ColmapImage(name=name, camera_id=camera_id, world_to_camera=world_to_camera, point_ids=point_ids)


# ---- binary


class _Bytes:
    """A file's bytes and how far they have been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = read_bytes(path)
        self.offset = 0

    def where(self) -> str:
        return f"{self.path}, byte {self.offset}"

    def need(self, size: int) -> None:
        if size > len(self.data) - self.offset:
            left = len(self.data) - self.offset
            raise UserError(
                f"{self.where()}: truncated or corrupt, the next record takes {size} bytes and {left} are left: {_AGAIN}."
            )

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        self.need(layout.size)
        fields = layout.unpack_from(self.data, self.offset)
        self.offset += layout.size
        return fields

    def skip(self, size: int) -> None:
        self.need(size)
        self.offset += size

    def take_count(self, what: str, smallest_record: int) -> int:
        """A count that the bytes left can bear, so that nobody allocates on the word of a corrupt file."""
        count = int(self.take(_COUNT)[0])
        if count * smallest_record > len(self.data) - self.offset:
            message = (
                f"{self.path}, byte {self.offset - _COUNT.size}: truncated or corrupt, it announces {count} {what}"
            )
            raise UserError(f"{message} and only {len(self.data) - self.offset} bytes follow: {_AGAIN}.")
        return count

    def end(self) -> None:
        if self.offset != len(self.data):
            raise UserError(
                f"{self.where()}: corrupt, {len(self.data) - self.offset} bytes follow the last record: {_AGAIN}."
            )


def _cameras_binary(path: Path) -> dict[int, ColmapCamera]:
    source = _Bytes(path)
    cameras: dict[int, ColmapCamera] = {}
    for _ in range(source.take_count("cameras", _CAMERA_HEAD.size)):
        where = source.where()
        camera_id, model_id, width, height = source.take(_CAMERA_HEAD)
        if model_id not in CAMERA_MODELS:
            raise UserError(f"{where}: camera model id {model_id} is unknown: export with one of {_known_models()}.")
        model, count = CAMERA_MODELS[model_id]
        cameras[camera_id] = _camera(where, model, width, height, source.take(struct.Struct(f"<{count}d")))
    source.end()
    return cameras


def _images_binary(path: Path) -> tuple[ColmapImage, ...]:
    source = _Bytes(path)
    images = []
    for _ in range(source.take_count("images", _IMAGE_HEAD.size + 1 + _COUNT.size)):
        where = source.where()
        fields = source.take(_IMAGE_HEAD)
        name_end = source.data.find(b"\0", source.offset)
        if name_end < 0:
            raise UserError(f"{source.where()}: truncated or corrupt, an image name has no end: {_AGAIN}.")
        try:
            name = source.data[source.offset : name_end].decode()
        except UnicodeDecodeError:
            raise UserError(f"{source.where()}: corrupt, an image name is not UTF-8 text: {_AGAIN}.") from None
        source.skip(name_end + 1 - source.offset)
        count = source.take_count("observations", _OBSERVATION.itemsize)
        point_ids = np.frombuffer(source.data, _OBSERVATION, count, source.offset)["point_id"].astype(np.int64)
        source.skip(count * _OBSERVATION.itemsize)
        images.append(_image(where, fields[1:5], fields[5:8], fields[8], name, point_ids))
    source.end()
    return tuple(images)


def _points_binary(path: Path) -> PointCloud:
    source = _Bytes(path)
    head = _POINT_HEAD.itemsize
    count = source.take_count("points", head)
    data, size, offset = source.data, len(source.data), source.offset
    # Records differ in length by their tracks, so this chain of lengths is all that has to be walked one by one.
    offsets = []
    track_length = _COUNT.unpack_from
    track_length_at = head - _COUNT.size
    for _ in range(count):
        if offset + head > size:
            break
        offsets.append(offset)
        offset += head + _TRACK_ELEMENT_BYTES * track_length(data, offset + track_length_at)[0]
    if len(offsets) < count or offset > size:
        last = offsets[-1] if offsets and offset > size else offset
        message = (
            f"{path}, byte {last}: truncated or corrupt, point {len(offsets)} of {count} runs past the end of the file"
        )
        raise UserError(f"{message}: {_AGAIN}.")
    source.offset = offset
    source.end()
    if count == 0:
        return NO_POINTS
    # A view with one record starting at every byte; indexing it with the offsets gathers the heads in one call.
    at_every_byte = np.ndarray((size - head + 1,), _POINT_HEAD, buffer=data, strides=(1,))
    heads = at_every_byte[np.array(offsets)]
    xyz, rgb = np.ascontiguousarray(heads["xyz"], np.float64), np.ascontiguousarray(heads["rgb"])
    return PointCloud(xyz=xyz, rgb=rgb, ids=heads["id"].astype(np.int64))


# ---- text


def _lines(path: Path) -> list[str]:
    data = read_bytes(path).removeprefix(b"\xef\xbb\xbf")  # the mark that some Windows editors put first
    try:
        return data.decode().split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: corrupt, this is not UTF-8 text: {_AGAIN}.") from None


def _records(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(index, line) of the lines that are neither empty nor a comment."""
    for index, line in enumerate(lines):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield index, stripped


def _check_count(path: Path, lines: list[str], what: str, found: int) -> None:
    """COLMAP's header comment holds the count: the one way to notice a text file that was cut between two lines."""
    for line in lines[:8]:
        announced = re.match(rf"#\s*Number of {what}:\s*(\d{{1,18}})", line)
        if announced and int(announced[1]) > found:
            message = f"{path}, line {len(lines)}: the file ends after {found} {what} and its header comment announces {announced[1]}"
            raise UserError(f"{message}: {_AGAIN}, or correct the comment.")


def _bad_line(path: Path, index: int, expected: str) -> UserError:
    return UserError(f"{path}, line {index + 1}: truncated or corrupt, expected {expected}: {_AGAIN}.")


def _cameras_text(path: Path) -> dict[int, ColmapCamera]:
    lines = _lines(path)
    cameras: dict[int, ColmapCamera] = {}
    for index, line in _records(lines):
        fields = line.split()
        try:
            camera_id, model, width, height = int(fields[0]), fields[1], int(fields[2]), int(fields[3])
            params = tuple(float(field) for field in fields[4:])
        except (ValueError, IndexError):
            raise _bad_line(path, index, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]") from None
        if model not in _PARAMETER_COUNTS:
            raise UserError(
                f"{path}, line {index + 1}: camera model {model} is unknown: export with one of {_known_models()}."
            )
        if len(params) != _PARAMETER_COUNTS[model]:
            raise _bad_line(
                path, index, f"{_PARAMETER_COUNTS[model]} parameters after {model} WIDTH HEIGHT, not {len(params)}"
            )
        cameras[camera_id] = _camera(f"{path}, line {index + 1}", model, width, height, params)
    _check_count(path, lines, "cameras", len(cameras))
    return cameras


def _images_text(path: Path) -> tuple[ColmapImage, ...]:
    lines = _lines(path)
    images: list[ColmapImage] = []
    observations_at = -1
    for index, line in enumerate(lines):
        stripped = line.strip()
        if index == observations_at:
            # This line may be empty (no observations). The count of its numbers tells a line that was cut or left out.
            words = stripped.split()
            try:
                if len(words) % 3:
                    raise ValueError
                images[-1] = replace(images[-1], point_ids=np.array([int(word) for word in words[2::3]], np.int64))
            except (ValueError, OverflowError):
                expected = "the image's observations as triples X Y POINT3D_ID (an empty line where there are none)"
                raise _bad_line(path, index, expected) from None
            continue
        if not stripped or stripped.startswith("#"):
            continue
        fields = stripped.split(maxsplit=9)
        try:
            pose = tuple(float(field) for field in fields[1:8])
            camera_id, name = int(fields[8]), fields[9]
        except (ValueError, IndexError):
            raise _bad_line(path, index, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME") from None
        images.append(_image(f"{path}, line {index + 1}", pose[:4], pose[4:], camera_id, name, np.empty(0, np.int64)))
        observations_at = index + 1
    _check_count(path, lines, "images", len(images))
    return tuple(images)


def _points_text(path: Path) -> PointCloud:
    lines = _lines(path)
    xyz: list[list[float]] = []
    rgb: list[list[int]] = []
    ids: list[int] = []
    shortest = 8  # POINT3D_ID X Y Z R G B ERROR, then the track in pairs
    for index, line in _records(lines):
        fields = line.split()
        try:
            ids.append(int(fields[0]))
            xyz.append([float(field) for field in fields[1:4]])
            rgb.append([int(field) for field in fields[4:7]])
        except ValueError:
            fields = []
        well_formed = len(fields) >= shortest and len(fields) % 2 == 0 and abs(ids[-1]) <= np.iinfo(np.int64).max
        if not well_formed or not (0 <= min(rgb[-1]) and max(rgb[-1]) <= np.iinfo(np.uint8).max):
            raise _bad_line(
                path, index, "POINT3D_ID X Y Z R G B ERROR and pairs IMAGE_ID POINT2D_IDX, colours in 0..255"
            )
    _check_count(path, lines, "points", len(xyz))
    return PointCloud(
        xyz=np.array(xyz, np.float64).reshape(-1, 3),
        rgb=np.array(rgb, np.uint8).reshape(-1, 3),
        ids=np.array(ids, np.int64),
    )


def _known_models() -> str:
    return ", ".join(_PARAMETER_COUNTS)
