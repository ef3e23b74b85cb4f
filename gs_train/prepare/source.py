"""``Source``: the photos or the video that a scene is made from, checked before any work begins."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gs_train.errors import UserError
from gs_train.prepare.photos import fingerprint, list_photos
from gs_train.scene.photos.files import HEIC_SUFFIXES

DEFAULT_FRAMES = 150
"""Number of frames to take from a video by default."""

FEWEST_PHOTOS = 3
"""Fewer photos, or a model of fewer photos, would leave none for training or for testing."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The input of ``prepare_scene``."""

    path: Path
    """The folder of photos, or the video."""
    files: tuple[Path, ...]
    """The photos by name, or the video alone."""
    video: bool
    """Whether the source is a video."""
    frames: int | None
    """Number of frames to take from a video; None for photos."""
    identity: str
    """Fingerprint of the files, to recognise them in a later call."""
    notices: tuple[str, ...]
    """Sentences for the user."""


def inspect_source(path: Path, scene: Path, frames: int | None) -> Source:
    """Check the source and list its files.

    Args:
        path: a folder of photos, or a video file.
        scene: the folder of the new scene, for checks alone.
        frames: as in ``prepare_scene``.

    Raises:
        UserError: a package is not installed, or the source, the scene or ``frames`` cannot be used.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: give a folder of photos, or a video.")
    video = not path.is_dir()
    _require("pycolmap", "")
    try:
        str(scene.resolve()).encode()
    except UnicodeEncodeError:
        message = f"{scene.resolve()} has a name that is not UTF-8, which COLMAP cannot open"
        raise UserError(f"{message}: give another place.") from None
    if video:
        _require("imageio_ffmpeg", " for a video")
        identity = fingerprint([path], path.parent)
        return Source(
            path=path, files=(path,), video=True, frames=frames or DEFAULT_FRAMES, identity=identity, notices=()
        )
    if frames is not None:
        raise UserError(f"--frames is for a video, but {path} is a folder of photos: leave --frames out.")
    if scene.resolve().is_relative_to(path.resolve()):
        raise UserError(f"{scene} lies in the folder of the photos, {path}: give a place outside of it for the scene.")
    return _inspect_photos(path)


def _inspect_photos(folder: Path) -> Source:
    photos, others = list_photos(folder)
    endings = Counter(file.suffix or "without an ending" for file in others).most_common(5)
    kinds = ", ".join(f"{count} {ending}" for ending, count in endings)
    if not photos:
        other_kinds = f" of a known kind (it holds {kinds})" if others else ""
        message = f"{folder} holds no photos{other_kinds}: give a folder of JPEG, PNG, TIFF or WebP files"
        raise UserError(f"{message}{_heic_remedy(others, ', or ')}.")
    if len(photos) < FEWEST_PHOTOS:
        few = f"{folder} holds {len(photos)} photo{'' if len(photos) == 1 else 's'}"
        raise UserError(f"{few}, but prepare needs at least {FEWEST_PHOTOS}: start with about twenty.")
    left_out = f"Files that are not photos of a known kind are left out ({kinds})"
    notices = (f"{left_out}{_heic_remedy(others, ': to use the HEIC photos, ')}.",) if others else ()
    identity = fingerprint(photos, folder)
    return Source(path=folder, files=tuple(photos), video=False, frames=None, identity=identity, notices=notices)


def _heic_remedy(others: Sequence[Path], joint: str) -> str:
    """The second half of a sentence, after ``joint``, about HEIC photos among files of unknown kinds."""
    if not any(file.suffix.lower() in HEIC_SUFFIXES for file in others):
        return ""
    return f"{joint}install pillow-heif (`{sys.executable} -m pip install pillow-heif`)"


def _require(module: str, purpose: str) -> None:
    if find_spec(module) is None:
        package = module.replace("_", "-")
        install = f"{sys.executable} -m pip install {package}"
        raise UserError(f"prepare needs {package}{purpose}, which is not installed: {install}.")
