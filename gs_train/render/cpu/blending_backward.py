"""Backward pass of blending inside the tiles, one patch of pixels at a time; a patch is a SIMD vector.

It reuses the records, sorted pairs and words of patches of the forward pass (``blending``, ``patches``). The kernel
processes one Gaussian at a time, because the sums over its pixels must stay in registers. It goes front to back like
the forward kernel and recomputes the same transmittance. As there, all alphas of a Gaussian are first computed into a
buffer.

The gradient of a pixel: let v be the gradient of its colour, v_alpha the gradient of its alpha, and R_i the
contribution of everything behind Gaussian i, so
R_i = sum_{j>i} T_j alpha_j (c_j . v) + T_final (background . v - v_alpha).
Then dL/dalpha_i = T_i (c_i . v) - R_i / (1 - alpha_i). R_i follows from R_{i-1} by subtraction, starting at
colour . v - T_final v_alpha.

Tiles are processed in bands. For each band, the sums of every pair of a Gaussian and a tile are computed and then added
to the Gaussian's sums. The order of the additions depends only on the scene, never on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import prange
from numpy.typing import NDArray

from gs_train.kernels.buffers import aligned_buffer
from gs_train.kernels.jit import helper, inline_once, parallel_kernel
from gs_train.kernels.simd import (
    LANES,
    absolute,
    aligned_zeros,
    load,
    lowest_bit,
    minimum,
    prefetch,
    store,
    store_sums,
    where,
    zero_floats,
)
from gs_train.render.cpu.blending import ALPHA_MAX, PLANE, STOP, TILES_AT_ONCE, raw_alpha
from gs_train.render.cpu.patches import (
    PATCH_HEIGHT,
    PATCH_WIDTH,
    PATCHES,
    PATCHES_PER_ROW,
    lanes_x,
    lanes_y,
    place_of,
)
from gs_train.render.cpu.projection import (
    BLUE,
    DEPTH,
    GREEN,
    HALF_A,
    HALF_C,
    LOG2_E,
    LOG2_OPACITY,
    MEAN_X,
    MEAN_X_FRACTION,
    MEAN_Y,
    MEAN_Y_FRACTION,
    RECORD_SIZE,
    RED,
    SHEAR,
)
from gs_train.render.cpu.projection_backward import SUM_COUNT
from gs_train.render.cpu.tiles import TILE_HEIGHT, TILE_WIDTH, gaussian_of

# Maximum of pairs in a band of tiles, whose sums (64 bytes each) are in memory at once. A single tile may have more.
_BAND_PAIRS = 2**17
_PREFETCH_DISTANCE = 24  # pairs between the prefetch of a record and its use
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_TWO_LN2 = np.float32(2.0 / LOG2_E)
_N0, _N1, _LANES, _RECORD, _SUMS = (np.uint64(n) for n in (0, 1, LANES, RECORD_SIZE, SUM_COUNT))
# Offsets in a tile's scratch array, planes of pixels: transmittance, R_i, the image's gradient, the pixels' x and y in
# the tile; then alpha and u of one Gaussian, patch after patch.
_T, _BEHIND, _VR, _VG, _VB, _VD, _X, _Y, _ALPHA, _U = (np.uint64(k * PLANE) for k in range(10))
_TO_U = _U - _ALPHA
_SIZE = 10 * PLANE
# log2 of the largest opacity whose alphas are certain not to be clamped.
_UNCLAMPED = np.float32(math.log2(ALPHA_MAX) - 1e-6)


@helper
def _compute_alphas(s, reached, dx, dy0, a, k, c, log2_opacity):  # type: ignore[no-untyped-def]
    """Write alpha before its clamp, and u, of one Gaussian's patches; see ``projection`` for the arguments."""
    at = _ALPHA
    while reached != _N0:
        p = lowest_bit(reached) * _LANES
        reached &= reached - _N1
        dy = dy0 - load(s, _Y + p)
        u = (dx + k * dy) - load(s, _X + p)
        store(s, at, raw_alpha((log2_opacity - c * dy * dy) - a * u * u))
        store(s, at + _TO_U, u)
        at += _LANES


