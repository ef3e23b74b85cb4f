"""The process that runs pycolmap: ``python -m gs_train.prepare.worker`` does one step of ``pipeline.py``.

pycolmap has its own process, because its image libraries and Pillow's crash each other in one process, and because a
process can be ended at any time: its finished work is in COLMAP's database. This module must never import Pillow.

The process reads one line of JSON from stdin, the job, and ends when stdin ends, so that it never outlives its parent.
It answers with lines of JSON on stdout. COLMAP's own log goes to stderr.
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

import numpy as np
from numpy.typing import NDArray

from gs_train.machine import physical_memory

_SEED = 0
_CAMERA_MODEL = "SIMPLE_RADIAL"
# COLMAP writes its matches one block at a time, so small blocks show the progress.
_PAIRS_AT_ONCE = 100
# Memory of one SIFT thread at 3200 px, the size that COLMAP reduces photos to; measured.
_BYTES_PER_THREAD = 2.3e9
# Largest distance of a camera from the middle of all cameras, in median distances. Bundle adjustment can push a badly
# constrained camera much farther.
_FARTHEST = 100
_EXTENT = 5.0
"""Extent of a prepared scene: 1.1 x the largest distance of a camera from the mean of all cameras."""
MANY_AGREEING = 0.7
"""A model with a smaller share of agreeing matches is probably wrong in parts."""
_LEAST_KEPT = 0.9
"""Global mapping replaces incremental mapping if it registers at least this share of the photos."""
_LEAST_COMMON = 0.5
"""Smallest length of the mean of the photos' downward unit vectors, at which they have a common direction."""


def main() -> None:
    """Do the job given on stdin."""
    # Ctrl-C in a terminal reaches parent and child; the parent decides alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = json.loads(sys.stdin.readline())
    Thread(target=_end_with_parent, daemon=True).start()
    pycolmap: Any = import_module("pycolmap")
    pycolmap.logging.logtostderr = True
    pycolmap.set_random_seed(_SEED)
    _STEPS[job["step"]](pycolmap, job)


def _end_with_parent() -> None:
    # os.read instead of sys.stdin, because the lock of sys.stdin would keep the process from ending.
    while os.read(0, 1):
        pass
    os._exit(1)


