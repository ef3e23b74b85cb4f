"""Projection of 3D Gaussians to 2D records, with their colours: forward and backward, one Gaussian at a time.

Not here: tiles and blending. The forward kernel writes one 64-byte record (one cache line) per visible Gaussian; the backward kernel takes
the blending sums of each visible Gaussian and carries them to every input. Arithmetic inside is float64, because a thin Gaussian's 2D
covariance is a difference of large numbers and scalar float64 costs hardly more than float32; inputs, records and outputs are float32.

The 2D form stored is sigma = 0.5 * (A * u**2 + c * dy**2) with u = dx + k * dy, k = B / A and c = C - B**2 / A = 1 / cov_yy, i.e. the
conic with its square completed: both terms are non-negative, so nothing cancels where an ellipse is long and thin.

The two kernels are longer than a function should be: a helper per Gaussian would be handed fifteen arrays, which costs as much as its work.

The invariant: the function computed is gsplat 1.5.3's (EWA splatting, Zwicker et al. 2001; 3D Gaussian Splatting, Kerbl et al. 2023).
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from gs_train.jit import helper, parallel_kernel
from gs_train.render.cpu.harmonics import evaluate_basis, evaluate_gradient

# Columns of a record. Means are split into a whole and a fractional part, so that the distance to a pixel keeps full precision however
# large the image.
MEAN_X, MEAN_Y, MEAN_X_FRACTION, MEAN_Y_FRACTION = 0, 1, 2, 3
HALF_A, SHEAR, HALF_C, LOG2_OPACITY = 4, 5, 6, 7  # HALF_A = A/2 * log2(e), HALF_C = c/2 * log2(e), SHEAR = k
RED, GREEN, BLUE, DEPTH = 8, 9, 10, 11
ROW_FIRST, ROW_LAST = 12, 13  # pixel rows that the ellipse alpha = 1/255 touches, inclusive, limited to the image
RECORD_SIZE = 16

# Columns of the sums that blending hands back: weighted moments of u and dy, and gradients of colour and depth.
SUM_G, SUM_U, SUM_UU, SUM_Y, SUM_UY, SUM_YY, SUM_RED, SUM_GREEN, SUM_BLUE, SUM_DEPTH, SUM_ABS_X, SUM_ABS_Y = range(12)
SUM_COUNT = 12

LOG2_E = 1.4426950408889634
CHUNK = 512  # Gaussians per parallel work item. Fixed, so that per-chunk sums do not depend on the thread count.

# Columns of the camera vector.
FX, FY, CX, CY, NEAR, FAR, EPS2D = range(7)


@helper
def _rotation(w: float, x: float, y: float, z: float) -> tuple[float, ...]:
    """Rows of the rotation matrix of a unit quaternion."""
    return (
        1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y),
        2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x),
        2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y),
    )  # fmt: skip


@helper
def _limited(ratio: float, focal: float, centre: float, size: int) -> tuple[float, bool]:
    """x/z (or y/z) limited as the Jacobian wants it: to 0.3 half-widths beyond the image; and whether it was within."""
    margin = 0.3 * 0.5 * size / focal
    low, high = -(centre / focal + margin), (size - centre) / focal + margin
    return min(max(ratio, low), high), low <= ratio <= high


@helper
def _project_shape(camera: NDArray, width: int, height: int, view: NDArray, t: tuple, rotation: tuple, scale: tuple, p: NDArray) -> tuple:
    """Write p = J W R S, [2, 3], so that cov2d = p p^T; return the limited x/z, y/z."""
    x, y, z = t
    limited_x, _ = _limited(x / z, camera[FX], camera[CX], width)
    limited_y, _ = _limited(y / z, camera[FY], camera[CY], height)
    for axis in range(3):
        # Column of M = R S, then W M, then J.
        m0, m1, m2 = rotation[axis] * scale[axis], rotation[3 + axis] * scale[axis], rotation[6 + axis] * scale[axis]
        c0 = view[0, 0] * m0 + view[0, 1] * m1 + view[0, 2] * m2
        c1 = view[1, 0] * m0 + view[1, 1] * m1 + view[1, 2] * m2
        c2 = view[2, 0] * m0 + view[2, 1] * m1 + view[2, 2] * m2
        p[0, axis] = camera[FX] / z * (c0 - limited_x * c2)
        p[1, axis] = camera[FY] / z * (c1 - limited_y * c2)
    return limited_x, limited_y


@helper
def _covariance(p: NDArray) -> tuple[float, float, float]:
    xx = p[0, 0] * p[0, 0] + p[0, 1] * p[0, 1] + p[0, 2] * p[0, 2]
    xy = p[0, 0] * p[1, 0] + p[0, 1] * p[1, 1] + p[0, 2] * p[1, 2]
    yy = p[1, 0] * p[1, 0] + p[1, 1] * p[1, 1] + p[1, 2] * p[1, 2]
    return xx, xy, yy


@helper
def _to_camera(view: NDArray, x: float, y: float, z: float) -> tuple[float, float, float]:
    return (
        view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3],
        view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3],
        view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3],
    )


@helper
def _unit_quaternion(quats: NDArray, i: int) -> tuple[float, float, float, float, float]:
    w, x, y, z = np.float64(quats[i, 0]), np.float64(quats[i, 1]), np.float64(quats[i, 2]), np.float64(quats[i, 3])
    inverse = 1.0 / math.sqrt(w * w + x * x + y * y + z * z)
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@helper
def _compensation(xx: float, xy: float, yy: float, eps2d: float) -> float:
    """Anti-aliased mode: sqrt of the ratio of the 2D determinants before and after the low-pass (Mip-Splatting, Yu et al. 2024)."""
    before = xx * yy - xy * xy
    after = (xx + eps2d) * (yy + eps2d) - xy * xy
    return math.sqrt(max(0.0, before / after))


@helper
def _write_colour(record: NDArray, basis: NDArray, degree: int, sh0: NDArray, sh_rest: NDArray, i: int) -> None:
    red, green, blue = basis[0] * sh0[i, 0] + 0.5, basis[0] * sh0[i, 1] + 0.5, basis[0] * sh0[i, 2] + 0.5
    for k in range(1, (degree + 1) * (degree + 1)):
        red += basis[k] * sh_rest[i, k - 1, 0]
        green += basis[k] * sh_rest[i, k - 1, 1]
        blue += basis[k] * sh_rest[i, k - 1, 2]
    record[RED], record[GREEN], record[BLUE] = max(red, 0.0), max(green, 0.0), max(blue, 0.0)


@parallel_kernel
def project_forward(means, quats, scales, opacities, sh0, sh_rest, degree, view, centre, camera, width, height, antialiased, records, radii, means2d, depths):  # type: ignore[no-untyped-def]  # noqa: E501, PLR0915
    """Project every Gaussian; write a record, radii, mean and depth for those that can be seen.

    Args:
        means [N, 3], quats [N, 4] wxyz, scales [N, 3] activated, opacities [N] activated: float32, contiguous.
        sh0 [N, 3], sh_rest [N, K-1, 3]: float32. With ``degree`` < 0, sh0 holds colours as they are.
        view [4, 4] world -> camera, centre [3] camera centre in the world, camera [7]: float64.
        records [N, 16] float32, radii [N, 2] int32, means2d [N, 2] float32 px, depths [N] float32: written. Radii 0 = not visible.
    """
    n = means.shape[0]
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        p = np.empty((2, 3))
        basis = np.empty(25)
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            radii[i, 0] = 0
            radii[i, 1] = 0
            means2d[i, 0] = 0.0
            means2d[i, 1] = 0.0
            mx, my, mz = np.float64(means[i, 0]), np.float64(means[i, 1]), np.float64(means[i, 2])
            t = _to_camera(view, mx, my, mz)
            # Written so that a NaN fails every test.
            if not (t[2] >= camera[NEAR] and t[2] <= camera[FAR]):
                continue
            w, x, y, z, _ = _unit_quaternion(quats, i)
            scale = (np.float64(scales[i, 0]), np.float64(scales[i, 1]), np.float64(scales[i, 2]))
            _project_shape(camera, width, height, view, t, _rotation(w, x, y, z), scale, p)
            xx, xy, yy = _covariance(p)
            opacity = np.float64(opacities[i])
            if antialiased:
                opacity *= _compensation(xx, xy, yy, camera[EPS2D])
            xx += camera[EPS2D]
            yy += camera[EPS2D]
            if not (xx * yy - xy * xy > 0.0 and opacity >= 1.0 / 255.0):
                continue
            extent = min(3.33, math.sqrt(2.0 * math.log(255.0 * opacity)))
            radius_x, radius_y = math.ceil(extent * math.sqrt(xx)), math.ceil(extent * math.sqrt(yy))
            u, v = camera[FX] * t[0] / t[2] + camera[CX], camera[FY] * t[1] / t[2] + camera[CY]
            if not (u + radius_x > 0.0 and u - radius_x < width and v + radius_y > 0.0 and v - radius_y < height):
                continue
            # An image-sized limit keeps the conversion to int32 defined for absurd scales.
            radii[i, 0] = np.int32(min(radius_x, 1.0e9))
            radii[i, 1] = np.int32(min(radius_y, 1.0e9))
            means2d[i, 0] = u
            means2d[i, 1] = v
            depths[i] = t[2]
            record = records[i]
            record[MEAN_X] = math.floor(u)
            record[MEAN_Y] = math.floor(v)
            record[MEAN_X_FRACTION] = u - math.floor(u)
            record[MEAN_Y_FRACTION] = v - math.floor(v)
            record[HALF_A] = 0.5 * LOG2_E / (xx - xy * xy / yy)
            record[SHEAR] = -xy / yy
            record[HALF_C] = 0.5 * LOG2_E / yy
            record[LOG2_OPACITY] = math.log2(opacity)
            record[DEPTH] = t[2]
            # The margin covers float32 rounding in blending: no pixel that contributes is left out.
            reach = math.sqrt(2.0 * (math.log(255.0 * opacity) + 0.002) * yy)
            record[ROW_FIRST] = max(0.0, math.ceil(v - reach - 0.5))
            record[ROW_LAST] = min(height - 1.0, math.floor(v + reach - 0.5))
            if degree < 0:
                record[RED], record[GREEN], record[BLUE] = sh0[i, 0], sh0[i, 1], sh0[i, 2]
            else:
                dx, dy, dz = mx - centre[0], my - centre[1], mz - centre[2]
                inverse = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
                evaluate_basis(dx * inverse, dy * inverse, dz * inverse, degree, basis)
                _write_colour(record, basis, degree, sh0, sh_rest, i)


@helper
def _colour_backward(record, sums, basis, gradient, degree, direction, length, sh0_grad, sh_rest, sh_rest_grad, i):  # type: ignore[no-untyped-def]
    """Gradients of the SH coefficients, written; the gradient of the unnormalised direction, returned."""
    x, y, z = direction
    evaluate_basis(x, y, z, degree, basis)
    evaluate_gradient(x, y, z, degree, gradient)
    # colour = max(SH + 0.5, 0): a colour at zero passes no gradient on.
    red = sums[SUM_RED] if record[RED] > 0.0 else 0.0
    green = sums[SUM_GREEN] if record[GREEN] > 0.0 else 0.0
    blue = sums[SUM_BLUE] if record[BLUE] > 0.0 else 0.0
    sh0_grad[i, 0], sh0_grad[i, 1], sh0_grad[i, 2] = red * basis[0], green * basis[0], blue * basis[0]
    gx, gy, gz = 0.0, 0.0, 0.0
    for k in range(1, (degree + 1) * (degree + 1)):
        coefficient = red * sh_rest[i, k - 1, 0] + green * sh_rest[i, k - 1, 1] + blue * sh_rest[i, k - 1, 2]
        sh_rest_grad[i, k - 1, 0] = red * basis[k]
        sh_rest_grad[i, k - 1, 1] = green * basis[k]
        sh_rest_grad[i, k - 1, 2] = blue * basis[k]
        gx += coefficient * gradient[k, 0]
        gy += coefficient * gradient[k, 1]
        gz += coefficient * gradient[k, 2]
    radial = gx * x + gy * y + gz * z
    return (gx - radial * x) / length, (gy - radial * y) / length, (gz - radial * z) / length


@helper
def _quaternion_backward(q: tuple, v: NDArray, quats_grad: NDArray, i: int) -> None:
    """Carry v = dL/dR [3, 3] to the unnormalised quaternion."""
    w, x, y, z, inverse = q
    gw = 2.0 * (x * (v[2, 1] - v[1, 2]) + y * (v[0, 2] - v[2, 0]) + z * (v[1, 0] - v[0, 1]))
    gx = 2.0 * (-2.0 * x * (v[1, 1] + v[2, 2]) + y * (v[1, 0] + v[0, 1]) + z * (v[2, 0] + v[0, 2]) + w * (v[2, 1] - v[1, 2]))
    gy = 2.0 * (x * (v[1, 0] + v[0, 1]) - 2.0 * y * (v[0, 0] + v[2, 2]) + z * (v[2, 1] + v[1, 2]) + w * (v[0, 2] - v[2, 0]))
    gz = 2.0 * (x * (v[2, 0] + v[0, 2]) + y * (v[2, 1] + v[1, 2]) - 2.0 * z * (v[0, 0] + v[1, 1]) + w * (v[1, 0] - v[0, 1]))
    radial = gw * w + gx * x + gy * y + gz * z
    quats_grad[i, 0] = (gw - radial * w) * inverse
    quats_grad[i, 1] = (gx - radial * x) * inverse
    quats_grad[i, 2] = (gy - radial * y) * inverse
    quats_grad[i, 3] = (gz - radial * z) * inverse


@helper
def _shape_from_sums(sums: NDArray, xx: float, xy: float, yy: float) -> tuple[float, float, float, float, float]:
    """From moments of g = alpha * dL/dalpha to (mean x, mean y, cov xx, cov xy, cov yy), cov as after the low-pass."""
    k = -xy / yy
    a = 1.0 / (xx - xy * xy / yy)
    mean_x = -a * sums[SUM_U]
    mean_y = -(a * k * sums[SUM_U] + sums[SUM_Y] / yy)
    # sigma = (u**2 / h + dy**2 / yy) / 2, u = dx + k * dy, h = xx - xy**2 / yy, k = -xy / yy; dL/dsigma = -g.
    v_h = 0.5 * a * a * sums[SUM_UU]
    v_k = -a * sums[SUM_UY]
    v_xy = -v_h * 2.0 * xy / yy - v_k / yy
    v_yy = v_h * xy * xy / (yy * yy) + v_k * xy / (yy * yy) + 0.5 * sums[SUM_YY] / (yy * yy)
    return mean_x, mean_y, v_h, v_xy, v_yy


@helper
def _shape_backward(camera, width, height, view, t, rotation, scale, p, v_cov, v_r, scales_grad, view_grad, i):  # type: ignore[no-untyped-def]
    """Carry the gradient of cov2d = p p^T, p = J W R S, to R (v_r, written), S (written), W (added); return that of t."""
    x, y, z = t
    limited_x, inside_x = _limited(x / z, camera[FX], camera[CX], width)
    limited_y, inside_y = _limited(y / z, camera[FY], camera[CY], height)
    ax, ay = camera[FX] / z, camera[FY] / z
    v_ax, v_ay, v_lx, v_ly = 0.0, 0.0, 0.0, 0.0
    for axis in range(3):
        m0, m1, m2 = rotation[axis] * scale[axis], rotation[3 + axis] * scale[axis], rotation[6 + axis] * scale[axis]
        c0 = view[0, 0] * m0 + view[0, 1] * m1 + view[0, 2] * m2
        c1 = view[1, 0] * m0 + view[1, 1] * m1 + view[1, 2] * m2
        c2 = view[2, 0] * m0 + view[2, 1] * m1 + view[2, 2] * m2
        v_p0 = 2.0 * v_cov[0] * p[0, axis] + v_cov[1] * p[1, axis]
        v_p1 = v_cov[1] * p[0, axis] + 2.0 * v_cov[2] * p[1, axis]
        v_ax += v_p0 * (c0 - limited_x * c2)
        v_ay += v_p1 * (c1 - limited_y * c2)
        v_lx -= v_p0 * ax * c2
        v_ly -= v_p1 * ay * c2
        v_c0, v_c1 = v_p0 * ax, v_p1 * ay
        v_c2 = -v_c0 * limited_x - v_c1 * limited_y
        m = (m0, m1, m2)
        v_s = 0.0
        for row in range(3):
            v_m = view[0, row] * v_c0 + view[1, row] * v_c1 + view[2, row] * v_c2
            v_r[row, axis] = v_m * scale[axis]
            v_s += v_m * rotation[3 * row + axis]
            view_grad[0, row] += v_c0 * m[row]
            view_grad[1, row] += v_c1 * m[row]
            view_grad[2, row] += v_c2 * m[row]
        scales_grad[i, axis] = v_s
    # J's entries are fx/z and -fx/z * limited(x/z); where the limit binds, the ratio is a constant and only fx/z still depends on z.
    v_x, v_y = (v_lx / z if inside_x else 0.0), (v_ly / z if inside_y else 0.0)
    v_z = -(v_ax * ax + v_ay * ay) / z - (v_x * x + v_y * y) / z
    return v_x, v_y, v_z


@parallel_kernel
def project_backward(means, quats, scales, opacities, sh_rest, degree, view, centre, camera, width, height, antialiased, records, visible, first_slot, slot_sums, means_grad, quats_grad, scales_grad, opacities_grad, sh0_grad, sh_rest_grad, means2d_grad, absolute_grad, chunk_grads):  # type: ignore[no-untyped-def]  # noqa: E501, PLR0915
    """Sum each visible Gaussian's slots and carry the sums to every input. Rows of unseen Gaussians are left as they are (zero).

    Args:
        visible [V] int32 Gaussian of each visible index; first_slot [V + 1] int64; slot_sums [P, 12] float32: see ``tiles``, ``blending``.
        chunk_grads [chunks, 4, 4] float64, zero: rows 0 to 2 take the view matrix's gradient, row 3 the camera centre's.
        The other ``*_grad``: float32 arrays of the inputs' shapes, zero.
    """
    count = visible.shape[0]
    for chunk in prange((count + CHUNK - 1) // CHUNK):
        p = np.empty((2, 3))
        v_r = np.empty((3, 3))
        basis = np.empty(25)
        gradient = np.empty((25, 3))
        sums = np.empty(SUM_COUNT)
        view_grad = chunk_grads[chunk]
        for index in range(chunk * CHUNK, min(count, (chunk + 1) * CHUNK)):
            i = visible[index]
            sums[:] = 0.0
            for slot in range(first_slot[index], first_slot[index + 1]):
                for column in range(SUM_COUNT):
                    sums[column] += slot_sums[slot, column]
            record = records[i]
            mx, my, mz = np.float64(means[i, 0]), np.float64(means[i, 1]), np.float64(means[i, 2])
            t = _to_camera(view, mx, my, mz)
            q = _unit_quaternion(quats, i)
            rotation = _rotation(q[0], q[1], q[2], q[3])
            scale = (np.float64(scales[i, 0]), np.float64(scales[i, 1]), np.float64(scales[i, 2]))
            _project_shape(camera, width, height, view, t, rotation, scale, p)
            xx, xy, yy = _covariance(p)
            eps = camera[EPS2D]
            mean_x, mean_y, v_xx, v_xy, v_yy = _shape_from_sums(sums, xx + eps, xy, yy + eps)
            opacity = np.float64(opacities[i])
            opacities_grad[i] = sums[SUM_G] / opacity
            if antialiased:
                compensation = _compensation(xx, xy, yy, eps)
                # d log(compensation): half the difference of d log(det) before and after the low-pass.
                before = 0.5 * sums[SUM_G] / (xx * yy - xy * xy) if compensation > 0.0 else 0.0
                after = 0.5 * sums[SUM_G] / ((xx + eps) * (yy + eps) - xy * xy) if compensation > 0.0 else 0.0
                v_xx += before * yy - after * (yy + eps)
                v_yy += before * xx - after * (xx + eps)
                v_xy += -2.0 * xy * (before - after)
            means2d_grad[i, 0] = mean_x
            means2d_grad[i, 1] = mean_y
            absolute_grad[i, 0] = sums[SUM_ABS_X]
            absolute_grad[i, 1] = sums[SUM_ABS_Y]
            v_cov = (v_xx, v_xy, v_yy)
            vx, vy, vz = _shape_backward(camera, width, height, view, t, rotation, scale, p, v_cov, v_r, scales_grad, view_grad, i)
            _quaternion_backward(q, v_r, quats_grad, i)
            vx += camera[FX] / t[2] * mean_x
            vy += camera[FY] / t[2] * mean_y
            vz += sums[SUM_DEPTH] - (camera[FX] * t[0] * mean_x + camera[FY] * t[1] * mean_y) / (t[2] * t[2])
            m = (mx, my, mz, 1.0)
            for column in range(4):
                view_grad[0, column] += vx * m[column]
                view_grad[1, column] += vy * m[column]
                view_grad[2, column] += vz * m[column]
            gx, gy, gz = 0.0, 0.0, 0.0
            if degree < 0:
                for channel in range(3):
                    sh0_grad[i, channel] = sums[SUM_RED + channel]
            else:
                dx, dy, dz = mx - centre[0], my - centre[1], mz - centre[2]
                length = math.sqrt(dx * dx + dy * dy + dz * dz)
                direction = (dx / length, dy / length, dz / length)
                gx, gy, gz = _colour_backward(
                    record, sums, basis, gradient, degree, direction, length, sh0_grad, sh_rest, sh_rest_grad, i
                )
                view_grad[3, 0] -= gx
                view_grad[3, 1] -= gy
                view_grad[3, 2] -= gz
            means_grad[i, 0] = view[0, 0] * vx + view[1, 0] * vy + view[2, 0] * vz + gx
            means_grad[i, 1] = view[0, 1] * vx + view[1, 1] * vy + view[2, 1] * vz + gy
            means_grad[i, 2] = view[0, 2] * vx + view[1, 2] * vy + view[2, 2] * vz + gz
