"""Which Gaussian touches which tile, in depth order: exact ellipse-against-tile-row intervals, counted and then filled in, sorted per tile.

Not here: the records (``projection``) and what happens inside a tile (``blending``). Gaussians are visited in the order of their memory and
each tile sorts its own, a few hundred at a time in the nearest cache: a sort of all Gaussians by depth first would visit them in an order
that is random in memory, and costs more. The invariant: within a tile, pairs are sorted by (float32 depth, Gaussian index), and only pairs
with alpha < 1/255 at every pixel centre are left out.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from gs_train.kernels.buffers import aligned_buffer
from gs_train.kernels.jit import helper, parallel_kernel
from gs_train.render.cpu.projection import (
    CHUNK,
    DEPTH,
    HALF_A,
    HALF_C,
    HALF_HEIGHT,
    HALF_WIDTH,
    MEAN_X,
    MEAN_X_FRACTION,
    MEAN_Y,
    MEAN_Y_FRACTION,
    SHEAR,
)

# Px. Each row of a tile is evaluated only where an ellipse reaches it, so a tall tile wastes no pixels, and fewer pairs cost less.
TILE_WIDTH, TILE_HEIGHT = 16, 32
_STRETCHES = 64  # Gaussians are counted into tiles in so many parts, each by one thread. Fixed, though the result does not depend on it.
_DIGIT = 8  # bits that one round of the sort looks at
_MARGIN = 1e-3  # px, pays for rounding


@helper
def _columns(low: float, high: float, half_y: float, squeeze: float, k: float, lean: float) -> tuple[float, float]:
    """Least and greatest dx in the ellipse's rows from dy = low to high, both within +-half_y.

    In u = dx + k * dy the ellipse is u**2 + (squeeze * dy)**2 <= (squeeze * half_y)**2; its right edge over dy is concave and its left edge
    convex, so the extreme over a slab of rows lies at the extreme point, at dy = -+lean, limited to the slab.
    """
    at = min(max(-lean, low), high)
    widest = squeeze * math.sqrt(max(0.0, half_y * half_y - at * at)) - k * at
    at = min(max(lean, low), high)
    narrowest = -squeeze * math.sqrt(max(0.0, half_y * half_y - at * at)) - k * at
    return narrowest, widest


@parallel_kernel
def visit_tiles(records, depth_bits, visible, chunk_counts, width, height, cursors, pairs):  # type: ignore[no-untyped-def]
    """Go through all pairs of a visible Gaussian and a tile it reaches: count them, or write them down.

    One kernel does both, because only the same machine code is sure to find the same pairs twice. Counting (``pairs`` is empty) marks a run
    of tiles at its ends only: +1 at the first, -1 behind the last, so that the sum up to a tile is the number of its pairs.

    Args:
        records [N, 16]; visible [N] and chunk_counts [chunks, 2]: see ``projection``. depth_bits [N, 16] uint32: the records' bits.
        cursors: [stretches, tiles + 1] int64: where each stretch goes on writing in each tile, or the marks, from zero.
        pairs: [P] uint64, written at the cursors: depth in the upper half, Gaussian in the lower.
    """
    tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
    chunks, stretches, filling = chunk_counts.shape[0], cursors.shape[0], pairs.shape[0] > 0
    for stretch in prange(stretches):
        for chunk in range(stretch * chunks // stretches, (stretch + 1) * chunks // stretches):
            for index in range(chunk * CHUNK, chunk * CHUNK + chunk_counts[chunk, 0]):
                i = visible[index]
                half_x, half_y = np.float64(records[i, HALF_WIDTH]), np.float64(records[i, HALF_HEIGHT])
                mean_x = np.float64(records[i, MEAN_X]) + np.float64(records[i, MEAN_X_FRACTION])
                mean_y = np.float64(records[i, MEAN_Y]) + np.float64(records[i, MEAN_Y_FRACTION])
                top = max(0.0, math.ceil(mean_y - half_y - 0.5 - _MARGIN))
                bottom = min(height - 1.0, math.floor(mean_y + half_y - 0.5 + _MARGIN))
                if top > bottom:
                    continue
                first_row, last_row = int(top) // TILE_HEIGHT, int(bottom) // TILE_HEIGHT
                entry = (np.uint64(depth_bits[i, DEPTH]) << np.uint64(32)) | np.uint64(i)
                narrowest, widest = -half_x, half_x
                k, lean, squeeze = 0.0, 0.0, 0.0
                if first_row < last_row:
                    k = np.float64(records[i, SHEAR])
                    lean = k * half_y * half_y / half_x
                    # half_u / half_y
                    squeeze = math.sqrt(np.float64(records[i, HALF_C]) / np.float64(records[i, HALF_A]))
                for tile_row in range(first_row, last_row + 1):
                    if first_row < last_row:
                        # dy and dx are mean - pixel, so the largest belongs to the first pixel.
                        low = min(max(mean_y - (tile_row * TILE_HEIGHT + TILE_HEIGHT - 0.5), -half_y), half_y)
                        high = max(min(mean_y - (tile_row * TILE_HEIGHT + 0.5), half_y), -half_y)
                        narrowest, widest = _columns(low, high, half_y, squeeze, k, lean)
                    left = max(0.0, math.ceil(mean_x - widest - 0.5 - _MARGIN))
                    right = min(width - 1.0, math.floor(mean_x - narrowest - 0.5 + _MARGIN))
                    if left > right:
                        continue
                    first, stop = (
                        tile_row * tiles_x + int(left) // TILE_WIDTH,
                        tile_row * tiles_x + int(right) // TILE_WIDTH + 1,
                    )
                    if filling:
                        for tile in range(first, stop):
                            pairs[cursors[stretch, tile]] = entry
                            cursors[stretch, tile] += 1
                    else:
                        cursors[stretch, first] += 1
                        cursors[stretch, stop] -= 1


@helper
def gaussian_of(pair):  # type: ignore[no-untyped-def]
    """The Gaussian of a pair, as uint64."""
    return pair & np.uint64(0xFFFFFFFF)


@helper
def _sort(pairs, spare, starts, begin, stop):  # type: ignore[no-untyped-def]
    """Sort pairs[begin:stop] by depth, stably, digit by digit; with ``spare`` as long. True if the result lies in ``spare``."""
    low = high = pairs[begin] >> np.uint64(32)
    for at in range(begin + 1, stop):
        key = pairs[at] >> np.uint64(32)
        low, high = min(low, key), max(high, key)
    moved, shift = False, np.uint64(0)
    digits = np.uint64((1 << _DIGIT) - 1)
    while (high - low) >> shift > np.uint64(0):
        source, source_at = (spare, 0) if moved else (pairs, begin)
        target, target_at = (pairs, begin) if moved else (spare, 0)
        starts[:] = 0
        for at in range(source_at, source_at + stop - begin):
            starts[(((source[at] >> np.uint64(32)) - low) >> shift) & digits] += 1
        total = target_at
        for digit in range(len(starts)):
            count = starts[digit]
            starts[digit] = total
            total += count
        for at in range(source_at, source_at + stop - begin):
            digit = (((source[at] >> np.uint64(32)) - low) >> shift) & digits
            target[starts[digit]] = source[at]
            starts[digit] += 1
        moved = not moved
        shift += np.uint64(_DIGIT)
    return moved


@parallel_kernel
def sort_tiles(pairs, tile_start):  # type: ignore[no-untyped-def]
    """Sort each tile's pairs by depth; equal depths keep their order, which is by Gaussian."""
    for tile in prange(tile_start.shape[0] - 1):
        begin, stop = tile_start[tile], tile_start[tile + 1]
        if begin < stop:
            spare = np.empty(stop - begin, np.uint64)
            if _sort(pairs, spare, np.empty(1 << _DIGIT, np.int64), begin, stop):
                for at in range(stop - begin):
                    pairs[begin + at] = spare[at]


