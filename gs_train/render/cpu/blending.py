"""Forward pass of blending inside the tiles, one SIMD vector of pixels at a time (see ``kernels.simd``).

``blending_backward`` holds the backward pass, ``tiles`` finds each tile's Gaussians, and ``projection`` writes their
records. The kernel takes a batch of Gaussians and walks through the rows of the tile. A row's pixels stay in registers
while the batch's Gaussians that reach the row are blended into them. All alphas of a row are first computed into a
buffer: an alpha is a chain of twenty dependent operations, and the processor's look-ahead window is short. It overlaps
two or three chains if blending stands between them, and eight if nothing does.

Transmittance keeps falling after the Gaussian at which a pixel stops. It never rises, so its value alone tells that the
pixel has stopped; the final transmittance, which multiplies the background, is kept separately.

No result depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from numba import prange
from numpy.typing import NDArray

from gs_train.kernels.jit import helper, inline_once, parallel_kernel
from gs_train.kernels.simd import (
    LANES,
    aligned_zeros,
    bits,
    ceil,
    exp2_clamped,
    lane_numbers,
    load,
    lowest_bit,
    maximum,
    minimum,
    prefetch,
    sqrt,
    store,
    where,
)
from gs_train.render.cpu.projection import (
    BLUE,
    DEPTH,
    GREEN,
    HALF_A,
    HALF_C,
    HALF_HEIGHT,
    LOG2_255,
    LOG2_OPACITY,
    MEAN_X,
    MEAN_X_FRACTION,
    MEAN_Y,
    MEAN_Y_FRACTION,
    RECORD_SIZE,
    RED,
    SHEAR,
)
from gs_train.render.cpu.tiles import TILE_HEIGHT, TILE_WIDTH, gaussian_of

TILES_AT_ONCE = 4  # Scheduling grain: tiles differ in cost, so a thread takes only a few at a time.
ALPHA_MAX = np.float32(0.999)
STOP = np.float32(1e-4)
_ALPHA_MIN = np.float32(1.0 / 255.0)
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_ROW_MARGIN, _TEN = np.float32(1e-3), np.float32(10.0)
_LAST_COLUMN, _ROWS = np.float32(TILE_WIDTH - 1), np.float32(TILE_HEIGHT)
_LOG2_255 = np.float32(LOG2_255)
_N0, _N1, _LANES, _RECORD, _WIDTH = (np.uint64(n) for n in (0, 1, LANES, RECORD_SIZE, TILE_WIDTH))
PLANE = TILE_WIDTH * (TILE_HEIGHT + 2)  # Two extra rows keep the planes from sharing the sets of the L1 cache.
_PLANE = np.uint64(PLANE)
_BATCH = np.uint64(64)  # Gaussians per batch: one bit of a 64-bit word tells whether a Gaussian reaches a row.

# Offsets in a tile's scratch array. Planes of pixels: transmittance, final transmittance, blended colour and depth.
_T, _FINAL, _R, _G, _B, _D = (np.uint64(k) * _PLANE for k in range(6))
# After the planes: the alphas of a row, then the batch as a structure of arrays with _BATCH numbers per field.
_ALPHA = np.uint64(6) * _PLANE
_F_DX, _F_DY, _F_A, _F_K, _F_C, _F_O, _F_R, _F_G, _F_B, _F_D, _F_HALF, _F_FIRST, _F_LAST, _F_U, _F_POWER = (
    _ALPHA + _BATCH * _LANES + np.uint64(k) * _BATCH for k in range(15)
)
_SIZE = int(_F_POWER + _BATCH)


@helper
def _any_active(s):  # type: ignore[no-untyped-def]
    """Whether any pixel of the tile has not stopped."""
    for p in range(_N0, _PLANE, _LANES):
        if bits(load(s, _T + p) > STOP) != _N0:
            return True
    return False


@helper
def _gather(s, records, pairs, begin, count, x0, y0):  # type: ignore[no-untyped-def]
    """Copy ``count`` <= _BATCH records into the scratch array, and compute the tile's rows that each ellipse reaches.

    Only the part of the ellipse within the tile's columns matters. Over the columns, its upper edge is concave and its
    lower edge convex, so the extreme row is at the edge's extreme point clamped to the tile. Rows are real numbers,
    counted from the tile's first row, and the last row is inclusive.
    """
    for e in range(count):
        r = gaussian_of(pairs[begin + e]) * _RECORD
        s[_F_DX + e] = (records[r + MEAN_X] - x0) + (records[r + MEAN_X_FRACTION] - _HALF)
        s[_F_DY + e] = (records[r + MEAN_Y] - y0) + (records[r + MEAN_Y_FRACTION] - _HALF)
        s[_F_A + e], s[_F_K + e], s[_F_C + e] = records[r + HALF_A], records[r + SHEAR], records[r + HALF_C]
        s[_F_O + e], s[_F_D + e], s[_F_HALF + e] = (
            records[r + LOG2_OPACITY],
            records[r + DEPTH],
            records[r + HALF_HEIGHT],
        )
        s[_F_R + e], s[_F_G + e], s[_F_B + e] = records[r + RED], records[r + GREEN], records[r + BLUE]
    for e in range(_N0, count, _LANES):
        a, k, c, dx, dy, half = (
            load(s, _F_A + e), load(s, _F_K + e), load(s, _F_C + e),
            load(s, _F_DX + e), load(s, _F_DY + e), load(s, _F_HALF + e),
        )  # fmt: skip
        # Solve a (dx + k dy)**2 + c dy**2 = q for dy: dy = (-a k dx +- sqrt(full q - a c dx**2)) / full.
        ak = a * k
        full, ac = ak * k + c, a * c
        inverse = _ONE / full
        reach = full * (load(s, _F_O + e) + _LOG2_255)
        top = k * half
        at_top = maximum(minimum(_ZERO - top, dx), dx - _LAST_COLUMN)
        at_bottom = maximum(minimum(top, dx), dx - _LAST_COLUMN)
        highest = (sqrt(maximum(reach - ac * at_top * at_top, _ZERO)) - ak * at_top) * inverse
        lowest = (sqrt(maximum(reach - ac * at_bottom * at_bottom, _ZERO)) + ak * at_bottom) * inverse
        # The margin covers float32 rounding: an extra row costs little, a missing row would be wrong.
        margin = _ROW_MARGIN * (_TEN + half)
        store(s, _F_FIRST + e, minimum(maximum(dy - highest - margin, _ZERO), _ROWS))
        store(s, _F_LAST + e, maximum(minimum(dy + lowest + margin, _ROWS - _ONE), _ZERO - _ONE))


@helper
def _store_spans(s, spans, begin, count):  # type: ignore[no-untyped-def]
    """Store each Gaussian's rows for the backward kernel: first row in the lower byte, stop row in the upper byte."""
    for e in range(_N0, count, _LANES):
        store(s, _F_U + e, ceil(load(s, _F_FIRST + e)))
    for e in range(count):
        first, stop = np.uint16(s[_F_U + e]), np.uint16(s[_F_LAST + e] + _ONE)
        spans[begin + e] = first | (max(stop, first) << np.uint16(8))


