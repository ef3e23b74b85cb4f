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

from gs_train.jit import KERNEL_LOCK, accumulate, follow_torch_threads, helper, parallel_kernel

_ROWS, _COLUMNS = 32, 192  # Outputs per tile; columns are floats, i.e. 64 pixels.
_HALO = 5
_PAD = 3 * _HALO
_IN_ROWS, _IN_COLUMNS = _ROWS + 2 * _HALO, _COLUMNS + 2 * _PAD
_window = np.exp(-0.5 * ((np.arange(2 * _HALO + 1) - _HALO) / 1.5) ** 2)
# Half of the symmetric window, centre last.
_W0, _W1, _W2, _W3, _W4, _W5 = (np.float32(w) for w in (_window / _window.sum())[: _HALO + 1])
_C1, _C2 = np.float32(0.01**2), np.float32(0.03**2)
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)

_U_ROWS, _U_COLUMNS, _U_IN_ROWS, _U_HALO, _U_PAD = (np.uint64(v) for v in (_ROWS, _COLUMNS, _IN_ROWS, _HALO, _PAD))
# All planes have rows of the same length, so that two accesses in the same row differ by a constant and are known not to overlap.
_STRIDE = np.uint64(_IN_COLUMNS)
_PLANE = _U_IN_ROWS * _STRIDE
_FORWARD_PLANES = tuple(np.uint64(k) * _PLANE for k in range(11))
_BACKWARD_PLANES = tuple(np.uint64(k) * _PLANE for k in range(8))
_T1, _T2, _T3, _T4, _T5, _T6, _T7, _T8, _T9, _T10 = (np.uint64(3 * k) for k in range(1, 11))  # Taps along a row, in floats.
_R1, _R2, _R3, _R4, _R5, _R6, _R7, _R8, _R9, _R10 = (np.uint64(k) * _STRIDE for k in range(1, 11))  # Taps along a column.


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
    """The window along a column, first tap at ``at``."""
    return (
        _W0 * (s[at] + s[at + _R10]) + _W1 * (s[at + _R1] + s[at + _R9]) + _W2 * (s[at + _R2] + s[at + _R8])
        + _W3 * (s[at + _R3] + s[at + _R7]) + _W4 * (s[at + _R4] + s[at + _R6]) + _W5 * s[at + _R5]
    )  # fmt: skip


# One output plane per loop: with more, LLVM counts too many possible overlaps and gives up on vectorising.


@helper
def _blur_across(s, source, to):  # type: ignore[no-untyped-def]
    """Blur every row of the plane ``source`` into the plane ``to``."""
    for row in range(_U_IN_ROWS):
        r = row * _STRIDE
        for c in range(_U_COLUMNS):
            s[to + r + c] = _across(s, source + r + c)


@helper
def _blur_product_across(s, a, b, to):  # type: ignore[no-untyped-def]
    """Blur every row of the product of two planes into the plane ``to``."""
    for row in range(_U_IN_ROWS):
        r = row * _STRIDE
        for c in range(_U_COLUMNS):
            s[to + r + c] = _across_product(s, a + r + c, b + r + c)


@helper
def _blur_down(s, plane):  # type: ignore[no-untyped-def]
    """Blur the columns of a plane in place: row r takes rows r to r + 10, and no later row needs it."""
    for row in range(_U_ROWS):
        r = row * _STRIDE
        for c in range(_U_COLUMNS):
            s[plane + r + c] = _down(s, plane + r + c)


