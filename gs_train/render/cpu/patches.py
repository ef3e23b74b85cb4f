"""Patches: the pixels of a tile in groups of one SIMD vector, and which Gaussians reach which patch.

A patch is 4 pixels wide and LANES / 4 pixels high. It is nearly square, so a small ellipse touches few patches, and few
pixels are evaluated in vain. A plane holds one number per pixel of a tile, patch by patch, so that a patch is one
vector. Patches are numbered row by row from the tile's top left corner.

A batch has at most 64 Gaussians and a tile at most 64 patches, so a 64-bit word names the Gaussians that reach a patch,
or the patches that a Gaussian reaches. The forward pass reads words of the first kind, the backward pass words of the
second kind; ``transpose`` converts between them.
"""

from __future__ import annotations

import numpy as np

from gs_train.kernels.jit import helper
from gs_train.kernels.simd import LANES, bits, floor, lane_numbers, load, maximum, zero_floats
from gs_train.render.cpu.tiles import TILE_HEIGHT, TILE_WIDTH

PATCH_WIDTH, PATCH_HEIGHT = 4, LANES // 4  # px
PATCHES = TILE_WIDTH * TILE_HEIGHT // LANES
PATCHES_PER_ROW = TILE_WIDTH // PATCH_WIDTH
BATCH = 64  # Gaussians per batch

_ZERO, _NONE = np.float32(0.0), np.float32(-1.0)
_N0, _N1, _LANES, _BATCH, _PER_ROW = (np.uint64(n) for n in (0, 1, LANES, BATCH, PATCHES_PER_ROW))
_FULL_WORD, _LOW_HALF, _ROW_WORD = (np.uint64(2**n - 1) for n in (64, 32, PATCHES_PER_ROW))
# Columns of the patches: the first pixel's x, then the last pixel's x, from left to right.
_X0, _X1, _X2, _X3 = (np.float32(PATCH_WIDTH * column) for column in range(4))
_END0, _END1, _END2, _END3 = (np.float32(PATCH_WIDTH * column + PATCH_WIDTH - 1) for column in range(4))
_QUARTER, _FOUR = np.float32(1.0 / PATCH_WIDTH), np.float32(PATCH_WIDTH)


@helper
def place_of(row, column):  # type: ignore[no-untyped-def]
    """Index of a tile's pixel in a plane, uint64."""
    patch = (row // PATCH_HEIGHT) * PATCHES_PER_ROW + column // PATCH_WIDTH
    return np.uint64(patch * LANES + (row % PATCH_HEIGHT) * PATCH_WIDTH + column % PATCH_WIDTH)


@helper
def lanes_x():  # type: ignore[no-untyped-def]
    """x of a patch's pixels, px from its left edge."""
    return lane_numbers() - _FOUR * lanes_y()


@helper
def lanes_y():  # type: ignore[no-untyped-def]
    """y of a patch's pixels, px from its top edge."""
    return floor(lane_numbers() * _QUARTER)


@helper
def _nearest(u, first, last):  # type: ignore[no-untyped-def]
    """Distance of u from the interval [first, last]."""
    return maximum(maximum(u - last, first - u), _ZERO)


@helper
def find_reached(s, batch, count, open_patches, reached):  # type: ignore[no-untyped-def]
    """Write to each patch's word which Gaussians of a batch reach it: their alpha may be 1/255 in one of its pixels.

    A row of pixels of a patch is an interval, and alpha is largest at the interval's point nearest to the ellipse's
    axis in this row.

    Args:
        s: scratch array with the batch as a structure of arrays, at the addresses ``batch``: distances dx, dy of the
            means from the tile's first pixel, A/2 log2(e), shear, c/2 log2(e), log2(255 opacity) with a margin (see
            ``projection``).
        count: Gaussians in the batch, up to BATCH.
        open_patches: word with the patches where a pixel has not stopped; other patches get no Gaussian.
        reached: [BATCH] uint64, written.
    """
    at_dx, at_dy, at_a, at_k, at_c, at_reach = batch
    valid = _FULL_WORD >> (_BATCH - count)
    for first_patch in range(_N0, np.uint64(PATCHES), _PER_ROW):
        if (open_patches >> first_patch) & _ROW_WORD == _N0:
            for column in range(_PER_ROW):
                reached[first_patch + column] = _N0
            continue
        r0, r1, r2, r3 = _N0, _N0, _N0, _N0
        y = np.float32(first_patch // _PER_ROW * np.uint64(PATCH_HEIGHT))
        for e in range(_N0, count, _LANES):
            dx, dy0, k = load(s, at_dx + e), load(s, at_dy + e) - y, load(s, at_k + e)
            a, c, reach = load(s, at_a + e), load(s, at_c + e), load(s, at_reach + e)
            m0 = m1 = m2 = m3 = zero_floats() + _NONE
            for row in range(PATCH_HEIGHT):
                dy = dy0 - np.float32(row)
                u, rest = dx + k * dy, reach - c * dy * dy
                d0, d1 = _nearest(u, _X0, _END0), _nearest(u, _X1, _END1)
                d2, d3 = _nearest(u, _X2, _END2), _nearest(u, _X3, _END3)
                m0, m1 = maximum(m0, rest - a * d0 * d0), maximum(m1, rest - a * d1 * d1)
                m2, m3 = maximum(m2, rest - a * d2 * d2), maximum(m3, rest - a * d3 * d3)
            r0 |= bits(m0 >= _ZERO) << e
            r1 |= bits(m1 >= _ZERO) << e
            r2 |= bits(m2 >= _ZERO) << e
            r3 |= bits(m3 >= _ZERO) << e
        # Entries from ``count`` on are left over from the previous batch.
        words = (r0 & valid, r1 & valid, r2 & valid, r3 & valid)
        for column in range(PATCHES_PER_ROW):
            patch = first_patch + np.uint64(column)
            reached[patch] = words[column] if (open_patches >> patch) & _N1 != _N0 else _N0


@helper
def transpose(words):  # type: ignore[no-untyped-def]
    """Transpose 64 words as a matrix of 64 x 64 bits in place: swap ever smaller squares off the diagonal."""
    size, low = np.uint64(32), _LOW_HALF
    while size != _N0:
        row = _N0
        while row < np.uint64(64):
            other = row | size
            swapped = ((words[row] >> size) ^ words[other]) & low
            words[row] ^= swapped << size
            words[other] ^= swapped
            row = (other + _N1) & ~size
        size >>= _N1
        low ^= low << size
