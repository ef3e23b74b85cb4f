"""Blending inside the tiles, forward and backward: for each Gaussian, one vectorised loop over the rows of the tile that it can touch.

Not here: which Gaussians a tile has (``tiles``) and where their records come from (``projection``). A tile's pixels live in one small
float32 scratch array of planes (transmittance, colours, sums), reached with constant offsets and unsigned indices: with several arrays, or
signed indices, LLVM has to assume overlap and silently stops vectorising. A pixel that has had enough is marked by a negative
transmittance. The backward pass runs front to back as the forward pass does and recomputes the same transmittance.

The gradient of a pixel, with v the gradient of its colour and v_alpha that of its alpha: let R_i be what lies behind Gaussian i,
R_i = sum_{j>i} T_j alpha_j (c_j . v) + T_final (background . v - v_alpha). Then dL/dalpha_i = T_i (c_i . v) - R_i / (1 - alpha_i), and
R_i follows from R_{i-1} by subtraction, starting at colour . v - T_final v_alpha.

The invariant: sums over pixels are taken in an order that is fixed when the kernel is compiled, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import prange

from gs_train.jit import accumulate, exp2_nonpositive, helper, parallel_kernel, truncate
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
    RED,
    SHEAR,
    SUM_ABS_X,
    SUM_ABS_Y,
    SUM_BLUE,
    SUM_DEPTH,
    SUM_G,
    SUM_GREEN,
    SUM_RED,
    SUM_U,
    SUM_UU,
    SUM_UY,
    SUM_Y,
    SUM_YY,
)
from gs_train.render.cpu.tiles import LOG2_255, TILE

_ALPHA_MIN = np.float32(1.0 / 255.0)
_ALPHA_MAX = np.float32(0.999)
_STOP = np.float32(1e-4)
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_ROW_MARGIN, _TEN = np.float32(1e-3), np.float32(10.0)
_SIXTEEN, _LAST = np.float32(TILE), np.float32(TILE - 1)
_LOG2_255 = np.float32(LOG2_255)

_PLANE = np.uint64(TILE * TILE)
_TILE = np.uint64(TILE)
_N0 = np.uint64(0)
_TWO_LN2 = np.float32(2.0 / LOG2_E)

_BATCH = np.uint64(32)  # Records fetched at once, and Gaussians between two looks at whether the whole tile has had enough.
# Planes of the scratch array: a tile's 256 values each. Forward and backward share the first three.
_AT_T, _AT_X, _AT_Y = (np.uint64(k) * _PLANE for k in range(3))
_AT_R, _AT_G, _AT_B, _AT_D = (np.uint64(k) * _PLANE for k in range(3, 7))  # forward: what has been blended
_AT_VR, _AT_VG, _AT_VB, _AT_VD, _AT_REST = (np.uint64(k) * _PLANE for k in range(3, 8))  # backward: gradients, and R_i
# Behind the planes, the batch: one field of _BATCH records each.
_B_DX0, _B_DY0, _B_A, _B_K, _B_C, _B_O, _B_R, _B_G, _B_B, _B_D, _B_FIRST, _B_STOP = (
    np.uint64(8) * _PLANE + np.uint64(k) * _BATCH for k in range(12)
)
_SIZE = 8 * TILE * TILE + 12 * int(_BATCH)


@helper
def _set_up_planes(s):  # type: ignore[no-untyped-def]
    """Each pixel's column and row in the tile, as planes: read in the inner loop, which a conversion from integers would slow down."""
    for row in range(_TILE):
        for x in range(_TILE):
            s[_AT_X + row * _TILE + x] = np.float32(x)
            s[_AT_Y + row * _TILE + x] = np.float32(row)


@helper
def _all_done(s):  # type: ignore[no-untyped-def]
    """Whether no pixel of the tile (transmittance is the first plane) takes any more light."""
    # A count, because LLVM vectorises a sum that may be reordered, and not a maximum.
    alive = _ZERO
    for pixel in range(_PLANE):
        alive = accumulate(alive, _ONE if s[pixel] > _ZERO else _ZERO)
    return alive == _ZERO


