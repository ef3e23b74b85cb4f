"""A palette of SH coefficients: k-means in a tree of depth two, in NumPy.

One flat k-means of 200,000 rows and 16,384 centres takes minutes. The tree assigns rows to about sqrt(k) coarse cells,
gives each cell a share of the k centres, and runs a small k-means in each cell: its error is about 5 % larger, its time
about a second.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from gs_train.formats.packing import opacities
from gs_train.machine import cpu_threads

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]
Weights = NDArray[np.float32]
MOST_LOG_SCALE = 20.0
"""Scales beyond it, up or down, count as it."""
_IMPORTANCE = (1e-4, 1e4)
"""Smallest and largest importance of a Gaussian."""
_SAMPLE = 50_000
"""Rows that determine the coarse cells."""
_COARSE_ROUNDS = 4
_FINE_ROUNDS = 4
"""More rounds lower the error of renders by less than 0.05 dB."""
_HASH_FACTOR = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, an odd number whose bits look random."""
_BLOCK = 8192
"""Rows of one array of matrix products."""
_ONE_THREAD = 2**18
"""Multiplications of one matrix product. OpenBLAS uses one thread up to this number. Its threads wait for each other in
loops, which on a busy machine takes ten times as long as the products."""


def importance_of(
    xyz: NDArray[np.float32], scaling: NDArray[np.float32], opacity: NDArray[np.float32]
) -> NDArray[np.float32]:
    """[N] estimate of the pixels that each Gaussian colours, relative to the mean: opacity times area over squared
    distance. The cameras are unknown: the squared distance is that from the middle of the splat, plus its median.

    Args:
        xyz: [N, 3].
        scaling: [N, 3] log.
        opacity: [N, 1] logit.
    """
    largest = np.sort(np.clip(scaling.astype(np.float64), -MOST_LOG_SCALE, MOST_LOG_SCALE), axis=1)[:, 1:]
    squared = np.square(xyz.astype(np.float64) - np.median(xyz, axis=0)).sum(axis=1)
    pixels = np.exp(largest.sum(axis=1)) / np.maximum(squared + np.median(squared), 1e-30)
    pixels *= opacities(opacity)[:, 0]
    relative: NDArray[np.float32] = np.clip(pixels / pixels.mean(), *_IMPORTANCE).astype(np.float32)
    return relative


def distinct_rows(rows: Rows) -> tuple[Rows, Labels]:
    """The different rows of ``rows`` ([N, D]), and the number of each row among them.

    Rows are equal if their bits have the same hash of 64 bits. Two different rows of a million have the same hash with
    a chance of 1 in 40 million.
    """
    hashes = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.T:
        hashes ^= np.ascontiguousarray(column).view(np.uint32)
        hashes *= np.uint64(_HASH_FACTOR)
        hashes ^= hashes >> np.uint64(32)
    _, first, labels = np.unique(hashes, return_index=True, return_inverse=True)
    return rows[first], labels.astype(np.int64)


def make_palette(rows: Rows, size: int, importance: Weights | None = None) -> tuple[Rows, Labels]:
    """Centres and the number of the centre of each row.

    Args:
        rows: [N, D], finite.
        size: number of centres, 1 to N.
        importance: [N] importance of each row, above 0; None for equal importance.

    Returns:
        centres [size, D], and labels [N].
    """
    rng = np.random.default_rng(0)
    # A weak power: the importance itself would cost small Gaussians more than it gives large Gaussians.
    weights = np.ones(len(rows), dtype=np.float32) if importance is None else np.sqrt(np.sqrt(importance))
    coarse_count = max(1, round(size**0.5))
    sample = np.sort(rng.choice(len(rows), min(_SAMPLE, len(rows)), replace=False))
    coarse, _ = _lloyd(rows[sample], weights[sample], min(coarse_count, len(sample)), _COARSE_ROUNDS, rng)
    cell_of = _nearest(rows, coarse)
    order = np.argsort(cell_of, kind="stable")
    counts = np.bincount(cell_of, minlength=len(coarse))
    cells = [order[end - count : end] for end, count in zip(np.cumsum(counts), counts, strict=True) if count]
    shares = _shares([_error(rows[cell], weights[cell]) for cell in cells], [len(cell) for cell in cells], size)

    def divide(number: int) -> tuple[Rows, Labels]:
        # Each cell has its own random numbers, so the order of the threads does not matter.
        cell, draws = cells[number], np.random.default_rng(number)
        return _lloyd(rows[cell], weights[cell], shares[number], _FINE_ROUNDS, draws)

    with ThreadPoolExecutor(cpu_threads()) as pool:
        divided = list(pool.map(divide, range(len(cells))))
    labels, first = np.empty(len(rows), dtype=np.int64), 0
    for cell, (own, nearest) in zip(cells, divided, strict=True):
        labels[cell] = first + nearest
        first += len(own)
    return np.concatenate([own for own, _ in divided]), labels


