"""The process that pycolmap runs in: ``python -m gs_train.prepare.worker``, one step of ``prepare.py`` each.

A process of its own, because pycolmap's image libraries and Pillow's crash each other in one, and because it can be ended at any time: what
it has done until then is in COLMAP's database. The invariant: Pillow is never imported here.

It takes one line of JSON on stdin, the job, and stops when stdin ends, so that it never outlives its parent. It answers in lines of JSON on
stdout; COLMAP's own log goes to stderr.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

_SEED = 0
_CAMERA_MODEL = "SIMPLE_RADIAL"
# Small enough for the progress to be seen to move; COLMAP writes its matches a block at a time.
_PAIRS_AT_ONCE = 100
# What one thread takes for SIFT at the 3200 px that COLMAP reduces photos to, measured.
_BYTES_PER_THREAD = 2.3e9
# Median distances from the middle of the cameras; nobody walks so far, but bundle adjustment can push a badly held camera there, and on.
_FARTHEST = 100


def main() -> None:
    """Do the job that stdin names."""
    # Ctrl-C in a terminal goes to parent and child; the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = json.loads(sys.stdin.readline())
    Thread(target=_end_with_parent, daemon=True).start()
    pycolmap: Any = import_module("pycolmap")
    pycolmap.logging.logtostderr = True
    pycolmap.set_random_seed(_SEED)
    _STEPS[job["step"]](pycolmap, job)


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock would keep the process from ending.
    while os.read(0, 1):
        pass
    os._exit(1)


def _notify(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def _cameras(pycolmap: Any, job: dict[str, Any]) -> None:
    """A new database with the photos, one camera for each group of them; its focal length is EXIF's where there is one."""
    database = Path(job["database"])
    pycolmap.Database.open(str(database)).close()
    options = pycolmap.ImageReaderOptions()
    options.camera_model = _CAMERA_MODEL
    for names in job["groups"]:
        pycolmap.import_images(
            database, job["images"], camera_mode=pycolmap.CameraMode.SINGLE, image_names=names, options=options
        )


def _features(pycolmap: Any, job: dict[str, Any]) -> None:
    """SIFT of every photo that has none in the database."""
    options = pycolmap.FeatureExtractionOptions()
    options.num_threads = threads_for_memory()
    pycolmap.extract_features(job["database"], job["images"], extraction_options=options)


def _matches(pycolmap: Any, job: dict[str, Any]) -> None:
    """Matches of every listed pair that has none in the database, checked by two-view geometry."""
    pairing = pycolmap.ImportedPairingOptions()
    pairing.block_size = _PAIRS_AT_ONCE
    pairing.match_list_path = job["pairs"]
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = _SEED
    pycolmap.match_image_pairs(job["database"], pairing_options=pairing, verification_options=verification)


def _model(pycolmap: Any, job: dict[str, Any]) -> None:
    """Incremental mapping; the model with the most photos goes to ``job["model"]``, what can be said of it to stdout."""
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = job["fewest"]
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = _SEED
    registered = 0

    def begin() -> None:
        nonlocal registered
        registered = 2
        _notify(registered=registered)

    def go_on() -> None:
        nonlocal registered
        registered += 1
        _notify(registered=registered)

    models = pycolmap.incremental_mapping(
        job["database"],
        job["images"],
        job["scratch"],
        options,
        initial_image_pair_callback=begin,
        next_image_callback=go_on,
    )
    if not models:
        _notify(names=[])
        return
    best = max(models.values(), key=lambda model: (model.num_reg_images(), model.num_points3D()))
    _drop_stray(best)
    Path(job["model"]).mkdir(parents=True)
    best.write_binary(job["model"])
    _notify(
        names=sorted(best.image(image_id).name for image_id in best.reg_image_ids()),
        models=len(models),
        points=best.num_points3D(),
        reprojection_error_px=best.compute_mean_reprojection_error(),
        track_length=best.compute_mean_track_length(),
    )


def _drop_stray(model: Any) -> None:
    """Take out the photos whose camera lies absurdly far from the others: their pose is none."""
    ids = sorted(model.reg_image_ids())
    centres = [tuple(map(float, model.image(image_id).projection_center())) for image_id in ids]
    middle = [median(axis) for axis in zip(*centres, strict=True)]
    distances = [math.dist(centre, middle) for centre in centres]
    farthest = _FARTHEST * median(distances)
    for image_id, distance in zip(ids, distances, strict=True):
        # The comparison is this way round for NaN.
        if not distance <= farthest:
            model.deregister_frame(model.image(image_id).frame_id)


def threads_for_memory() -> int:
    """All processors, or as many as the memory bears: SIFT takes gigabytes a thread."""
    threads = os.cpu_count() or 1
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        threads = min(threads, int(memory // _BYTES_PER_THREAD))
    return max(1, threads)


_STEPS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "cameras": _cameras,
    "features": _features,
    "matches": _matches,
    "model": _model,
}

if __name__ == "__main__":
    main()
