"""The table of scene formats. To add one, write a reader in a new file of this package and list it in ``READERS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gs_train.errors import UserError
from gs_train.scene.readers import colmap, transforms
from gs_train.scene.readers.reconstruction import Reconstruction


@dataclass(frozen=True, kw_only=True)
class SceneReader:
    """One scene format."""

    read: Callable[[Path, bool], Reconstruction | None]
    """``read(path, allow_outside)``: read a scene folder or file; None if it is not a scene of this format.

    ``allow_outside`` permits photos and points outside the scene folder. A damaged scene raises UserError.
    """
    folder_holds: str
    """The files that mark a scene folder of this format, for the message when no reader fits."""
    file: str | None = None
    """The kind of file that a user may name in place of the folder, for the same message; None if there is none."""


READERS: tuple[SceneReader, ...] = (
    SceneReader(read=colmap.read, folder_holds=colmap.FOLDER_HOLDS),
    SceneReader(read=transforms.read, folder_holds=transforms.FOLDER_HOLDS, file="a transforms .json file"),
)
"""Tried in this order: in a folder with several formats, COLMAP's is the one with points."""


def read_scene(path: Path, *, allow_outside: bool) -> Reconstruction:
    """Read the scene folder or file with the first reader that knows it.

    Raises:
        UserError: the scene is damaged, or no reader knows it.
    """
    for reader in READERS:
        found = reader.read(path, allow_outside)
        if found is not None:
            return found
    if path.is_file():
        files = " or ".join(reader.file for reader in READERS if reader.file)
        raise UserError(f"{path} is a file: give {files}, or the scene folder that holds the photos and their cameras.")
    looked_for = ", or ".join(reader.folder_holds for reader in READERS)
    raise UserError(f"{path} is not a scene: give a folder that holds photos and {looked_for}.")
