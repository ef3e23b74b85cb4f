"""L1 + D-SSIM and its gradient on a CPU: two Numba kernels over strips of the image.

``losses`` defines the same function in plain torch, and the tests compare the two.

A row of W RGB pixels is treated as 3 W floats: neighbouring taps of the window are three floats apart, and rows are
SIMD vectors without a transposition. A kernel walks down each strip. It blurs each row horizontally into a ring buffer
of the last rows, and blurs two rows at a time vertically out of the ring, so its working set stays in the L1 cache.
SSIM needs only the sum of the blurs of x**2 and y**2, so four planes are blurred instead of five. The sums over strips
are added in a fixed order, for any number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from gs_train.kernels.buffers import aligned_buffer
from gs_train.kernels.jit import KERNEL_LOCK, follow_torch_threads, helper, parallel_kernel
from gs_train.kernels.simd import (
    LANES,
    absolute,
    aligned_zeros,
    lane_numbers,
    load,
    store,
    store_sums,
    where,
    zero_floats,
)

_HALO = 5  # pixels of the window on each side of its centre
_STRIP, _ROWS = 96, 128  # size of a strip: floats per row, and rows
_MARGIN = 16  # extra floats on each side of a row: the halo of 3 * 5, rounded up
_window = np.exp(-0.5 * ((np.arange(2 * _HALO + 1) - _HALO) / 1.5) ** 2)
# Half of the symmetric window, from the outermost weight to the centre.
_W0, _W1, _W2, _W3, _W4, _W5 = (np.float32(w) for w in (_window / _window.sum())[: _HALO + 1])
_C1, _C2 = np.float32(0.01**2), np.float32(0.03**2)
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
_LANES, _U_STRIP, _N0 = np.uint64(LANES), np.uint64(_STRIP), np.uint64(0)
# Distance of each tap from the centre, in floats.
_T1, _T2, _T3, _T4, _T5 = (np.uint64(3 * k) for k in range(1, 6))

# Offsets in the scratch array: two rows each of image, target and output, with margins; sums; the ring of blurred rows.
_ROW = _STRIP + 2 * _MARGIN
_X, _X_BELOW, _Y, _Y_BELOW, _OUT, _OUT_BELOW, _SUMS, _RING = (np.uint64(k * _ROW) for k in range(8))
_BELOW = _X_BELOW - _X
_PLANES, _SLOTS = 4, 16  # The ring needs twelve rows; sixteen make the row's offset cheap to compute.
_SLOT = _PLANES * _STRIP
_SIZE = int(_RING) + _SLOTS * _SLOT


@helper
def _copy_row(source, s, to, y, x0, height, width):  # type: ignore[no-untyped-def]
    """Copy row y of a [height * width] array, from x0 - _MARGIN, into the scratch array; zeros outside the image."""
    if y < 0 or y >= height:
        for c in range(_N0, np.uint64(_ROW), _LANES):
            store(s, to + c, zero_floats())
    elif x0 >= _MARGIN and x0 + _STRIP + _MARGIN <= width:
        begin = np.uint64(y * width + x0 - _MARGIN)
        for c in range(_N0, np.uint64(_ROW), _LANES):
            store(s, to + c, load(source, begin + c))
    else:
        for c in range(_ROW):
            x = x0 - _MARGIN + c
            s[int(to) + c] = source[y * width + x] if x >= 0 and x < width else _ZERO


@helper
def _add_taps(s, x, y, tap, weight, blurred):  # type: ignore[no-untyped-def]
    """Add the taps at distance ``tap`` on both sides to the blurs of x, y, x**2 + y**2 and x * y."""
    left_x, right_x, left_y, right_y = load(s, x - tap), load(s, x + tap), load(s, y - tap), load(s, y + tap)
    return (
        blurred[0] + weight * (left_x + right_x),
        blurred[1] + weight * (left_y + right_y),
        blurred[2] + weight * ((left_x * left_x + right_x * right_x) + (left_y * left_y + right_y * right_y)),
        blurred[3] + weight * (left_x * left_y + right_x * right_y),
    )


@helper
def _blur_row_across(s, slot):  # type: ignore[no-untyped-def]
    """Blur the rows of image, target and their products horizontally, into the four planes of a ring row."""
    for c in range(_N0, _U_STRIP, _LANES):
        x, y = _X + np.uint64(_MARGIN) + c, _Y + np.uint64(_MARGIN) + c
        vx, vy = load(s, x), load(s, y)
        blurred = (_W5 * vx, _W5 * vy, _W5 * (vx * vx + vy * vy), _W5 * (vx * vy))
        blurred = _add_taps(s, x, y, _T1, _W4, blurred)
        blurred = _add_taps(s, x, y, _T2, _W3, blurred)
        blurred = _add_taps(s, x, y, _T3, _W2, blurred)
        blurred = _add_taps(s, x, y, _T4, _W1, blurred)
        blurred = _add_taps(s, x, y, _T5, _W0, blurred)
        store(s, slot + c, blurred[0])
        store(s, slot + _U_STRIP + c, blurred[1])
        store(s, slot + np.uint64(2) * _U_STRIP + c, blurred[2])
        store(s, slot + np.uint64(3) * _U_STRIP + c, blurred[3])


@helper
def _across(a, at):  # type: ignore[no-untyped-def]
    """Window sum along the row, centred at ``at``."""
    return (
        _W5 * load(a, at)
        + _W4 * (load(a, at - _T1) + load(a, at + _T1)) + _W3 * (load(a, at - _T2) + load(a, at + _T2))
        + _W2 * (load(a, at - _T3) + load(a, at + _T3)) + _W1 * (load(a, at - _T4) + load(a, at + _T4))
        + _W0 * (load(a, at - _T5) + load(a, at + _T5))
    )  # fmt: skip


@helper
def _ring_row(row):  # type: ignore[no-untyped-def]
    """Offset in the ring of a strip's row; row 0 is the first row of the halo above the strip."""
    return _RING + np.uint64(row % _SLOTS) * np.uint64(_SLOT)


