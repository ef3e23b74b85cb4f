"""Locates the photos of a scene: the folder, at full or reduced size, and the file of each image.

``find.py`` compares names with files.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gs_train.errors import UserError
from gs_train.scene.photos.files import read_header
from gs_train.scene.photos.find import FoundFiles, find_files, folder_alike
from gs_train.scene.photos.fit import fits_either_way
from gs_train.scene.readers.reconstruction import Reconstruction, RegisteredImage

_DEFAULT_FOLDER = "images"
_REDUCED = (2, 4, 8)
_PROBED = 20
"""Number of names with which to look for the folder of the photos."""
_LEVELS = 3
"""Number of folders above a model in which to look for its photos: sparse/0 lies two folders below the scene."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScenePhotos:
    """The images to use and their files."""

    folder: Path
    reduced: bool
    """Whether the folder holds the photos at training size."""
    files: tuple[tuple[RegisteredImage, Path], ...]
    """Sorted by name, all of them on disk."""
    notices: tuple[str, ...] = ()


def locate_photos(
    scene: Path,
    images: str,
    resolution: int,
    model: Reconstruction,
    *,
    skip_missing: bool,
    on_fault: Callable[[UserError], None],
) -> ScenePhotos:
    """Find the folder and the files of the photos.

    Args:
        scene: the folder that holds the folder of the photos.
        images: name of that folder.
        resolution: as in ``SceneConfig``. A folder such as images_4 is used if its photos fit.
        model: the images to find.
        skip_missing: leave out missing photos with a notice.
        on_fault: takes the fault of missing photos. If it returns, they are left out.

    Raises:
        UserError: there is no folder of photos, or ``images`` does not go with the model.
    """
    if model.names_from_scene:
        if images != _DEFAULT_FOLDER:
            message = f"--images is {images}, but {model.images_path} itself names the folders of its photos"
            raise UserError(f"{message}: leave --images out.")
        files = {image.name: image.file for image in model.images if image.file is not None}
        names = [image.name for image in model.images]
        found = find_files(scene, [name for name in names if name not in files])
        found = replace(found, files=files, names={name: name for name in files})
        return _listed(found, model, skip_missing, [], on_fault)
    notices: list[str] = []
    reduced = scene / f"{images}_{resolution}"
    if resolution in _REDUCED and reduced.is_dir():
        found = find_files(reduced, [image.name for image in model.images])
        misfit = _first_misfit(found, resolution, model)
        if misfit is None:
            return replace(_listed(found, model, skip_missing, [], on_fault), reduced=True)
        notices.append(f"{reduced} is not used, because {misfit}: training resizes the photos in {images} instead.")
    folder = folder_alike(scene, images)
    if not folder.is_dir():
        raise _no_folder(scene, images, model)
    if folder != scene / images:
        notices.append(f"{scene} has no folder {images}: the photos in {folder.name} are used.")
    found = find_files(folder, [image.name for image in model.images])
    return _listed(found, model, skip_missing, [*notices, *found.notice(model.images_path)], on_fault)


def _listed(
    found: FoundFiles,
    model: Reconstruction,
    skip_missing: bool,
    notices: list[str],
    on_fault: Callable[[UserError], None],
) -> ScenePhotos:
    """The images whose files are found. The others are a fault, or with ``skip_missing`` a notice."""
    missing = sorted(image.name for image in model.images if image.name not in found.files)
    if missing:
        fault, remedy = found.describe_missing(missing, len(model.images), model.images_path)
        if skip_missing:
            notices = [*notices, f"{fault}: training continues without them."]
        else:
            on_fault(UserError(f"{fault}: {remedy}, or train without them with `gs-train train --skip-missing`."))
    files = [
        (replace(image, name=found.names[image.name]), found.files[image.name])
        for image in model.images
        if image.name in found.files
    ]
    files.sort(key=lambda pair: pair[0].name)
    return ScenePhotos(folder=found.folder, reduced=False, files=tuple(files), notices=tuple(notices))


def _first_misfit(found: FoundFiles, factor: int, model: Reconstruction) -> str | None:
    """The reason why the files are not the photos at 1/factor of their size; None if they are."""
    for image in sorted(model.images, key=lambda image: image.name):
        file = found.files.get(image.name)
        if file is None:
            return f"it has no {image.name}"
        header = read_header(file)
        if not fits_either_way(header, model.cameras[image.camera_id], factor):
            return f"{image.name} is {header.size[0]}x{header.size[1]} px there"
    return None


def _no_folder(scene: Path, images: str, model: Reconstruction) -> UserError:
    """The error for a missing folder of photos. The message names the folder that holds them, if there is one."""
    names = [image.name for image in model.images[:_PROBED]]
    folders = sorted(folder for folder in scene.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    counts = {folder: len(find_files(folder, names).files) for folder in (*folders, scene)}
    best = max(counts, key=lambda folder: counts[folder])
    missing = f"{scene / images} does not exist"
    if counts[best]:
        here = "the scene folder itself" if best == scene else str(best)
        flag = shlex.join(["--images", best.relative_to(scene).as_posix()])
        return UserError(f"{missing}, but {here} holds the photos: train with {flag}.")
    place = Path(os.path.abspath(scene))
    above = next((folder for folder in place.parents[:_LEVELS] if (folder / images).is_dir()), None)
    if above is not None:
        train = shlex.join(["gs-train", "train", str(above), "--model", place.relative_to(above).as_posix()])
        return UserError(f"{missing}, but {above / images} does: name the scene folder with `{train}`.")
    return UserError(f"{missing}: put the photos there, or name their folder with `gs-train train --images`.")
