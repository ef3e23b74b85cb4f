"""Reader of JSON camera files: transforms.json (instant-ngp, nerfstudio) and Blender's transforms_train.json.

``transforms_frame.py`` reads the pose and the camera of one frame, ``ply_points.py`` the points. A nerfstudio
``applied_transform`` records a transform that both poses and points already include, so the reader ignores it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gs_train.cameras.camera import Camera
from gs_train.errors import UserError
from gs_train.scene.readers.ply_points import read_ply_points
from gs_train.scene.readers.reconstruction import NO_POINTS, Reconstruction, RegisteredImage, read_bytes
from gs_train.scene.readers.transforms_frame import AGAIN, read_camera, read_pose
from gs_train.scene.types import PointCloud

TRANSFORMS_FILES = ("transforms.json", "transforms_train.json")
"""Files that make a folder a scene of this format. The first match wins."""

FOLDER_HOLDS = " or ".join(TRANSFORMS_FILES)
"""For the message when no reader fits."""

_USUAL_POINTS = ("sparse_pc.ply", "sparse_points.ply", "points3d.ply")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG")
_SCALED = 1e-3  # Poses whose scale differs from 1 by more are reported.


def read(path: Path, allow_outside: bool) -> Reconstruction | None:
    """Read a .json file, or the first of ``TRANSFORMS_FILES`` in a folder; None without one.

    In a folder, transforms_train.json comes with Blender's other files, see ``read_blender``.

    Raises:
        UserError: as ``read_transforms`` does.
    """
    if path.is_file():
        return read_transforms(path, allow_outside=allow_outside) if path.suffix == ".json" else None
    file = next((path / name for name in TRANSFORMS_FILES if (path / name).is_file()), None)
    if file is None:
        return None
    if file.name == "transforms_train.json":
        return read_blender(path, allow_outside=allow_outside)
    return read_transforms(file, allow_outside=allow_outside)


def read_transforms(file: Path, *, allow_outside: bool) -> Reconstruction:
    """Read one file. Its lists train_filenames, val_filenames and test_filenames, if present, are the split.

    Args:
        file: its folder is the scene folder, which its paths start from.
        allow_outside: also take photos and points from outside that folder.

    Raises:
        UserError: the file is damaged or incomplete; the message names the file and the frame.
    """
    listing = _read_listing(file, allow_outside)
    named = {part: _filenames(listing, part) for part in ("train", "val", "test")}
    if all(names is None for names in named.values()):
        return _reconstruction(listing, file)
    val, test = named["val"] or frozenset(), named["test"] or frozenset()
    train = named["train"]
    if train is None:
        train = frozenset(frame.path for frame in listing.frames) - val - test
    held_out = test or val
    kept = [frame for frame in listing.frames if frame.path in train or frame.path in held_out]
    if not kept:
        message = f"{file}: its lists of train and test filenames name none of its own photos"
        raise UserError(f"{message}: correct the lists, or remove them for a split by --test-every.")
    notices = []
    if unknown := (train | val | test) - {frame.path for frame in listing.frames}:
        message = f"{file} lists {len(unknown)} file names for training or testing that are not among its photos"
        notices.append(f"{message} ({min(unknown)}, ...).")
    if len(kept) < len(listing.frames):
        unused = len(listing.frames) - len(kept)
        notices.append(f"{file} assigns {unused} photos neither to training nor to testing: they are not used.")
    test_names = frozenset(frame.image.name for frame in kept if frame.path in held_out)
    return _reconstruction(replace(listing, frames=kept, notices=[*listing.notices, *notices]), file, test_names)


def read_blender(folder: Path, *, allow_outside: bool) -> Reconstruction:
    """Read transforms_train.json, and the held-out views from transforms_test.json, or else from transforms_val.json.

    Raises:
        UserError: as ``read_transforms`` does.
    """
    train = _read_listing(folder / "transforms_train.json", allow_outside)
    others = [file for part in ("test", "val") if (file := folder / f"transforms_{part}.json").is_file()]
    if not others:
        return _reconstruction(train, train.file)
    test = _read_listing(others[0], allow_outside)
    unused = [f"{file} is not used: the held-out views are those of {test.file.name}." for file in others[1:]]
    both = replace(train, frames=[*train.frames, *test.frames], notices=[*train.notices, *test.notices, *unused])
    return _reconstruction(both, folder / "transforms_*.json", frozenset(frame.image.name for frame in test.frames))


# ---- one file


@dataclass(frozen=True, kw_only=True, eq=False)
class _Frame:
    path: str
    """``file_path`` relative to the scene folder, as written, possibly without a file ending."""
    image: RegisteredImage
    """``_reconstruction`` sets its camera id."""
    camera: Camera | None
    """None if the file does not give the image size and the photo is missing or damaged."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Listing:
    """The content of one file."""

    file: Path
    document: Mapping[str, Any]
    frames: list[_Frame]
    points: PointCloud
    notices: list[str] = field(default_factory=list)


def _read_listing(file: Path, allow_outside: bool) -> _Listing:
    document = _read_document(file)
    entries = document.get("frames")
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{file} has no frames: give a transforms file that lists photos and poses under "frames".')
    frames, scales = [], []
    for number, entry in enumerate(entries):
        frame, scale = _read_frame(file, number, entry, document, allow_outside)
        frames.append(frame)
        scales.append(scale)
    notices = []
    scaled = [scale for scale in scales if abs(scale - 1.0) > _SCALED]
    if scaled:
        message = (
            f"{len(scaled)} of {len(frames)} poses in {file} have a scale (from {min(scaled):.4g} to {max(scaled):.4g})"
        )
        notices.append(f"{message}: ignored, because a scale changes no image.")
    points_path = document.get("ply_file_path")
    if points_path is None:
        # Some converters write points beside the poses without naming them.
        points_path = next((name for name in _USUAL_POINTS if (file.parent / name).is_file()), None)
        if points_path is not None:
            notices.append(f"{file} names no points, but {points_path} lies beside it: training starts from it.")
    points = _read_points(file, points_path, allow_outside)
    return _Listing(file=file, document=document, frames=frames, points=points, notices=notices)