def _make_loop(full: bool, clamped: bool) -> Callable[..., None]:
    """Make the loop over one Gaussian's patches. ``full`` adds depth and absolute gradients; without ``clamped``, no
    alpha may be above ALPHA_MAX. Both are constants of the compilation."""

    @helper  # type: ignore[untyped-decorator]
    def blend_one(s, records, r, x0, y0, reached, sums, at):  # type: ignore[no-untyped-def]
        dx = (records[r + MEAN_X] - x0) + (records[r + MEAN_X_FRACTION] - _HALF)
        dy0 = (records[r + MEAN_Y] - y0) + (records[r + MEAN_Y_FRACTION] - _HALF)
        a, k, c = records[r + HALF_A], records[r + SHEAR], records[r + HALF_C]
        red, green, blue, depth = records[r + RED], records[r + GREEN], records[r + BLUE], records[r + DEPTH]
        # d sigma / d mean = (A u, (A k) u + c dy), with A = 2 ln(2) * HALF_A and so on.
        mean_x_u, mean_y_u, mean_y_y = _TWO_LN2 * a, _TWO_LN2 * a * k, _TWO_LN2 * c
        sum_g = zero_floats()
        sum_u = sum_uu = sum_y = sum_uy = sum_yy = sum_r = sum_gr = sum_b = sum_d = sum_ax = sum_ay = sum_g
        _compute_alphas(s, reached, dx, dy0, a, k, c, records[r + LOG2_OPACITY])
        alpha_at = _ALPHA
        while reached != _N0:
            p = lowest_bit(reached) * _LANES
            reached &= reached - _N1
            dy, u = dy0 - load(s, _Y + p), load(s, alpha_at + _TO_U)
            raw, t = load(s, alpha_at), load(s, _T + p)
            alpha_at += _LANES
            alpha = minimum(raw, ALPHA_MAX) if clamped else raw
            through = _ONE - alpha
            rest = t * through
            store(s, _T + p, rest)
            counts = rest > STOP
            weight = where(counts, alpha * t, _ZERO)
            vr, vg, vb = load(s, _VR + p), load(s, _VG + p), load(s, _VB + p)
            gain = vr * red + vg * green + vb * blue
            if full:
                vd = load(s, _VD + p)
                gain = gain + vd * depth
                sum_d = sum_d + weight * vd
            gain = gain * weight
            behind = load(s, _BEHIND + p) - gain
            store(s, _BEHIND + p, behind)
            # g = alpha * dL/dalpha, or 0 where alpha was clamped.
            g = where(counts & (raw <= ALPHA_MAX) if clamped else counts, gain - behind * (alpha / through), _ZERO)
            gu = g * u
            sum_g = sum_g + g
            sum_u = sum_u + gu
            sum_uu = sum_uu + gu * u
            sum_y = sum_y + g * dy
            sum_uy = sum_uy + gu * dy
            sum_yy = sum_yy + g * (dy * dy)
            sum_r = sum_r + weight * vr
            sum_gr = sum_gr + weight * vg
            sum_b = sum_b + weight * vb
            if full:
                sum_ax = sum_ax + absolute(mean_x_u * gu)
                sum_ay = sum_ay + absolute(mean_y_u * gu + mean_y_y * (g * dy))
        if full:
            store_sums(
                sums, at, (sum_g, sum_u, sum_uu, sum_y, sum_uy, sum_yy, sum_r, sum_gr, sum_b, sum_d, sum_ax, sum_ay)
            )
        else:
            store_sums(sums, at, (sum_g, sum_u, sum_uu, sum_y, sum_uy, sum_yy, sum_r, sum_gr, sum_b))

    return blend_one  # type: ignore[no-any-return]