def _shares(errors: list[float], counts: list[int], size: int) -> list[int]:
    """The number of centres of each cell: from 1 to its count, ``size`` together, in proportion to the root of error
    times count."""
    counted = np.array(counts)
    weights = np.sqrt(np.array(errors) * counted)
    if weights.sum() == 0:
        weights = counted.astype(np.float64)
    shares = np.clip(np.floor(weights / weights.sum() * size), 1, counted).astype(np.int64)
    # Rounding and the limits leave a rest, which goes to the cells of the largest weight per centre, one at a time.
    while shares.sum() != size:
        step = 1 if shares.sum() < size else -1
        open_ = shares < counted if step > 0 else shares > 1
        missing = abs(size - int(shares.sum()))
        pressure = np.where(open_, step * weights / shares, -np.inf)
        chosen = np.argsort(-pressure, kind="stable")[: min(missing, int(open_.sum()))]
        shares[chosen] += step
    return [int(share) for share in shares]


def _error(rows: Rows, weights: Weights) -> float:
    """Weighted sum of the squared distances to the weighted mean."""
    mean = weights @ rows / weights.sum()
    return float(weights @ np.square(rows - mean).sum(axis=1))


def _lloyd(rows: Rows, weights: Weights, count: int, rounds: int, rng: np.random.Generator) -> tuple[Rows, Labels]:
    """``count`` centres of weighted rows by Lloyd's algorithm, and the nearest centre of each row."""
    if count == len(rows):
        return rows, np.arange(count)
    probability = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    centres = rows[np.sort(rng.choice(len(rows), count, replace=False, p=probability))]
    weighted = rows * weights[:, None]
    labels = _nearest(rows, centres)
    for _ in range(rounds if count > 1 else 1):
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=count)
        full = counts > 0
        starts = np.concatenate([[0], np.cumsum(counts[full])[:-1]])
        centres = np.empty_like(centres)
        sums = np.bincount(labels, weights, count)[full].astype(np.float32)
        centres[full] = np.add.reduceat(weighted[order], starts, axis=0) / sums[:, None]
        centres[~full] = rows[rng.choice(len(rows), count - int(full.sum()))]
        labels = _nearest(rows, centres)
    return centres, labels


def _nearest(rows: Rows, centres: Rows) -> Labels:
    """The number of the nearest centre for each row: the largest x c - |c|^2 / 2."""
    if len(centres) == 1:
        return np.zeros(len(rows), dtype=np.int64)
    half_squares = np.einsum("kd,kd->k", centres, centres) / 2
    columns = np.ascontiguousarray(centres.T)
    part = max(1, _ONE_THREAD // centres.size)
    labels = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        whole = len(block) // part * part
        products = np.empty((len(block), len(centres)), dtype=np.float32)
        parts = block[:whole].reshape(-1, part, rows.shape[1])
        np.matmul(parts, columns, out=products[:whole].reshape(-1, part, len(centres)))
        np.matmul(block[whole:], columns, out=products[whole:])
        products -= half_squares
        labels[start : start + _BLOCK] = products.argmax(axis=1)
    return labels
