"""Finds photos or a video in place of a scene, and names the commands that make a scene of them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from gs_train.errors import UserError
from gs_train.scene.photos.files import SUFFIXES

_VIDEO_SUFFIXES = frozenset(".mp4 .mov .m4v .avi .mkv .webm .mts .m2ts .mpg .mpeg .wmv .3gp .insv".split())
_PHOTO_SUFFIXES = SUFFIXES - frozenset(".gif .pgm .pbm .pnm .pfm .j2k".split())  # as ``gs-train prepare`` takes
_FEWEST_PHOTOS = 3  # ``gs-train prepare`` needs as many.
_LOOKED_AT = 100_000


class Unprepared(UserError):
    """Photos or a video stand in place of a scene."""

    def __init__(self, fault: str, source: Path, named: Path | None = None) -> None:
        """Set the sentence: the fault, and the commands that make a scene beside the path that the user named.

        Args:
            fault: the first half of the sentence.
            source: the folder of photos, or the video.
            named: the path that the user named; None for ``source``.
        """
        scene = _free_place(named or source)
        words = (["prepare", str(source), scene], ["train", scene])
        prepare, train = (shlex.join(["gs-train", *each]) for each in words)
        super().__init__(f"{fault}: compute the poses with `{prepare}`, then train with `{train}`.")
        self.source = source


def find_unprepared(path: Path) -> UserError | None:
    """``Unprepared``, with the commands to paste, for photos or a video without cameras; another fault for too few
    photos; None for anything else.

    Args:
        path: a folder or a file.
    """
    return _file_fault(path) if path.is_file() else _folder_fault(path)


def is_video(path: Path) -> bool:
    """Whether a file is a video by its ending."""
    return path.suffix.lower() in _VIDEO_SUFFIXES and path.is_file()


def _file_fault(path: Path) -> UserError | None:
    if is_video(path):
        return Unprepared(f"{path} is a video without camera poses", path)
    if path.suffix.lower() in SUFFIXES:
        return UserError(f"{path} is a single photo: give a folder of overlapping photos to `gs-train prepare`.")
    return None


def _folder_fault(path: Path) -> UserError | None:
    images = path / "images"
    folder = images if images.is_dir() and next(_files(images, _PHOTO_SUFFIXES), None) else path
    count = sum(1 for _ in _files(folder, _PHOTO_SUFFIXES))
    if count >= _FEWEST_PHOTOS:
        return Unprepared(f"{folder} holds {count} photos without camera poses", folder, path)
    videos = list(_files(path, _VIDEO_SUFFIXES))
    if len(videos) == 1:
        return Unprepared(f"{videos[0]} is a video without camera poses", videos[0], path)
    if count:
        few = f"{folder} holds {count} photo{'' if count == 1 else 's'} without camera poses"
        return UserError(
            f"{few}: take at least {_FEWEST_PHOTOS}, better twenty, and give the folder to `gs-train prepare`."
        )
    return None


def _free_place(path: Path) -> str:
    """A path for the new scene that does not exist yet."""
    stem = path.stem if path.is_file() else path.resolve().name
    parent = path.resolve().parent if path.name in ("", "..") else path.parent
    names = (f"{stem or 'photos'}_scene{number}" for number in ("", *(f"_{count}" for count in range(2, 1000))))
    return str(next(place for name in names if not (place := parent / name).exists()))


def _files(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """The files in a folder and its sub-folders with one of the endings, without hidden files."""
    for number, file in enumerate(folder.rglob("*")):
        if number >= _LOOKED_AT:
            return
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix.lower() in suffixes and not hidden and file.is_file():
            yield file
