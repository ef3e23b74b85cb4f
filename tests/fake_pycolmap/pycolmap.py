"""A fake pycolmap: it answers the calls of ``prepare/worker.py`` with given results, on a real database.

Tests put this folder on the path of ``gs-train prepare``. The environment variable FAKE_PYCOLMAP holds JSON: ``log`` (a
file that gets one line per call), ``crash`` and ``hang`` (the call that crashes or hangs after half of its work),
``matching`` (number of pairs that match), ``registered`` (number of photos with a pose), ``stray`` (the first photo's
camera lies absurdly far away), ``contradicting`` (half of the matches fit no point of incremental
mapping) and ``global`` (they fit the points of global mapping).
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from colmap_files import Model

SETTINGS: dict[str, Any] = json.loads(os.environ["FAKE_PYCOLMAP"])
TABLES = (
    "images (image_id INTEGER PRIMARY KEY, name TEXT, camera INTEGER)",
    "keypoints (image_id INTEGER PRIMARY KEY)",
)
PAIRS = "two_view_geometries (pair TEXT PRIMARY KEY, rows INTEGER)"

logging = SimpleNamespace(logtostderr=False)
CameraMode = SimpleNamespace(SINGLE="single")
ImageReaderOptions = FeatureExtractionOptions = ImportedPairingOptions = SimpleNamespace


def set_random_seed(_seed: int) -> None:
    """The fake has no random numbers."""


def TwoViewGeometryOptions() -> SimpleNamespace:
    return SimpleNamespace(ransac=SimpleNamespace())


def IncrementalPipelineOptions() -> SimpleNamespace:
    return SimpleNamespace(mapper=SimpleNamespace(), triangulation=SimpleNamespace())


class Database:
    """A database of two photos with four verified matches."""

    def __init__(self, path: str) -> None:
        self._path = path
        with sqlite3.connect(path) as connection:
            for table in (*TABLES, PAIRS):
                connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")

    @staticmethod
    def open(path: str) -> Database:
        return Database(path)

    def close(self) -> None:
        """The fake holds no connection."""

    def read_all_images(self) -> list[SimpleNamespace]:
        with sqlite3.connect(self._path) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM images ORDER BY name")]
        return [SimpleNamespace(image_id=number, name=name) for number, name in enumerate(names, 1)]

    def read_two_view_geometries(self) -> tuple[list[int], list[SimpleNamespace]]:
        return [12], [SimpleNamespace(inlier_matches=[(0, 3), (1, 2), (2, 1), (3, 0)])]


def pair_id_to_image_pair(pair: int) -> tuple[int, int]:
    return pair // 10, pair % 10


def import_images(
    database: Path, images: str, *, camera_mode: str, image_names: list[str], options: SimpleNamespace
) -> None:
    assert (camera_mode, options.camera_model) == ("single", "SIMPLE_RADIAL")
    assert all((Path(images) / name).is_file() for name in image_names)
    with sqlite3.connect(database) as connection:
        camera = connection.execute("SELECT COUNT(DISTINCT camera) FROM images").fetchone()[0] + 1
        connection.executemany(
            "INSERT INTO images (name, camera) VALUES (?, ?)", [(name, camera) for name in image_names]
        )
    _log("import_images", len(image_names))


def extract_features(database: str, _images: str, *, extraction_options: SimpleNamespace) -> None:
    assert extraction_options.num_threads >= 1
    with sqlite3.connect(database) as connection:
        todo = connection.execute(
            "SELECT image_id FROM images WHERE image_id NOT IN (SELECT image_id FROM keypoints)"
        ).fetchall()
    _work("extract_features", database, "INSERT INTO keypoints VALUES (?)", todo)


def match_image_pairs(
    database: str, *, pairing_options: SimpleNamespace, verification_options: SimpleNamespace
) -> None:
    assert verification_options.ransac.random_seed == 0
    pairs = Path(pairing_options.match_list_path).read_text().splitlines()
    with sqlite3.connect(database) as connection:
        there = {pair for (pair,) in connection.execute("SELECT pair FROM two_view_geometries")}
    rows = [
        (pair, 20 * (number < SETTINGS.get("matching", len(pairs))))
        for number, pair in enumerate(pairs)
        if pair not in there
    ]
    _work("match_image_pairs", database, "INSERT INTO two_view_geometries VALUES (?, ?)", rows)


def incremental_mapping(
    database: str,
    images: str,
    output: str,
    options: SimpleNamespace,
    *,
    initial_image_pair_callback: Any,
    next_image_callback: Any,
) -> dict[int, Any]:
    assert Path(images).is_dir() and Path(output).is_dir() and options.random_seed == 0
    with sqlite3.connect(database) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM images ORDER BY name")]
    count = SETTINGS.get("registered", len(names))
    _log("incremental_mapping", count)
    _break("incremental_mapping")
    if count == 0:
        return {}
    initial_image_pair_callback()
    for _ in pairwise(names[1:count]):
        next_image_callback()
    return {0: _Reconstruction(names[:2]), 1: _Reconstruction(names[:count])}


def Rotation3d(matrix: Any) -> Any:
    return matrix


def Sim3d(scale: float, rotation: Any, translation: Any) -> tuple[float, Any, Any]:
    return scale, rotation, translation


def GlobalPipelineOptions() -> SimpleNamespace:
    return SimpleNamespace()


def global_mapping(database: str, images: str, output: str, options: SimpleNamespace) -> dict[int, Any]:
    """Its poses agree with all matches if the settings say so."""
    assert Path(images).is_dir() and Path(output).is_dir() and options.random_seed == 0
    names = [image.name for image in Database(database).read_all_images()]
    _log("global_mapping", len(names))
    SETTINGS["contradicting"] = not SETTINGS.get("global")
    return {0: _Reconstruction(names)}


def _points_of(image_id: int) -> list[int]:
    """Points of the four features of a photo. The matches of photos 1 and 2 are the features in opposite order."""
    if image_id % 2:
        return [1, 2, 3, 4]
    return [4, 3, 2**64 - 1, 9] if SETTINGS.get("contradicting") else [4, 3, 2, 1]


class _Reconstruction:
    def __init__(self, names: list[str]) -> None:
        poses = [(i, (1.0, 0.0, 0.0, 0.0), (0.1 * i, 0.0, 0.0), 1, name) for i, name in enumerate(names, 1)]
        if SETTINGS.get("stray"):
            poses[0] = (*poses[0][:2], (-6e25, 0.0, 1e25), *poses[0][3:])
        self.model = Model(cameras=[(1, 0, 40, 30, (42.0, 20.0, 15.0))], images=poses)

    def num_reg_images(self) -> int:
        return len(self.model.images)

    def num_points3D(self) -> int:
        return len(self.model.points)

    def reg_image_ids(self) -> list[int]:
        return [row[0] for row in self.model.images]

    def image(self, image_id: int) -> SimpleNamespace:
        (row,) = (row for row in self.model.images if row[0] == image_id)
        rotation = SimpleNamespace(matrix=lambda: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        return SimpleNamespace(
            name=row[4],
            frame_id=image_id,
            projection_center=lambda: [-value for value in row[2]],
            points2D=[SimpleNamespace(point3D_id=point) for point in _points_of(image_id)],
            cam_from_world=lambda: SimpleNamespace(rotation=rotation),
        )

    def transform(self, change: tuple[float, Any, Any]) -> None:
        scale, _, (x, y, z) = change
        self.model.images = [(i, wxyz, (scale * t[0] - x, scale * t[1] - y, scale * t[2] - z), c, n)
                for i, wxyz, t, c, n in self.model.images]  # fmt: skip

    def deregister_frame(self, frame_id: int) -> None:
        self.model.images = [row for row in self.model.images if row[0] != frame_id]

    def compute_mean_reprojection_error(self) -> float:
        return 0.7

    def compute_mean_track_length(self) -> float:
        return 1.5

    def write_binary(self, folder: str) -> None:
        self.model.write_binary(Path(folder))


def _work(call: str, database: str, statement: str, rows: list[tuple[Any, ...]]) -> None:
    """Insert half of the rows, break if the settings say so, and insert the other half."""
    _log(call, len(rows))
    half = len(rows) // 2
    for part in (rows[:half], rows[half:]):
        with sqlite3.connect(database) as connection:
            connection.executemany(statement, part)
        if part is not rows[half:] and len(part) == half:
            _break(call)


def _break(call: str) -> None:
    if SETTINGS.get("crash") == call:
        os._exit(77)
    if SETTINGS.get("hang") == call:
        _log("hanging", os.getpid())
        time.sleep(600)


def _log(call: str, count: int) -> None:
    with Path(SETTINGS["log"]).open("a") as file:
        file.write(f"{call} {count}\n")
