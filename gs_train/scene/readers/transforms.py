"""Reads scenes that are JSON files of camera poses: transforms.json (instant-ngp, nerfstudio) and Blender's transforms_train.json.

Not here: which images are on disk and what a distorted camera means; see ``load.py``. The invariant: whatever the files hold, the answer is
a complete, checked ``ColmapModel``, as from COLMAP, or one ``UserError`` that names the file and the frame.

A pose is OpenGL's camera-to-world (x right, y up, z backward); flipping its y and z columns makes it OpenCV's. A nerfstudio
``applied_transform`` says what was done to poses and points alike when the file was written: they are in one frame, and it is passed over.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyParseError

from gs_train.errors import UserError
from gs_train.scene.photos.decode import image_size
from gs_train.scene.readers.colmap import (
    LARGEST_IN_POSE,
    LARGEST_SIDE_PX,
    NO_POINTS,
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    read_bytes,
)
from gs_train.scene.types import PointCloud

TRANSFORMS_FILES = ("transforms.json", "transforms_train.json")
"""What makes a folder such a scene, first match wins."""

_USUAL_POINTS = ("sparse_pc.ply", "sparse_points.ply", "points3d.ply")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG")
_PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
_FISHEYE = "OPENCV_FISHEYE"
_DISTORTION = {"OPENCV": ("k1", "k2", "p1", "p2"), "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4")}
_SKEW = 1e-3  # How far the lengths of a pose's axes may lie apart, as a share of them: numbers written with four digits pass.
_SCALED = 1e-3
_AGAIN = "write the file again"
_GREY = 128


def find_transforms(scene: Path) -> Path | None:
    """The first of ``TRANSFORMS_FILES`` in the folder ``scene``; None if there is none."""
    return next((scene / name for name in TRANSFORMS_FILES if (scene / name).is_file()), None)


def read_transforms(file: Path, *, allow_outside: bool) -> ColmapModel:
    """Read one file. Where it has the lists train_filenames, val_filenames or test_filenames, they are the split.

    Args:
        file: its paths are relative to its folder, which is the scene's.
        allow_outside: take photos and points from outside that folder, too.

    Raises:
        UserError: the file is not what it should be; the message names the file and the frame.
    """
    listing = _listing(file, allow_outside)
    named = {part: _filenames(listing, part) for part in ("train", "val", "test")}
    if all(names is None for names in named.values()):
        return _model(listing, file)
    val, test = named["val"] or frozenset(), named["test"] or frozenset()
    train = named["train"]
    if train is None:
        train = frozenset(frame.path for frame in listing.frames) - val - test
    held_out = test or val
    kept = [frame for frame in listing.frames if frame.path in train or frame.path in held_out]
    if not kept:
        raise UserError(
            f"{file} names none of its own photos in its lists of train and test filenames: mend the lists, or take them out."
        )
    notices = []
    if unknown := (train | val | test) - {frame.path for frame in listing.frames}:
        notices.append(
            f"{file} lists {len(unknown)} file names to train or test on that are none of its photos' ({min(unknown)}, ...)."
        )
    if len(kept) < len(listing.frames):
        notices.append(
            f"{file} names {len(listing.frames) - len(kept)} photos neither to train on nor to test on: they are not used."
        )
    test_names = frozenset(frame.image.name for frame in kept if frame.path in held_out)
    return _model(replace(listing, frames=kept, notices=[*listing.notices, *notices]), file, test_names)


def read_blender(folder: Path, *, allow_outside: bool) -> ColmapModel:
    """Read transforms_train.json and, as the views held out, transforms_test.json; transforms_val.json where there is no other.

    Raises:
        UserError: as ``read_transforms`` does.
    """
    train = _listing(folder / "transforms_train.json", allow_outside)
    others = [file for part in ("test", "val") if (file := folder / f"transforms_{part}.json").is_file()]
    if not others:
        return _model(train, train.file)
    test = _listing(others[0], allow_outside)
    unused = [f"{file} is not used: {test.file.name} says what to test on." for file in others[1:]]
    both = replace(train, frames=[*train.frames, *test.frames], notices=[*train.notices, *test.notices, *unused])
    return _model(both, folder / "transforms_*.json", frozenset(frame.image.name for frame in test.frames))


# ---- a file


@dataclass(frozen=True, kw_only=True, eq=False)
class _Frame:
    path: str
    """``file_path`` as a path inside the scene folder, as it is written, perhaps without an ending."""
    image: ColmapImage
    """Its camera id is yet to be given."""
    camera: ColmapCamera | None
    """None where the file does not say the image's size, and the image is not there or not fit to be asked."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Listing:
    """One file, read."""

    file: Path
    document: Mapping[str, Any]
    frames: list[_Frame]
    points: PointCloud
    notices: list[str] = field(default_factory=list)


