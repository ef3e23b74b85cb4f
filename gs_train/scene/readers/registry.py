"""The table of scene formats. To add one, write a reader in a new file of this package and list it in ``READERS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gs_train.scene.readers import colmap, transforms
from gs_train.scene.readers.reconstruction import FoundModel


@dataclass(frozen=True, kw_only=True)
class SceneReader:
    """One scene format."""

    find: Callable[[Path, bool], list[FoundModel]]
    """``find(path, allow_outside)``: the models of this format in a scene folder, or the model that a scene file holds;
    preferred models first, empty if there is none.

    ``allow_outside`` permits photos and points outside the scene folder.
    """
    folder_holds: str
    """The files that mark a scene folder of this format, for the message when no reader fits."""
    file: str | None = None
    """The kind of file that a user may name in place of the folder, for the same message; None if there is none."""
    describe_incomplete: Callable[[Path], str | None] = lambda path: None
    """A sentence about a folder that holds only a part of a scene of this format; None if it holds no part of one."""


READERS: tuple[SceneReader, ...] = (
    SceneReader(find=colmap.find, folder_holds=colmap.FOLDER_HOLDS, describe_incomplete=colmap.describe_incomplete),
    SceneReader(find=transforms.find, folder_holds=transforms.FOLDER_HOLDS, file="a transforms .json file"),
)
"""Models of the first format are preferred: COLMAP's have points."""


def find_models(path: Path, allow_outside: bool) -> list[FoundModel]:
    """The models in a scene folder or file, of all formats; preferred models first."""
    return [model for reader in READERS for model in reader.find(path, allow_outside)]