@helper
def clip_alpha(alpha):  # type: ignore[no-untyped-def]
    """Alpha clamped to ALPHA_MAX, and 0 below 1/255."""
    return where(alpha >= _ALPHA_MIN, minimum(alpha, ALPHA_MAX), _ZERO)


def _make_loop(with_depth: bool) -> Callable[..., None]:
    """Make the loop over a tile's rows for one batch; ``with_depth`` is a compile-time constant."""

    @helper  # type: ignore[untyped-decorator]
    def blend_batch(s, count, rows):  # type: ignore[no-untyped-def]
        for p in range(_N0, rows * _WIDTH, _LANES):
            t, final = load(s, _T + p), load(s, _FINAL + p)
            if bits(t > STOP) == _N0:
                continue
            y = np.float32(p // _WIDTH)
            reached = _N0
            for e in range(_N0, count, _LANES):
                dy = load(s, _F_DY + e) - y
                store(s, _F_U + e, load(s, _F_DX + e) + load(s, _F_K + e) * dy)
                store(s, _F_POWER + e, load(s, _F_O + e) - load(s, _F_C + e) * dy * dy)
                reached |= bits((load(s, _F_FIRST + e) <= y) & (load(s, _F_LAST + e) >= y)) << e
            if count < _BATCH:
                reached &= (_N1 << count) - _N1  # Entries from ``count`` on are left over from the previous batch.
            if reached == _N0:
                continue
            x = lane_numbers() + np.float32(p % _WIDTH)
            remaining, at = reached, _ALPHA
            while remaining != _N0:
                e = lowest_bit(remaining)
                remaining &= remaining - _N1
                u = s[_F_U + e] - x
                store(s, at, clip_alpha(exp2_clamped(s[_F_POWER + e] - s[_F_A + e] * u * u)))
                at += _LANES
            red, green, blue, depth = load(s, _R + p), load(s, _G + p), load(s, _B + p), load(s, _D + p)
            remaining, at = reached, _ALPHA
            while remaining != _N0:
                e = lowest_bit(remaining)
                remaining &= remaining - _N1
                alpha = load(s, at)
                at += _LANES
                rest = t * (_ONE - alpha)
                stops = rest <= STOP
                weight = where(stops, _ZERO, alpha * t)
                final = where(stops, final, rest)
                t = rest
                red = red + weight * s[_F_R + e]
                green = green + weight * s[_F_G + e]
                blue = blue + weight * s[_F_B + e]
                if with_depth:
                    depth = depth + weight * s[_F_D + e]
            store(s, _T + p, t)
            store(s, _FINAL + p, final)
            store(s, _R + p, red)
            store(s, _G + p, green)
            store(s, _B + p, blue)
            if with_depth:
                store(s, _D + p, depth)

    return blend_batch  # type: ignore[no-any-return]


def _make_tile(blend_batch: Callable[..., None], channels: int) -> Callable[..., None]:
    """Make the function that blends one tile."""

    @inline_once  # type: ignore[untyped-decorator]
    def blend_tile(  # type: ignore[no-untyped-def]
        tile, records, tile_start, pairs, background, image, transmittance, spans, tile_stop
    ):  # fmt: skip
        height, width, _ = image.shape
        tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
        s = aligned_zeros(_SIZE)
        x0, y0 = (tile % tiles_x) * TILE_WIDTH, (tile // tiles_x) * TILE_HEIGHT
        rows, columns = min(TILE_HEIGHT, height - y0), min(TILE_WIDTH, width - x0)
        # Pixels outside the image keep a transmittance of 0, so they count as stopped.
        for row in range(rows):
            for x in range(columns):
                s[_T + np.uint64(row * TILE_WIDTH + x)] = _ONE
                s[_FINAL + np.uint64(row * TILE_WIDTH + x)] = _ONE
        begin, stop = np.uint64(tile_start[tile]), np.uint64(tile_start[tile + 1])
        while begin < stop and _any_active(s):
            count = min(stop - begin, _BATCH)
            _gather(s, records, pairs, begin, count, np.float32(x0), np.float32(y0))
            for at in range(begin + count, min(stop, begin + count + _BATCH)):
                prefetch(records, gaussian_of(pairs[at]) * _RECORD)
            if spans.shape[0] > 0:
                _store_spans(s, spans, begin, count)
            blend_batch(s, count, np.uint64(rows))
            begin += count
        tile_stop[tile] = np.int64(begin)
        for row in range(rows):
            for x in range(columns):
                p = np.uint64(row * TILE_WIDTH + x)
                t = s[_FINAL + p]
                transmittance[y0 + row, x0 + x] = t
                for channel in range(channels):
                    image[y0 + row, x0 + x, channel] = s[_R + np.uint64(channel) * _PLANE + p] + t * background[channel]

    return blend_tile  # type: ignore[no-any-return]


batch_rgb, batch_rgbd = _make_loop(False), _make_loop(True)
_tile_rgb, _tile_rgbd = _make_tile(batch_rgb, 3), _make_tile(batch_rgbd, 4)


# Two kernels are written out, because Numba cannot cache a kernel on disk if its functions are closure variables.


@parallel_kernel
def _blend_rgb(  # type: ignore[no-untyped-def]
    records, tile_start, pairs, background, image, transmittance, spans, tile_stop
):  # fmt: skip
    for tile in prange(tile_stop.shape[0]):
        _tile_rgb(tile, records, tile_start, pairs, background, image, transmittance, spans, tile_stop)


@parallel_kernel
def _blend_rgbd(  # type: ignore[no-untyped-def]
    records, tile_start, pairs, background, image, transmittance, spans, tile_stop
):  # fmt: skip
    for tile in prange(tile_stop.shape[0]):
        _tile_rgbd(tile, records, tile_start, pairs, background, image, transmittance, spans, tile_stop)


def blend_forward(
    records: NDArray[np.float32], tile_start: NDArray[np.int64], pairs: NDArray[np.uint64],
    background: NDArray[np.float32], image: NDArray[np.float32], transmittance: NDArray[np.float32],
    spans: NDArray[np.uint16], tile_stop: NDArray[np.int64],
) -> None:  # fmt: skip
    """Blend every tile.

    Args:
        records [N, 16] float32, tile_start [tiles + 1] int64, pairs [P] uint64: see ``projection`` and ``tiles``.
        background: [C] float32; C is 3, or 4 with depth.
        image: [H, W, C] float32, written. transmittance: [H, W] float32, written.
        spans: [P] uint16, written for the backward kernel; empty if there is no backward pass.
        tile_stop: [tiles] int64, written: the index in ``pairs`` after the tile's last batch; all its pixels have
            stopped there, or its pairs end.
    """
    blend = _blend_rgb if image.shape[-1] == 3 else _blend_rgbd
    with numba.parallel_chunksize(TILES_AT_ONCE):
        blend(records.ravel(), tile_start, pairs, background, image, transmittance, spans, tile_stop)
