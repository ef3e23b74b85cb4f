"""Makes a COLMAP scene from a folder of photos or a video, with pycolmap.

The steps are photos, features, matches, and poses with sparse points. pycolmap runs in a process of its own, see
``worker.py``. ``photos.py`` copies the photos, ``pairs.py`` chooses the pairs to match. A step is recorded in the
scene's ``prepare.json`` when all of its result is on disk. After a stop, the same call continues with the step that it
was in. A folder that prepare did not begin stays untouched.

The photos are copied instead of linked, so the scene stays complete when the originals move or change, and the
originals are never written to. The pairs and all random draws are the same in every run, but COLMAP's threads are not
deterministic: two runs give slightly different poses and points.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from gs_train.errors import UserError
from gs_train.prepare.pairs import choose_pairs
from gs_train.prepare.photos import camera_groups, copy_photos, extract_frames, stored_names
from gs_train.prepare.source import FEWEST_PHOTOS, Source, inspect_source
from gs_train.prepare.work import Prepared, Work

__all__ = ["FEWEST_PHOTOS", "Prepared", "Progress", "prepare_scene"]

Progress = Callable[[str, int, int], None]
"""Called with the step's name, its progress and its end. Progress may go back, when COLMAP restarts a model."""

_POLL_S = 0.2
_MORE_OVERLAP = "walk around it and take more photos, each with a large overlap with the one before"


def prepare_scene(
    source: Path, scene: Path, *, frames: int | None, progress: Progress, notify: Callable[[str], None]
) -> Prepared:
    """Make the scene, or continue where an earlier call stopped.

    Args:
        source: a folder of photos (sub-folders included), or a video file.
        scene: a new folder, an empty one, or one that an earlier call with the same source began.
        frames: approximate number of frames to take from a video, None for ``DEFAULT_FRAMES``; None for photos.
        progress: see ``Progress``.
        notify: called with sentences for the user.

    Raises:
        UserError: pycolmap (or, for a video, imageio-ffmpeg) is not installed, the source or the scene cannot be used,
            the photos do not overlap enough, or pycolmap's process crashed.
    """
    inspected = inspect_source(source, scene, frames)
    work = Work(scene, inspected)
    if work.result is not None:
        notify(f"{scene} is prepared already.")
        return work.result
    for sentence in inspected.notices:
        notify(sentence)
    if "images" not in work.done:
        if inspected.video:
            notify(f"Counting the frames of {source}.")  # ffmpeg decodes all of them, without any output
        _bring_images(inspected, work, progress)
        work.finish("images")
    names = work.names()
    if "cameras" not in work.done:
        for file in scene.glob("database.db*"):
            file.unlink()
        run_worker(work, {"step": "cameras", "groups": camera_groups(work.images, names)})
        work.finish("cameras")
    if "features" not in work.done:
        show = work.watch_rows("keypoints", lambda done: progress("features", done, len(names)))
        run_worker(work, {"step": "features"}, show)
        work.finish("features")
    if "matches" not in work.done:
        _match(work, names, progress)
        work.finish("matches")
    prepared = _map(work, names, progress)
    work.finish("model", prepared)
    return prepared


def _bring_images(source: Source, work: Work, progress: Progress) -> None:
    """Copy the photos, or extract the frames, into the images folder, which appears when it is complete."""
    partial = work.path / "images.partial"
    if source.video:
        # A stopped extraction starts again from the beginning, because decoding the video is most of the work.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        assert source.frames is not None
        extract_frames(source.path, partial, source.frames, lambda done, total: progress("frames", done, total))
        count = len(list(partial.iterdir()))
        if count < FEWEST_PHOTOS:
            few = f"{source.path} has {count} frame{'' if count == 1 else 's'}"
            least = f"but prepare needs at least {FEWEST_PHOTOS}"
            raise UserError(f"{few}, {least}: give a longer video, or a folder of photos.")
    else:
        names = stored_names(source.files, source.path)
        targets = [partial / name for name in names]
        copy_photos(source.files, targets, lambda done: progress("photos", done, len(names)))
    partial.rename(work.images)


# ---- COLMAP's steps


def _match(work: Work, names: list[str], progress: Progress) -> None:
    try:
        pairs = choose_pairs(names, work.database, video=work.video)
    except (sqlite3.DatabaseError, ValueError) as error:
        raise work.damaged(work.database, error) from None
    pairs_file = work.path / "pairs.txt"
    pairs_file.write_text("".join(f"{one} {other}\n" for one, other in pairs), encoding="utf-8")
    show = work.watch_rows("two_view_geometries", lambda done: progress("matching", done, len(pairs)))
    run_worker(work, {"step": "matches", "pairs": str(pairs_file)}, show)
    if work.count("two_view_geometries WHERE rows > 0") == 0:
        message = f"no two of the {len(names)} photos in {work.images} show the same thing"
        raise UserError(f"{message}: {_MORE_OVERLAP}, and prepare them into a new folder.")


def _map(work: Work, names: list[str], progress: Progress) -> Prepared:
    scratch, sparse = work.path / "sparse.partial", work.path / "sparse"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(sparse, ignore_errors=True)
    (scratch / "all").mkdir(parents=True)

    def show(messages: list[dict[str, Any]]) -> None:
        counts = [message["registered"] for message in messages if "registered" in message]
        progress("registering", counts[-1] if counts else 0, len(names))

    chosen = scratch / "chosen"
    job = {"step": "model", "scratch": str(scratch / "all"), "model": str(chosen / "0"), "fewest": FEWEST_PHOTOS}
    messages = run_worker(work, job, show)
    figures = messages[-1]
    found = set(figures.pop("names"))
    if len(found) >= FEWEST_PHOTOS:
        chosen.rename(sparse)
    shutil.rmtree(scratch, ignore_errors=True)
    if len(found) < FEWEST_PHOTOS:
        reason = "because too few of them show the same thing from different places"
        message = f"COLMAP found no camera poses for the {len(names)} photos in {work.images}, {reason}"
        raise UserError(f"{message}: {_MORE_OVERLAP}, and prepare them into a new folder.")
    missing = tuple(name for name in names if name not in found)
    return Prepared(photos=len(names), registered=len(found), unregistered=missing, **figures)


def run_worker(
    work: Work, job: dict[str, Any], watch: Callable[[list[dict[str, Any]]], None] = lambda messages: None
) -> list[dict[str, Any]]:
    """Run one step in a worker process, which ends with this call even after an exception.

    Args:
        work: the scene.
        job: the step and its arguments, see ``worker.py``.
        watch: called a few times per second with the messages so far.

    Returns:
        The messages that the worker printed, one dict per line.

    Raises:
        UserError: the process crashed.
    """
    job = {"database": str(work.database), "images": str(work.images), **job}
    messages: list[dict[str, Any]] = []
    with work.log.open("ab") as log:
        command = [sys.executable, "-m", "gs_train.prepare.worker"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert process.stdin is not None and process.stdout is not None
        listener = Thread(target=_listen, args=(process.stdout, messages), daemon=True)
        try:
            listener.start()
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
                watch(messages)
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
        ended = f"pycolmap's process ended with code {process.returncode} in the step {job['step']}"
        remedy = (
            "give the same command again to continue; if memory ran out, close other programs or use smaller photos"
        )
        raise UserError(f"{ended} (its log is {work.log}): {remedy}.")
    return messages


def _listen(stream: Any, messages: list[dict[str, Any]]) -> None:
    for line in stream:
        messages.append(json.loads(line))
