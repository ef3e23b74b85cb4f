"""Finds the files that a transforms document names: photos, masks and points."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gs_train.errors import UserError
from gs_train.scene.photos.files import SUFFIXES
from gs_train.scene.photos.find import FoundFiles, find_files, leads_out

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG")


@dataclass(frozen=True, kw_only=True, eq=False)
class FilesOfKey:
    """The files that all frames of a document name under one key, such as ``file_path``."""

    folder: Path
    """Folder of the document, which relative paths start from."""
    allow_outside: bool
    """Whether files outside of the folder are allowed."""
    found: FoundFiles
    """The files by their paths relative to the folder."""

    @staticmethod
    def read(
        file: Path, entries: Sequence[Any], key: str, allow_outside: bool, suffixes: Collection[str] = SUFFIXES
    ) -> FilesOfKey:
        """Find the files of all entries at once. Entries without a text under ``key`` are left out.

        Args:
            file: the document.
            entries: its frames, not checked.
            key: the key of the paths.
            allow_outside: as the field.
            suffixes: lower-case endings of the files to look for.
        """
        folder = file.parent
        paths = [entry.get(key) for entry in entries if isinstance(entry, dict)]
        names = [with_ending(folder, relative_path(folder, path)) for path in paths if isinstance(path, str)]
        found = find_files(folder, names, suffixes=suffixes, allow_outside=allow_outside)
        return FilesOfKey(folder=folder, allow_outside=allow_outside, found=found)

    def of(self, path: str, where: str) -> tuple[str, Path | None]:
        """The name and the file of a path as the document has it; None for a missing file.

        Raises:
            UserError: the path leads out of the folder and to no file in it, and ``allow_outside`` is off, or it holds
                a null character.
        """
        name = with_ending(self.folder, relative_path(self.folder, path))
        file = self.found.files.get(name)
        if "\0" in path or (file is None and leads_out(name) and not self.allow_outside):
            message = f"{where}: {path!r} leads out of {self.folder}"
            raise UserError(
                f"{message}: move the file there, or allow files from anywhere with `gs-train train --allow-outside`."
            )
        return self.found.names.get(name, name), file


def relative_path(folder: Path, path: str) -> str:
    """``path`` relative to ``folder``, normalised, with ``/`` between folders. Windows tools write backslashes."""
    path = path.replace("\\", "/")
    try:
        return Path(os.path.relpath(folder.absolute() / path, folder.absolute())).as_posix()
    except ValueError:  # Another drive of Windows has no relative path.
        return path


def with_ending(folder: Path, path: str) -> str:
    """``path`` with the ending of its file, because Blender leaves it out; ``path`` itself if no file matches."""
    names = (path, *(f"{path}{ending}" for ending in _ENDINGS))
    try:
        return next((name for name in names if (folder / name).is_file()), path)
    except OSError:  # A name too long for the disk counts as missing. The search for the photos reports other faults.
        return path