@helper
def _gather(s, records, pairs, begin, count, x0, y0):  # type: ignore[no-untyped-def]
    """Copy up to _BATCH records into the scratch array, and find the rows of the tile that each ellipse reaches in the tile's columns.

    Fetched together, their cache misses overlap. Over the columns the ellipse's upper edge is concave and its lower edge convex, so the
    extremes lie at the extreme points, limited to the tile. Rows count from the tile's first row: FIRST inclusive, STOP exclusive.
    """
    for e in range(count):
        # Not by a view of the row: Numba counts references to it, atomically.
        i = pairs[begin + np.int64(e), 0]
        s[_B_DX0 + e] = (records[i, MEAN_X] - np.float32(x0)) + (records[i, MEAN_X_FRACTION] - _HALF)
        s[_B_DY0 + e] = (records[i, MEAN_Y] - np.float32(y0)) + (records[i, MEAN_Y_FRACTION] - _HALF)
        s[_B_A + e], s[_B_K + e], s[_B_C + e] = records[i, HALF_A], records[i, SHEAR], records[i, HALF_C]
        s[_B_O + e], s[_B_D + e] = records[i, LOG2_OPACITY], records[i, DEPTH]
        s[_B_R + e], s[_B_G + e], s[_B_B + e] = records[i, RED], records[i, GREEN], records[i, BLUE]
    for e in range(_BATCH):
        a, k, c, dx0, dy0 = s[_B_A + e], s[_B_K + e], s[_B_C + e], s[_B_DX0 + e], s[_B_DY0 + e]
        q = s[_B_O + e] + _LOG2_255
        # a (dx + k dy)**2 + c dy**2 = q solved for dy: dy = (-a k dx +- sqrt(full q - a c dx**2)) / full.
        full = a * k * k + c
        half_height = np.sqrt(max(q / c, _ZERO))
        top = k * half_height
        at_top = max(min(-top, dx0), dx0 - _LAST)
        at_bottom = max(min(top, dx0), dx0 - _LAST)
        highest = (np.sqrt(max(full * q - a * c * at_top * at_top, _ZERO)) - a * k * at_top) / full
        lowest = (-np.sqrt(max(full * q - a * c * at_bottom * at_bottom, _ZERO)) - a * k * at_bottom) / full
        # The margin pays for float32 rounding: a row more costs little, a row less would be wrong.
        margin = _ROW_MARGIN * (_TEN + half_height)
        first = max(min(dy0 - highest - margin, _SIXTEEN), _ZERO)
        last = max(min(dy0 - lowest + margin, _LAST), -_ONE)
        s[_B_FIRST + e] = _SIXTEEN - truncate(_SIXTEEN - first)
        s[_B_STOP + e] = truncate(last + _ONE)


@helper
def _pixels(s, e):  # type: ignore[no-untyped-def]
    """First pixel of the tile and number of pixels that entry e of the batch is evaluated at: whole rows."""
    first, stop = np.uint64(s[_B_FIRST + e]), np.uint64(s[_B_STOP + e])
    return first * _TILE, (stop - first) * _TILE if stop > first else _N0


def _make_forward(with_depth: bool) -> Callable[..., None]:
    """The loop over the pixels of one Gaussian in one tile; ``with_depth`` is fixed when it is compiled."""

    @helper  # type: ignore[untyped-decorator]
    def blend_one(s, e):  # type: ignore[no-untyped-def]
        dx0, dy0, a, k, c, log2_opacity = s[_B_DX0 + e], s[_B_DY0 + e], s[_B_A + e], s[_B_K + e], s[_B_C + e], s[_B_O + e]
        red, green, blue, depth = s[_B_R + e], s[_B_G + e], s[_B_B + e], s[_B_D + e]
        first, count = _pixels(s, e)
        for j in range(count):
            p = first + j
            dy = dy0 - s[_AT_Y + p]
            u = dx0 + k * dy - s[_AT_X + p]
            alpha = min(exp2_nonpositive(log2_opacity - c * dy * dy - a * u * u), _ALPHA_MAX)
            t = s[_AT_T + p]
            alpha = alpha if (alpha >= _ALPHA_MIN) & (t > _ZERO) else _ZERO
            rest = t * (_ONE - alpha)
            enough = (rest <= _STOP) & (t > _ZERO)
            weight = _ZERO if enough else alpha * t
            s[_AT_T + p] = -t if enough else rest
            s[_AT_R + p] += weight * red
            s[_AT_G + p] += weight * green
            s[_AT_B + p] += weight * blue
            if with_depth:
                s[_AT_D + p] += weight * depth

    return blend_one  # type: ignore[no-any-return]


