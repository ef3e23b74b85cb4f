"""From a folder of photos, or a video, to a COLMAP scene: photos, features, matches, camera poses and sparse points, by pycolmap.

Not here: pycolmap itself, which runs in a process of its own (``prepare_worker.py``); what the photos go through before
(``prepare_images.py``). The invariant: a step is recorded in the scene's ``prepare.json`` once all of its result is on disk, so that the
same call after a stop goes on with the step it was in, and a folder that is not ours is never written to.

The photos are copied, not linked: a scene stays whole when the originals are moved or edited, and the originals are never touched. Which
photos are compared, and every random draw in COLMAP, is the same each time; its threads are not, so that two runs give the same
poses and points but for small differences.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

from gs_train.errors import UserError
from gs_train.prepare.pairs import choose_pairs
from gs_train.prepare.photos import camera_groups, copy_photos, extract_frames, fingerprint, list_photos, stored_names

DEFAULT_FRAMES = 150
"""Frames taken from a video where nobody says how many."""

FEWEST_PHOTOS = 3
"""Fewer than these are refused, and so is a model of fewer: there would be nothing to test on, or to train on."""

Progress = Callable[[str, int, int], None]
"""Called with the step's name, how far it is and where it ends; a step may fall back (COLMAP drops a bad beginning of a model)."""

_RECORD = "prepare.json"
_FORMAT = 1
_POLL_S = 0.2
_MORE_OVERLAP = "take more while walking around it, each sharing most of what it shows with the one before"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What came out."""

    photos: int
    """In the scene's images folder."""
    registered: int
    """Photos whose pose was found."""
    unregistered: tuple[str, ...]
    """Names of the others."""
    models: int
    """Parts that do not hang together, of which the largest was taken."""
    points: int
    """Sparse points."""
    reprojection_error_px: float
    """Mean over the points."""
    track_length: float
    """Mean number of photos that a point was found in."""


def prepare_scene(
    source: Path, scene: Path, *, frames: int | None, progress: Progress, notify: Callable[[str], None]
) -> Prepared:
    """Make the scene, or go on making it where an earlier call was stopped.

    Args:
        source: a folder of photos (sub-folders included), or a video file.
        scene: a folder that does not exist yet, an empty one, or one that an earlier call with the same source began.
        frames: about so many are taken from a video; None for ``DEFAULT_FRAMES``. Not for photos.
        progress: see ``Progress``.
        notify: called with sentences worth knowing.

    Raises:
        UserError: pycolmap (or for a video imageio-ffmpeg) is not installed, the source or the scene cannot be used, the photos do not
            show enough of the same thing, or pycolmap's process crashed.
    """
    source_input = _look_at(source, scene, frames)
    work = _Work(scene, source_input)
    if work.result is not None:
        notify(f"{scene} is prepared already.")
        return work.result
    for sentence in source_input.notices:
        notify(sentence)
    if "images" not in work.done:
        if source_input.video:
            notify(f"Counting the frames of {source}.")  # ffmpeg decodes all of them for it, without a word
        _bring_images(source_input, work, progress)
        work.finish("images")
    names = work.names()
    if "cameras" not in work.done:
        for file in scene.glob("database.db*"):
            file.unlink()
        _run_worker(work, {"step": "cameras", "groups": camera_groups(work.images, names)})
        work.finish("cameras")
    if "features" not in work.done:
        _run_worker(
            work, {"step": "features"}, work.rows_of("keypoints", lambda done: progress("features", done, len(names)))
        )
        work.finish("features")
    if "matches" not in work.done:
        _match(work, names, progress)
        work.finish("matches")
    prepared = _map(work, names, progress)
    work.finish("model", prepared)
    return prepared


# ---- what to make the scene from


@dataclass(frozen=True, kw_only=True)
class _Input:
    source: Path
    files: tuple[Path, ...]
    video: bool
    frames: int | None
    """None for photos."""
    identity: str
    notices: tuple[str, ...]


