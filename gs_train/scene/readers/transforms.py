"""Reader of JSON camera files: transforms.json (instant-ngp, nerfstudio) and Blender's transforms_train.json.

``transforms_frame.py`` reads the pose and the camera of one frame, ``transforms_files.py`` finds the files that a
document names, ``ply_points.py`` reads the points. A nerfstudio ``applied_transform`` records a transform that both
poses and points already include, so the reader ignores it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from gs_train.cameras.camera import Camera
from gs_train.errors import UserError
from gs_train.scene.readers.ply_points import find_points, read_ply_points
from gs_train.scene.readers.reconstruction import NO_POINTS, FoundModel, Reconstruction, RegisteredImage, read_bytes
from gs_train.scene.readers.transforms_files import FilesOfKey, relative_path, with_ending
from gs_train.scene.readers.transforms_frame import AGAIN, read_camera, read_pose
from gs_train.scene.types import PointCloud

_FILE, _BLENDER_FILE = "transforms.json", "transforms_train.json"

FOLDER_HOLDS = f"{_FILE} or {_BLENDER_FILE}"
"""For the message when no reader fits."""

_SCALED = 1e-3  # Poses whose scale differs from 1 by more are reported.


def find(path: Path, allow_outside: bool) -> list[FoundModel]:
    """The .json file ``path``, or the transforms.json and the Blender scene of a folder.

    In a folder, transforms_train.json comes with Blender's other files, see ``read_blender``.
    """
    if path.is_file():
        if path.suffix != ".json":
            return []
        read = partial(read_transforms, path, allow_outside=allow_outside)
        return [FoundModel(path=path, read=read, names=partial(_read_names, [path]))]
    found = []
    if (file := path / _FILE).is_file():
        read = partial(read_transforms, file, allow_outside=allow_outside)
        found.append(FoundModel(path=file, read=read, names=partial(_read_names, [file])))
    if (file := path / _BLENDER_FILE).is_file():
        read = partial(read_blender, path, allow_outside=allow_outside)
        found.append(FoundModel(path=file, read=read, names=partial(_read_names, _blender_files(path))))
    return found


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
    files = _blender_files(folder)
    train = _read_listing(files[0], allow_outside)
    if len(files) == 1:
        return _reconstruction(train, train.file)
    test = _read_listing(files[1], allow_outside)
    val = folder / "transforms_val.json"
    unused = [f"{val} is not used: the held-out views are those of {test.file.name}."] if val.is_file() else []
    unused = unused if test.file != val else []
    both = replace(train, frames=[*train.frames, *test.frames], notices=[*train.notices, *test.notices, *unused])
    return _reconstruction(both, folder / "transforms_*.json", frozenset(frame.image.name for frame in test.frames))


def _blender_files(folder: Path) -> list[Path]:
    """The file of the training views, and the file of the held-out views if there is one."""
    others = [file for part in ("test", "val") if (file := folder / f"transforms_{part}.json").is_file()]
    return [folder / _BLENDER_FILE, *others[:1]]


def _read_names(files: list[Path]) -> list[str]:
    """The image names of all frames of the files."""
    names = []
    for file in files:
        frames = _read_document(file).get("frames")
        for frame in frames if isinstance(frames, list) else []:
            path = frame.get("file_path") if isinstance(frame, dict) else None
            if isinstance(path, str):
                names.append(with_ending(file.parent, relative_path(file.parent, path)))
    return names


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
    photos = FilesOfKey.read(file, entries, "file_path", allow_outside)
    masks = FilesOfKey.read(file, entries, "mask_path", allow_outside)
    frames, scales = [], []
    for number, entry in enumerate(entries):
        frame, scale = _read_frame(file, number, entry, document, photos, masks)
        frames.append(frame)
        scales.append(scale)
    notices = photos.found.notice(file)
    scaled = [scale for scale in scales if abs(scale - 1.0) > _SCALED]
    if scaled:
        message = (
            f"{len(scaled)} of {len(frames)} poses in {file} have a scale (from {min(scaled):.4g} to {max(scaled):.4g})"
        )
        notices.append(f"{message}: ignored, because a scale changes no image.")
    points, point_notices = _read_points(file, document, allow_outside)
    return _Listing(file=file, document=document, frames=frames, points=points, notices=[*notices, *point_notices])


def _read_document(file: Path) -> dict[str, Any]:
    try:
        # File names may be in another code page.
        document = json.loads(read_bytes(file).removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        # ValueError includes numbers with more digits than Python parses.
        raise UserError(f"{file} is not JSON ({' '.join(str(error).split())}): {AGAIN}, or copy it again.") from None
    if not isinstance(document, dict):
        raise UserError(
            f'{file} holds no JSON object: give a transforms file that lists photos and poses under "frames".'
        )
    return document


def _read_frame(
    file: Path, number: int, entry: Any, document: Mapping[str, Any], photos: FilesOfKey, masks: FilesOfKey
) -> tuple[_Frame, float]:
    """One entry of the list of frames, and the scale of its pose."""
    where = f"{file}, frame {number}"
    path = entry.get("file_path") if isinstance(entry, dict) else None
    if not isinstance(path, str) or not path.strip("./\\ "):
        raise UserError(f"{where}: expected an object with the text file_path and a transform_matrix: {AGAIN}.")
    name, photo = photos.of(path, where)
    path = relative_path(file.parent, path)
    where = f"{where} ({path})"
    world_to_camera, scale = read_pose(where, entry.get("transform_matrix"))
    mask_path = entry.get("mask_path")
    mask = None
    if mask_path is not None and mask_path != "":
        if not isinstance(mask_path, str):
            raise UserError(f"{where}: mask_path is {mask_path!r}, which is not a file name: {AGAIN}.")
        mask_name, mask = masks.of(mask_path, f"{where}: mask_path")
        mask = mask or file.parent / mask_name
    image = RegisteredImage(name=name, camera_id=-1, world_to_camera=world_to_camera, file=photo, mask=mask)
    camera = read_camera(where, entry, document, photo)
    return _Frame(path=path, image=image, camera=camera), scale


def _read_points(file: Path, document: Mapping[str, Any], allow_outside: bool) -> tuple[PointCloud, list[str]]:
    """The points of the PLY file at ``ply_file_path``, and notices about the file; no points if the key is empty.

    Without the key, a file with a usual name counts: some converters write points without naming them.
    """
    path = document.get("ply_file_path")
    if path is None:
        ply, notices = find_points((file.parent,), "pointcloud.ply")
        if ply is None:
            return NO_POINTS, notices
        notices = [f"{file} names no points, but {ply.name} lies beside it: training starts from it.", *notices]
        origin, remedy = f"which lies beside {file}", "replace it by a PLY file of points, or remove it"
        return read_ply_points(ply, origin, f"{remedy} to start from random points"), notices
    if path == "":
        return NO_POINTS, []
    if not isinstance(path, str):
        raise UserError(f"{file}: ply_file_path is {path!r}, which is not a file name: {AGAIN}.")
    entry = {"ply_file_path": path}
    named = FilesOfKey.read(file, [entry], "ply_file_path", allow_outside, suffixes={".ply"})
    name, ply = named.of(path, f"{file}: ply_file_path")
    remedy = f"put the points there, or remove ply_file_path from {file.name} to start from random points"
    origin = f"which {file} names as its points"
    return read_ply_points(ply or file.parent / name, origin, remedy), named.found.notice(file)


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
    return frozenset(relative_path(listing.file.parent, name) for name in names)
