"""Which photos to compare with which: all with all where there are few, else neighbours and those that look alike.

Not here: the comparing itself, which is COLMAP's. The invariant: the same features give the same pairs, so that a matching that was stopped
goes on with what it began.
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
"""Up to so many photos every pair is compared; the pairs grow with the square of it."""

_NEIGHBOURS = 10
_LOOKING_ALIKE = 20
_WORDS = 64
_DESCRIPTORS_PER_PHOTO = 1000
_SAMPLED_FOR_WORDS = 50_000
_SEED = 0


def choose_pairs(names: Sequence[str], database: Path, *, video: bool) -> list[tuple[str, str]]:
    """Pairs of names to compare, in order, each once.

    Args:
        names: in the order the photos were taken.
        database: COLMAP's, with the photos' SIFT descriptors; read only where not every pair is compared.
        video: frames follow each other, so that neighbours and those that look alike (where the camera comes by again) will do.
    """
    count = len(names)
    if count <= MOST_FOR_ALL_PAIRS and not video:
        return list(combinations(names, 2))
    pairs = {(i, j) for i in range(count) for j in range(i + 1, min(i + 1 + _NEIGHBOURS, count))}
    for i, nearest in enumerate(nearest_by_appearance(vlad(read_descriptors(database, names)), _LOOKING_ALIKE)):
        pairs.update((min(i, j), max(i, j)) for j in nearest.tolist())
    return [(names[i], names[j]) for i, j in sorted(pairs)]


def read_descriptors(database: Path, names: Sequence[str]) -> list[NDArray[np.uint8]]:
    """[n, 128] of each named photo, evenly thinned to at most 1000; none for a photo that the database lacks."""
    query = "SELECT descriptors.rows, cols, data FROM descriptors JOIN images USING (image_id) WHERE name = ?"
    found = []
    with closing(sqlite3.connect(database)) as connection:
        for name in names:
            rows, columns, data = connection.execute(query, (name,)).fetchone() or (0, 128, b"")
            descriptors = np.frombuffer(data or b"", np.uint8).reshape(rows, columns)
            found.append(descriptors[:: max(1, -(-rows // _DESCRIPTORS_PER_PHOTO))])
    return found


def vlad(descriptors: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """[photos, words * 128] one unit vector for what each photo shows; zero where it has no descriptors.

    Sums of the descriptors' differences to the nearest of 64 words, each sum made a unit vector. Source: Jegou et al., "Aggregating local
    descriptors into a compact image representation" (2010), with the normalisation of Arandjelovic and Zisserman, "All about VLAD" (2013).
    """
    from scipy.cluster.vq import kmeans2, vq

    rng = np.random.default_rng(_SEED)
    every = np.concatenate(descriptors).astype(np.float32)
    if len(every) < _WORDS:
        return np.zeros((len(descriptors), 1), np.float32)
    sample = every[rng.choice(len(every), min(len(every), _SAMPLED_FOR_WORDS), replace=False)]
    words, _ = kmeans2(sample, _WORDS, iter=10, minit="points", rng=rng)
    sums = np.zeros((len(descriptors), _WORDS, every.shape[1]), np.float32)
    for of_photo, rows in zip(sums, descriptors, strict=True):
        values = rows.astype(np.float32)
        nearest, _ = vq(values, words)
        np.add.at(of_photo, nearest, values - words[nearest])
    return _unit(_unit(sums).reshape(len(descriptors), -1))


def nearest_by_appearance(vectors: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """[photos, count or fewer] the other photos whose vectors are most alike, the most alike first."""
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argsort(-likeness, axis=1, kind="stable")[:, : min(count, len(vectors) - 1)]


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors along the last axis at length 1; zero stays zero."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12), np.float32)
