"""From blending's sums for each visible Gaussian to the gradients of every input of the projection.

Not here: the way forward, whose helpers this shares (``projection``). The same split holds: geometry in float64, colours in float32.
The kernel is longer than a function should be, for the reason given there. The invariant: the gradient is that of ``project_forward``, with
the projected mean's own gradient (``means2d``) as blending sees it.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from gs_train.jit import helper, parallel_kernel
from gs_train.render.cpu.harmonics import direction_gradient, evaluate_basis
from gs_train.render.cpu.projection import (
    BLUE,
    CHUNK,
    EPS2D,
    FX,
    FY,
    GREEN,
    LEAST_X,
    LEAST_Y,
    MOST_X,
    MOST_Y,
    RED,
    axes_in_image,
    compensation_of,
    covariance_of,
    in_camera,
    limited,
    rotation_of,
    unit_direction,
    unit_quaternion,
)

# Columns of the sums that blending hands back: weighted moments of u and dy, and gradients of colour and depth. The last three are only
# there when depth or absolute gradients are asked for.
SUM_G, SUM_U, SUM_UU, SUM_Y, SUM_UY, SUM_YY, SUM_RED, SUM_GREEN, SUM_BLUE, SUM_DEPTH, SUM_ABS_X, SUM_ABS_Y = range(12)
SUM_COUNT = 16  # One cache line.


@helper
def _colour_backward(records, sums, basis, coefficients, degree, direction, sh0_grad, sh_rest, sh_rest_grad, i):  # type: ignore[no-untyped-def]
    """Gradients of the SH coefficients, written; the gradient of the unnormalised direction, returned."""
    x, y, z, inverse = direction
    evaluate_basis(x, y, z, degree, basis)
    # colour = max(SH + 0.5, 0): a colour at zero passes no gradient on.
    zero = np.float32(0.0)
    red = sums[i, SUM_RED] if records[i, RED] > zero else zero
    green = sums[i, SUM_GREEN] if records[i, GREEN] > zero else zero
    blue = sums[i, SUM_BLUE] if records[i, BLUE] > zero else zero
    sh0_grad[i, 0], sh0_grad[i, 1], sh0_grad[i, 2] = red * basis[0], green * basis[0], blue * basis[0]
    for k in range(1, (degree + 1) * (degree + 1)):
        coefficients[k] = red * sh_rest[i, k - 1, 0] + green * sh_rest[i, k - 1, 1] + blue * sh_rest[i, k - 1, 2]
        sh_rest_grad[i, k - 1, 0] = red * basis[k]
        sh_rest_grad[i, k - 1, 1] = green * basis[k]
        sh_rest_grad[i, k - 1, 2] = blue * basis[k]
    gx, gy, gz = direction_gradient(x, y, z, degree, coefficients)
    radial = gx * x + gy * y + gz * z
    return (gx - radial * x) * inverse, (gy - radial * y) * inverse, (gz - radial * z) * inverse


@helper
def _quaternion_backward(q: tuple, v: tuple, quats_grad: NDArray, i: int) -> None:
    """Carry v = dL/dR, row by row, to the unnormalised quaternion."""
    w, x, y, z, inverse = q
    v00, v01, v02, v10, v11, v12, v20, v21, v22 = v
    gw = 2.0 * (x * (v21 - v12) + y * (v02 - v20) + z * (v10 - v01))
    gx = 2.0 * (-2.0 * x * (v11 + v22) + y * (v10 + v01) + z * (v20 + v02) + w * (v21 - v12))
    gy = 2.0 * (x * (v10 + v01) - 2.0 * y * (v00 + v22) + z * (v21 + v12) + w * (v02 - v20))
    gz = 2.0 * (x * (v20 + v02) + y * (v21 + v12) - 2.0 * z * (v00 + v11) + w * (v10 - v01))
    radial = gw * w + gx * x + gy * y + gz * z
    quats_grad[i, 0] = (gw - radial * w) * inverse
    quats_grad[i, 1] = (gx - radial * x) * inverse
    quats_grad[i, 2] = (gy - radial * y) * inverse
    quats_grad[i, 3] = (gz - radial * z) * inverse


@helper
def _shape_from_sums(sums: NDArray, i: int, xx: float, xy: float, yy: float) -> tuple[float, float, float, float, float]:
    """From moments of g = alpha * dL/dalpha to (mean x, mean y, cov xx, cov xy, cov yy), cov as after the low-pass."""
    inverse_yy = 1.0 / yy
    k = -xy * inverse_yy
    a = 1.0 / (xx + xy * k)
    mean_x = -a * sums[i, SUM_U]
    mean_y = k * mean_x - sums[i, SUM_Y] * inverse_yy
    # sigma = (u**2 / h + dy**2 / yy) / 2, u = dx + k * dy, h = xx - xy**2 / yy, k = -xy / yy; dL/dsigma = -g.
    v_h = 0.5 * a * a * sums[i, SUM_UU]
    v_k = -a * sums[i, SUM_UY]
    v_xy = 2.0 * v_h * k - v_k * inverse_yy
    v_yy = v_h * k * k - v_k * k * inverse_yy + 0.5 * sums[i, SUM_YY] * inverse_yy * inverse_yy
    return mean_x, mean_y, v_h, v_xy, v_yy


@helper
def _axis_backward(view, camera, rotation, scale, slopes, inverse_z, axes, v_cov, axis, scales_grad, view_grad, i):  # type: ignore[no-untyped-def]
    """The way back through one axis of the Gaussian: (dL/dR's column, and what it adds to dL/d(fx/z), d(fy/z), dslope x, dslope y)."""
    ax, ay = camera[FX] * inverse_z, camera[FY] * inverse_z
    s = scale[axis]
    r0, r1, r2 = rotation[axis], rotation[3 + axis], rotation[6 + axis]
    c0, c1, c2 = in_camera(view, r0 * s, r1 * s, r2 * s)
    p0, p1 = axes[2 * axis], axes[2 * axis + 1]
    v_p0, v_p1 = 2.0 * v_cov[0] * p0 + v_cov[1] * p1, v_cov[1] * p0 + 2.0 * v_cov[2] * p1
    v_c0, v_c1 = v_p0 * ax, v_p1 * ay
    v_c2 = -v_c0 * slopes[0] - v_c1 * slopes[1]
    v_m0 = view[0, 0] * v_c0 + view[1, 0] * v_c1 + view[2, 0] * v_c2
    v_m1 = view[0, 1] * v_c0 + view[1, 1] * v_c1 + view[2, 1] * v_c2
    v_m2 = view[0, 2] * v_c0 + view[1, 2] * v_c1 + view[2, 2] * v_c2
    scales_grad[i, axis] = v_m0 * r0 + v_m1 * r1 + v_m2 * r2
    for row, v in enumerate((v_c0, v_c1, v_c2)):
        view_grad[row, 0] += v * r0 * s
        view_grad[row, 1] += v * r1 * s
        view_grad[row, 2] += v * r2 * s
    return v_m0 * s, v_m1 * s, v_m2 * s, v_p0 * (c0 - slopes[0] * c2), v_p1 * (c1 - slopes[1] * c2), -v_c0 * c2, -v_c1 * c2


@parallel_kernel
def project_backward(  # type: ignore[no-untyped-def]  # noqa: PLR0915
    means, quats, scales, opacities, sh_rest, degree, view, centre, camera, antialiased, records, visible, chunk_counts, sums, means_grad,
    quats_grad, scales_grad, opacities_grad, sh0_grad, sh_rest_grad, means2d_grad, absolute_grad, chunk_grads,
):  # fmt: skip
    """Carry the sums of each visible Gaussian to every input; the gradients of the others are zero.

    Args:
        visible, chunk_counts, records: as ``project_forward`` wrote them. sums [N, 16] float32: see ``blending``.
        absolute_grad: [N, 2], or [0, 2] if not wanted.
        chunk_grads [chunks, 4, 4] float64, zero: rows 0 to 2 take the view matrix's gradient, row 3 the camera centre's.
        The other ``*_grad``: float32 arrays of the inputs' shapes, written whole.
    """
    n = means.shape[0]
    for chunk in prange(chunk_counts.shape[0]):
        basis, coefficients = np.empty(25, np.float32), np.empty(25, np.float32)
        view_grad = chunk_grads[chunk]
        first, stop = chunk * CHUNK, min(n, (chunk + 1) * CHUNK)
        means_grad[first:stop] = 0.0
        quats_grad[first:stop] = 0.0
        scales_grad[first:stop] = 0.0
        opacities_grad[first:stop] = 0.0
        sh0_grad[first:stop] = 0.0
        sh_rest_grad[first:stop] = 0.0
        means2d_grad[first:stop] = 0.0
        for index in range(first, first + chunk_counts[chunk, 0]):
            i = visible[index]
            mx, my, mz = np.float64(means[i, 0]), np.float64(means[i, 1]), np.float64(means[i, 2])
            x_rotated, y_rotated, z_rotated = in_camera(view, mx, my, mz)
            tx, ty, tz = x_rotated + view[0, 3], y_rotated + view[1, 3], z_rotated + view[2, 3]
            inverse_z = 1.0 / tz
            q = unit_quaternion(quats, i)
            rotation = rotation_of(q[0], q[1], q[2], q[3])
            scale = (np.float64(scales[i, 0]), np.float64(scales[i, 1]), np.float64(scales[i, 2]))
            slope_x, slope_y = tx * inverse_z, ty * inverse_z
            limited_x, inside_x = limited(slope_x, camera[LEAST_X], camera[MOST_X])
            limited_y, inside_y = limited(slope_y, camera[LEAST_Y], camera[MOST_Y])
            slopes = (limited_x, limited_y)
            axes = axes_in_image(camera, view, rotation, scale, slopes, inverse_z)
            xx, xy, yy = covariance_of(axes)
            eps = camera[EPS2D]
            mean_x, mean_y, v_xx, v_xy, v_yy = _shape_from_sums(sums, i, xx + eps, xy, yy + eps)
            g = np.float64(sums[i, SUM_G])
            opacities_grad[i] = g / opacities[i]
            if antialiased:
                compensation = compensation_of(xx, xy, yy, eps)
                # d log(compensation): half the difference of d log(det) before and after the low-pass.
                before = 0.5 * g / (xx * yy - xy * xy) if compensation > 0.0 else 0.0
                after = 0.5 * g / ((xx + eps) * (yy + eps) - xy * xy) if compensation > 0.0 else 0.0
                v_xx += before * yy - after * (yy + eps)
                v_yy += before * xx - after * (xx + eps)
                v_xy += -2.0 * xy * (before - after)
            means2d_grad[i, 0] = mean_x
            means2d_grad[i, 1] = mean_y
            if absolute_grad.shape[0] > 0:
                absolute_grad[i, 0] = sums[i, SUM_ABS_X]
                absolute_grad[i, 1] = sums[i, SUM_ABS_Y]
            v_cov = (v_xx, v_xy, v_yy)
            r00, r10, r20, fx0, fy0, x0, y0 = _axis_backward(
                view, camera, rotation, scale, slopes, inverse_z, axes, v_cov, 0, scales_grad, view_grad, i
            )
            r01, r11, r21, fx1, fy1, x1, y1 = _axis_backward(
                view, camera, rotation, scale, slopes, inverse_z, axes, v_cov, 1, scales_grad, view_grad, i
            )
            r02, r12, r22, fx2, fy2, x2, y2 = _axis_backward(
                view, camera, rotation, scale, slopes, inverse_z, axes, v_cov, 2, scales_grad, view_grad, i
            )
            _quaternion_backward(q, (r00, r01, r02, r10, r11, r12, r20, r21, r22), quats_grad, i)
            # J's entries are fx/z and -fx/z * slope; where the limit binds, the slope is a constant and only fx/z still depends on z.
            vx = (x0 + x1 + x2) * inverse_z if inside_x else 0.0
            vy = (y0 + y1 + y2) * inverse_z if inside_y else 0.0
            vz = -((fx0 + fx1 + fx2) * camera[FX] + (fy0 + fy1 + fy2) * camera[FY]) * inverse_z * inverse_z
            vx += camera[FX] * inverse_z * mean_x
            vy += camera[FY] * inverse_z * mean_y
            through_mean = (camera[FX] * slope_x * mean_x + camera[FY] * slope_y * mean_y) * inverse_z
            vz += sums[i, SUM_DEPTH] - through_mean
            if inside_x:
                vz -= (x0 + x1 + x2) * inverse_z * slope_x
            if inside_y:
                vz -= (y0 + y1 + y2) * inverse_z * slope_y
            for row, v in enumerate((vx, vy, vz)):
                view_grad[row, 0] += v * mx
                view_grad[row, 1] += v * my
                view_grad[row, 2] += v * mz
                view_grad[row, 3] += v
            gx, gy, gz = 0.0, 0.0, 0.0
            if degree < 0:
                for channel in range(3):
                    sh0_grad[i, channel] = sums[i, SUM_RED + channel]
            else:
                direction = unit_direction(mx - centre[0], my - centre[1], mz - centre[2])
                gx, gy, gz = _colour_backward(records, sums, basis, coefficients, degree, direction, sh0_grad, sh_rest, sh_rest_grad, i)
                view_grad[3, 0] -= gx
                view_grad[3, 1] -= gy
                view_grad[3, 2] -= gz
            means_grad[i, 0] = view[0, 0] * vx + view[1, 0] * vy + view[2, 0] * vz + gx
            means_grad[i, 1] = view[0, 1] * vx + view[1, 1] * vy + view[2, 1] * vz + gy
            means_grad[i, 2] = view[0, 2] * vx + view[1, 2] * vy + view[2, 2] * vz + gz
