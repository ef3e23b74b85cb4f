"""Backward pass of the projection: from blending's sums per visible Gaussian to the gradients of all inputs.

The forward pass and the functions that both share are in ``projection``. As there, geometry is float64, one SIMD vector
of doubles at a time, and colours are float32. The gradient is the one of ``project_forward``; the gradient of the
projected mean (``means2d``) is the one that blending gives it.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from gs_train.kernels.jit import helper, parallel_kernel
from gs_train.kernels.simd import DOUBLES, aligned_zeros, load_doubles, store, where, zero_doubles
from gs_train.render.cpu.harmonics import direction_gradient, evaluate_basis
from gs_train.render.cpu.projection import (
    BLUE,
    CHUNK,
    EPS2D,
    FX,
    FY,
    GREEN,
    MAX_SLOPE_X,
    MAX_SLOPE_Y,
    MIN_SLOPE_X,
    MIN_SLOPE_Y,
    OPACITY,
    QW,
    RED,
    SX,
    SY,
    SZ,
    X,
    Y,
    Z,
    axes_in_image,
    covariance_of,
    field,
    load_gaussian,
    put,
    rotate,
    rotation_of,
    slopes_of,
    unit_direction,
    unit_quaternion,
)

# Columns of blending's sums per Gaussian: moments of u and dy weighted by g = alpha * dL/dalpha, gradients of colour
# and depth, and absolute gradients of the mean. The last three are 0 unless depth or absolute gradients are requested.
SUM_G, SUM_U, SUM_UU, SUM_Y, SUM_UY, SUM_YY, SUM_RED, SUM_GREEN, SUM_BLUE, SUM_DEPTH, SUM_ABSGRAD_X, SUM_ABSGRAD_Y = (
    range(12)
)
SUM_COUNT = 16  # one cache line

# More columns of the blocks: blending's sums in the input block, the projected mean's gradient in the output block. The
# output block keeps the gradients of mean, quaternion, scales and opacity in the columns of these inputs.
_SUMS = OPACITY + 1
_MEAN_X, _MEAN_Y = range(OPACITY + 1, OPACITY + 3)


@helper
def _shape_from_sums(block, xx, xy, yy):  # type: ignore[no-untyped-def]
    """Gradients of (mean x, mean y, cov xx, cov xy, cov yy) from the moments of g; cov is the low-passed covariance."""
    inverse_yy = 1.0 / yy
    k = -1.0 * xy * inverse_yy
    a = 1.0 / (xx + xy * k)
    mean_x = -1.0 * a * field(block, _SUMS + SUM_U)
    mean_y = k * mean_x - field(block, _SUMS + SUM_Y) * inverse_yy
    # sigma = (u**2 / h + dy**2 / yy) / 2, u = dx + k * dy, h = xx - xy**2 / yy, k = -xy / yy; dL/dsigma = -g.
    v_h = 0.5 * a * a * field(block, _SUMS + SUM_UU)
    v_k = -1.0 * a * field(block, _SUMS + SUM_UY)
    v_xy = 2.0 * v_h * k - v_k * inverse_yy
    v_yy = v_h * k * k - v_k * k * inverse_yy + 0.5 * field(block, _SUMS + SUM_YY) * inverse_yy * inverse_yy
    return mean_x, mean_y, v_h, v_xy, v_yy


@helper
def _quaternion_backward(q, v, out):  # type: ignore[no-untyped-def]
    """Write the gradient of the unnormalised quaternion, from v = dL/dR in row order."""
    w, x, y, z, inverse = q
    v00, v01, v02, v10, v11, v12, v20, v21, v22 = v
    gw = 2.0 * (x * (v21 - v12) + y * (v02 - v20) + z * (v10 - v01))
    gx = 2.0 * (-2.0 * x * (v11 + v22) + y * (v10 + v01) + z * (v20 + v02) + w * (v21 - v12))
    gy = 2.0 * (x * (v10 + v01) - 2.0 * y * (v00 + v22) + z * (v21 + v12) + w * (v02 - v20))
    gz = 2.0 * (x * (v20 + v02) + y * (v21 + v12) - 2.0 * z * (v00 + v11) + w * (v10 - v01))
    radial = gw * w + gx * x + gy * y + gz * z
    put(out, QW, (gw - radial * w) * inverse)
    put(out, QW + 1, (gx - radial * x) * inverse)
    put(out, QW + 2, (gy - radial * y) * inverse)
    put(out, QW + 3, (gz - radial * z) * inverse)


@helper
def _axis_backward(  # type: ignore[no-untyped-def]
    view, camera, column, scale, slopes, inverse_z, p0, p1, v_cov, scale_field, out, pose
):  # fmt: skip
    """Backward through one axis: its column of dL/dR, and its terms of dL/d(fx/z), dL/d(fy/z), dL/dslope x and y."""
    m0, m1, m2 = column[0] * scale, column[1] * scale, column[2] * scale
    c0, c1, c2 = rotate(view, m0, m1, m2)
    v_p0, v_p1 = 2.0 * v_cov[0] * p0 + v_cov[1] * p1, v_cov[1] * p0 + 2.0 * v_cov[2] * p1
    v_c0, v_c1 = v_p0 * (camera[FX] * inverse_z), v_p1 * (camera[FY] * inverse_z)
    v_c2 = -1.0 * (v_c0 * slopes[2] + v_c1 * slopes[3])
    v_m0 = view[0, 0] * v_c0 + view[1, 0] * v_c1 + view[2, 0] * v_c2
    v_m1 = view[0, 1] * v_c0 + view[1, 1] * v_c1 + view[2, 1] * v_c2
    v_m2 = view[0, 2] * v_c0 + view[1, 2] * v_c1 + view[2, 2] * v_c2
    put(out, scale_field, v_m0 * column[0] + v_m1 * column[1] + v_m2 * column[2])
    _add_outer(pose, (v_c0, v_c1, v_c2), m0, m1, m2)
    return (
        v_m0 * scale, v_m1 * scale, v_m2 * scale,
        v_p0 * (c0 - slopes[2] * c2), v_p1 * (c1 - slopes[3] * c2), -1.0 * v_c0 * c2, -1.0 * v_c1 * c2,
    )  # fmt: skip


@helper
def _add_outer(pose, v, x, y, z):  # type: ignore[no-untyped-def]
    """Add the outer product v (x, y, z)^T to the first three columns of the view matrix's gradient, lane by lane."""
    for row in range(3):
        _add(pose, 4 * row, v[row] * x)
        _add(pose, 4 * row + 1, v[row] * y)
        _add(pose, 4 * row + 2, v[row] * z)


