"""Forward pass of blending inside the tiles, one patch of pixels, which is a SIMD vector, at a time (``kernels.simd``).

``blending_backward`` holds the backward pass, ``tiles`` finds each tile's Gaussians, ``patches`` the Gaussians of each
patch, and ``projection`` writes their records. The kernel takes a batch of Gaussians and walks through the patches of
the tile. A patch's pixels stay in registers while the batch's Gaussians that reach it are blended into them. All alphas
of a patch are first computed into a buffer: an alpha is a chain of twenty dependent operations, and the processor's
look-ahead window is short. It overlaps two or three chains if blending stands between them, and eight if nothing does.

Transmittance keeps falling after the Gaussian at which a pixel stops. It never rises, so its value alone tells that the
pixel has stopped; the final transmittance, which multiplies the background, is kept separately.

No result depends on the number of threads.
"""

from __future__ import annotations

import math
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
    exp2,
    load,
    lowest_bit,
    minimum,
    prefetch,
    store,
    where,
)
from gs_train.render.cpu.patches import (
    BATCH,
    PATCH_HEIGHT,
    PATCH_WIDTH,
    PATCHES,
    PATCHES_PER_ROW,
    find_reached,
    lanes_x,
    lanes_y,
    place_of,
    transpose,
)
from gs_train.render.cpu.projection import (
    BLUE,
    DEPTH,
    GREEN,
    HALF_A,
    HALF_C,
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
_MIN_POWER = np.float32(-math.log2(255.0))  # of alpha = 1/255, below which a pair is skipped
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_LOG2_255 = np.float32(LOG2_255)
_N0, _N1, _LANES, _RECORD = (np.uint64(n) for n in (0, 1, LANES, RECORD_SIZE))
_PER_ROW, _PATCH_WIDTH, _PATCH_HEIGHT = (np.uint64(n) for n in (PATCHES_PER_ROW, PATCH_WIDTH, PATCH_HEIGHT))
PLANE = TILE_WIDTH * (TILE_HEIGHT + 2)  # Two extra rows keep the planes from sharing the sets of the L1 cache.
_PLANE = np.uint64(PLANE)
_BATCH = np.uint64(BATCH)

# Offsets in a tile's scratch array. Planes of pixels: transmittance, final transmittance, blended colour and depth.
_T, _FINAL, _R, _G, _B, _D = (np.uint64(k) * _PLANE for k in range(6))
# After the planes: the alphas of a patch, then the batch as a structure of arrays with _BATCH numbers per field.
_ALPHA = np.uint64(6) * _PLANE
_ALPHA_END = _ALPHA + np.uint64(8) * _LANES
_F_DX, _F_DY, _F_A, _F_K, _F_C, _F_O, _F_R, _F_G, _F_B, _F_D, _F_REACH = (
    _ALPHA_END + np.uint64(k) * _BATCH for k in range(11)
)
_REACH_FIELDS = (_F_DX, _F_DY, _F_A, _F_K, _F_C, _F_REACH)
_SIZE = int(_F_REACH + _BATCH)


@helper
def _open_patches(s):  # type: ignore[no-untyped-def]
    """Word of the patches where a pixel has not stopped."""
    found = _N0
    for patch in range(np.uint64(PATCHES)):
        if bits(load(s, _T + patch * _LANES) > STOP) != _N0:
            found |= _N1 << patch
    return found


@helper
def _gather(s, records, pairs, begin, count, x0, y0):  # type: ignore[no-untyped-def]
    """Copy ``count`` <= BATCH records into the scratch array."""
    for e in range(count):
        r = gaussian_of(pairs[begin + e]) * _RECORD
        s[_F_DX + e] = (records[r + MEAN_X] - x0) + (records[r + MEAN_X_FRACTION] - _HALF)
        s[_F_DY + e] = (records[r + MEAN_Y] - y0) + (records[r + MEAN_Y_FRACTION] - _HALF)
        s[_F_A + e], s[_F_K + e], s[_F_C + e] = records[r + HALF_A], records[r + SHEAR], records[r + HALF_C]
        s[_F_O + e], s[_F_D + e] = records[r + LOG2_OPACITY], records[r + DEPTH]
        s[_F_REACH + e] = records[r + LOG2_OPACITY] + _LOG2_255
        s[_F_R + e], s[_F_G + e], s[_F_B + e] = records[r + RED], records[r + GREEN], records[r + BLUE]


@helper
def raw_alpha(power):  # type: ignore[no-untyped-def]
    """2**power, the alpha before its clamp to ALPHA_MAX, and 0 below 1/255."""
    return where(power >= _MIN_POWER, exp2(power), _ZERO)


def _make_loop(with_depth: bool) -> Callable[..., None]:
    """Make the loop over a tile's patches for one batch; ``with_depth`` is a compile-time constant."""

    @helper  # type: ignore[untyped-decorator]
    def blend_batch(s, reached):  # type: ignore[no-untyped-def]
        for patch in range(np.uint64(PATCHES)):
            remaining = reached[patch]
            if remaining == _N0:
                continue
            x = lanes_x() + np.float32(patch % _PER_ROW * _PATCH_WIDTH)
            y = lanes_y() + np.float32(patch // _PER_ROW * _PATCH_HEIGHT)
            p = patch * _LANES
            t, final = load(s, _T + p), load(s, _FINAL + p)
            red, green, blue, depth = load(s, _R + p), load(s, _G + p), load(s, _B + p), load(s, _D + p)
            while remaining != _N0:
                begin, at = remaining, _ALPHA
                while remaining != _N0 and at < _ALPHA_END:
                    e = lowest_bit(remaining)
                    remaining &= remaining - _N1
                    dy = s[_F_DY + e] - y
                    u = (s[_F_DX + e] + s[_F_K + e] * dy) - x
                    power = (s[_F_O + e] - s[_F_C + e] * dy * dy) - s[_F_A + e] * u * u
                    store(s, at, minimum(raw_alpha(power), ALPHA_MAX))
                    at += _LANES
                at = _ALPHA
                while begin != remaining:
                    e = lowest_bit(begin)
                    begin &= begin - _N1
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
                if bits(t > STOP) == _N0:
                    reached[patch] ^= remaining  # All pixels have stopped, so the other Gaussians do not count.
                    remaining = _N0
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
        tile, records, tile_start, pairs, background, image, transmittance, patches, tile_stop
    ):  # fmt: skip
        height, width, _ = image.shape
        tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
        s = aligned_zeros(_SIZE)
        x0, y0 = (tile % tiles_x) * TILE_WIDTH, (tile // tiles_x) * TILE_HEIGHT
        rows, columns = min(TILE_HEIGHT, height - y0), min(TILE_WIDTH, width - x0)
        # Pixels outside the image keep a transmittance of 0, so they count as stopped.
        for row in range(rows):
            for x in range(columns):
                s[_T + place_of(row, x)] = _ONE
                s[_FINAL + place_of(row, x)] = _ONE
        begin, stop = np.uint64(tile_start[tile]), np.uint64(tile_start[tile + 1])
        reached = np.zeros(BATCH, np.uint64)
        while begin < stop:
            open_patches = _open_patches(s)
            if open_patches == _N0:
                break
            count = min(stop - begin, _BATCH)
            _gather(s, records, pairs, begin, count, np.float32(x0), np.float32(y0))
            for at in range(begin + count, min(stop, begin + count + _BATCH)):
                prefetch(records, gaussian_of(pairs[at]) * _RECORD)
            find_reached(s, _REACH_FIELDS, count, open_patches, reached)
            blend_batch(s, reached)
            if patches.shape[0] > 0:
                transpose(reached)
                for e in range(count):
                    patches[begin + e] = reached[e]
                for patch in range(PATCHES, BATCH):
                    reached[patch] = _N0
            begin += count
        tile_stop[tile] = np.int64(begin)
        for row in range(rows):
            for x in range(columns):
                p = place_of(row, x)
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
    records, tile_start, pairs, background, image, transmittance, patches, tile_stop
):  # fmt: skip
    for tile in prange(tile_stop.shape[0]):
        _tile_rgb(tile, records, tile_start, pairs, background, image, transmittance, patches, tile_stop)


@parallel_kernel
def _blend_rgbd(  # type: ignore[no-untyped-def]
    records, tile_start, pairs, background, image, transmittance, patches, tile_stop
):  # fmt: skip
    for tile in prange(tile_stop.shape[0]):
        _tile_rgbd(tile, records, tile_start, pairs, background, image, transmittance, patches, tile_stop)


def blend_forward(
    records: NDArray[np.float32], tile_start: NDArray[np.int64], pairs: NDArray[np.uint64],
    background: NDArray[np.float32], image: NDArray[np.float32], transmittance: NDArray[np.float32],
    patches: NDArray[np.uint64], tile_stop: NDArray[np.int64],
) -> None:  # fmt: skip
    """Blend every tile.

    Args:
        records [N, 16] float32, tile_start [tiles + 1] int64, pairs [P] uint64: see ``projection`` and ``tiles``.
        background: [C] float32; C is 3, or 4 with depth.
        image: [H, W, C] float32, written. transmittance: [H, W] float32, written.
        patches: [P] uint64, written for the backward kernel: each pair's word of patches (see ``patches``). Empty if
            there is no backward pass.
        tile_stop: [tiles] int64, written: the index in ``pairs`` after the tile's last batch; all its pixels have
            stopped there, or its pairs end.
    """
    blend = _blend_rgb if image.shape[-1] == 3 else _blend_rgbd
    with numba.parallel_chunksize(TILES_AT_ONCE):
        blend(records.ravel(), tile_start, pairs, background, image, transmittance, patches, tile_stop)
