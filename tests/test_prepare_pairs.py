"""The pairs of photos that COLMAP matches."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np

from gs_train.prepare.pairs import MOST_FOR_ALL_PAIRS, choose_pairs, nearest_by_appearance, vlad


def test_few_photos_are_all_compared_without_a_database(tmp_path: Path) -> None:
    names = [f"{i:03d}" for i in range(MOST_FOR_ALL_PAIRS)]
    pairs = choose_pairs(names, tmp_path / "none.db", video=False)
    assert len(set(pairs)) == len(pairs) == MOST_FOR_ALL_PAIRS * (MOST_FOR_ALL_PAIRS - 1) // 2


def test_many_photos_are_compared_with_neighbours_and_look_alikes(tmp_path: Path) -> None:
    """A walk along 100 places and back. A photo meets its neighbours and the other photo of its place."""
    places, database = 100, tmp_path / "database.db"
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (places, 60, 128))
    route = [*range(places), *range(places)]
    names = [f"{i:03d}.jpg" for i in range(len(route))]
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE images (image_id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute(
            "CREATE TABLE descriptors (image_id INTEGER PRIMARY KEY, rows INTEGER, cols INTEGER, data BLOB)"
        )
        for index, place in enumerate(route):
            noisy = np.clip(seen[place] + rng.integers(-9, 10, seen[place].shape), 0, 255).astype(np.uint8)
            connection.execute("INSERT INTO images VALUES (?, ?)", (index + 1, names[index]))
            # One photo without features and one without a row: neither is compared by appearance.
            if index not in (7, 9):
                connection.execute("INSERT INTO descriptors VALUES (?, 60, 128, ?)", (index + 1, noisy.tobytes()))
        connection.execute("INSERT INTO descriptors VALUES (8, 0, 128, NULL)")
    pairs = choose_pairs(names, database, video=False)
    assert pairs == choose_pairs(names, database, video=True) == sorted(set(pairs))
    met = {(names.index(one), names.index(other)) for one, other in pairs}
    assert all((i, i + step) in met for step in range(1, 11) for i in range(len(route) - step))
    again = [(place, place + places) for place in range(places) if place not in (7, 9)]
    assert all(pair in met for pair in again)
    assert len(met) < 0.3 * len(route) ** 2 / 2


def test_vlad_of_hardly_any_features_is_zero() -> None:
    vectors = vlad([np.zeros((0, 128), np.uint8), np.ones((3, 128), np.uint8)])
    assert not vectors.any()
    assert nearest_by_appearance(vectors, 20).tolist() == [[1], [0]]