def _notify(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def _cameras(pycolmap: Any, job: dict[str, Any]) -> None:
    """Create the database with the photos, and one camera per group, with EXIF's focal length if there is one."""
    database = Path(job["database"])
    pycolmap.Database.open(str(database)).close()
    options = pycolmap.ImageReaderOptions()
    options.camera_model = _CAMERA_MODEL
    for names in job["groups"]:
        pycolmap.import_images(
            database, job["images"], camera_mode=pycolmap.CameraMode.SINGLE, image_names=names, options=options
        )


def _features(pycolmap: Any, job: dict[str, Any]) -> None:
    """Compute SIFT features of every photo without features in the database."""
    options = pycolmap.FeatureExtractionOptions()
    options.num_threads = threads_for_memory()
    pycolmap.extract_features(job["database"], job["images"], extraction_options=options)


def _matches(pycolmap: Any, job: dict[str, Any]) -> None:
    """Match every listed pair without matches in the database, and verify the matches by two-view geometry."""
    pairing = pycolmap.ImportedPairingOptions()
    pairing.block_size = _PAIRS_AT_ONCE
    pairing.match_list_path = job["pairs"]
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = _SEED
    pycolmap.match_image_pairs(job["database"], pairing_options=pairing, verification_options=verification)


def _model(pycolmap: Any, job: dict[str, Any]) -> None:
    """Run incremental mapping. Writes the model with the most photos to ``job["model"]`` and its figures to stdout."""
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = job["fewest"]
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = _SEED
    registered = 0

    def begin() -> None:
        nonlocal registered
        registered = 2
        _notify(registered=registered)

    def register_next() -> None:
        nonlocal registered
        registered += 1
        _notify(registered=registered)

    models = pycolmap.incremental_mapping(
        job["database"],
        job["images"],
        job["scratch"],
        options,
        initial_image_pair_callback=begin,
        next_image_callback=register_next,
    )
    if not models:
        _notify(names=[])
        return
    best = _largest(models)
    agreeing, count, second = agreeing_matches(pycolmap, job["database"], best), len(models), False
    if agreeing < MANY_AGREEING:
        # Incremental mapping cannot take back an early error. Global mapping looks at all pairs at once.
        others = _map_globally(pycolmap, job)
        if others:
            other = _largest(others)
            share = agreeing_matches(pycolmap, job["database"], other)
            if share > agreeing and other.num_reg_images() >= _LEAST_KEPT * best.num_reg_images():
                best, agreeing, count, second = other, share, len(others), True
    _set_upright(pycolmap, best)
    Path(job["model"]).mkdir(parents=True)
    best.write_binary(job["model"])
    _notify(
        names=sorted(best.image(image_id).name for image_id in best.reg_image_ids()),
        models=count,
        points=best.num_points3D(),
        reprojection_error_px=best.compute_mean_reprojection_error(),
        track_length=best.compute_mean_track_length(),
        agreeing_matches=agreeing,
        global_mapping=second,
    )


def _drop_stray(model: Any) -> None:
    """Deregister photos whose camera lies absurdly far from the others, because their pose is wrong."""
    ids = sorted(model.reg_image_ids())
    centres = [tuple(map(float, model.image(image_id).projection_center())) for image_id in ids]
    middle = [median(axis) for axis in zip(*centres, strict=True)]
    distances = [math.dist(centre, middle) for centre in centres]
    farthest = _FARTHEST * median(distances)
    for image_id, distance in zip(ids, distances, strict=True):
        # "not <=" is also true for NaN.
        if not distance <= farthest:
            model.deregister_frame(model.image(image_id).frame_id)


def _map_globally(pycolmap: Any, job: dict[str, Any]) -> dict[int, Any]:
    """All models of global mapping."""
    options = pycolmap.GlobalPipelineOptions()
    options.random_seed = _SEED
    options.min_model_size = job["fewest"]
    folder = Path(job["scratch"]).parent / "global"
    folder.mkdir()
    models: dict[int, Any] = pycolmap.global_mapping(job["database"], job["images"], str(folder), options)
    return models


def _largest(models: dict[int, Any]) -> Any:
    """The model with the most photos, without stray photos."""
    best = max(models.values(), key=lambda model: (model.num_reg_images(), model.num_points3D()))
    _drop_stray(best)
    return best


def agreeing_matches(pycolmap: Any, database: str, model: Any) -> float:
    """Share of the verified matches between registered photos whose two features are one point of the model, 0 to 1.

    Photos that look alike but show different places give verified matches that no right geometry can explain. Measured:
    0.81 and 0.95 for right poses, 0.52 for wrong poses of photos that are all registered.
    """
    images = {model.image(image_id).name: model.image(image_id) for image_id in model.reg_image_ids()}
    # Features without a point have the largest 64-bit number.
    points = {
        name: np.array([feature.point3D_id for feature in image.points2D], np.uint64) for name, image in images.items()
    }
    opened = pycolmap.Database.open(database)
    names = {image.image_id: image.name for image in opened.read_all_images()}
    pairs, geometries = opened.read_two_view_geometries()
    opened.close()
    agreeing = verified = 0
    for pair, geometry in zip(pairs, geometries, strict=True):
        first, second = (points.get(names[image_id]) for image_id in pycolmap.pair_id_to_image_pair(pair))
        matches = np.asarray(geometry.inlier_matches)
        if first is None or second is None or len(matches) == 0:
            continue
        one, other = first[matches[:, 0]], second[matches[:, 1]]
        verified += len(matches)
        agreeing += int(np.count_nonzero((one == other) & (one != np.iinfo(np.uint64).max)))
    return agreeing / verified if verified else 1.0


def _set_upright(pycolmap: Any, model: Any) -> None:
    """Turn the model so that the photos' mean upward direction is -y, and scale it to an extent of ``_EXTENT``.

    -y is up in a COLMAP model as photographers hold their cameras, and viewers of splats show it upright. Photos
    without a common direction keep their orientation.
    """
    images = [model.image(image_id) for image_id in sorted(model.reg_image_ids())]
    centres = np.array([image.projection_center() for image in images], np.float64)
    down = np.mean([image.cam_from_world().rotation.matrix()[1] for image in images], axis=0)
    middle = centres.mean(axis=0)
    radius = float(np.linalg.norm(centres - middle, axis=1).max())
    if not radius > 0:
        return
    turn = turn_onto_y(down) if np.linalg.norm(down) >= _LEAST_COMMON else np.eye(3)
    scale = _EXTENT / (1.1 * radius)
    model.transform(pycolmap.Sim3d(scale, pycolmap.Rotation3d(turn), -scale * turn @ middle))


def turn_onto_y(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3, 3] the smallest rotation that turns ``direction`` [3] onto +y (Rodrigues' formula)."""
    x, y, z = direction / np.linalg.norm(direction)
    if y < -1 + 1e-12:
        return np.diag((1.0, -1.0, -1.0))
    cross = np.array(((0.0, -x, 0.0), (x, 0.0, z), (0.0, -z, 0.0)))
    return np.asarray(np.eye(3) + cross + cross @ cross / (1.0 + y))


def threads_for_memory() -> int:
    """Number of threads for SIFT: all processors, or fewer if memory is short, because each thread takes gigabytes."""
    threads = os.cpu_count() or 1
    memory = physical_memory()
    if memory is not None:
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