@helper
def _load(source, s, offset, y0, x0):  # type: ignore[no-untyped-def]
    """Copy the tile at (y0, x0) with its halo from [H, 3 W] into the scratch array; zeros beyond the border."""
    height, width = source.shape
    for row in range(_IN_ROWS):
        y = y0 + row - _HALO
        begin = offset + np.uint64(row) * _STRIDE
        if y < 0 or y >= height:
            s[begin : begin + _STRIDE] = _ZERO
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
        at = int(offset) + row * _IN_COLUMNS
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
    x, y, mean_x, mean_y, xx, yy, xy, by_mean, by_xx, by_xy, ssim = _FORWARD_PLANES
    for tile in prange(sums.shape[0]):
        s = np.empty(11 * _IN_ROWS * _IN_COLUMNS, np.float32)
        y0, x0 = (tile // tiles_x) * _ROWS, (tile % tiles_x) * _COLUMNS
        _load(image, s, x, y0, x0)
        _load(target, s, y, y0, x0)
        _blur_across(s, x, mean_x)
        _blur_across(s, y, mean_y)
        _blur_product_across(s, x, x, xx)
        _blur_product_across(s, y, y, yy)
        _blur_product_across(s, x, y, xy)
        for plane in (mean_x, mean_y, xx, yy, xy):
            _blur_down(s, plane)
        for row in range(_U_ROWS):
            r = row * _STRIDE
            for c in range(_U_COLUMNS):
                mx, my = s[mean_x + r + c], s[mean_y + r + c]
                covariance = s[xy + r + c] - mx * my
                variances = s[xx + r + c] - mx * mx + s[yy + r + c] - my * my
                a1, a2 = _TWO * mx * my + _C1, _TWO * covariance + _C2
                b1, b2 = mx * mx + my * my + _C1, variances + _C2
                inverse = _ONE / (b1 * b2)
                value = a1 * a2 * inverse
                d_xx, d_xy = -value * b1 * inverse, _TWO * a1 * inverse
                s[by_mean + r + c] = _TWO * (my * a2 - mx * value * b2) * inverse - _TWO * mx * d_xx - my * d_xy
                s[by_xx + r + c] = d_xx
                s[by_xy + r + c] = d_xy
                s[ssim + r + c] = value
        _store(s, by_mean, derivatives[0], y0, x0)
        _store(s, by_xx, derivatives[1], y0, x0)
        _store(s, by_xy, derivatives[2], y0, x0)
        similarity, absolute = 0.0, 0.0
        columns = np.uint64(min(_COLUMNS, width - x0))
        for row in range(np.uint64(min(_ROWS, height - y0))):
            row_similarity, row_absolute = _ZERO, _ZERO
            r, centre = row * _STRIDE, (row + _U_HALO) * _STRIDE + _U_PAD
            for c in range(columns):
                row_similarity = accumulate(row_similarity, s[ssim + r + c])
                row_absolute = accumulate(row_absolute, abs(s[x + centre + c] - s[y + centre + c]))
            similarity += np.float64(row_similarity)
            absolute += np.float64(row_absolute)
        sums[tile, 0] = similarity
        sums[tile, 1] = absolute


@parallel_kernel
def ssim_backward(image, target, derivatives, weight_l1, weight_ssim, gradient):  # type: ignore[no-untyped-def]
    """gradient = weight_l1 * sign(image - target) + weight_ssim * dSSIM/dimage, [H, 3 W] float32, written; weights float32."""
    height, width = image.shape
    tiles_x, tiles_y = (width + _COLUMNS - 1) // _COLUMNS, (height + _ROWS - 1) // _ROWS
    x, y, by_mean, by_xx, by_xy, blurred_mean, blurred_xx, blurred_xy = _BACKWARD_PLANES
    for tile in prange(tiles_x * tiles_y):
        s = np.empty(8 * _IN_ROWS * _IN_COLUMNS, np.float32)
        y0, x0 = (tile // tiles_x) * _ROWS, (tile % tiles_x) * _COLUMNS
        _load(image, s, x, y0, x0)
        _load(target, s, y, y0, x0)
        _load(derivatives[0], s, by_mean, y0, x0)
        _load(derivatives[1], s, by_xx, y0, x0)
        _load(derivatives[2], s, by_xy, y0, x0)
        for source, blurred in ((by_mean, blurred_mean), (by_xx, blurred_xx), (by_xy, blurred_xy)):
            _blur_across(s, source, blurred)
            _blur_down(s, blurred)
        for row in range(_U_ROWS):
            # The image's own pixels lie a halo inwards; the result goes into by_mean, which is done with.
            r, centre = row * _STRIDE, (row + _U_HALO) * _STRIDE + _U_PAD
            for c in range(_U_COLUMNS):
                vx, vy = s[x + centre + c], s[y + centre + c]
                by_ssim = s[blurred_mean + r + c] + _TWO * vx * s[blurred_xx + r + c] + vy * s[blurred_xy + r + c]
                sign = _ONE if vx > vy else (-_ONE if vx < vy else _ZERO)
                s[by_mean + r + c] = weight_l1 * sign + weight_ssim * by_ssim
        _store(s, by_mean, gradient, y0, x0)


def photometric_loss_and_gradient(image: NDArray, target: NDArray, lambda_dssim: float) -> tuple[float, NDArray]:
    """(1 - lambda) * L1 + lambda * (1 - SSIM) and its gradient by ``image``; [H, W, 3] float32, contiguous."""
    height, width, _ = image.shape
    rows, target_rows = image.reshape(height, -1), target.reshape(height, -1)
    tiles = -(-height // _ROWS) * -(-width * 3 // _COLUMNS)
    derivatives, sums = np.empty((3, *rows.shape), np.float32), np.empty((tiles, 2))
    with KERNEL_LOCK:
        follow_torch_threads()
        ssim_forward(rows, target_rows, derivatives, sums)
    similarity, absolute = sums.sum(axis=0) / rows.size
    gradient = np.empty_like(rows)
    weights = np.float32((1.0 - lambda_dssim) / rows.size), np.float32(-lambda_dssim / rows.size)
    with KERNEL_LOCK:
        ssim_backward(rows, target_rows, derivatives, *weights, gradient)
    return (1.0 - lambda_dssim) * float(absolute) + lambda_dssim * (1.0 - float(similarity)), gradient.reshape(image.shape)