def _make_tile(blend_one: Callable[..., None], blend_clamped: Callable[..., None]) -> Callable[..., None]:
    """Make the function that computes one tile's pair sums, from the loops without and with ``clamped``."""

    @inline_once  # type: ignore[untyped-decorator]
    def blend_tile(  # type: ignore[no-untyped-def]
        index, records, tile_start, tile_stop, pairs, patches, image, transmittance, image_grad, alpha_grad,
        first_tile, offsets, pair_sums,
    ):  # fmt: skip
        """Write the gradient sums of every pair of a Gaussian and this tile.

        Args:
            index: the tile's position in its band. first_tile: the band's first tile.
            offsets: [tiles of the band] int64, each tile's first row in ``pair_sums``.
            records [N * 16] float32, tile_start, tile_stop, pairs, patches, image [H, W, C], transmittance [H, W]: as
                in the forward kernel.
            image_grad [H, W, C], alpha_grad [H, W]: float32 gradients.
            pair_sums: [pairs * 16] float32, written for the pairs up to ``tile_stop``; columns are
                ``projection_backward.SUM_*``.
        """
        height, width, channels = image.shape
        tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
        tile = first_tile + index
        s = aligned_zeros(_SIZE)
        x0, y0 = (tile % tiles_x) * TILE_WIDTH, (tile // tiles_x) * TILE_HEIGHT
        for row in range(min(TILE_HEIGHT, height - y0)):
            for x in range(min(TILE_WIDTH, width - x0)):
                p = place_of(row, x)
                s[_T + p] = _ONE
                rest = -transmittance[y0 + row, x0 + x] * alpha_grad[y0 + row, x0 + x]
                for channel in range(channels):
                    v = image_grad[y0 + row, x0 + x, channel]
                    s[_VR + np.uint64(channel * PLANE) + p] = v
                    rest += image[y0 + row, x0 + x, channel] * v
                s[_BEHIND + p] = rest
        for patch in range(PATCHES):
            p = np.uint64(patch * LANES)
            store(s, _X + p, lanes_x() + np.float32(patch % PATCHES_PER_ROW * PATCH_WIDTH))
            store(s, _Y + p, lanes_y() + np.float32(patch // PATCHES_PER_ROW * PATCH_HEIGHT))
        begin, stop, offset = tile_start[tile], tile_stop[tile], offsets[index]
        for at in range(begin, stop):
            prefetch(records, gaussian_of(pairs[min(at + _PREFETCH_DISTANCE, stop - 1)]) * _RECORD)
            r = gaussian_of(pairs[at]) * _RECORD
            place = np.uint64(offset + at - begin) * _SUMS
            if records[r + LOG2_OPACITY] <= _UNCLAMPED:
                blend_one(s, records, r, np.float32(x0), np.float32(y0), patches[at], pair_sums, place)
            else:
                blend_clamped(s, records, r, np.float32(x0), np.float32(y0), patches[at], pair_sums, place)

    return blend_tile  # type: ignore[no-any-return]


one_rgb, clamped_rgb = _make_loop(False, False), _make_loop(False, True)
one_full, clamped_full = _make_loop(True, False), _make_loop(True, True)
_tile_rgb, _tile_full = _make_tile(one_rgb, clamped_rgb), _make_tile(one_full, clamped_full)


# Two kernels are written out, because Numba cannot cache a kernel on disk if its functions are closure variables.


@parallel_kernel
def _blend_rgb(  # type: ignore[no-untyped-def]
    records, tile_start, tile_stop, pairs, patches, image, transmittance, image_grad, alpha_grad,
    first_tile, offsets, pair_sums,
):  # fmt: skip
    for index in prange(offsets.shape[0]):
        _tile_rgb(
            index,
            records,
            tile_start,
            tile_stop,
            pairs,
            patches,
            image,
            transmittance,
            image_grad,
            alpha_grad,
            first_tile,
            offsets,
            pair_sums,
        )


@parallel_kernel
def _blend_full(  # type: ignore[no-untyped-def]
    records, tile_start, tile_stop, pairs, patches, image, transmittance, image_grad, alpha_grad,
    first_tile, offsets, pair_sums,
):  # fmt: skip
    for index in prange(offsets.shape[0]):
        _tile_full(
            index,
            records,
            tile_start,
            tile_stop,
            pairs,
            patches,
            image,
            transmittance,
            image_grad,
            alpha_grad,
            first_tile,
            offsets,
            pair_sums,
        )


@parallel_kernel
def clear(sums):  # type: ignore[no-untyped-def]
    """Fill the sums with zeros, in parallel."""
    for row in prange(sums.shape[0]):
        for column in range(SUM_COUNT):
            sums[row, column] = _ZERO


@parallel_kernel
def accumulate(  # type: ignore[no-untyped-def]
    pairs, tile_start, tile_stop, first_tile, offsets, pair_sums, sums, parts
):  # fmt: skip
    """Add the pair sums of a band to their Gaussians' rows of ``sums`` [N * 16], tile by tile.

    There are ``parts`` work items (a power of two). Each scans all pairs and adds the pairs of its own Gaussians. So
    two threads never write to the same row, and the order of the additions to a row does not depend on ``parts``.
    """
    for part in prange(parts):
        longest = 0
        for index in range(offsets.shape[0]):
            longest = max(longest, tile_stop[first_tile + index] - tile_start[first_tile + index])
        own = np.empty(longest + 1, np.uint64)
        for index in range(offsets.shape[0]):
            begin, stop = tile_start[first_tile + index], tile_stop[first_tile + index]
            count = 0
            for at in range(begin, stop):
                # Always write, and advance only for an own pair: a branch would be mispredicted every other time.
                own[count] = np.uint64(at)
                count += int((gaussian_of(pairs[at]) >> np.uint64(2)) & np.uint64(parts - 1) == np.uint64(part))
            shift = np.uint64(offsets[index] - begin)
            for entry in range(count):
                at = own[entry]
                source, target = (at + shift) * _SUMS, gaussian_of(pairs[at]) * _SUMS
                for column in range(_N0, _SUMS, _LANES):
                    store(sums, target + column, load(sums, target + column) + load(pair_sums, source + column))


def blend_backward(
    records: NDArray[np.float32], tile_start: NDArray[np.int64], tile_stop: NDArray[np.int64],
    pairs: NDArray[np.uint64], patches: NDArray[np.uint64],
    image: Any, transmittance: Any, image_grad: Any, alpha_grad: Any, absgrad: bool,
) -> NDArray[np.float32]:  # fmt: skip
    """Compute blending's sums of every Gaussian, in bands of tiles so that only one band's pair sums are in memory.

    Args:
        records, tile_start, tile_stop, pairs, patches, image [H, W, C], transmittance [H, W]: as in ``blend_forward``.
        image_grad [H, W, C], alpha_grad [H, W]: float32 gradients.
        absgrad: also sum absolute gradients of the projected means.

    Returns:
        [N, 16] float32, columns as ``projection_backward.SUM_*``.
    """
    sums = aligned_buffer((len(records), SUM_COUNT))
    clear(sums)
    # Start of each tile's pairs if only the pairs before the tile's stop are counted.
    begins = np.concatenate([[0], np.cumsum(tile_stop - tile_start[:-1])])
    flat, parts = records.ravel(), 1 << (numba.get_num_threads() - 1).bit_length()
    blend = _blend_rgb if image.shape[-1] == 3 and not absgrad else _blend_full
    pair_sums = aligned_buffer((0, SUM_COUNT))
    first, tiles = 0, len(tile_stop)
    while first < tiles:
        stop = max(int(np.searchsorted(begins, begins[first] + _BAND_PAIRS, side="right")) - 1, first + 1)
        offsets = begins[first:stop] - begins[first]
        size = int(begins[stop] - begins[first])
        if len(pair_sums) < size:
            pair_sums = aligned_buffer((size, SUM_COUNT))
        with numba.parallel_chunksize(TILES_AT_ONCE):
            blend(
                flat,
                tile_start,
                tile_stop,
                pairs,
                patches,
                image,
                transmittance,
                image_grad,
                alpha_grad,
                first,
                offsets,
                pair_sums.ravel(),
            )
        accumulate(pairs, tile_start, tile_stop, first, offsets, pair_sums.ravel(), sums.ravel(), parts)
        first = stop
    return sums
