"""L1 + D-SSIM and its gradient on a CPU: a pair of Numba kernels over small image tiles.

Not here: the definition (``losses`` holds it in plain torch; the tests hold the two against each other). An image row of W RGB pixels is
taken as 3 W floats, so that a tap of the window lies three floats to the side and whole rows vectorise without a transposition. Each tile
works in one scratch array with constant offsets and unsigned indices, or LLVM would not vectorise (see ``render.cpu.blending``). The
invariant: the sums over tiles are taken in a fixed order, whatever the number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from gs_train.jit import accumulate, helper, parallel_kernel

_ROWS, _COLUMNS = 32, 192  # Outputs per tile; columns are floats, i.e. 64 pixels.
_HALO = 5
_PAD = 3 * _HALO
_IN_ROWS, _IN_COLUMNS = _ROWS + 2 * _HALO, _COLUMNS + 2 * _PAD
_window = np.exp(-0.5 * ((np.arange(2 * _HALO + 1) - _HALO) / 1.5) ** 2)
# Half of the symmetric window, centre last.
_W0, _W1, _W2, _W3, _W4, _W5 = (np.float32(w) for w in (_window / _window.sum())[: _HALO + 1])
_C1, _C2 = np.float32(0.01**2), np.float32(0.03**2)
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)

_U_ROWS, _U_COLUMNS, _U_IN_ROWS, _U_IN_COLUMNS = (np.uint64(v) for v in (_ROWS, _COLUMNS, _IN_ROWS, _IN_COLUMNS))
_IN_PLANE, _MID_PLANE, _OUT_PLANE = _U_IN_ROWS * _U_IN_COLUMNS, _U_IN_ROWS * _U_COLUMNS, _U_ROWS * _U_COLUMNS
_T1, _T2, _T3, _T4, _T5, _T6, _T7, _T8, _T9, _T10 = (np.uint64(3 * k) for k in range(1, 11))  # Taps along a row, in floats.
_R1, _R2, _R3, _R4, _R5, _R6, _R7, _R8, _R9, _R10 = (np.uint64(k) * _U_COLUMNS for k in range(1, 11))  # Taps along a column.


@helper
def _across(s, at):  # type: ignore[no-untyped-def]
    """The window along a row, first tap at ``at``."""
    return (
        _W0 * (s[at] + s[at + _T10]) + _W1 * (s[at + _T1] + s[at + _T9]) + _W2 * (s[at + _T2] + s[at + _T8])
        + _W3 * (s[at + _T3] + s[at + _T7]) + _W4 * (s[at + _T4] + s[at + _T6]) + _W5 * s[at + _T5]
    )  # fmt: skip


@helper
def _across_product(s, a, b):  # type: ignore[no-untyped-def]
    """The window along a row of the product of two planes, first taps at ``a`` and ``b``."""
    return (
        _W0 * (s[a] * s[b] + s[a + _T10] * s[b + _T10]) + _W1 * (s[a + _T1] * s[b + _T1] + s[a + _T9] * s[b + _T9])
        + _W2 * (s[a + _T2] * s[b + _T2] + s[a + _T8] * s[b + _T8]) + _W3 * (s[a + _T3] * s[b + _T3] + s[a + _T7] * s[b + _T7])
        + _W4 * (s[a + _T4] * s[b + _T4] + s[a + _T6] * s[b + _T6]) + _W5 * s[a + _T5] * s[b + _T5]
    )  # fmt: skip


@helper
def _down(s, at):  # type: ignore[no-untyped-def]
    """The window along a column of a plane _COLUMNS wide, first tap at ``at``."""
    return (
        _W0 * (s[at] + s[at + _R10]) + _W1 * (s[at + _R1] + s[at + _R9]) + _W2 * (s[at + _R2] + s[at + _R8])
        + _W3 * (s[at + _R3] + s[at + _R7]) + _W4 * (s[at + _R4] + s[at + _R6]) + _W5 * s[at + _R5]
    )  # fmt: skip


@helper
def _load(source, s, offset, y0, x0):  # type: ignore[no-untyped-def]
    """Copy the tile at (y0, x0) with its halo from [H, 3 W] into the scratch array; zeros beyond the border."""
    height, width = source.shape
    for row in range(_IN_ROWS):
        y = y0 + row - _HALO
        begin = offset + np.uint64(row) * _U_IN_COLUMNS
        if y < 0 or y >= height:
            s[begin : begin + _U_IN_COLUMNS] = _ZERO
            continue
        low, high = max(x0 - _PAD, 0), min(x0 + _COLUMNS + _PAD, width)
        left, right = low - (x0 - _PAD), high - (x0 - _PAD)
        at = int(begin)
        s[at : at + left] = _ZERO
        s[at + left : at + right] = source[y, low:high]
        s[at + right : at + _IN_COLUMNS] = _ZERO


@helper
def _store(s, offset, target, y0, x0):  # type: ignore[no-untyped-def]
    """Copy a finished tile into [H, 3 W]."""
    height, width = target.shape
    columns = min(_COLUMNS, width - x0)
    for row in range(min(_ROWS, height - y0)):
        at = int(offset) + row * _COLUMNS
        target[y0 + row, x0 : x0 + columns] = s[at : at + columns]


@parallel_kernel
def ssim_forward(image: NDArray, target: NDArray, derivatives: NDArray, sums: NDArray) -> None:
    """SSIM and L1 sums, and what the gradient needs.

    Args:
        image, target: [H, 3 W] float32.
        derivatives: [3, H, 3 W] float32, written: dSSIM by blur(x), by blur(x**2), by blur(x y), per output pixel.
        sums: [tiles, 2] float64, written: sum of SSIM and of absolute differences in each tile.
    """
    height, width = image.shape
    tiles_x = (width + _COLUMNS - 1) // _COLUMNS
    at_x, at_y = np.uint64(0), _IN_PLANE
    middle = np.uint64(2) * _IN_PLANE
    out = middle + np.uint64(5) * _MID_PLANE
    size = int(out + np.uint64(4) * _OUT_PLANE)
    p1, p2, p3, p4 = _MID_PLANE, np.uint64(2) * _MID_PLANE, np.uint64(3) * _MID_PLANE, np.uint64(4) * _MID_PLANE
    o1, o2, o3 = _OUT_PLANE, np.uint64(2) * _OUT_PLANE, np.uint64(3) * _OUT_PLANE
    for tile in prange(sums.shape[0]):
        s = np.empty(size, np.float32)
        y0, x0 = (tile // tiles_x) * _ROWS, (tile % tiles_x) * _COLUMNS
        _load(image, s, at_x, y0, x0)
        _load(target, s, at_y, y0, x0)
        for row in range(_U_IN_ROWS):
            a, b, m = at_x + row * _U_IN_COLUMNS, at_y + row * _U_IN_COLUMNS, middle + row * _U_COLUMNS
            for c in range(_U_COLUMNS):
                s[m + c] = _across(s, a + c)
                s[m + p1 + c] = _across(s, b + c)
            for c in range(_U_COLUMNS):
                s[m + p2 + c] = _across_product(s, a + c, a + c)
                s[m + p3 + c] = _across_product(s, b + c, b + c)
                s[m + p4 + c] = _across_product(s, a + c, b + c)
        for row in range(_U_ROWS):
            m, o = middle + row * _U_COLUMNS, out + row * _U_COLUMNS
            for c in range(_U_COLUMNS):
                mean_x, mean_y = _down(s, m + c), _down(s, m + p1 + c)
                xx, yy, xy = _down(s, m + p2 + c), _down(s, m + p3 + c), _down(s, m + p4 + c)
                a1, a2 = _TWO * mean_x * mean_y + _C1, _TWO * (xy - mean_x * mean_y) + _C2
                b1 = mean_x * mean_x + mean_y * mean_y + _C1
                b2 = xx - mean_x * mean_x + yy - mean_y * mean_y + _C2
                inverse = _ONE / (b1 * b2)
                value = a1 * a2 * inverse
                by_xx, by_xy = -value * b1 * inverse, _TWO * a1 * inverse
                s[o + c] = _TWO * (mean_y * a2 - mean_x * value * b2) * inverse - _TWO * mean_x * by_xx - mean_y * by_xy
                s[o + o1 + c] = by_xx
                s[o + o2 + c] = by_xy
                s[o + o3 + c] = value
        _store(s, out, derivatives[0], y0, x0)
        _store(s, out + o1, derivatives[1], y0, x0)
        _store(s, out + o2, derivatives[2], y0, x0)
        similarity, absolute = 0.0, 0.0
        columns = np.uint64(min(_COLUMNS, width - x0))
        for row in range(np.uint64(min(_ROWS, height - y0))):
            row_similarity, row_absolute = _ZERO, _ZERO
            o = out + o3 + row * _U_COLUMNS
            a = at_x + (row + np.uint64(_HALO)) * _U_IN_COLUMNS + np.uint64(_PAD)
            for c in range(columns):
                row_similarity = accumulate(row_similarity, s[o + c])
                row_absolute = accumulate(row_absolute, abs(s[a + c] - s[a + _IN_PLANE + c]))
            similarity += np.float64(row_similarity)
            absolute += np.float64(row_absolute)
        sums[tile, 0] = similarity
        sums[tile, 1] = absolute


@parallel_kernel
def ssim_backward(image, target, derivatives, weight_l1, weight_ssim, gradient):  # type: ignore[no-untyped-def]
    """gradient = weight_l1 * sign(image - target) + weight_ssim * dSSIM/dimage, [H, 3 W] float32, written; weights float32."""
    height, width = image.shape
    tiles_x = (width + _COLUMNS - 1) // _COLUMNS
    tiles_y = (height + _ROWS - 1) // _ROWS
    at_x, at_y, at_d = np.uint64(0), _OUT_PLANE, np.uint64(2) * _OUT_PLANE
    middle = at_d + np.uint64(3) * _IN_PLANE
    size = int(middle + np.uint64(3) * _MID_PLANE)
    p1, p2 = _MID_PLANE, np.uint64(2) * _MID_PLANE
    for tile in prange(tiles_x * tiles_y):
        s = np.zeros(size, np.float32)
        y0, x0 = (tile // tiles_x) * _ROWS, (tile % tiles_x) * _COLUMNS
        columns = min(_COLUMNS, width - x0)
        for row in range(min(_ROWS, height - y0)):
            at = row * _COLUMNS
            s[at : at + columns] = image[y0 + row, x0 : x0 + columns]
            at += int(at_y)
            s[at : at + columns] = target[y0 + row, x0 : x0 + columns]
        for plane in range(3):
            _load(derivatives[plane], s, at_d + np.uint64(plane) * _IN_PLANE, y0, x0)
        for row in range(_U_IN_ROWS):
            a, m = at_d + row * _U_IN_COLUMNS, middle + row * _U_COLUMNS
            for c in range(_U_COLUMNS):
                s[m + c] = _across(s, a + c)
                s[m + p1 + c] = _across(s, a + _IN_PLANE + c)
                s[m + p2 + c] = _across(s, a + _IN_PLANE + _IN_PLANE + c)
        for row in range(_U_ROWS):
            m, o = middle + row * _U_COLUMNS, at_x + row * _U_COLUMNS
            for c in range(_U_COLUMNS):
                x, y = s[o + c], s[o + at_y + c]
                by_ssim = _down(s, m + c) + _TWO * x * _down(s, m + p1 + c) + y * _down(s, m + p2 + c)
                sign = _ONE if x > y else (-_ONE if x < y else _ZERO)
                s[o + c] = weight_l1 * sign + weight_ssim * by_ssim
        _store(s, at_x, gradient, y0, x0)


def photometric_loss_and_gradient(image: NDArray, target: NDArray, lambda_dssim: float) -> tuple[float, NDArray]:
    """(1 - lambda) * L1 + lambda * (1 - SSIM) and its gradient by ``image``; [H, W, 3] float32, contiguous."""
    height, width, _ = image.shape
    rows, target_rows = image.reshape(height, -1), target.reshape(height, -1)
    tiles = -(-height // _ROWS) * -(-width * 3 // _COLUMNS)
    derivatives, sums = np.empty((3, *rows.shape), np.float32), np.empty((tiles, 2))
    ssim_forward(rows, target_rows, derivatives, sums)
    similarity, absolute = sums.sum(axis=0) / rows.size
    gradient = np.empty_like(rows)
    weights = np.float32((1.0 - lambda_dssim) / rows.size), np.float32(-lambda_dssim / rows.size)
    ssim_backward(rows, target_rows, derivatives, *weights, gradient)
    return (1.0 - lambda_dssim) * float(absolute) + lambda_dssim * (1.0 - float(similarity)), gradient.reshape(image.shape)
