"""Codebooks: 256 values that stand for many numbers, each number stored as one byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ENTRIES = 256
_BINS = 4096
_ROUNDS = 60
_RARE = 0.001
"""Fraction of the numbers below, and above, the range that most numbers share."""


def make_codebook(values: NDArray[np.float32], weights: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """[256] ascending values with a small squared distance to the numbers, by Lloyd's algorithm on bins of numbers.

    A bin weighs the root of the sum of its weights: rare numbers keep entries, although errors of many equal numbers
    would be smaller without.

    Args:
        values: the numbers, any shape, finite, not empty.
        weights: importance of each number, above 0, same shape; None for equal weights.
    """
    numbers = values.ravel().astype(np.float64)
    shares = np.ones_like(numbers) if weights is None else weights.ravel().astype(np.float64)
    low, high = numbers.min(), numbers.max()
    if low == high:
        return np.full(ENTRIES, low, dtype=np.float32)
    bins, bin_weights = _bins(numbers, shares, low, high)
    # Prefix sums give the mean of any range of bins.
    weight_sums = np.concatenate([[0.0], np.cumsum(bin_weights)])
    value_sums = np.concatenate([[0.0], np.cumsum(bin_weights * bins)])
    entries = _start(bins, bin_weights)
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


def _bins(numbers: NDArray[np.float64], shares: NDArray[np.float64], low: float, high: float) -> Any:
    """Means and weights of the bins that are not empty: fine bins in the range of most numbers, coarse bins beyond."""
    most_low, most_high = np.quantile(numbers, [_RARE, 1 - _RARE])
    edges = np.unique(np.concatenate([np.linspace(low, high, _BINS + 1), np.linspace(most_low, most_high, _BINS + 1)]))
    number = np.searchsorted(edges[1:-1], numbers, side="right")
    weight = np.bincount(number, shares, len(edges) - 1)
    total = np.bincount(number, shares * numbers, len(edges) - 1)
    full = weight > 0
    return total[full] / weight[full], np.sqrt(weight[full])


def _start(bins: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entries as dense as the cube root of the density of the weights: the optimum for many entries (Panter and Dite,
    Quantization distortion in pulse-count modulation, 1951)."""
    width = np.gradient(bins) if len(bins) > 1 else np.ones(1)
    sums = np.cumsum(np.cbrt(weights / width) * width)
    places = (np.arange(ENTRIES) + 0.5) / ENTRIES * sums[-1]
    entries: NDArray[np.float64] = bins[np.minimum(np.searchsorted(sums, places), len(bins) - 1)]
    return entries
