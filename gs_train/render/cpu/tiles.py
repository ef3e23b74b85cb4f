"""Which Gaussian touches which tile, in depth order: radix sort by depth, exact ellipse-against-tile-row intervals, stable sort by tile.

Not here: the records (``projection``) and what happens inside a tile (``blending``). Each pair of a Gaussian and a tile has a slot,
numbered Gaussian by Gaussian; blending's backward pass writes its sums there, so that adding them up needs no atomics. Everything but the
sort goes through the Gaussians in the order of their memory, which matters more than arithmetic. The invariant: within a tile, pairs are
sorted by (float32 depth, Gaussian index), and only pairs with alpha < 1/255 at every pixel centre are left out.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from gs_train.jit import helper, kernel, parallel_kernel
from gs_train.render.cpu.projection import (
    CHUNK,
    HALF_A,
    HALF_C,
    LOG2_OPACITY,
    MEAN_X,
    MEAN_X_FRACTION,
    MEAN_Y,
    MEAN_Y_FRACTION,
    ROW_FIRST,
    ROW_LAST,
    SHEAR,
)

TILE = 16
_RADIX_BITS = 11
_SORT_CHUNKS = 16  # Fixed, though the sort is stable and its result does not depend on it.
LOG2_255 = math.log2(255.0) + 0.003  # With a margin for float32 rounding in blending, as projection's row interval has.


@kernel
def find_visible(radii: NDArray) -> NDArray:
    """Visible Gaussians, [V] int32, ascending."""
    visible = np.empty(radii.shape[0], np.int32)
    count = 0
    for i in range(radii.shape[0]):
        if radii[i, 0] > 0 and radii[i, 1] > 0:
            visible[count] = i
            count += 1
    return visible[:count].copy()


@kernel
def order_by_depth(visible: NDArray, depths: NDArray) -> NDArray:
    """Positions in ``visible``, [V] int32, nearest first; ties by index. A stable radix sort on the bits of the positive float32 depths."""
    count = visible.shape[0]
    order, other = np.arange(count).astype(np.int32), np.empty(count, np.int32)
    keys, other_keys = np.empty(count, np.uint32), np.empty(count, np.uint32)
    bits = depths.view(np.uint32)
    for index in range(count):
        keys[index] = bits[visible[index]]
    size = 1 << _RADIX_BITS
    for digit in range(3):
        shift = np.uint32(digit * _RADIX_BITS)
        starts = np.zeros(size + 1, np.int64)
        for index in range(count):
            starts[((keys[index] >> shift) & np.uint32(size - 1)) + 1] += 1
        for key in range(size):
            starts[key + 1] += starts[key]
        for index in range(count):
            key = (keys[index] >> shift) & np.uint32(size - 1)
            other[starts[key]] = order[index]
            other_keys[starts[key]] = keys[index]
            starts[key] += 1
        order, other = other, order
        keys, other_keys = other_keys, keys
    return order


@helper
def _tile_interval(record: NDArray, tile_row: int, width: int, height: int) -> tuple[int, int]:
    """First and last tile column, inclusive, whose pixel centres in this tile row the ellipse alpha = 1/255 reaches; empty if first > last.

    In u = dx + k * dy the ellipse is a * u**2 + c * dy**2 <= q; its right edge over dy is concave and its left edge convex, so the extreme
    over a slab of rows lies at the extreme point, limited to the slab.
    """
    q = np.float64(record[LOG2_OPACITY]) + LOG2_255
    a, c, k = np.float64(record[HALF_A]), np.float64(record[HALF_C]), np.float64(record[SHEAR])
    mean_x = np.float64(record[MEAN_X]) + np.float64(record[MEAN_X_FRACTION])
    mean_y = np.float64(record[MEAN_Y]) + np.float64(record[MEAN_Y_FRACTION])
    half_u, half_y = math.sqrt(q / a), math.sqrt(q / c)
    last_row = min(tile_row * TILE + TILE, height) - 0.5
    low, high = max(mean_y - last_row, -half_y), min(mean_y - (tile_row * TILE + 0.5), half_y)
    if low > high:
        return 1, 0
    reach = math.sqrt(half_u * half_u + k * k * half_y * half_y)
    extreme = -k * half_y * half_y / reach
    at = min(max(extreme, low), high)
    widest = half_u * math.sqrt(max(0.0, 1.0 - at * at / (half_y * half_y))) - k * at
    at = min(max(-extreme, low), high)
    narrowest = -half_u * math.sqrt(max(0.0, 1.0 - at * at / (half_y * half_y))) - k * at
    # dx = mean - pixel, so the largest dx is the leftmost pixel. The small margin pays for rounding here.
    first = max(0.0, math.ceil(mean_x - widest - 0.5 - 1e-3))
    last = min(width - 1.0, math.floor(mean_x - narrowest - 0.5 + 1e-3))
    if first > last:
        return 1, 0
    return int(first) // TILE, int(last) // TILE


@helper
def _tile_rows(record):  # type: ignore[no-untyped-def]
    """First tile row that the ellipse's rows reach, and the one after the last."""
    first = int(record[ROW_FIRST]) // TILE
    return first, max(int(record[ROW_LAST]) // TILE + 1, first)


@parallel_kernel
def count_tile_rows(records: NDArray, visible: NDArray, first_interval: NDArray) -> None:
    """Write the number of tile rows of visible Gaussian v to first_interval[v + 1]; the caller sums them up."""
    count = visible.shape[0]
    for chunk in prange((count + CHUNK - 1) // CHUNK):
        for index in range(chunk * CHUNK, min(count, (chunk + 1) * CHUNK)):
            first, stop = _tile_rows(records[visible[index]])
            first_interval[index + 1] = stop - first


@parallel_kernel
def find_intervals(records, visible, width, height, first_interval, intervals, first_slot):  # type: ignore[no-untyped-def]
    """Write each tile row's columns (first, one after the last) to intervals [R, 2] int32, and the number of tiles to first_slot[v + 1]."""
    count = visible.shape[0]
    for chunk in prange((count + CHUNK - 1) // CHUNK):
        for index in range(chunk * CHUNK, min(count, (chunk + 1) * CHUNK)):
            record = records[visible[index]]
            first_row, stop_row = _tile_rows(record)
            pairs = 0
            for tile_row in range(first_row, stop_row):
                first, last = _tile_interval(record, tile_row, width, height)
                at = first_interval[index] + tile_row - first_row
                intervals[at, 0] = first
                intervals[at, 1] = last + 1
                pairs += last + 1 - first
            first_slot[index + 1] = pairs


@parallel_kernel
def fill_pairs(records, visible, tiles_x, first_interval, intervals, first_slot, pair_tile):  # type: ignore[no-untyped-def]
    """Write the tile of every slot, [P] int32."""
    count = visible.shape[0]
    for chunk in prange((count + CHUNK - 1) // CHUNK):
        for index in range(chunk * CHUNK, min(count, (chunk + 1) * CHUNK)):
            first_row, stop_row = _tile_rows(records[visible[index]])
            slot = first_slot[index]
            for tile_row in range(first_row, stop_row):
                at = first_interval[index] + tile_row - first_row
                for tile_column in range(intervals[at, 0], intervals[at, 1]):
                    pair_tile[slot] = tile_row * tiles_x + tile_column
                    slot += 1


@parallel_kernel
def count_tiles(order, first_slot, pair_tile, counts):  # type: ignore[no-untyped-def]
    """Count how many slots each tile has from each stretch of the depth order: counts [chunks, tiles] int64, zero before."""
    for chunk in prange(counts.shape[0]):
        for position in range(chunk * len(order) // counts.shape[0], (chunk + 1) * len(order) // counts.shape[0]):
            index = order[position]
            for slot in range(first_slot[index], first_slot[index + 1]):
                counts[chunk, pair_tile[slot]] += 1


@parallel_kernel
def scatter_pairs(visible, order, first_slot, pair_tile, cursors, pairs):  # type: ignore[no-untyped-def]
    """Write every (Gaussian, slot) to its tile's part of ``pairs``; cursors [chunks, tiles] int64 say where each stretch begins there."""
    for chunk in prange(cursors.shape[0]):
        for position in range(chunk * len(order) // cursors.shape[0], (chunk + 1) * len(order) // cursors.shape[0]):
            index = order[position]
            for slot in range(first_slot[index], first_slot[index + 1]):
                tile = pair_tile[slot]
                at = cursors[chunk, tile]
                pairs[at, 0] = visible[index]
                pairs[at, 1] = slot
                cursors[chunk, tile] = at + 1


def sort_by_tile(visible: NDArray, order: NDArray, first_slot: NDArray, pair_tile: NDArray, tiles: int) -> tuple[NDArray, NDArray]:
    """Stable counting sort of the slots, taken in depth order, in stretches that are counted and scattered in parallel.

    Returns:
        tile_start [tiles + 1] int64 and pairs [P, 2] int32 (Gaussian, slot), tile by tile, nearest first.
    """
    counts = np.zeros((_SORT_CHUNKS, tiles), np.int64)
    count_tiles(order, first_slot, pair_tile, counts)
    tile_start = np.zeros(tiles + 1, np.int64)
    np.cumsum(counts.sum(axis=0), out=tile_start[1:])
    # Where each stretch begins in each tile: behind the tiles before, and behind the stretches before in the same tile.
    cursors = np.cumsum(counts, axis=0) - counts + tile_start[:-1]
    pairs = np.empty((pair_tile.shape[0], 2), np.int32)
    scatter_pairs(visible, order, first_slot, pair_tile, cursors, pairs)
    return tile_start, pairs


def bin_gaussians(records: NDArray, radii: NDArray, depths: NDArray, width: int, height: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Pair the visible Gaussians with the tiles they touch, nearest first within a tile.

    Returns:
        visible [V] int32, ascending; first_slot [V + 1] int64; tile_start [tiles + 1] int64; pairs [P, 2] int32 (Gaussian, slot).
    """
    visible = find_visible(radii)
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    first_interval, first_slot = np.zeros(len(visible) + 1, np.int64), np.zeros(len(visible) + 1, np.int64)
    count_tile_rows(records, visible, first_interval)
    np.cumsum(first_interval, out=first_interval)
    intervals = np.empty((int(first_interval[-1]), 2), np.int32)
    find_intervals(records, visible, width, height, first_interval, intervals, first_slot)
    np.cumsum(first_slot, out=first_slot)
    pair_tile = np.empty(int(first_slot[-1]), np.int32)
    fill_pairs(records, visible, tiles_x, first_interval, intervals, first_slot, pair_tile)
    tile_start, pairs = sort_by_tile(visible, order_by_depth(visible, depths), first_slot, pair_tile, tiles_x * tiles_y)
    return visible, first_slot, tile_start, pairs