def _look_at(source: Path, scene: Path, frames: int | None) -> _Input:
    if not source.exists():
        raise UserError(f"{source} does not exist: give a folder of photos, or a video.")
    video = not source.is_dir()
    _need("pycolmap", "")
    try:
        str(scene.resolve()).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{scene.resolve()} has a name that is not UTF-8, which COLMAP cannot take: give another place."
        ) from None
    if video:
        _need("imageio_ffmpeg", " for a video")
        identity = fingerprint([source], source.parent)
        return _Input(
            source=source, files=(source,), video=True, frames=frames or DEFAULT_FRAMES, identity=identity, notices=()
        )
    if frames is not None:
        raise UserError(f"--frames is for a video, and {source} is a folder of photos: leave it out.")
    if scene.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"{scene} lies in the folder of the photos, {source}: give a place outside of it for the scene."
        )
    photos, others = list_photos(source)
    endings = Counter(file.suffix or "without an ending" for file in others).most_common(5)
    kinds = ", ".join(f"{count} {ending}" for ending, count in endings)
    if not photos:
        message = f"{source} holds no photos{f' of a kind that is read here (it holds {kinds})' if others else ''}"
        raise UserError(f"{message}: give a folder of JPEG, PNG, TIFF or WebP files.")
    if len(photos) < FEWEST_PHOTOS:
        few = f"{source} holds {len(photos)} photo{'' if len(photos) == 1 else 's'}"
        raise UserError(f"{few}, and {FEWEST_PHOTOS} are the least: some twenty are a good beginning.")
    notices = (
        (f"Files that are not photos, or of a kind that is not read here, are left out ({kinds}).",) if others else ()
    )
    identity = fingerprint(photos, source)
    return _Input(source=source, files=tuple(photos), video=False, frames=None, identity=identity, notices=notices)


def _need(module: str, purpose: str) -> None:
    if find_spec(module) is None:
        package = module.replace("_", "-")
        raise UserError(
            f"prepare needs {package}{purpose}, which is not installed: {sys.executable} -m pip install {package}."
        )


def _bring_images(source_input: _Input, work: _Work, progress: Progress) -> None:
    partial = work.path / "images.partial"
    if source_input.video:
        # Frames of a pass that was stopped are not worth telling from those still to come: the pass is the work.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        assert source_input.frames is not None
        extract_frames(
            source_input.source, partial, source_input.frames, lambda done, total: progress("frames", done, total)
        )
        count = len(list(partial.iterdir()))
        if count < FEWEST_PHOTOS:
            few = f"{source_input.source} gives {count} frame{'' if count == 1 else 's'}"
            raise UserError(f"{few}, and {FEWEST_PHOTOS} are the least: give a longer video, or a folder of photos.")
    else:
        names = stored_names(source_input.files, source_input.source)
        count = len(names)
        copy_photos(
            source_input.files, [partial / name for name in names], lambda done: progress("photos", done, count)
        )
    partial.rename(work.images)


# ---- COLMAP's steps


def _match(work: _Work, names: list[str], progress: Progress) -> None:
    pairs = choose_pairs(names, work.database, video=work.video)
    pairs_file = work.path / "pairs.txt"
    pairs_file.write_text("".join(f"{one} {other}\n" for one, other in pairs), encoding="utf-8")
    show = work.rows_of("two_view_geometries", lambda done: progress("matching", done, len(pairs)))
    _run_worker(work, {"step": "matches", "pairs": str(pairs_file)}, show)
    if work.count("two_view_geometries WHERE rows > 0") == 0:
        message = f"no two of the {len(names)} photos in {work.images} show the same thing"
        raise UserError(f"{message}: {_MORE_OVERLAP}, and prepare them into a new folder.")


def _map(work: _Work, names: list[str], progress: Progress) -> Prepared:
    scratch, sparse = work.path / "sparse.partial", work.path / "sparse"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(sparse, ignore_errors=True)
    (scratch / "all").mkdir(parents=True)

    def show(said: list[dict[str, Any]]) -> None:
        counts = [line["registered"] for line in said if "registered" in line]
        progress("registering", counts[-1] if counts else 0, len(names))

    chosen = scratch / "chosen"
    job = {"step": "model", "scratch": str(scratch / "all"), "model": str(chosen / "0"), "fewest": FEWEST_PHOTOS}
    said = _run_worker(work, job, show)
    figures = said[-1]
    found = set(figures.pop("names"))
    if len(found) >= FEWEST_PHOTOS:
        chosen.rename(sparse)
    shutil.rmtree(scratch, ignore_errors=True)
    if len(found) < FEWEST_PHOTOS:
        message = f"no camera poses could be found for the {len(names)} photos in {work.images}, because too few were taken from places apart"
        raise UserError(f"{message} or show the same thing: {_MORE_OVERLAP}, and prepare them into a new folder.")
    missing = tuple(name for name in names if name not in found)
    return Prepared(photos=len(names), registered=len(found), unregistered=missing, **figures)