@helper
def _add(pose, entry, value):  # type: ignore[no-untyped-def]
    at = np.uint64(entry * DOUBLES)
    store(pose, at, load_doubles(pose, at) + value)


@helper
def _block_backward(block, out, pose, view, camera, antialiased):  # type: ignore[no-untyped-def]
    """Write all gradients except the colours' to ``out``, and add the view matrix's gradient to ``pose``."""
    mx, my, mz = field(block, X), field(block, Y), field(block, Z)
    tx, ty, tz = rotate(view, mx, my, mz)
    tx, ty, tz = tx + view[0, 3], ty + view[1, 3], tz + view[2, 3]
    inverse_z = 1.0 / tz
    slopes = slopes_of(camera, tx, ty, inverse_z)
    q = unit_quaternion(block)
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = rotation = rotation_of(q)
    scale = (field(block, SX), field(block, SY), field(block, SZ))
    axes = axes_in_image(camera, view, rotation, scale, slopes, inverse_z)
    xx, xy, yy = covariance_of(axes)
    eps = camera[EPS2D]
    mean_x, mean_y, v_xx, v_xy, v_yy = _shape_from_sums(block, xx + eps, xy, yy + eps)
    g = field(block, _SUMS + SUM_G)
    put(out, OPACITY, g / field(block, OPACITY))
    if antialiased:
        # d log(compensation) is half the difference d log(det before the low-pass) - d log(det after it). It is 0 where
        # the compensation is 0.
        before, after = xx * yy - xy * xy, (xx + eps) * (yy + eps) - xy * xy
        by_before, by_after = where(before > 0.0, 0.5 * g / before, 0.0), where(before > 0.0, 0.5 * g / after, 0.0)
        v_xx += by_before * yy - by_after * (yy + eps)
        v_yy += by_before * xx - by_after * (xx + eps)
        v_xy += -2.0 * xy * (by_before - by_after)
    put(out, _MEAN_X, mean_x)
    put(out, _MEAN_Y, mean_y)
    v_cov = (v_xx, v_xy, v_yy)
    v00, v10, v20, fx0, fy0, x0, y0 = _axis_backward(
        view, camera, (r00, r10, r20), scale[0], slopes, inverse_z, axes[0], axes[1], v_cov, SX, out, pose
    )
    v01, v11, v21, fx1, fy1, x1, y1 = _axis_backward(
        view, camera, (r01, r11, r21), scale[1], slopes, inverse_z, axes[2], axes[3], v_cov, SY, out, pose
    )
    v02, v12, v22, fx2, fy2, x2, y2 = _axis_backward(
        view, camera, (r02, r12, r22), scale[2], slopes, inverse_z, axes[4], axes[5], v_cov, SZ, out, pose
    )
    _quaternion_backward(q, (v00, v01, v02, v10, v11, v12, v20, v21, v22), out)
    # J's entries are fx/z and -fx/z * slope. A clamped slope is a constant, so only fx/z depends on z.
    inside_x = (slopes[0] >= camera[MIN_SLOPE_X]) & (slopes[0] <= camera[MAX_SLOPE_X])
    inside_y = (slopes[1] >= camera[MIN_SLOPE_Y]) & (slopes[1] <= camera[MAX_SLOPE_Y])
    vx = (where(inside_x, x0 + x1 + x2, 0.0) + camera[FX] * mean_x) * inverse_z
    vy = (where(inside_y, y0 + y1 + y2, 0.0) + camera[FY] * mean_y) * inverse_z
    vz = -1.0 * ((fx0 + fx1 + fx2) * camera[FX] + (fy0 + fy1 + fy2) * camera[FY]) * inverse_z * inverse_z
    vz += field(block, _SUMS + SUM_DEPTH) - vx * slopes[0] - vy * slopes[1]
    _add_outer(pose, (vx, vy, vz), mx, my, mz)
    _add(pose, 3, vx)
    _add(pose, 7, vy)
    _add(pose, 11, vz)
    put(out, X, view[0, 0] * vx + view[1, 0] * vy + view[2, 0] * vz)
    put(out, Y, view[0, 1] * vx + view[1, 1] * vy + view[2, 1] * vz)
    put(out, Z, view[0, 2] * vx + view[1, 2] * vy + view[2, 2] * vz)


