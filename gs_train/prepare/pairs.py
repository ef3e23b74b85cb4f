"""The pairs of photos to match: all pairs for few photos, otherwise neighbours and photos that look alike.

COLMAP does the matching. The same features give the same pairs, so that a stopped matching continues with the same
list.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MOST_FOR_ALL_PAIRS = 150
"""Match every pair up to this number of photos. The number of pairs grows with its square."""

_NEIGHBOURS = 10
_LOOK_ALIKES = 20
_WORDS = 64
_DESCRIPTORS_PER_PHOTO = 1000
_SAMPLED_FOR_WORDS = 50_000
_SEED = 0


def choose_pairs(names: Sequence[str], database: Path, *, video: bool) -> list[tuple[str, str]]:
    """Pairs of names to match, sorted, each once.

    Args:
        names: in the order in which the photos were taken.
        database: COLMAP's database with the SIFT descriptors. It is read only if some pairs are left out.
        video: the photos are consecutive frames, so neighbours and look-alikes (where the camera returns) are enough.
    """
    count = len(names)
    if count <= MOST_FOR_ALL_PAIRS and not video:
        return list(combinations(names, 2))
    pairs = {(i, j) for i in range(count) for j in range(i + 1, min(i + 1 + _NEIGHBOURS, count))}
    for i, nearest in enumerate(nearest_by_appearance(vlad(read_descriptors(database, names)), _LOOK_ALIKES)):
        pairs.update((min(i, j), max(i, j)) for j in nearest.tolist())
    return [(names[i], names[j]) for i, j in sorted(pairs)]


def read_descriptors(database: Path, names: Sequence[str]) -> list[NDArray[np.uint8]]:
    """[n, 128] SIFT descriptors of each photo, evenly thinned to at most 1000; empty for photos not in the database."""
    query = "SELECT descriptors.rows, cols, data FROM descriptors JOIN images USING (image_id) WHERE name = ?"
    found = []
    with closing(sqlite3.connect(database)) as connection:
        for name in names:
            rows, columns, data = connection.execute(query, (name,)).fetchone() or (0, 128, b"")
            descriptors = np.frombuffer(data or b"", np.uint8).reshape(rows, columns)
            found.append(descriptors[:: max(1, -(-rows // _DESCRIPTORS_PER_PHOTO))])
    return found


def vlad(descriptors: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """[photos, words * 128] one unit vector that describes each photo's content; zero without descriptors.

    The vector has one sum per visual word (64 words): the differences of the photo's descriptors to their nearest word,
    normalised. Source: Jegou et al., "Aggregating local descriptors into a compact image representation" (2010), with
    the normalisation of Arandjelovic and Zisserman, "All about VLAD" (2013).
    """
    from scipy.cluster.vq import kmeans2, vq

    rng = np.random.default_rng(_SEED)
    every = np.concatenate(descriptors).astype(np.float32)
    if len(every) < _WORDS:
        return np.zeros((len(descriptors), 1), np.float32)
    sample = every[rng.choice(len(every), min(len(every), _SAMPLED_FOR_WORDS), replace=False)]
    words, _ = kmeans2(sample, _WORDS, iter=10, minit="points", rng=rng)
    sums = np.zeros((len(descriptors), _WORDS, every.shape[1]), np.float32)
    for photo_sums, rows in zip(sums, descriptors, strict=True):
        values = rows.astype(np.float32)
        nearest, _ = vq(values, words)
        np.add.at(photo_sums, nearest, values - words[nearest])
    return _unit(_unit(sums).reshape(len(descriptors), -1))


def nearest_by_appearance(vectors: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """[photos, count or fewer] indices of the other photos with the most similar vectors, best first."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, : min(count, len(vectors) - 1)]


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalise vectors along the last axis; zero vectors stay zero."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12), np.float32)
