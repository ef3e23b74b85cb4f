"""Reader of COLMAP sparse models, binary or text.

The two formats are in ``colmap_binary.py`` and ``colmap_text.py``. Layouts: https://colmap.github.io/format.html.
COLMAP 4 also writes files of rigs and frames, which training does not need.
"""

from __future__ import annotations

from pathlib import Path

from gs_train.errors import UserError
from gs_train.scene.readers import colmap_binary, colmap_text
from gs_train.scene.readers.colmap_records import AGAIN
from gs_train.scene.readers.reconstruction import NO_POINTS, Reconstruction

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0")
"""Folders of a scene that may hold its model. The first match wins."""

FOLDER_HOLDS = f"a COLMAP model (cameras and images, .bin or .txt, in {', '.join(MODEL_FOLDERS)})"
"""For the message when no reader fits."""


def read(path: Path, allow_outside: bool) -> Reconstruction | None:
    """Read the model of a scene folder; None without one.

    ``allow_outside`` has no effect, because a model names no files outside the folder.

    Raises:
        UserError: as ``read_model`` does.
    """
    folder = find_model(path)
    return None if folder is None else read_model(folder)


def find_model(scene: Path) -> Path | None:
    """The first of ``MODEL_FOLDERS`` that holds cameras and images, both .bin or both .txt; None without one."""
    return next((scene / name for name in MODEL_FOLDERS if _suffix_of(scene / name) is not None), None)


def read_model(folder: Path) -> Reconstruction:
    """Read the model in ``folder``, .bin in preference to .txt.

    Raises:
        UserError: a file is truncated or corrupt, or contradicts another one. The message names the file and the byte
            or line.
    """
    suffix = _suffix_of(folder)
    if suffix is None:
        both = "neither cameras.bin and images.bin nor cameras.txt and images.txt"
        raise UserError(f"{folder} holds {both}: give the folder of a COLMAP model.")
    cameras_path, images_path, points_path = (folder / f"{stem}{suffix}" for stem in ("cameras", "images", "points3D"))
    records = colmap_binary if suffix == ".bin" else colmap_text
    cameras = records.read_cameras(cameras_path)
    images = records.read_images(images_path)
    names: set[str] = set()
    for image in images:
        if image.camera_id not in cameras:
            message = (
                f"{images_path}: image {image.name!r} uses camera {image.camera_id}, which is not in {cameras_path}"
            )
            raise UserError(f"{message}: {AGAIN}.")
        if image.name in names:
            raise UserError(f"{images_path} lists image {image.name!r} twice: {AGAIN}.")
        names.add(image.name)
    # A folder or a broken link in place of the file is an error, unlike a missing file.
    has_points = points_path.exists() or points_path.is_symlink()
    return Reconstruction(
        cameras_path=cameras_path,
        images_path=images_path,
        cameras=cameras,
        images=images,
        points=records.read_points(points_path) if has_points else NO_POINTS,
    )


def _suffix_of(folder: Path) -> str | None:
    """.bin or .txt, whichever model format the folder holds; None without a model."""
    for suffix in (".bin", ".txt"):
        if (folder / f"cameras{suffix}").is_file() and (folder / f"images{suffix}").is_file():
            return suffix
    return None
