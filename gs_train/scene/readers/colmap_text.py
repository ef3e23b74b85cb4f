"""The text format of COLMAP models: cameras.txt, images.txt and points3D.txt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from gs_train.cameras.camera import Camera
from gs_train.errors import UserError
from gs_train.scene.readers.colmap_records import AGAIN, PARAMETER_COUNTS, make_camera, make_image, unknown_model
from gs_train.scene.readers.reconstruction import RegisteredImage, read_bytes
from gs_train.scene.types import PointCloud


def read_cameras(path: Path) -> dict[int, Camera]:
    """Cameras by id.

    Raises:
        UserError: the file is truncated or corrupt.
    """
    lines = _lines(path)
    cameras: dict[int, Camera] = {}
    for index, line in _records(lines):
        fields = line.split()
        try:
            camera_id, model, width, height = int(fields[0]), fields[1], _whole(fields[2]), _whole(fields[3])
            params = tuple(float(field) for field in fields[4:])
        except (ValueError, IndexError):
            raise _bad_line(path, index, line, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]") from None
        where = f"{path} (line {index + 1})"
        if model not in PARAMETER_COUNTS:
            raise unknown_model(where, path.parent, model)
        if len(params) != PARAMETER_COUNTS[model]:
            count = f"{PARAMETER_COUNTS[model]} parameters after {model} WIDTH HEIGHT, not {len(params)}"
            raise _bad_line(path, index, line, count)
        cameras[camera_id] = make_camera(where, path.parent, model, width, height, params)
    _check_count(path, lines, "cameras", len(cameras))
    return cameras


def read_images(path: Path) -> tuple[RegisteredImage, ...]:
    """Images in the file's order.

    Raises:
        UserError: the file is truncated or corrupt.
    """
    lines = _lines(path)
    images: list[RegisteredImage] = []
    observations_at = -1
    for index, line in enumerate(lines):
        stripped = line.strip()
        if index == observations_at:
            # An image without observations has an empty line here. The number of words shows a cut or missing line.
            words = stripped.split()
            try:
                if len(words) % 3:
                    raise ValueError
                images[-1] = replace(images[-1], point_ids=np.array([int(word) for word in words[2::3]], np.int64))
            except (ValueError, OverflowError):
                expected = "the image's observations as triples X Y POINT3D_ID (an empty line if it has none)"
                raise _bad_line(path, index, line, expected) from None
            continue
        if not stripped or stripped.startswith("#"):
            continue
        fields = stripped.split(maxsplit=9)
        try:
            pose = tuple(float(field) for field in fields[1:8])
            camera_id, name = int(fields[8]), fields[9]
        except (ValueError, IndexError):
            raise _bad_line(path, index, line, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME") from None
        where = f"{path} (line {index + 1})"
        images.append(make_image(where, pose[:4], pose[4:], camera_id, name, np.empty(0, np.int64)))
        observations_at = index + 1
    _check_count(path, lines, "images", len(images))
    return tuple(images)


def read_points(path: Path) -> PointCloud:
    """Sparse points with their ids; may hold NaN or infinity.

    Raises:
        UserError: the file is truncated or corrupt.
    """
    lines = _lines(path)
    xyz: list[list[float]] = []
    rgb: list[list[int]] = []
    ids: list[int] = []
    shortest = 8  # POINT3D_ID X Y Z R G B ERROR, then the track in pairs.
    for index, line in _records(lines):
        fields = line.split()
        try:
            ids.append(int(fields[0]))
            xyz.append([float(field) for field in fields[1:4]])
            rgb.append([_whole(field) for field in fields[4:7]])
        except ValueError:
            fields = []
        well_formed = len(fields) >= shortest and len(fields) % 2 == 0 and abs(ids[-1]) <= np.iinfo(np.int64).max
        if not well_formed or not (0 <= min(rgb[-1]) and max(rgb[-1]) <= np.iinfo(np.uint8).max):
            expected = "POINT3D_ID X Y Z R G B ERROR and pairs IMAGE_ID POINT2D_IDX, with colours in 0..255"
            raise _bad_line(path, index, line, expected)
    _check_count(path, lines, "points", len(xyz))
    return PointCloud(
        xyz=np.array(xyz, np.float64).reshape(-1, 3),
        rgb=np.array(rgb, np.uint8).reshape(-1, 3),
        ids=np.array(ids, np.int64),
    )


def read_image_names(path: Path) -> list[str]:
    """Image names in the file's order, without parsing the numbers; fewer names if the file is damaged.

    Raises:
        UserError: the file cannot be read.
    """
    names = []
    lines = iter(_lines(path))
    for line in lines:
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            names += stripped.split(maxsplit=9)[9:]
            next(lines, None)  # the observations
    return names


def _whole(field: str) -> int:
    """A whole number, which some programs write as 255.0. Raises ValueError."""
    try:
        return int(field)
    except ValueError:
        if not float(field).is_integer():
            raise
        return int(float(field))


def _lines(path: Path) -> list[str]:
    """The lines of a file, with bytes that are not UTF-8 as surrogates: comments and image names may hold them."""
    data = read_bytes(path).removeprefix(b"\xef\xbb\xbf")  # The byte order mark that some Windows editors write.
    return data.decode(errors="surrogateescape").split("\n")


def _records(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(index, line) of the lines that are neither empty nor a comment."""
    for index, line in enumerate(lines):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield index, stripped


def _check_count(path: Path, lines: list[str], records: str, found: int) -> None:
    """Compare the count with COLMAP's header comment, which alone shows that a file was cut between two lines."""
    for line in lines[:8]:
        announced = re.match(rf"#\s*Number of {records}:\s*(\d{{1,18}})", line)
        if announced and int(announced[1]) > found:
            message = f"ends after {found} {records}, but its header comment announces {announced[1]}"
            raise UserError(f"{path} (line {len(lines)}) {message}: {AGAIN}, or correct the comment.")


def _bad_line(path: Path, index: int, line: str, expected: str) -> UserError:
    remedy = "write points and spaces in place of the commas" if "," in line else AGAIN
    return UserError(f"{path} (line {index + 1}) does not hold {expected}: {remedy}.")