@helper
def _colour_backward(  # type: ignore[no-untyped-def]
    records, sums, basis, coefficients, lane, degree, sh0_grad, sh_rest, sh_rest_grad, i
):  # fmt: skip
    """Write the SH gradients; ``coefficients`` receives dL/dbasis, for the gradient with respect to the direction."""
    # colour = max(SH + 0.5, 0), so a colour of 0 has no gradient.
    zero, first = np.float32(0.0), basis[lane]
    red = sums[i, SUM_RED] if records[i, RED] > zero else zero
    green = sums[i, SUM_GREEN] if records[i, GREEN] > zero else zero
    blue = sums[i, SUM_BLUE] if records[i, BLUE] > zero else zero
    sh0_grad[i, 0], sh0_grad[i, 1], sh0_grad[i, 2] = red * first, green * first, blue * first
    for k in range(1, (degree + 1) * (degree + 1)):
        value = basis[k * DOUBLES + lane]
        coefficients[k * DOUBLES + lane] = (
            red * sh_rest[i, k - 1, 0] + green * sh_rest[i, k - 1, 1] + blue * sh_rest[i, k - 1, 2]
        )
        sh_rest_grad[i, k - 1, 0] = red * value
        sh_rest_grad[i, k - 1, 1] = green * value
        sh_rest_grad[i, k - 1, 2] = blue * value


@helper
def _directions_backward(block, out, pose, coefficients, centre, degree):  # type: ignore[no-untyped-def]
    """Add the gradient through the viewing direction to the gradients of the mean and the camera centre."""
    x, y, z, inverse = unit_direction(block, centre)
    gx, gy, gz = direction_gradient(x, y, z, degree, coefficients)
    radial = gx * x + gy * y + gz * z
    gx, gy, gz = (gx - radial * x) * inverse, (gy - radial * y) * inverse, (gz - radial * z) * inverse
    put(out, X, field(out, X) + gx)
    put(out, Y, field(out, Y) + gy)
    put(out, Z, field(out, Z) + gz)
    _add(pose, 12, zero_doubles() - gx)
    _add(pose, 13, zero_doubles() - gy)
    _add(pose, 14, zero_doubles() - gz)


