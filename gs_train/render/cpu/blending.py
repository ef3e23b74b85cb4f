"""Blending inside the tiles, forward and backward: for each Gaussian, one vectorised loop over the rows of the tile that it can touch.

Not here: which Gaussians a tile has (``tiles``) and where their records come from (``projection``). A tile's pixels live in one small
float32 scratch array of planes (transmittance, colours, sums), reached with constant offsets and unsigned indices: with several arrays, or
signed indices, LLVM has to assume overlap and silently stops vectorising. A pixel that has had enough is marked by a negative
transmittance. The backward pass runs front to back as the forward pass does and recomputes the same transmittance, bit for bit.

The gradient of a pixel, with v the gradient of its colour and v_alpha that of its alpha: let R_i be what lies behind Gaussian i,
R_i = sum_{j>i} T_j alpha_j (c_j . v) + T_final (background . v - v_alpha). Then dL/dalpha_i = T_i (c_i . v) - R_i / (1 - alpha_i), and
R_i follows from R_{i-1} by subtraction, starting at colour . v - T_final v_alpha.

The invariant: sums over pixels are taken in an order that is fixed when the kernel is compiled, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import prange

from gs_train.jit import accumulate, exp2_nonpositive, helper, parallel_kernel
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
    ROW_FIRST,
    ROW_LAST,
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
from gs_train.render.cpu.tiles import TILE

_ALPHA_MIN = np.float32(1.0 / 255.0)
_ALPHA_MAX = np.float32(0.999)
_STOP = np.float32(1e-4)
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_CHECK_EVERY = 32  # Gaussians between two looks at whether the whole tile has had enough.

_PLANE = np.uint64(TILE * TILE)
_TILE = np.uint64(TILE)
_N0 = np.uint64(0)
_TWO_LN2 = np.float32(2.0 / LOG2_E)

# Planes of the scratch array: a tile's 256 values each. Forward and backward share the first three.
_AT_T, _AT_X, _AT_Y = (np.uint64(k) * _PLANE for k in range(3))
_AT_R, _AT_G, _AT_B, _AT_D = (np.uint64(k) * _PLANE for k in range(3, 7))  # forward: what has been blended
_AT_VR, _AT_VG, _AT_VB, _AT_VD, _AT_REST = (np.uint64(k) * _PLANE for k in range(3, 8))  # backward: gradients, and R_i
_FORWARD_SIZE, _BACKWARD_SIZE = 7 * TILE * TILE, 8 * TILE * TILE


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
    most = s[_N0]
    for pixel in range(_PLANE):
        most = max(most, s[pixel])
    return most <= _ZERO


@helper
def _place(record, x0, y0):  # type: ignore[no-untyped-def]
    """Mean relative to the tile's first pixel centre, first pixel and number of pixels of the rows that the ellipse can touch."""
    dx0 = (record[MEAN_X] - np.float32(x0)) + (record[MEAN_X_FRACTION] - _HALF)
    dy0 = (record[MEAN_Y] - np.float32(y0)) + (record[MEAN_Y_FRACTION] - _HALF)
    first = max(int(record[ROW_FIRST]) - y0, 0)
    stop = min(int(record[ROW_LAST]) - y0 + 1, TILE)
    return dx0, dy0, np.uint64(first) * _TILE, np.uint64(max(stop - first, 0)) * _TILE


def _make_forward(with_depth: bool) -> Callable[..., None]:
    """The loop over the pixels of one Gaussian in one tile; ``with_depth`` is fixed when it is compiled."""

    @helper  # type: ignore[untyped-decorator]
    def blend_one(s, record, x0, y0):  # type: ignore[no-untyped-def]
        a, k, c, log2_opacity = record[HALF_A], record[SHEAR], record[HALF_C], record[LOG2_OPACITY]
        red, green, blue, depth = record[RED], record[GREEN], record[BLUE], record[DEPTH]
        dx0, dy0, first, count = _place(record, x0, y0)
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
        s = np.zeros(_FORWARD_SIZE, np.float32)
        _set_up_planes(s)
        for pixel in range(_PLANE):
            s[_AT_T + pixel] = _ONE
        x0, y0 = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        for entry in range(tile_start[tile], tile_start[tile + 1]):
            if (entry - tile_start[tile]) % _CHECK_EVERY == 0 and _all_done(s):
                break
            if channels == 4:
                _forward_rgbd(s, records[pairs[entry, 0]], x0, y0)
            else:
                _forward_rgb(s, records[pairs[entry, 0]], x0, y0)
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
    def blend_one(s, record, x0, y0, sums):  # type: ignore[no-untyped-def]
        a, k, c, log2_opacity = record[HALF_A], record[SHEAR], record[HALF_C], record[LOG2_OPACITY]
        red, green, blue, depth = record[RED], record[GREEN], record[BLUE], record[DEPTH]
        # d sigma / d mean = (A u, (A k) u + c dy), with A = 2 ln(2) * HALF_A and so on.
        mean_x_u, mean_y_u, mean_y_y = _TWO_LN2 * a, _TWO_LN2 * a * k, _TWO_LN2 * c
        dx0, dy0, first, count = _place(record, x0, y0)
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
        sums[SUM_G], sums[SUM_U], sums[SUM_UU], sums[SUM_Y], sums[SUM_UY], sums[SUM_YY] = sum_g, sum_u, sum_uu, sum_y, sum_uy, sum_yy
        sums[SUM_RED], sums[SUM_GREEN], sums[SUM_BLUE], sums[SUM_DEPTH] = sum_r, sum_gr, sum_b, sum_d
        sums[SUM_ABS_X], sums[SUM_ABS_Y] = sum_ax, sum_ay

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
        s = np.zeros(_BACKWARD_SIZE, np.float32)
        _set_up_planes(s)
        x0, y0 = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        # Pixels beyond the image keep a transmittance of zero, so they take no part.
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
        for entry in range(tile_start[tile], tile_start[tile + 1]):
            if not done and (entry - tile_start[tile]) % _CHECK_EVERY == 0:
                done = _all_done(s)
            record, sums = records[pairs[entry, 0]], slot_sums[pairs[entry, 1]]
            if done:
                sums[:] = _ZERO
            elif full:
                _backward_full(s, record, x0, y0, sums)
            else:
                _backward_rgb(s, record, x0, y0, sums)