_forward_rgb, _forward_rgbd = _make_forward(False), _make_forward(True)


@parallel_kernel
def blend_forward(records, tile_start, pairs, background, image, transmittance):  # type: ignore[no-untyped-def]
    """Blend every tile.

    Args:
        records [N, 16] float32; tile_start [tiles + 1] int64; pairs [P, 2] int32: see ``projection`` and ``tiles``.
        background: [C] float32, C = 3, or 4 with depth.
        image: [H, W, C] float32, written. transmittance: [H, W] float32, written.
    """
    height, width, channels = image.shape
    tiles_x = (width + TILE - 1) // TILE
    for tile in prange(tile_start.shape[0] - 1):
        s = np.zeros(_SIZE, np.float32)
        _set_up_planes(s)
        x0, y0 = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        # Pixels beyond the image keep a transmittance of zero, so they take no part.
        for row in range(min(TILE, height - y0)):
            for x in range(min(TILE, width - x0)):
                s[_AT_T + np.uint64(row * TILE + x)] = _ONE
        for begin in range(tile_start[tile], tile_start[tile + 1], int(_BATCH)):
            if _all_done(s):
                break
            count = np.uint64(min(tile_start[tile + 1] - begin, int(_BATCH)))
            _gather(s, records, pairs, begin, count, x0, y0)
            for e in range(count):
                if channels == 4:
                    _forward_rgbd(s, e)
                else:
                    _forward_rgb(s, e)
        for row in range(min(TILE, height - y0)):
            for x in range(min(TILE, width - x0)):
                pixel = np.uint64(row * TILE + x)
                t = abs(s[_AT_T + pixel])
                transmittance[y0 + row, x0 + x] = t
                for channel in range(channels):
                    image[y0 + row, x0 + x, channel] = s[_AT_R + np.uint64(channel) * _PLANE + pixel] + t * background[channel]


