"""Tile binning: pairs of a visible Gaussian and a tile that it touches, sorted by depth within each tile.

``projection`` writes the records, and ``blending`` works inside a tile. For each row of tiles, ``visit_tiles`` computes
the exact interval of columns that an ellipse reaches; a first pass counts the pairs, a second pass writes them. A pair
is left out only if alpha < 1/255 at every pixel centre of the tile.

Both passes visit the Gaussians in memory order, and each tile then sorts its own few hundred pairs in the L1 cache. A
sort of all Gaussians by depth first would make the passes visit them in an order that is random in memory, and costs
more. Within a tile, pairs are sorted by (float32 depth, Gaussian index).
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

# px. Blending skips the rows that an ellipse does not reach, so a tall tile wastes no pixels, and it makes fewer pairs.
TILE_WIDTH, TILE_HEIGHT = 16, 32
_SEGMENTS = 64  # Work items of a pass: each visits a range of chunks. The result does not depend on their number.
_DIGIT_BITS = 8  # bits per round of the radix sort
_MARGIN = 1e-3  # px, covers rounding errors


@helper
def _column_range(
    low: float, high: float, half_y: float, aspect: float, k: float, dy_extreme: float
) -> tuple[float, float]:
    """Smallest and largest dx of the ellipse over the rows from dy = low to dy = high, both within +-half_y.

    With u = dx + k * dy, the ellipse is u**2 + (aspect * dy)**2 <= (aspect * half_y)**2. As functions of dy, its right
    edge is concave and its left edge convex. Their extreme points are at dy = -dy_extreme and dy = +dy_extreme. So the
    extreme over a range of rows is at the extreme point clamped to the range.
    """
    at = min(max(-dy_extreme, low), high)
    widest = aspect * math.sqrt(max(0.0, half_y * half_y - at * at)) - k * at
    at = min(max(dy_extreme, low), high)
    narrowest = -aspect * math.sqrt(max(0.0, half_y * half_y - at * at)) - k * at
    return narrowest, widest


@parallel_kernel
def visit_tiles(  # type: ignore[no-untyped-def]
    records, depth_bits, visible, chunk_counts, width, height, cursors, pairs
):  # fmt: skip
    """Visit all pairs of a visible Gaussian and a tile that it reaches, and count (``pairs`` empty) or write them.

    One kernel does both, because only identical machine code is certain to find the same pairs twice. The count marks
    only the ends of each run of tiles: +1 at the first tile, -1 after the last. The prefix sum of the marks gives each
    tile's number of pairs.

    Args:
        records [N, 16], visible [N], chunk_counts [chunks, 2]: see ``projection``.
        depth_bits: [N, 16] uint32, the records' bits.
        cursors: [segments, tiles + 1] int64. To count: the marks, initially zero. To write: the position in ``pairs``
            at which each segment writes its next pair of each tile.
        pairs: [P] uint64, written at the cursors: the depth's bits in the upper half, the Gaussian's index in the
            lower.
    """
    tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
    chunks, segments, filling = chunk_counts.shape[0], cursors.shape[0], pairs.shape[0] > 0
    for segment in prange(segments):
        for chunk in range(segment * chunks // segments, (segment + 1) * chunks // segments):
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
                k, dy_extreme, aspect = 0.0, 0.0, 0.0
                if first_row < last_row:
                    k = np.float64(records[i, SHEAR])
                    dy_extreme = k * half_y * half_y / half_x
                    # half_u / half_y.
                    aspect = math.sqrt(np.float64(records[i, HALF_C]) / np.float64(records[i, HALF_A]))
                for tile_row in range(first_row, last_row + 1):
                    if first_row < last_row:
                        # dx and dy are mean - pixel, so the first pixel has the largest value.
                        low = min(max(mean_y - (tile_row * TILE_HEIGHT + TILE_HEIGHT - 0.5), -half_y), half_y)
                        high = max(min(mean_y - (tile_row * TILE_HEIGHT + 0.5), half_y), -half_y)
                        narrowest, widest = _column_range(low, high, half_y, aspect, k, dy_extreme)
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
                            pairs[cursors[segment, tile]] = entry
                            cursors[segment, tile] += 1
                    else:
                        cursors[segment, first] += 1
                        cursors[segment, stop] -= 1


@helper
def gaussian_of(pair):  # type: ignore[no-untyped-def]
    """The index of a pair's Gaussian, uint64."""
    return pair & np.uint64(0xFFFFFFFF)


@helper
def _sort(pairs, spare, starts, begin, stop):  # type: ignore[no-untyped-def]
    """Stable radix sort of pairs[begin:stop] by depth; True if the result is in ``spare``, an array as long."""
    low = high = pairs[begin] >> np.uint64(32)
    for at in range(begin + 1, stop):
        key = pairs[at] >> np.uint64(32)
        low, high = min(low, key), max(high, key)
    moved, shift = False, np.uint64(0)
    digits = np.uint64((1 << _DIGIT_BITS) - 1)
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
        shift += np.uint64(_DIGIT_BITS)
    return moved


@parallel_kernel
def sort_tiles(pairs, tile_start):  # type: ignore[no-untyped-def]
    """Sort each tile's pairs by depth. Pairs of equal depth keep their order, which is by Gaussian index."""
    for tile in prange(tile_start.shape[0] - 1):
        begin, stop = tile_start[tile], tile_start[tile + 1]
        if begin < stop:
            spare = np.empty(stop - begin, np.uint64)
            if _sort(pairs, spare, np.empty(1 << _DIGIT_BITS, np.int64), begin, stop):
                for at in range(stop - begin):
                    pairs[begin + at] = spare[at]


def bin_gaussians(
    records: NDArray, visible: NDArray, chunk_counts: NDArray, width: int, height: int
) -> tuple[NDArray, NDArray]:
    """Pair the visible Gaussians with the tiles that they touch, nearest first within a tile.

    Returns:
        tile_start [tiles + 1] int64 and pairs [P] uint64. Tile t has pairs[tile_start[t] : tile_start[t + 1]], and
        ``gaussian_of`` gives a pair's Gaussian.
    """
    tiles = -(-width // TILE_WIDTH) * -(-height // TILE_HEIGHT)
    arguments = (records, records.view(np.uint32), visible, chunk_counts, width, height)
    marks = np.zeros((_SEGMENTS, tiles + 1), np.int64)
    visit_tiles(*arguments, marks, np.empty(0, np.uint64))
    counts = np.cumsum(marks, axis=1)[:, :-1]
    tile_start = np.zeros(tiles + 1, np.int64)
    np.cumsum(counts.sum(axis=0), out=tile_start[1:])
    pairs = aligned_buffer((int(tile_start[-1]),), np.uint64)
    if len(pairs) > 0:
        # In each tile, a segment starts after the earlier tiles and after the earlier segments of the same tile.
        cursors = np.cumsum(counts, axis=0)
        cursors += tile_start[:-1] - counts
        visit_tiles(*arguments, cursors, pairs)
        sort_tiles(pairs, tile_start)
    return tile_start, pairs
