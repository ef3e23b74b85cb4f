"""Chooses the model of a scene: a folder may hold several, of COLMAP's disconnected parts or in several formats."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gs_train.errors import UserError, first_few
from gs_train.scene.photos.find import find_files
from gs_train.scene.readers import registry
from gs_train.scene.readers.reconstruction import FoundModel, Reconstruction
from gs_train.scene.unprepared import find_unprepared

_DEPTHS = ("*", "*/*", "*/*/*")


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenModel:
    """The model to train on, and the folder of its photos."""

    model: Reconstruction
    folder: Path
    """The folder that holds the folder of the photos: the scene folder, or for undistorted photos dense/0 in it."""
    notices: tuple[str, ...]
    """Sentences about the models that are not used."""


def choose_model(path: Path, name: str, images: str, *, allow_outside: bool) -> ChosenModel:
    """Read the model ``name``, or else the model that registers the most photos on disk.

    Of models that register equally many, the first in the order of ``READERS`` wins.

    Args:
        path: a scene folder or file.
        name: the model's path in the scene folder; empty for the choice by photos.
        images: name of the folder of photos.
        allow_outside: permit photos and points outside the scene folder.

    Raises:
        UserError: there is no model, ``name`` is none of them, or the chosen model is damaged.
    """
    found = registry.find_models(path, allow_outside)
    if name:
        found = _named(path, name, found, allow_outside)
    if not found:
        raise _no_scene(path)
    chosen, notices = _choose(path, found, images)
    model = chosen.read()
    if not model.images:
        raise UserError(f"{model.images_path} registers no images: run the reconstruction again.")
    return ChosenModel(model=model, folder=_photos_above(chosen.path, path, images), notices=tuple(notices))


def _named(path: Path, name: str, found: list[FoundModel], allow_outside: bool) -> list[FoundModel]:
    """The models at ``name`` in the scene folder; several if it is a folder of several models."""
    if path.is_file():
        raise UserError(f"--model is {name}, but the scene {path} is a file: leave --model out, or name the folder.")
    place = path / name.replace("\\", "/")
    inside = os.path.normpath(place)
    if not Path(inside).is_relative_to(os.path.normpath(path)):
        raise _no_model(path, name, found)
    named = [model for model in found if os.path.normpath(model.path) == inside]
    named = named or registry.find_models(place, allow_outside)
    if not named:
        raise _no_model(path, name, found)
    return named


def _choose(path: Path, found: list[FoundModel], images: str) -> tuple[FoundModel, list[str]]:
    """The model that registers the most photos, and a notice about the others."""
    if len(found) == 1:
        return found[0], []
    counts = [_count(path, model, images) for model in found]
    best = max(range(len(found)), key=lambda place: (counts[place], -place))
    use = f"{_name(path, found[best])} is used, because no other registers more photos ({_photos(counts[best])})"
    others = [f"{_name(path, found[place])} ({_photos(counts[place])})" for place in range(len(found)) if place != best]
    choose = f"choose another with `gs-train train --model NAME`: {first_few(others)}"
    return found[best], [f"{path} holds {len(found)} models: {use}; {choose}."]


def _count(path: Path, model: FoundModel, images: str) -> tuple[int, int]:
    """Number of photos on disk that a model registers, and of all images that it lists; zeros if it is damaged."""
    try:
        names = model.names()
        folder = model.path.parent if model.path.is_file() else _photos_above(model.path, path, images) / images
        return len(find_files(folder, names).files) if folder.is_dir() else 0, len(names)
    except UserError:
        return 0, 0


def _photos(count: tuple[int, int]) -> str:
    on_disk, listed = count
    missing = "" if on_disk == listed else f" of {listed} on disk"
    return f"{on_disk}{missing}"


def _name(path: Path, model: FoundModel) -> str:
    """The name of a model for --model."""
    return model.path.relative_to(path).as_posix() if model.path != path else "."


def _photos_above(model: Path, scene: Path, images: str) -> Path:
    """The folder nearest above the files of a model, up to the scene folder, that has a folder of photos."""
    if model.is_file():
        return model.parent
    above = [folder for folder in (model, *model.parents) if folder == scene or scene in folder.parents]
    return next((folder for folder in above if (folder / images).is_dir()), scene)


# ---- errors


def _no_model(path: Path, name: str, found: list[FoundModel]) -> UserError:
    names = first_few([_name(path, model) for model in found])
    remedy = f"name one of {names}" if found else "leave --model out"
    return UserError(f"--model is {name}, which is no model in {path}: {remedy}.")


def _no_scene(path: Path) -> UserError:
    incomplete = (reader.describe_incomplete(path) for reader in registry.READERS)
    message = next(filter(None, incomplete), None) or _describe_deeper(path)
    message = message or _describe_above(path)
    if message is None and (fault := find_unprepared(path)) is not None:
        return fault
    if message is None and path.is_file():
        files = " or ".join(reader.file for reader in registry.READERS if reader.file)
        message = f"{path} is a file: give {files}, or the scene folder that holds the photos and their cameras."
    if message is None:
        looked_for = ", or ".join(reader.folder_holds for reader in registry.READERS)
        message = f"{path} is not a scene: give a folder that holds photos and {looked_for}."
    return UserError(message)


def _describe_deeper(path: Path) -> str | None:
    """A sentence about models in sub-folders that are not searched; None without one."""
    folders = [folder for depth in _DEPTHS for folder in sorted(path.glob(depth)) if folder.is_dir()]
    found = [model for folder in folders for model in registry.find_models(folder, False)]
    names = list(dict.fromkeys(_name(path, model) for model in found))
    if not names:
        return None
    command = shlex.join(["gs-train", "train", str(path), "--model", names[0]])
    return f"{path} holds no model itself, but {first_few(names)}: choose one with `{command}`."


def _describe_above(path: Path) -> str | None:
    """A sentence about a folder of photos that the scene above it registers; None for anything else."""
    scene = path.parent if path.name not in ("", "..") else path.resolve().parent
    for model in registry.find_models(scene, False) if path.is_dir() else []:
        with suppress(UserError):
            if any((path / PurePosixPath(name).name).is_file() for name in model.names()):
                named = [] if path.resolve().name == "images" or model.path.is_file() else ["--images", path.name]
                command = shlex.join(["gs-train", "train", str(scene), *named])
                return f"{path} holds photos of the scene {scene}: name the scene instead, as in `{command}`."
    return None