def _listing(file: Path, allow_outside: bool) -> _Listing:
    document = _document(file)
    entries = document.get("frames")
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f'{file} has no frames: give a transforms file that lists photos and their poses under "frames".'
        )
    frames, scales = [], []
    for number, entry in enumerate(entries):
        where = f"{file}, frame {number}"
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("file_path"), str)
            or not entry["file_path"].strip("./\\ ")
        ):
            raise UserError(f"{where}: expected an object with the text file_path and a transform_matrix: {_AGAIN}.")
        path = _inside(file.parent, entry["file_path"], where, allow_outside)
        where = f"{where} ({path})"
        name = _with_ending(file.parent, path)
        world_to_camera, scale = _pose(where, entry.get("transform_matrix"))
        image = ColmapImage(name=name, camera_id=-1, world_to_camera=world_to_camera)
        frames.append(_Frame(path=path, image=image, camera=_camera(where, entry, document, file.parent / name)))
        scales.append(scale)
    notices = []
    scaled = [scale for scale in scales if abs(scale - 1.0) > _SCALED]
    if scaled:
        message = (
            f"{len(scaled)} of {len(frames)} poses in {file} are scaled (by {min(scaled):.4g} to {max(scaled):.4g})"
        )
        notices.append(f"{message}: the scale is left out, which moves nothing in any image.")
    ply = document.get("ply_file_path")
    if ply is None:
        # Converters that write points beside the poses do not all name them.
        ply = next((name for name in _USUAL_POINTS if (file.parent / name).is_file()), None)
        notices += [] if ply is None else [f"{file} names no points, and {ply} lies beside it: starting from that."]
    points = _points(file, ply, allow_outside)
    return _Listing(file=file, document=document, frames=frames, points=points, notices=notices)


def _document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_bytes(file).removeprefix(b"\xef\xbb\xbf").decode())
    except (ValueError, RecursionError) as error:
        # ValueError covers what is not UTF-8, and numbers of more digits than Python reads.
        raise UserError(f"{file} is not JSON ({' '.join(str(error).split())}): {_AGAIN}, or copy it afresh.") from None
    if not isinstance(document, dict):
        raise UserError(
            f'{file} holds no JSON object: give a transforms file that lists photos and their poses under "frames".'
        )
    return document


def _model(listing: _Listing, message: Path, test_names: frozenset[str] | None = None) -> ColmapModel:
    """What ``load.py`` takes: equal cameras shared, and each image once."""
    sized = [frame.camera for frame in listing.frames if frame.camera is not None]
    if not sized:
        raise UserError(
            f"none of the {len(listing.frames)} photos that {message} lists is there and can be read: copy them beside it."
        )
    ids: dict[ColmapCamera, int] = {}
    images: dict[str, ColmapImage] = {}
    for frame in listing.frames:
        name = frame.image.name
        if name in images:
            raise UserError(f"{message} lists photo {name!r} twice: take one of the two frames out.")
        # A photo that is not there or damaged has no size; any camera does, because it cannot be trained on.
        camera_id = ids.setdefault(frame.camera or sized[0], len(ids))
        images[name] = replace(frame.image, camera_id=camera_id)
    return ColmapModel(
        cameras_path=message,
        images_path=message,
        cameras={camera_id: camera for camera, camera_id in ids.items()},
        images=tuple(images.values()),
        points=listing.points,
        names_from_scene=True,
        test_names=test_names,
        notices=tuple(listing.notices),
    )


def _filenames(listing: _Listing, part: str) -> frozenset[str] | None:
    names = listing.document.get(f"{part}_filenames")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{listing.file}: {part}_filenames is no list of file names: mend it, or take it out for a split by --test-every."
        )
    return frozenset(_relative(listing.file.parent, name) for name in names)


# ---- paths


def _relative(folder: Path, path: str) -> str:
    """``path`` from ``folder`` on, with ``/`` between folders and without detours. Backslashes are what Windows writes."""
    return Path(os.path.relpath(folder.absolute() / path.replace("\\", "/"), folder.absolute())).as_posix()


