"""Finds and reads COLMAP sparse models, binary or text.

The two formats are in ``colmap_binary.py`` and ``colmap_text.py``. Layouts: https://colmap.github.io/format.html.
COLMAP 4 also writes files of rigs and frames, which training does not need.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from gs_train.errors import UserError
from gs_train.scene.readers import colmap_binary, colmap_text
from gs_train.scene.readers.colmap_records import AGAIN
from gs_train.scene.readers.ply_points import find_points, read_ply_points
from gs_train.scene.readers.reconstruction import NO_POINTS, FoundModel, Reconstruction
from gs_train.scene.types import PointCloud

_PATTERNS = ("sparse/*", "sparse", "colmap/sparse/*", "colmap/sparse", "dense/*/sparse", "dense/sparse", ".")
"""Folders of a scene that may hold a model, preferred folders first: the mapper writes sparse/0, sparse/1 ..., the
undistorter dense/0/sparse, and an export may lie in the scene folder itself."""

FOLDER_HOLDS = "a COLMAP model (cameras and images, .bin or .txt, in sparse/0, sparse, colmap/sparse/0 or the folder)"
"""For the message when no reader fits."""

_SUFFIXES = (".bin", ".txt")


def find(path: Path, allow_outside: bool) -> list[FoundModel]:
    """The models in a scene folder, preferred models first.

    ``allow_outside`` has no effect, because a model names no files outside the folder.
    """
    folders = [folder for folder in _folders(path) if _suffix_of(folder) is not None]
    return [
        FoundModel(path=folder, read=partial(read_model, folder, path), names=partial(_read_names, folder))
        for folder in folders
    ]


def find_model(scene: Path) -> Path | None:
    """The folder of the preferred model of a scene; None without one."""
    return next((model.path for model in find(scene, False)), None)


def describe_incomplete(path: Path) -> str | None:
    """A sentence about the missing file of a scene folder that holds a part of a model; None without a part."""
    for folder in _folders(path):
        present = [stem for stem in ("cameras", "images", "points3D") if _first_of(folder, stem) is not None]
        if (present and folder != path) or len(present) > 1:
            suffix = next(file.suffix for stem in present if (file := _first_of(folder, stem)) is not None)
            lacking = [
                f"{stem}{suffix}" for stem in ("cameras", "images") if not (folder / f"{stem}{suffix}").is_file()
            ]
            held = f"{folder} holds {', '.join(f'{stem}{suffix}' for stem in present)}"
            return f"{held}, but a COLMAP model also needs {' and '.join(lacking)}: {AGAIN}."
    return None


def read_model(folder: Path, scene: Path | None = None) -> Reconstruction:
    """Read the model in ``folder``, .bin in preference to .txt.

    Args:
        folder: holds cameras and images.
        scene: the scene folder, where points may lie as well; None for ``folder``.

    Raises:
        UserError: a file is truncated or corrupt, or contradicts another one. The message names the file and the byte
            or line.
    """
    suffix = _suffix_of(folder)
    if suffix is None:
        both = "neither cameras.bin and images.bin nor cameras.txt and images.txt"
        raise UserError(f"{folder} holds {both}: give the folder of a COLMAP model.")
    cameras_path, images_path = folder / f"cameras{suffix}", folder / f"images{suffix}"
    records = colmap_binary if suffix == ".bin" else colmap_text
    cameras = records.read_cameras(cameras_path)
    images = records.read_images(images_path)
    names: set[str] = set()
    for image in images:
        if image.camera_id not in cameras:
            uses = f"{images_path} uses camera {image.camera_id} for image {image.name!r}"
            raise UserError(f"{uses}, but {cameras_path} has no camera {image.camera_id}: {AGAIN}.")
        if image.name in names:
            raise UserError(f"{images_path} lists image {image.name!r} twice: {AGAIN}.")
        names.add(image.name)
    points, notices = _read_points(folder, scene or folder, suffix)
    return Reconstruction(
        cameras_path=cameras_path,
        images_path=images_path,
        cameras=cameras,
        images=images,
        points=points,
        notices=tuple(notices),
    )


def _read_points(folder: Path, scene: Path, suffix: str) -> tuple[PointCloud, list[str]]:
    """The points of the model, or else of a PLY file beside it, and notices about the file."""
    own = [folder / f"points3D{ending}" for ending in (suffix, *_SUFFIXES)]
    # A folder or a broken link in place of the file is an error, unlike a missing file.
    file = next((path for path in own if path.exists() or path.is_symlink()), None)
    points = NO_POINTS
    if file is not None:
        points = (colmap_binary if file.suffix == ".bin" else colmap_text).read_points(file)
    ply, notices = find_points((folder, scene), "points3D.ply")
    if len(points.xyz) and file is not None:
        if ply is None or ply.parent != folder:
            return points, []
        instead = f"to start from {ply.name}, move {file.name} out of the folder"
        return points, [f"{folder} holds {file.name} and {ply.name}: {file.name} is used; {instead}."]
    if ply is None:
        return points, notices
    origin = f"which lies beside {folder / f'images{suffix}'}"
    remedy = "replace it by a PLY file of points, or remove it to start from random points"
    points = read_ply_points(ply, origin, remedy)
    return points, [f"{folder} has no points of its own: training starts from {ply}.", *notices]


def _read_names(folder: Path) -> list[str]:
    if _suffix_of(folder) == ".bin":
        return colmap_binary.read_image_names(folder / "images.bin")
    return colmap_text.read_image_names(folder / "images.txt")


def _folders(scene: Path) -> list[Path]:
    """The folders of ``_PATTERNS`` that exist; numbered folders in the order of their numbers."""
    if not scene.is_dir():
        return []
    found: list[Path] = []
    for pattern in _PATTERNS:
        folders = [scene] if pattern == "." else [folder for folder in scene.glob(pattern) if folder.is_dir()]
        found += sorted(folders, key=lambda folder: [(len(part), part) for part in folder.parts])
    return found


def _suffix_of(folder: Path) -> str | None:
    """.bin or .txt, whichever model format the folder holds; None without a model."""
    for suffix in _SUFFIXES:
        if (folder / f"cameras{suffix}").is_file() and (folder / f"images{suffix}").is_file():
            return suffix
    return None


def _first_of(folder: Path, stem: str) -> Path | None:
    """The file of a model, .bin in preference to .txt; None without one."""
    return next((file for suffix in _SUFFIXES if (file := folder / f"{stem}{suffix}").is_file()), None)