def _read_document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_bytes(file).removeprefix(b"\xef\xbb\xbf").decode())
    except (ValueError, RecursionError) as error:
        # ValueError includes text that is not UTF-8, and numbers with more digits than Python parses.
        raise UserError(f"{file} is not JSON ({' '.join(str(error).split())}): {AGAIN}, or copy it again.") from None
    if not isinstance(document, dict):
        raise UserError(
            f'{file} holds no JSON object: give a transforms file that lists photos and poses under "frames".'
        )
    return document


def _read_frame(
    file: Path, number: int, entry: Any, document: Mapping[str, Any], allow_outside: bool
) -> tuple[_Frame, float]:
    """One entry of the list of frames, and the scale of its pose."""
    where = f"{file}, frame {number}"
    path = entry.get("file_path") if isinstance(entry, dict) else None
    if not isinstance(path, str) or not path.strip("./\\ "):
        raise UserError(f"{where}: expected an object with the text file_path and a transform_matrix: {AGAIN}.")
    path = _inside(file.parent, path, where, allow_outside)
    where = f"{where} ({path})"
    name = _with_ending(file.parent, path)
    world_to_camera, scale = read_pose(where, entry.get("transform_matrix"))
    mask = _read_mask(file, entry.get("mask_path"), where, allow_outside)
    image = RegisteredImage(name=name, camera_id=-1, world_to_camera=world_to_camera, mask=mask)
    camera = read_camera(where, entry, document, file.parent / name)
    return _Frame(path=path, image=image, camera=camera), scale


def _read_mask(file: Path, path: Any, where: str, allow_outside: bool) -> str | None:
    """The mask of a frame, relative to the scene folder (nerfstudio's mask_path); None if the key is missing or
    empty."""
    if path is None or path == "":
        return None
    if not isinstance(path, str):
        raise UserError(f"{where}: mask_path is {path!r}, which is not a file name: {AGAIN}.")
    return _inside(file.parent, path, f"{where}: mask_path", allow_outside)


def _read_points(file: Path, path: Any, allow_outside: bool) -> PointCloud:
    """The points of the PLY file at ``ply_file_path``; none if the key is missing or empty."""
    if path is None or path == "":
        return NO_POINTS
    if not isinstance(path, str):
        raise UserError(f"{file}: ply_file_path is {path!r}, which is not a file name: {AGAIN}.")
    return read_ply_points(file.parent / _inside(file.parent, path, f"{file}: ply_file_path", allow_outside), file)


def _reconstruction(listing: _Listing, source: Path, test_names: frozenset[str] | None = None) -> Reconstruction:
    """The listing in the terms of all readers: equal cameras become one, and every image has a camera.

    ``source`` names the file or files in messages.
    """
    sized = [frame.camera for frame in listing.frames if frame.camera is not None]
    if not sized:
        count = len(listing.frames)
        raise UserError(f"{source}: none of its {count} photos exists and can be read: copy the photos beside it.")
    ids: dict[Camera, int] = {}
    images: dict[str, RegisteredImage] = {}
    for frame in listing.frames:
        name = frame.image.name
        if name in images:
            raise UserError(f"{source} lists photo {name!r} twice: remove one of the two frames.")
        # A missing or damaged photo has no known size. Any camera will do, because training cannot use the photo.
        camera_id = ids.setdefault(frame.camera or sized[0], len(ids))
        images[name] = replace(frame.image, camera_id=camera_id)
    return Reconstruction(
        cameras_path=source,
        images_path=source,
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
        message = f"{listing.file}: {part}_filenames is not a list of file names"
        raise UserError(f"{message}: correct it, or remove it for a split by --test-every.")
    return frozenset(_relative(listing.file.parent, name) for name in names)


# ---- paths


def _relative(folder: Path, path: str) -> str:
    """``path`` relative to ``folder``, normalised, with ``/`` between folders. Windows tools write backslashes."""
    return Path(os.path.relpath(folder.absolute() / path.replace("\\", "/"), folder.absolute())).as_posix()


def _inside(folder: Path, path: str, where: str, allow_outside: bool) -> str:
    """``path`` relative to ``folder``.

    Raises:
        UserError: it leads out of ``folder`` and ``allow_outside`` is off, or it holds a null character.
    """
    relative = "\0" if "\0" in path else _relative(folder, path)
    if relative == "\0" or (relative.split("/")[0] == ".." and not allow_outside):
        message = f"{where}: {path!r} leads out of {folder}"
        raise UserError(
            f"{message}: move the file there, or allow files from anywhere with `gs-train train --allow-outside`."
        )
    return relative


def _with_ending(folder: Path, path: str) -> str:
    """``path`` with the ending of its file, because Blender leaves it out; ``path`` itself if no file matches."""
    names = (path, *(f"{path}{ending}" for ending in _ENDINGS))
    try:
        return next((name for name in names if (folder / name).is_file()), path)
    except OSError:  # A name too long for the disk counts as missing. The search for the photos reports other faults.
        return path