def _inside(folder: Path, path: str, where: str, allow_outside: bool) -> str:
    relative = "\0" if "\0" in path else _relative(folder, path)
    if relative == "\0" or (relative.split("/")[0] == ".." and not allow_outside):
        message = f"{where}: {path!r} leads out of {folder}"
        raise UserError(
            f"{message}: move the file there, or take files from anywhere with `gs-train train --allow-outside`."
        )
    return relative


def _with_ending(folder: Path, path: str) -> str:
    """The name of the file: Blender's paths have no ending. Where there is no such file, the path as it is."""
    names = (path, *(f"{path}{ending}" for ending in _ENDINGS))
    try:
        return next((name for name in names if (folder / name).is_file()), path)
    except (
        OSError
    ):  # A name too long for the disk is missing; what else is wrong with it is told when it is looked for.
        return path


# ---- poses


def _pose(where: str, rows: Any) -> tuple[NDArray[np.float64], float]:
    """The [4, 4] rigid world-to-camera of a camera-to-world matrix, and the scale that this one has."""
    shaped = (
        isinstance(rows, list) and len(rows) in (3, 4) and all(isinstance(row, list) and len(row) == 4 for row in rows)
    )
    if not shaped or not all(_is_number(value) for row in rows for value in row):
        raise UserError(f"{where}: transform_matrix is not 4 (or 3) rows of 4 numbers: {_AGAIN}.")
    matrix = np.array([[float(value) for value in row] for row in rows])
    if not (np.abs(matrix) <= LARGEST_IN_POSE).all():
        raise UserError(f"{where}: transform_matrix has numbers that are not finite: {_AGAIN}, or take the frame out.")
    if len(matrix) == 4 and not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6):
        raise UserError(f"{where}: the last row of transform_matrix is {rows[3]} and not [0, 0, 0, 1]: {_AGAIN}.")
    left, lengths, right = np.linalg.svd(matrix[:3, :3])
    scale = float(lengths.mean())
    if lengths[2] <= 1e-9 * max(1.0, lengths[0]):
        raise UserError(f"{where}: transform_matrix cannot be inverted: {_AGAIN}, or take the frame out.")
    if lengths[0] - lengths[2] > _SKEW * scale:
        message = f"transform_matrix turns and stretches (by {lengths[2]:.6g} to {lengths[0]:.6g}), where a pose turns and scales evenly"
        raise UserError(f"{where}: {message}: {_AGAIN}, or take the frame out.")
    # The nearest rotation, which also rounds off what the digits of the file left.
    rotation = left @ right
    if np.linalg.det(rotation) < 0:
        raise UserError(f"{where}: transform_matrix mirrors, where a pose only turns: {_AGAIN}, or take the frame out.")
    camera_to_world = rotation * (1.0, -1.0, -1.0)
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = camera_to_world.T
    world_to_camera[:3, 3] = -camera_to_world.T @ matrix[:3, 3]
    return world_to_camera, scale


# ---- intrinsics


def _is_number(value: Any) -> bool:
    """Whether JSON gave a number that fits a float."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300)


def _number(where: str, key: str, sources: Sequence[Mapping[str, Any]]) -> float | None:
    """The number under ``key`` in the first of the sources that has it."""
    value = next((source[key] for source in sources if source.get(key) is not None), None)
    if value is None:
        return None
    if not _is_number(value) or not math.isfinite(value):
        raise UserError(f"{where}: {key} is {value!r} and not a finite number: {_AGAIN}.")
    return float(value)


def _camera(where: str, entry: Mapping[str, Any], document: Mapping[str, Any], photo: Path) -> ColmapCamera | None:
    """The camera of a frame, whose own intrinsics go before the file's."""
    sources = (entry, document)
    width, height = _number(where, "w", sources), _number(where, "h", sources)
    if width is None or height is None:
        # What is missing or damaged has no size, and is told when the photos are looked for, each by itself.
        with suppress(UserError):
            width, height = image_size(photo)
    model, distortion = _distortion(where, sources)
    focal = _focal(where, width or 1.0, height or 1.0, sources)
    if width is None or height is None:
        return None
    if not (
        0 < width <= LARGEST_SIDE_PX and 0 < height <= LARGEST_SIDE_PX and width == int(width) and height == int(height)
    ):
        raise UserError(f"{where}: a camera of {width:g}x{height:g} px cannot be: {_AGAIN}.")
    cx, cy = _number(where, "cx", sources), _number(where, "cy", sources)
    centre = (0.5 * width if cx is None else cx, 0.5 * height if cy is None else cy)
    return ColmapCamera(model=model, width=int(width), height=int(height), params=(*focal, *centre, *distortion))


