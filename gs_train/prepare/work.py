"""``Work``: the folder of a scene in the making, with a record of the finished steps in its ``prepare.json``."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gs_train.atomic_write import atomic_write_text
from gs_train.errors import UserError
from gs_train.prepare.source import Source

_RECORD = "prepare.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The result of ``prepare_scene``."""

    photos: int
    """Number of photos in the scene's images folder."""
    registered: int
    """Number of photos with a pose."""
    unregistered: tuple[str, ...]
    """Names of the photos without a pose."""
    models: int
    """Number of disconnected models that COLMAP found. The scene holds the largest."""
    points: int
    """Number of sparse points."""
    reprojection_error_px: float
    """Mean reprojection error over the points, px."""
    track_length: float
    """Mean number of photos that observe a point."""
    agreeing_matches: float = 1.0
    """Share of the verified matches between registered photos that agree with the poses, 0 to 1."""
    global_mapping: bool = False
    """Whether global mapping gave the poses, because incremental mapping contradicted the matches."""


class Work:
    """The paths and finished steps of a scene in the making."""

    def __init__(self, path: Path, source: Source) -> None:
        """Open a folder that an earlier call began, or begin a new one.

        Raises:
            UserError: the folder holds something else, or an earlier call began it from another source.
        """
        self.path = path
        self.video = source.video
        self.images = path / "images"
        self.database = path / "database.db"
        self.log = path / "prepare.log"
        self._record: dict[str, Any] = {
            "format": _FORMAT,
            "source": str(source.path.resolve()),
            "identity": source.identity,
            "frames": source.frames,
            "done": [],
            "result": None,
        }
        if (path / _RECORD).is_file():
            self._resume(source)
            return
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists, but prepare did not begin it: give a new or empty folder.")
        path.mkdir(parents=True, exist_ok=True)
        self._save()

    @property
    def done(self) -> list[str]:
        """Steps whose result is on disk, in order."""
        return list(self._record["done"])

    @property
    def result(self) -> Prepared | None:
        """The result; None until all steps are done."""
        stored = self._record["result"]
        return None if stored is None else _prepared(stored)

    def finish(self, step: str, result: Prepared | None = None) -> None:
        """Record that a step is done."""
        self._record["done"].append(step)
        self._record["result"] = None if result is None else vars(result)
        self._save()

    def names(self) -> list[str]:
        """Paths of the photos inside the images folder, sorted, with ``/`` between folders."""
        return sorted(file.relative_to(self.images).as_posix() for file in self.images.rglob("*") if file.is_file())

    def count(self, table: str) -> int | None:
        """Number of rows in a table of the database; None if the table does not exist yet or is locked.

        Raises:
            UserError: the database is damaged.
        """
        if not self.database.exists():
            return None
        try:
            with closing(sqlite3.connect(f"{self.database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
                return int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
        except sqlite3.OperationalError:
            return None
        except sqlite3.DatabaseError as error:
            raise self.damaged(self.database, error) from None

    def damaged(self, file: Path, error: Exception) -> UserError:
        """The error for a file that an earlier call wrote and that cannot be read."""
        return UserError(f"{file} is damaged ({error}): delete {self.path} and give the command again.")

    def watch_rows(self, table: str, show: Callable[[int], None]) -> Callable[[list[dict[str, Any]]], None]:
        """A ``watch`` argument for ``run_worker`` that shows the progress by the rows in a table."""

        def watch(_messages: list[dict[str, Any]]) -> None:
            rows = self.count(table)
            if rows is not None:
                show(rows)

        return watch

    def _resume(self, source: Source) -> None:
        file = self.path / _RECORD
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            identity, frames, done = record["identity"], record["frames"], record["done"]
            if not isinstance(done, list) or any(not isinstance(step, str) for step in done):
                raise ValueError(f"done is {done!r}")
            result = record["result"] if "model" in done else None
            if result is not None:
                _prepared(result)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self.damaged(file, error) from None
        # Until all photos are copied nothing depends on them, and the user may have replaced an unreadable one.
        if "images" not in done and (identity, frames) != (source.identity, source.frames):
            shutil.rmtree(self.path / "images.partial", ignore_errors=True)
            self._save()
            return
        if identity != source.identity:
            message = f"{self.path} was prepared from other photos than {source.path} holds now"
            raise UserError(f"{message}: give a new folder, or delete {self.path}.")
        if frames != source.frames:
            raise UserError(f"{self.path} was prepared with --frames {frames}: give the same number, or a new folder.")
        # If the user deleted the result of a step, that step and all later steps run again.
        for step, place in (("images", self.images), ("cameras", self.database), ("model", self.path / "sparse" / "0")):
            if step in done and not place.exists():
                done = done[: done.index(step)]
        self._record.update(done=done, result=result if "model" in done else None)

    def _save(self) -> None:
        atomic_write_text(self.path / _RECORD, json.dumps(self._record, indent=1))


def _prepared(stored: Any) -> Prepared:
    """A result that ``finish`` stored. Raises KeyError, TypeError or ValueError if it is none."""
    result = Prepared(**{**stored, "unregistered": tuple(stored["unregistered"])})
    for name, value in vars(result).items():
        kinds = {"unregistered": tuple, "global_mapping": bool}.get(name, int | float)
        if not isinstance(value, kinds):
            raise ValueError(f"{name} is {value!r}")
    if not all(isinstance(name, str) for name in result.unregistered):
        raise ValueError("unregistered holds values that are no names")
    return result