@helper
def _ring_rows(row):  # type: ignore[no-untyped-def]
    """Offsets in the ring of twelve rows, starting at ``row``."""
    return (
        _ring_row(row), _ring_row(row + 1), _ring_row(row + 2), _ring_row(row + 3),
        _ring_row(row + 4), _ring_row(row + 5), _ring_row(row + 6), _ring_row(row + 7),
        _ring_row(row + 8), _ring_row(row + 9), _ring_row(row + 10), _ring_row(row + 11),
    )  # fmt: skip


@helper
def _down(s, places, at):  # type: ignore[no-untyped-def]
    """Window sums along the columns for two consecutive output rows; ``at`` is the offset within a ring row."""
    r0, r1, r2, r3 = load(s, places[0] + at), load(s, places[1] + at), load(s, places[2] + at), load(s, places[3] + at)
    r4, r5, r6, r7 = load(s, places[4] + at), load(s, places[5] + at), load(s, places[6] + at), load(s, places[7] + at)
    r8, r9, r10, r11 = (
        load(s, places[8] + at),
        load(s, places[9] + at),
        load(s, places[10] + at),
        load(s, places[11] + at),
    )
    return (
        _W0 * (r0 + r10) + _W1 * (r1 + r9) + _W2 * (r2 + r8) + _W3 * (r3 + r7) + _W4 * (r4 + r6) + _W5 * r5,
        _W0 * (r1 + r11) + _W1 * (r2 + r10) + _W2 * (r3 + r9) + _W3 * (r4 + r8) + _W4 * (r5 + r7) + _W5 * r6,
    )


@helper
def _ssim_terms(mx, my, squares, xy):  # type: ignore[no-untyped-def]
    """SSIM and its derivatives with respect to blur(x), blur(x**2) and blur(x * y)."""
    both, means = mx * my, mx * mx + my * my
    a1, a2 = _TWO * both + _C1, _TWO * (xy - both) + _C2
    b1, b2 = means + _C1, (squares - means) + _C2
    inverse = _ONE / (b1 * b2)
    ssim = a1 * a2 * inverse
    by_xx, by_xy = (_ZERO - ssim) * b1 * inverse, _TWO * a1 * inverse
    by_mean = _TWO * (my * a2 - mx * ssim * b2) * inverse - _TWO * mx * by_xx - my * by_xy
    return ssim, by_mean, by_xx, by_xy


@helper
def _absolute_difference(s):  # type: ignore[no-untyped-def]
    """Sum of |x - y| over the row, without the margins."""
    total = zero_floats()
    for c in range(np.uint64(_MARGIN), np.uint64(_MARGIN + _STRIP), _LANES):
        total = total + absolute(load(s, _X + c) - load(s, _Y + c))
    store_sums(s, _SUMS, (total,))
    return np.float64(s[_SUMS])