def _run_worker(
    work: _Work, job: dict[str, Any], watch: Callable[[list[dict[str, Any]]], None] = lambda said: None
) -> list[dict[str, Any]]:
    """Run one step in a process of its own, which ends with this call whatever happens; what it said, a dict a line."""
    job = {"database": str(work.database), "images": str(work.images), **job}
    said: list[dict[str, Any]] = []
    with work.log.open("ab") as log:
        command = [sys.executable, "-m", "gs_train.prepare.worker"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert process.stdin is not None and process.stdout is not None
        listener = Thread(target=_listen, args=(process.stdout, said), daemon=True)
        try:
            listener.start()
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
                watch(said)
                if process.returncode is not None:
                    break
        finally:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                process.stdin.close()
            listener.join()
            process.stdout.close()
    if process.returncode != 0:
        message = (
            f"pycolmap's process ended with code {process.returncode} in the step {job['step']} (its log is {work.log})"
        )
        raise UserError(
            f"{message}: give the same command again to go on, and if memory ran out close other programs or use smaller photos."
        )
    return said


def _listen(stream: Any, said: list[dict[str, Any]]) -> None:
    for line in stream:
        said.append(json.loads(line))


# ---- the scene's folder


class _Work:
    """The folder of a scene in the making, and its record of the steps that are done."""

    def __init__(self, path: Path, source_input: _Input) -> None:
        """Open a folder of ours, or begin a new one.

        Raises:
            UserError: the folder holds something else, or was begun from another source.
        """
        self.path = path
        self.video = source_input.video
        self.images = path / "images"
        self.database = path / "database.db"
        self.log = path / "prepare.log"
        self._record: dict[str, Any] = {
            "format": _FORMAT,
            "source": str(source_input.source.resolve()),
            "identity": source_input.identity,
            "frames": source_input.frames,
            "done": [],
            "result": None,
        }
        if (path / _RECORD).is_file():
            self._go_on(source_input)
            return
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists and is not a scene that prepare began: give a new or empty folder.")
        path.mkdir(parents=True, exist_ok=True)
        self._save()

    @property
    def done(self) -> list[str]:
        """Steps whose result is on disk, in order."""
        return list(self._record["done"])

    @property
    def result(self) -> Prepared | None:
        """What came out, once all steps are done."""
        stored = self._record["result"]
        return None if stored is None else Prepared(**{**stored, "unregistered": tuple(stored["unregistered"])})

    def finish(self, step: str, result: Prepared | None = None) -> None:
        """Record that a step is done."""
        self._record["done"].append(step)
        self._record["result"] = None if result is None else vars(result)
        self._save()

    def names(self) -> list[str]:
        """The photos inside the images folder, sorted, ``/`` between folders."""
        return sorted(file.relative_to(self.images).as_posix() for file in self.images.rglob("*") if file.is_file())

    def count(self, table: str) -> int | None:
        """Rows of a table of the database; None while there is none that can be read."""
        if not self.database.exists():
            return None
        try:
            with closing(sqlite3.connect(f"{self.database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
                return int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
        except sqlite3.OperationalError:
            return None

    def rows_of(self, table: str, show: Callable[[int], None]) -> Callable[[list[dict[str, Any]]], None]:
        """What watches a worker by the rows that it adds."""

        def watch(_said: list[dict[str, Any]]) -> None:
            rows = self.count(table)
            if rows is not None:
                show(rows)

        return watch

    def _go_on(self, source_input: _Input) -> None:
        file = self.path / _RECORD
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            identity, frames, done = record["identity"], record["frames"], record["done"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file} is damaged: delete {self.path} and give the command again.") from None
        # As long as the photos are not all there nothing depends on them, and one that could not be read may have been put right.
        if "images" not in done and (identity, frames) != (source_input.identity, source_input.frames):
            shutil.rmtree(self.path / "images.partial", ignore_errors=True)
            self._save()
            return
        if identity != source_input.identity:
            message = f"{self.path} was prepared from other photos than {source_input.source} holds now"
            raise UserError(f"{message}: give a new folder, or delete {self.path}.")
        if frames != source_input.frames:
            raise UserError(f"{self.path} was prepared with --frames {frames}: give the same number, or a new folder.")
        # A result that somebody has deleted is made again, and so is what came after it.
        for step, place in (("images", self.images), ("cameras", self.database), ("model", self.path / "sparse" / "0")):
            if step in done and not place.exists():
                done = done[: done.index(step)]
        result = record["result"] if "model" in done else None
        self._record.update(done=done, result=result)

    def _save(self) -> None:
        partial = self.path / f".{_RECORD}.partial"
        with partial.open("w", encoding="utf-8") as file:
            json.dump(self._record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / _RECORD)
