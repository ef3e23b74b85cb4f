"""Codebooks: 256 values that stand for many numbers, each number stored as one byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ENTRIES = 256
_BINS = 4096
_ROUNDS = 60


def make_codebook(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """[256] ascending values with a small squared distance to the numbers, by Lloyd's algorithm.

    The numbers are first gathered in bins, placed by rank and by value. A bin weighs the root of its count, so that
    rare large values keep entries.

    Args:
        values: the numbers, any shape, finite, not empty.
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    low, high = ordered[0], ordered[-1]
    if low == high:
        return np.full(ENTRIES, low, dtype=np.float32)
    bins, weights = _bins(ordered)
    # Prefix sums give the mean of any range of bins.
    weight_sums = np.concatenate([[0.0], np.cumsum(weights)])
    value_sums = np.concatenate([[0.0], np.cumsum(weights * bins)])
    shares = (np.arange(ENTRIES) + 0.5) / ENTRIES * weight_sums[-1]
    entries = bins[np.minimum(np.searchsorted(weight_sums[1:], shares), len(bins) - 1)]
    for _ in range(_ROUNDS):
        ends = np.concatenate([[0], np.searchsorted(bins, (entries[1:] + entries[:-1]) / 2), [len(bins)]])
        weight = np.diff(weight_sums[ends])
        means = np.diff(value_sums[ends]) / np.where(weight > 0, weight, 1)
        moved = np.sort(np.where(weight > 0, means, entries))
        if np.array_equal(moved, entries):
            break
        entries = moved
    found: NDArray[np.float32] = entries.astype(np.float32)
    return found


def nearest_entries(codebook: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The number of the nearest codebook entry for each value, any shape."""
    middles = (codebook[1:] + codebook[:-1]) / 2
    return np.searchsorted(middles, values).astype(np.uint8)


def _bins(ordered: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and weights of the bins of ascending numbers."""
    count = len(ordered)
    spread = ordered[-1] - ordered[0]
    quarter, three_quarters = ordered[count // 4], ordered[3 * count // 4]
    by_rank = np.clip(1 - (three_quarters - quarter) / spread, 0.5, 0.999)
    places = by_rank * np.arange(count) / count + (1 - by_rank) * (ordered - ordered[0]) / spread
    number = np.minimum((places * _BINS).astype(np.int64), _BINS - 1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(number)) + 1])
    sizes = np.diff([*starts, count])
    return np.add.reduceat(ordered, starts) / sizes, np.sqrt(sizes)