def _focal(where: str, width: float, height: float, sources: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """fx and fy, px: from fl_x and fl_y, else from the angles of view; one of the two does for both."""
    for source in sources:
        lengths: list[float | None] = []
        for axis, side in (("x", width), ("y", height)):
            length, angle = _number(where, f"fl_{axis}", [source]), _number(where, f"camera_angle_{axis}", [source])
            if length is None and angle is not None:
                if not 0 < 0.5 * angle < 0.5 * math.pi:  # Half of the least float is 0.
                    raise UserError(f"{where}: camera_angle_{axis} is {angle:g} and not between 0 and pi: {_AGAIN}.")
                length = 0.5 * side / math.tan(0.5 * angle)
            lengths.append(length)
        known = [length for length in lengths if length is not None]
        if not known:
            continue
        fx, fy = known[0], known[-1]
        if min(fx, fy) <= 0:
            raise UserError(f"{where}: the focal length {fx:g}, {fy:g} px is not positive: {_AGAIN}.")
        return fx, fy
    raise UserError(
        f"{where}: neither fl_x nor camera_angle_x is given, in the frame or for all: add one of them to the file."
    )


def _distortion(where: str, sources: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[float, ...]]:
    """COLMAP's name of the camera model and its distortion. Coefficients count whatever the model is called, as in nerfstudio."""
    named = next((source["camera_model"] for source in sources if source.get("camera_model") is not None), "OPENCV")
    if any(source.get("is_fisheye") is True for source in sources):  # instant-ngp's way to say it
        named = _FISHEYE
    if named not in (*_PERSPECTIVE, _FISHEYE):
        known = ", ".join((*_PERSPECTIVE, _FISHEYE))
        raise UserError(f"{where}: camera_model {named!r} is unknown: write the file with one of {known}.")
    model = _FISHEYE if named == _FISHEYE else "OPENCV"
    found = {key: _number(where, key, sources) or 0.0 for key in ("k1", "k2", "k3", "k4", "p1", "p2")}
    beyond = [key for key, value in found.items() if value and key not in _DISTORTION[model]]
    if beyond == ["k3"] and model == "OPENCV":
        return "FULL_OPENCV", (found["k1"], found["k2"], found["p1"], found["p2"], found["k3"], 0.0, 0.0, 0.0)
    if beyond:
        raise UserError(
            f"{where}: {' and '.join(beyond)} are not part of a lens of model {named}: write the file with another model."
        )
    if model == "OPENCV" and not any(found.values()):
        return "PINHOLE", ()
    return model, tuple(found[key] for key in _DISTORTION[model])


# ---- points


def _points(file: Path, path: Any, allow_outside: bool) -> PointCloud:
    """The points of the PLY that the file names; none where it names none. Grey where they have no colours."""
    if path is None or path == "":
        return NO_POINTS
    if not isinstance(path, str):
        raise UserError(f"{file}: ply_file_path is {path!r} and no file name: {_AGAIN}.")
    ply = file.parent / _inside(file.parent, path, f"{file}: ply_file_path", allow_outside)
    remedy = f"put the points there, or take ply_file_path out of {file.name} to start from random points"
    try:
        vertex = PlyData.read(str(ply))["vertex"].data
        xyz = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], axis=1)
        colours = [vertex[name] for name in ("red", "green", "blue") if name in vertex.dtype.names]
        rgb = _bytes(np.stack(colours, axis=1)) if len(colours) == 3 else np.full(xyz.shape, _GREY, np.uint8)
    except OSError as error:
        raise UserError(
            f"{ply}, which {file} names as its points, cannot be read ({error.strerror or error}): {remedy}."
        ) from error
    except (PlyParseError, ValueError, TypeError, KeyError, MemoryError, OverflowError) as error:
        # As for splats: what plyfile lets through from NumPy and from decoding, a missing element or column, a count that no file holds.
        reason = " ".join(str(error).split())
        raise UserError(
            f"{ply}, which {file} names as its points, is no PLY of points ({reason}): {remedy}."
        ) from error
    return PointCloud(xyz=xyz, rgb=rgb)


def _bytes(colours: NDArray[Any]) -> NDArray[np.uint8]:
    """[P, 3] colours as bytes: floats are in 0..1, wider whole numbers in 0..255."""
    if np.issubdtype(colours.dtype, np.floating):
        colours = np.round(np.nan_to_num(colours) * 255.0)
    return np.asarray(np.clip(colours, 0, 255), np.uint8)