@helper
def _write_gradients(  # type: ignore[no-untyped-def]
    out, lane, means_grad, quats_grad, scales_grad, opacities_grad, means2d_grad, i
):  # fmt: skip
    for axis in range(3):
        means_grad[i, axis] = out[(X + axis) * DOUBLES + lane]
        scales_grad[i, axis] = out[(SX + axis) * DOUBLES + lane]
    for part in range(4):
        quats_grad[i, part] = out[(QW + part) * DOUBLES + lane]
    opacities_grad[i] = out[OPACITY * DOUBLES + lane]
    means2d_grad[i, 0], means2d_grad[i, 1] = out[_MEAN_X * DOUBLES + lane], out[_MEAN_Y * DOUBLES + lane]


@parallel_kernel
def project_backward(  # type: ignore[no-untyped-def]
    means, quats, scales, opacities, sh_rest, degree, view, centre, camera, antialiased,
    records, visible, chunk_counts, sums, means_grad, quats_grad, scales_grad, opacities_grad,
    sh0_grad, sh_rest_grad, means2d_grad, means2d_absgrad, chunk_grads,
):  # fmt: skip
    """Write the gradients of all inputs; they are zero for invisible Gaussians.

    Args:
        visible, chunk_counts, records: as ``project_forward`` wrote them.
        sums: [N, 16] float32, see ``blending_backward``.
        means2d_absgrad: [N, 2] float32, rows of visible Gaussians written; or [0, 2] unless requested.
        chunk_grads: [chunks, 4, 4] float64, initially zero: rows 0 to 2 receive the view matrix's gradient, row 3 the
            camera centre's.
        The other ``*_grad``: float32 arrays of the inputs' shapes, written completely.
    """
    n = means.shape[0]
    for chunk in prange(chunk_counts.shape[0]):
        block, out, pose = (
            aligned_zeros((_SUMS + SUM_COUNT) * DOUBLES),
            aligned_zeros((_MEAN_Y + 1) * DOUBLES),
            np.zeros(16 * DOUBLES),
        )
        basis, coefficients = aligned_zeros(25 * DOUBLES), aligned_zeros(25 * DOUBLES)
        first, stop = chunk * CHUNK, min(n, (chunk + 1) * CHUNK)
        means_grad[first:stop] = 0.0
        quats_grad[first:stop] = 0.0
        scales_grad[first:stop] = 0.0
        opacities_grad[first:stop] = 0.0
        sh0_grad[first:stop] = 0.0
        sh_rest_grad[first:stop] = 0.0
        means2d_grad[first:stop] = 0.0
        stop = first + chunk_counts[chunk, 0]
        for begin in range(first, stop, DOUBLES):
            count = min(stop - begin, DOUBLES)
            for lane in range(DOUBLES):
                # Unused lanes repeat the last Gaussian with sums of zero.
                i = visible[min(begin + lane, stop - 1)]
                load_gaussian(block, lane, means, quats, scales, opacities, i)
                for column in range(SUM_COUNT):
                    block[(_SUMS + column) * DOUBLES + lane] = sums[i, column] if lane < count else np.float32(0.0)
            _block_backward(block, out, pose, view, camera, antialiased)
            if degree >= 0:
                x, y, z, _ = unit_direction(block, centre)
                evaluate_basis(x, y, z, degree, basis)
                coefficients[:] = 0.0
                for lane in range(count):
                    i = visible[begin + lane]
                    _colour_backward(
                        records, sums, basis, coefficients, lane, degree, sh0_grad, sh_rest, sh_rest_grad, i
                    )
                _directions_backward(block, out, pose, coefficients, centre, degree)
            for lane in range(count):
                i = visible[begin + lane]
                _write_gradients(out, lane, means_grad, quats_grad, scales_grad, opacities_grad, means2d_grad, i)
                if means2d_absgrad.shape[0] > 0:
                    means2d_absgrad[i, 0], means2d_absgrad[i, 1] = sums[i, SUM_ABSGRAD_X], sums[i, SUM_ABSGRAD_Y]
                if degree < 0:
                    sh0_grad[i, 0], sh0_grad[i, 1], sh0_grad[i, 2] = (
                        sums[i, SUM_RED],
                        sums[i, SUM_GREEN],
                        sums[i, SUM_BLUE],
                    )
        for entry in range(16):
            for lane in range(DOUBLES):
                chunk_grads[chunk, entry // 4, entry % 4] += pose[entry * DOUBLES + lane]