@helper
def _finish_row(s, terms, derivatives, plane, at, c, left, right):  # type: ignore[no-untyped-def]
    """Store one vector of derivatives and return its SSIM values; both are zero outside the columns [left, right)."""
    column = lane_numbers() + np.float32(c)
    inside = (column >= left) & (column < right)
    store(derivatives, at + c, where(inside, terms[1], _ZERO))
    store(derivatives, plane + at + c, where(inside, terms[2], _ZERO))
    store(derivatives, plane + plane + at + c, where(inside, terms[3], _ZERO))
    return where(inside, terms[0], _ZERO)


@parallel_kernel
def ssim_forward(
    image: NDArray, target: NDArray, height: int, width: int, border: int, derivatives: NDArray, sums: NDArray
) -> None:
    """Sum SSIM and L1 over the strips, and store the derivatives that ``ssim_backward`` needs.

    Args:
        image, target: [height * width] float32; width counts floats, three per pixel.
        border: pixels on each side that SSIM leaves out: 0, or the halo if SSIM counts whole windows only.
        derivatives: [3, height, stride] float32 as a flat array, written: per window dSSIM/dblur(x), dSSIM/dblur(x**2),
            dSSIM/dblur(x * y). stride is a whole number of strips plus a margin of zeros at each end.
        sums: [strips, 2] float64, written: each strip's sum of SSIM and sum of absolute differences.
    """
    across = (width + _STRIP - 1) // _STRIP
    stride = across * _STRIP + 2 * _MARGIN
    plane = np.uint64(height * stride)
    for strip in prange(sums.shape[0]):
        s = aligned_zeros(_SIZE)
        y0, x0 = (strip // across) * _ROWS, (strip % across) * _STRIP
        rows = min(_ROWS, height - y0)
        left, right = np.float32(3 * border - x0), np.float32(width - 3 * border - x0)
        similarity, absolute_sum = 0.0, 0.0
        for row in range(rows + 2 * _HALO + 1):
            _copy_row(image, s, _X, y0 + row - _HALO, x0, height, width)
            _copy_row(target, s, _Y, y0 + row - _HALO, x0, height, width)
            if row >= _HALO and row < rows + _HALO:
                absolute_sum += _absolute_difference(s)
            _blur_row_across(s, _ring_row(row))
            # Twelve rows in the ring give two output rows. After the first ten rows, every second row completes a pair.
            done = row - 2 * _HALO
            if done < 1 or done % 2 == 0:
                continue
            places = _ring_rows(done - 1)
            upper, lower = y0 + done - 1, y0 + done
            upper_counts = upper >= border and upper < height - border
            lower_counts = lower >= border and lower < height - border
            total = zero_floats()
            for c in range(_N0, _U_STRIP, _LANES):
                mx, my = _down(s, places, c), _down(s, places, _U_STRIP + c)
                squares, xy = (
                    _down(s, places, np.uint64(2) * _U_STRIP + c),
                    _down(s, places, np.uint64(3) * _U_STRIP + c),
                )
                at = np.uint64(upper * stride + _MARGIN + x0)
                terms = _ssim_terms(mx[0], my[0], squares[0], xy[0])
                total = total + _finish_row(s, terms, derivatives, plane, at, c, left, right if upper_counts else left)
                if lower < y0 + rows:
                    terms = _ssim_terms(mx[1], my[1], squares[1], xy[1])
                    at += np.uint64(stride)
                    total = total + _finish_row(
                        s, terms, derivatives, plane, at, c, left, right if lower_counts else left
                    )
            store_sums(s, _SUMS, (total,))
            similarity += np.float64(s[_SUMS])
        if x0 == 0 or x0 + _STRIP >= width:
            for row in range(3 * rows):
                at = ((row // rows) * height + y0 + row % rows) * stride
                if x0 == 0:
                    derivatives[at : at + _MARGIN] = _ZERO
                if x0 + _STRIP >= width:
                    derivatives[at + stride - _MARGIN : at + stride] = _ZERO
        sums[strip, 0] = similarity
        sums[strip, 1] = absolute_sum


@helper
def _gradient(s, x, y, by_mean, by_xx, by_xy, weight_l1, weight_ssim):  # type: ignore[no-untyped-def]
    """Gradient of the image pixels at ``x`` from the target pixels at ``y`` and the blurred derivatives."""
    vx, vy = load(s, x), load(s, y)
    sign = where(vx > vy, _ONE, where(vy > vx, -_ONE, zero_floats()))
    return weight_l1 * sign + weight_ssim * (by_mean + _TWO * vx * by_xx + vy * by_xy)


@helper
def _store_row(s, at, gradient, y, x0, width):  # type: ignore[no-untyped-def]
    """Copy a finished output row of the strip into the gradient array."""
    begin, at = y * width + x0, at + np.uint64(_MARGIN)
    if x0 + _STRIP <= width:
        for c in range(_N0, _U_STRIP, _LANES):
            store(gradient, np.uint64(begin) + c, load(s, at + c))
    else:
        for c in range(width - x0):
            gradient[begin + c] = s[int(at) + c]


@parallel_kernel
def ssim_backward(  # type: ignore[no-untyped-def]
    image, target, height, width, derivatives, weight_l1, weight_ssim, gradient
):  # fmt: skip
    """Write gradient [height * width] = weight_l1 * sign(image - target) + weight_ssim * dSSIM/dimage; all float32."""
    across = (width + _STRIP - 1) // _STRIP
    stride = across * _STRIP + 2 * _MARGIN
    plane = np.uint64(height * stride)
    for strip in prange(across * ((height + _ROWS - 1) // _ROWS)):
        s = aligned_zeros(_SIZE)
        y0, x0 = (strip // across) * _ROWS, (strip % across) * _STRIP
        rows = min(_ROWS, height - y0)
        for row in range(rows + 2 * _HALO + 1):
            y, place = y0 + row - _HALO, _ring_row(row)
            if y < 0 or y >= height:
                for c in range(_N0, np.uint64(3 * _STRIP), _LANES):
                    store(s, place + c, zero_floats())
            else:
                begin = np.uint64(y * stride + _MARGIN + x0)
                for c in range(_N0, _U_STRIP, _LANES):
                    store(s, place + c, _across(derivatives, begin + c))
                    store(s, place + _U_STRIP + c, _across(derivatives, plane + begin + c))
                    store(s, place + np.uint64(2) * _U_STRIP + c, _across(derivatives, plane + plane + begin + c))
            done = row - 2 * _HALO
            if done < 1 or done % 2 == 0:
                continue
            places, y = _ring_rows(done - 1), y0 + done - 1
            _copy_row(image, s, _X, y, x0, height, width)
            _copy_row(target, s, _Y, y, x0, height, width)
            _copy_row(image, s, _X_BELOW, y + 1, x0, height, width)
            _copy_row(target, s, _Y_BELOW, y + 1, x0, height, width)
            for c in range(_N0, _U_STRIP, _LANES):
                by_mean, by_xx = _down(s, places, c), _down(s, places, _U_STRIP + c)
                by_xy = _down(s, places, np.uint64(2) * _U_STRIP + c)
                at, below = np.uint64(_MARGIN) + c, _BELOW + np.uint64(_MARGIN) + c
                store(
                    s, _OUT + at, _gradient(s, _X + at, _Y + at, by_mean[0], by_xx[0], by_xy[0], weight_l1, weight_ssim)
                )
                store(
                    s,
                    _OUT + below,
                    _gradient(s, _X + below, _Y + below, by_mean[1], by_xx[1], by_xy[1], weight_l1, weight_ssim),
                )
            _store_row(s, _OUT, gradient, y, x0, width)
            if done < rows:
                _store_row(s, _OUT_BELOW, gradient, y + 1, x0, width)


def photometric_loss_and_gradient(
    image: NDArray, target: NDArray, lambda_dssim: float, border: int
) -> tuple[float, NDArray]:
    """(1 - lambda) * L1 + lambda * (1 - SSIM), and its gradient with respect to ``image``.

    Args:
        image, target: [H, W, 3] float32, contiguous.
        lambda_dssim: weight of the SSIM part, 0..1.
        border: 0, or the window's halo if SSIM counts whole windows only.

    Returns:
        The loss, and the gradient [H, W, 3] float32.
    """
    height, width = image.shape[0], 3 * image.shape[1]
    across, down = -(-width // _STRIP), -(-height // _ROWS)
    derivatives = aligned_buffer((3 * height * (across * _STRIP + 2 * _MARGIN),))
    sums = np.empty((across * down, 2))
    gradient = aligned_buffer(image.shape)
    pixels = image.ravel(), target.ravel(), height, width
    windows = (height - 2 * border) * (width - 6 * border)
    weights = np.float32((1.0 - lambda_dssim) / image.size), np.float32(-lambda_dssim / windows)
    with KERNEL_LOCK:
        follow_torch_threads()
        ssim_forward(*pixels, border, derivatives, sums)
        ssim_backward(*pixels, derivatives, *weights, gradient.ravel())
    similarity, absolute_sum = sums.sum(axis=0)
    return (1.0 - lambda_dssim) * float(absolute_sum) / image.size + lambda_dssim * (
        1.0 - float(similarity) / windows
    ), gradient