def bin_gaussians(
    records: NDArray, visible: NDArray, chunk_counts: NDArray, width: int, height: int
) -> tuple[NDArray, NDArray]:
    """Pair the visible Gaussians with the tiles they touch, nearest first within a tile.

    Returns:
        tile_start [tiles + 1] int64 and pairs [P] uint64: those of tile t are pairs[tile_start[t] : tile_start[t + 1]], and
        ``gaussian_of`` says whose each is.
    """
    tiles = -(-width // TILE_WIDTH) * -(-height // TILE_HEIGHT)
    arguments = (records, records.view(np.uint32), visible, chunk_counts, width, height)
    marks = np.zeros((_STRETCHES, tiles + 1), np.int64)
    visit_tiles(*arguments, marks, np.empty(0, np.uint64))
    counts = np.cumsum(marks, axis=1)[:, :-1]
    tile_start = np.zeros(tiles + 1, np.int64)
    np.cumsum(counts.sum(axis=0), out=tile_start[1:])
    pairs = aligned_buffer((int(tile_start[-1]),), np.uint64)
    if len(pairs) > 0:
        # Where each stretch begins in each tile: behind the tiles before, and behind the stretches before in the same tile.
        cursors = np.cumsum(counts, axis=0)
        cursors += tile_start[:-1] - counts
        visit_tiles(*arguments, cursors, pairs)
        sort_tiles(pairs, tile_start)
    return tile_start, pairs
