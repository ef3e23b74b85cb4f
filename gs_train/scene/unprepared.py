"""Describes photos or a video in place of a scene, with the commands that make a scene of them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from gs_train.scene.photos.files import SUFFIXES

_VIDEO_SUFFIXES = frozenset(".mp4 .mov .m4v .avi .mkv .webm .mts .m2ts .mpg .mpeg .wmv .3gp .insv".split())
_PHOTO_SUFFIXES = SUFFIXES - frozenset(".gif .pgm .pbm .pnm .pfm .j2k".split())  # as ``gs-train prepare`` takes
_FEWEST_PHOTOS = 3  # ``gs-train prepare`` needs as many.
_LOOKED_AT = 100_000


def describe_unprepared(path: Path) -> str | None:
    """A sentence about photos or a video without cameras, with the commands to paste; None for anything else.

    Args:
        path: a folder or a file.
    """
    return _describe_file(path) if path.is_file() else _describe_folder(path)


def _describe_file(path: Path) -> str | None:
    if path.suffix.lower() in _VIDEO_SUFFIXES:
        return _commands(f"{path} is a video without camera poses", path)
    if path.suffix.lower() in SUFFIXES:
        return f"{path} is a single photo: give a folder of overlapping photos to `gs-train prepare`."
    return None


def _describe_folder(path: Path) -> str | None:
    images = path / "images"
    folder = images if images.is_dir() and next(_files(images, _PHOTO_SUFFIXES), None) else path
    count = sum(1 for _ in _files(folder, _PHOTO_SUFFIXES))
    if count >= _FEWEST_PHOTOS:
        return _commands(f"{folder} holds {count} photos without camera poses", folder, path)
    videos = list(_files(path, _VIDEO_SUFFIXES))
    if len(videos) == 1:
        return _commands(f"{videos[0]} is a video without camera poses", videos[0], path)
    if count:
        few = f"{folder} holds {count} photo{'' if count == 1 else 's'} without camera poses"
        return f"{few}: take at least {_FEWEST_PHOTOS}, better twenty, and give the folder to `gs-train prepare`."
    return None


def _commands(fault: str, source: Path, named: Path | None = None) -> str:
    """The fault, and the commands that make a scene of ``source`` beside the path that the user named."""
    scene = _free_place(named or source)
    prepare, train = (shlex.join(["gs-train", *words]) for words in (["prepare", str(source), scene], ["train", scene]))
    return f"{fault}: compute the poses with `{prepare}`, then train with `{train}`."


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