def _make_backward(full: bool) -> Callable[..., None]:
    """The loop over the pixels of one Gaussian in one tile; ``full`` adds depth and the sums of |dL/dmean2d| per axis."""

    @helper  # type: ignore[untyped-decorator]
    def blend_one(s, e, sums, slot):  # type: ignore[no-untyped-def]
        dx0, dy0, a, k, c, log2_opacity = s[_B_DX0 + e], s[_B_DY0 + e], s[_B_A + e], s[_B_K + e], s[_B_C + e], s[_B_O + e]
        red, green, blue, depth = s[_B_R + e], s[_B_G + e], s[_B_B + e], s[_B_D + e]
        first, count = _pixels(s, e)
        # d sigma / d mean = (A u, (A k) u + c dy), with A = 2 ln(2) * HALF_A and so on.
        mean_x_u, mean_y_u, mean_y_y = _TWO_LN2 * a, _TWO_LN2 * a * k, _TWO_LN2 * c
        sum_g = sum_u = sum_uu = sum_y = sum_uy = sum_yy = sum_r = sum_gr = sum_b = sum_d = sum_ax = sum_ay = _ZERO
        for j in range(count):
            p = first + j
            dy = dy0 - s[_AT_Y + p]
            u = dx0 + k * dy - s[_AT_X + p]
            raw = exp2_nonpositive(log2_opacity - c * dy * dy - a * u * u)
            alpha = min(raw, _ALPHA_MAX)
            t = s[_AT_T + p]
            alpha = alpha if (alpha >= _ALPHA_MIN) & (t > _ZERO) else _ZERO
            through = _ONE - alpha
            rest = t * through
            enough = (rest <= _STOP) & (t > _ZERO)
            alpha = _ZERO if enough else alpha
            s[_AT_T + p] = -t if enough else rest
            weight = alpha * t
            vr, vg, vb = s[_AT_VR + p], s[_AT_VG + p], s[_AT_VB + p]
            gain = red * vr + green * vg + blue * vb
            if full:
                gain += depth * s[_AT_VD + p]
                sum_d = accumulate(sum_d, weight * s[_AT_VD + p])
            gain *= weight
            behind = s[_AT_REST + p] - gain
            s[_AT_REST + p] = behind
            # g = alpha * dL/dalpha; none where alpha was limited.
            g = gain - behind * (alpha / through)
            g = _ZERO if raw > _ALPHA_MAX else g
            gu, gy = g * u, g * dy
            sum_g = accumulate(sum_g, g)
            sum_u = accumulate(sum_u, gu)
            sum_uu = accumulate(sum_uu, gu * u)
            sum_y = accumulate(sum_y, gy)
            sum_uy = accumulate(sum_uy, gu * dy)
            sum_yy = accumulate(sum_yy, gy * dy)
            sum_r = accumulate(sum_r, weight * vr)
            sum_gr = accumulate(sum_gr, weight * vg)
            sum_b = accumulate(sum_b, weight * vb)
            if full:
                sum_ax = accumulate(sum_ax, abs(mean_x_u * gu))
                sum_ay = accumulate(sum_ay, abs(mean_y_u * gu + mean_y_y * gy))
        sums[slot, SUM_G], sums[slot, SUM_U], sums[slot, SUM_UU] = sum_g, sum_u, sum_uu
        sums[slot, SUM_Y], sums[slot, SUM_UY], sums[slot, SUM_YY] = sum_y, sum_uy, sum_yy
        sums[slot, SUM_RED], sums[slot, SUM_GREEN], sums[slot, SUM_BLUE], sums[slot, SUM_DEPTH] = sum_r, sum_gr, sum_b, sum_d
        sums[slot, SUM_ABS_X], sums[slot, SUM_ABS_Y] = sum_ax, sum_ay

    return blend_one  # type: ignore[no-any-return]


_backward_rgb, _backward_full = _make_backward(False), _make_backward(True)


@parallel_kernel
def blend_backward(records, tile_start, pairs, image, transmittance, image_grad, alpha_grad, absolute, slot_sums):  # type: ignore[no-untyped-def]
    """Sums of gradients for every pair of a Gaussian and a tile.

    Args:
        records, tile_start, pairs: as in the forward kernel; image [H, W, C] and transmittance [H, W]: what it wrote.
        image_grad [H, W, C], alpha_grad [H, W]: float32 gradients.
        absolute: whether to sum |dL/dmean2d| per axis, too.
        slot_sums: [P, 12] float32, columns as ``projection.SUM_*``; every slot is written.
    """
    height, width, channels = image.shape
    tiles_x = (width + TILE - 1) // TILE
    full = channels == 4 or absolute
    for tile in prange(tile_start.shape[0] - 1):
        s = np.zeros(_SIZE, np.float32)
        _set_up_planes(s)
        x0, y0 = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        for row in range(min(TILE, height - y0)):
            for x in range(min(TILE, width - x0)):
                pixel = np.uint64(row * TILE + x)
                s[_AT_T + pixel] = _ONE
                rest = -transmittance[y0 + row, x0 + x] * alpha_grad[y0 + row, x0 + x]
                for channel in range(channels):
                    v = image_grad[y0 + row, x0 + x, channel]
                    s[_AT_VR + np.uint64(channel) * _PLANE + pixel] = v
                    rest += image[y0 + row, x0 + x, channel] * v
                s[_AT_REST + pixel] = rest
        done = False
        for begin in range(tile_start[tile], tile_start[tile + 1], int(_BATCH)):
            count = np.uint64(min(tile_start[tile + 1] - begin, int(_BATCH)))
            done = done or _all_done(s)
            if not done:
                _gather(s, records, pairs, begin, count, x0, y0)
            for e in range(count):
                slot = pairs[begin + np.int64(e), 1]
                if done:
                    slot_sums[slot, :] = _ZERO
                elif full:
                    _backward_full(s, e, slot_sums, slot)
                else:
                    _backward_rgb(s, e, slot_sums, slot)
