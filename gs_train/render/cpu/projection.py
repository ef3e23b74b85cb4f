"""Projection of 3D Gaussians to 2D records with colours, one SIMD vector of doubles (DOUBLES Gaussians) at a time.

The function is gsplat 1.5.3's (EWA splatting, Zwicker et al. 2001; 3D Gaussian Splatting, Kerbl et al. 2023).
``projection_backward`` computes its gradients; ``tiles`` and ``blending`` read the records. Each visible Gaussian has
one 64-byte record (one cache line). Geometry is float64, because a thin Gaussian's 2D covariance is a difference of
large numbers; colours, inputs and records are float32.

A record stores the 2D Gaussian as sigma = 0.5 * (A * u**2 + c * dy**2) with u = dx + k * dy, k = B / A and
c = C - B**2 / A = 1 / cov_yy. This is the conic (A, B, C) with its square completed: both terms are non-negative, so
nothing cancels in a long, thin ellipse.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from gs_train.kernels.jit import helper, parallel_kernel
from gs_train.kernels.simd import (
    DOUBLES,
    aligned_zeros,
    bits,
    ceil,
    floor,
    load_doubles,
    lowest_bit,
    maximum,
    minimum,
    sqrt,
    store,
)
from gs_train.render.cpu.harmonics import evaluate_basis

# Columns of a record. Means are split into a whole and a fractional part, so that the distance to a pixel keeps full
# precision in images of any size.
MEAN_X, MEAN_Y, MEAN_X_FRACTION, MEAN_Y_FRACTION = 0, 1, 2, 3
HALF_A, SHEAR, HALF_C, LOG2_OPACITY = 4, 5, 6, 7  # HALF_A = A/2 * log2(e), HALF_C = c/2 * log2(e), SHEAR = k
HALF_WIDTH, HALF_HEIGHT = 8, 9  # px from the mean to the farthest point of the ellipse alpha = 1/255 in x and y
DEPTH = 10
RED, GREEN, BLUE = 11, 12, 13
RECORD_SIZE = 16

LOG2_E = 1.4426950408889634
# The margin of 0.003 covers float32 rounding in blending, so that no contributing pixel is left out.
LOG2_255 = math.log2(255.0) + 0.003
CHUNK = 512  # Gaussians per parallel work item. Fixed, so that per-chunk sums do not depend on the number of threads.
_FLOAT_MAX = 3.5e38  # above any finite float32; a sum of a few float32 numbers does not overflow float64

# Columns of the camera vector. The last four clamp x/z and y/z in the Jacobian to 0.3 half-widths beyond the image.
FX, FY, CX, CY, NEAR, FAR, EPS2D, MIN_SLOPE_X, MAX_SLOPE_X, MIN_SLOPE_Y, MAX_SLOPE_Y = range(11)

# Columns of a block, a structure of arrays with a lane for each of DOUBLES Gaussians: the inputs, and in the output
# block of ``project_forward``, after the record's columns, the projected mean and the radii.
X, Y, Z, QW, QX, QY, QZ, SX, SY, SZ, OPACITY = range(11)
_U, _V, _RADIUS_X, _RADIUS_Y = range(RECORD_SIZE, RECORD_SIZE + 4)


def camera_vector(
    intrinsics: tuple[float, float, float, float], width: int, height: int, near: float, far: float, eps2d: float
) -> NDArray[np.float64]:
    """The camera's constants for the kernels, columns ``FX`` to ``MAX_SLOPE_Y``; intrinsics fx, fy, cx, cy in px."""
    # gsplat compares depths with near and far in float32, so a Gaussian at a depth of exactly 0.01 is rendered.
    near, far = float(np.float32(near)), float(np.float32(far))
    fx, fy, cx, cy = intrinsics
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    limits = (-cx / fx - margin_x, (width - cx) / fx + margin_x, -cy / fy - margin_y, (height - cy) / fy + margin_y)
    return np.array([fx, fy, cx, cy, near, far, eps2d, *limits])


# ---- shared by the forward and the backward pass; all values are vectors of doubles or float64 numbers ----


@helper
def load_gaussian(block, lane, means, quats, scales, opacities, i):  # type: ignore[no-untyped-def]
    """Copy one Gaussian's geometry and opacity into a lane of the block."""
    for axis in range(3):
        block[(X + axis) * DOUBLES + lane] = means[i, axis]
        block[(SX + axis) * DOUBLES + lane] = scales[i, axis]
    for part in range(4):
        block[(QW + part) * DOUBLES + lane] = quats[i, part]
    block[OPACITY * DOUBLES + lane] = opacities[i]


@helper
def field(block, column):  # type: ignore[no-untyped-def]
    """A column of the block, for all lanes."""
    return load_doubles(block, np.uint64(column * DOUBLES))


@helper
def put(block, column, value):  # type: ignore[no-untyped-def]
    """Write a column of the block, for all lanes."""
    store(block, np.uint64(column * DOUBLES), value)


@helper
def rotate(matrix, x, y, z):  # type: ignore[no-untyped-def]
    """matrix[:3, :3] @ (x, y, z)."""
    return (
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z,
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z,
        matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z,
    )


@helper
def unit_quaternion(block):  # type: ignore[no-untyped-def]
    """The normalised quaternion w, x, y, z, and the inverse of its length before."""
    w, x, y, z = field(block, QW), field(block, QX), field(block, QY), field(block, QZ)
    inverse = 1.0 / sqrt(w * w + x * x + y * y + z * z)
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@helper
def rotation_of(q):  # type: ignore[no-untyped-def]
    """The rotation matrix of a unit quaternion, row by row."""
    w, x, y, z = q[0], q[1], q[2], q[3]
    return (
        1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y),
        2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x),
        2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y),
    )  # fmt: skip


@helper
def clamp(value, low, high):  # type: ignore[no-untyped-def]
    """The value clamped to [low, high]."""
    return minimum(maximum(value, low), high)


@helper
def slopes_of(camera, x, y, inverse_z):  # type: ignore[no-untyped-def]
    """x/z and y/z, then both clamped for the Jacobian."""
    slope_x, slope_y = x * inverse_z, y * inverse_z
    return (
        slope_x, slope_y,
        clamp(slope_x, camera[MIN_SLOPE_X], camera[MAX_SLOPE_X]),
        clamp(slope_y, camera[MIN_SLOPE_Y], camera[MAX_SLOPE_Y]),
    )  # fmt: skip


@helper
def axes_in_image(camera, view, rotation, scale, slopes, inverse_z):  # type: ignore[no-untyped-def]
    """The three columns (x, y) of J W R S; cov2d is the sum of their outer products."""
    fx, fy = camera[FX] * inverse_z, camera[FY] * inverse_z
    x0, y0, z0 = rotate(view, rotation[0] * scale[0], rotation[3] * scale[0], rotation[6] * scale[0])
    x1, y1, z1 = rotate(view, rotation[1] * scale[1], rotation[4] * scale[1], rotation[7] * scale[1])
    x2, y2, z2 = rotate(view, rotation[2] * scale[2], rotation[5] * scale[2], rotation[8] * scale[2])
    return (
        fx * (x0 - slopes[2] * z0), fy * (y0 - slopes[3] * z0),
        fx * (x1 - slopes[2] * z1), fy * (y1 - slopes[3] * z1),
        fx * (x2 - slopes[2] * z2), fy * (y2 - slopes[3] * z2),
    )  # fmt: skip


@helper
def covariance_of(axes):  # type: ignore[no-untyped-def]
    """cov2d xx, xy, yy without low-pass, px^2."""
    x0, y0, x1, y1, x2, y2 = axes
    return x0 * x0 + x1 * x1 + x2 * x2, x0 * y0 + x1 * y1 + x2 * y2, y0 * y0 + y1 * y1 + y2 * y2


@helper
def unit_direction(block, centre):  # type: ignore[no-untyped-def]
    """The normalised direction x, y, z from the camera to the mean, and the inverse of its length before."""
    x, y, z = field(block, X) - centre[0], field(block, Y) - centre[1], field(block, Z) - centre[2]
    inverse = 1.0 / sqrt(x * x + y * y + z * z)
    return x * inverse, y * inverse, z * inverse, inverse


# ---- forward pass ----


@helper
def _project_block(block, out, log2_opacity, view, camera, width, height, antialiased):  # type: ignore[no-untyped-def]
    """Write records without colours, means and radii to ``out``; return bit masks of visible and of finite lanes."""
    mx, my, mz = field(block, X), field(block, Y), field(block, Z)
    scale = (field(block, SX), field(block, SY), field(block, SZ))
    opacity = field(block, OPACITY)
    total = mx + my + mz + scale[0] + scale[1] + scale[2] + opacity
    total += field(block, QW) + field(block, QX) + field(block, QY) + field(block, QZ)
    finite = (total <= 11.0 * _FLOAT_MAX) & (total >= -11.0 * _FLOAT_MAX)
    tx, ty, tz = rotate(view, mx, my, mz)
    tx, ty, tz = tx + view[0, 3], ty + view[1, 3], tz + view[2, 3]
    inverse_z = 1.0 / tz
    slopes = slopes_of(camera, tx, ty, inverse_z)
    xx, xy, yy = covariance_of(
        axes_in_image(camera, view, rotation_of(unit_quaternion(block)), scale, slopes, inverse_z)
    )
    before = xx * yy - xy * xy
    xx, yy = xx + camera[EPS2D], yy + camera[EPS2D]
    after = xx * yy - xy * xy
    if antialiased:
        # sqrt of the determinant before the low-pass over the determinant after it (Mip-Splatting, Yu et al. 2024).
        opacity = opacity * sqrt(maximum(before / after, 0.0))
    # Every comparison with NaN is false, so a NaN makes the Gaussian invisible.
    seen = finite & (tz >= camera[NEAR]) & (tz <= camera[FAR]) & (after > 0.0) & (opacity >= 1.0 / 255.0)
    store(log2_opacity, np.uint64(0), maximum(opacity, 1.0 / 255.0))
    for lane in range(DOUBLES):
        log2_opacity[lane] = math.log2(log2_opacity[lane])
    log2 = load_doubles(log2_opacity, np.uint64(0))
    extent = minimum(sqrt(maximum(2.0 / LOG2_E * (log2 + math.log2(255.0)), 0.0)), 3.33)
    radius_x, radius_y = ceil(extent * sqrt(xx)), ceil(extent * sqrt(yy))
    u, v = camera[FX] * slopes[0] + camera[CX], camera[FY] * slopes[1] + camera[CY]
    seen = (
        seen
        & (u + radius_x > 0.0)
        & (u - radius_x < float(width))
        & (v + radius_y > 0.0)
        & (v - radius_y < float(height))
    )
    whole_u, whole_v = floor(u), floor(v)
    inverse_yy = 1.0 / yy
    put(out, MEAN_X, whole_u)
    put(out, MEAN_Y, whole_v)
    put(out, MEAN_X_FRACTION, u - whole_u)
    put(out, MEAN_Y_FRACTION, v - whole_v)
    put(out, HALF_A, 0.5 * LOG2_E / (xx - xy * xy * inverse_yy))
    put(out, SHEAR, -1.0 * xy * inverse_yy)
    put(out, HALF_C, 0.5 * LOG2_E * inverse_yy)
    put(out, LOG2_OPACITY, log2)
    reach = 2.0 / LOG2_E * (log2 + LOG2_255)
    put(out, HALF_WIDTH, sqrt(reach * xx))
    put(out, HALF_HEIGHT, sqrt(reach * yy))
    put(out, DEPTH, tz)
    put(out, _U, u)
    put(out, _V, v)
    # The limit is far above any image size. It keeps the conversion to int32 defined for huge scales.
    put(out, _RADIUS_X, minimum(radius_x, 1.0e9))
    put(out, _RADIUS_Y, minimum(radius_y, 1.0e9))
    return bits(seen), bits(finite)


@helper
def _write_colour(records, basis, lane, degree, sh0, sh_rest, i):  # type: ignore[no-untyped-def]
    """Write one Gaussian's colour to its record; return whether it is finite."""
    half, zero, first = np.float32(0.5), np.float32(0.0), basis[lane]
    if degree < 0:
        red, green, blue = sh0[i, 0], sh0[i, 1], sh0[i, 2]
        records[i, RED], records[i, GREEN], records[i, BLUE] = red, green, blue
    else:
        red, green, blue = first * sh0[i, 0] + half, first * sh0[i, 1] + half, first * sh0[i, 2] + half
        for k in range(1, (degree + 1) * (degree + 1)):
            value = basis[k * DOUBLES + lane]
            red += value * sh_rest[i, k - 1, 0]
            green += value * sh_rest[i, k - 1, 1]
            blue += value * sh_rest[i, k - 1, 2]
        records[i, RED], records[i, GREEN], records[i, BLUE] = max(red, zero), max(green, zero), max(blue, zero)
    return math.isfinite(red + green + blue)


@parallel_kernel
def project_forward(  # type: ignore[no-untyped-def]
    means, quats, scales, opacities, sh0, sh_rest, degree, view, centre, camera, width, height, antialiased,
    records, radii, means2d, visible, chunk_counts,
):  # fmt: skip
    """Project every Gaussian; write record, radii and projected mean of each visible Gaussian.

    Args:
        means [N, 3], quats [N, 4] wxyz, scales [N, 3] activated, opacities [N] activated: float32, contiguous.
        sh0 [N, 3], sh_rest [N, K-1, 3]: float32. With ``degree`` < 0, sh0 holds plain colours.
        view [4, 4] world -> camera, centre [3] camera centre in the world, camera from ``camera_vector``: float64.
        records [N, 16] float32, radii [N, 2] int32, means2d [N, 2] float32 px: written. Radii 0 = not visible.
        visible: [N] int32, written: the visible Gaussians of chunk k start at k * CHUNK, in ascending order.
        chunk_counts: [chunks, 2] int32, written: each chunk's number of visible Gaussians, and its number of Gaussians
            with a geometry or colour that is not finite.
    """
    n = means.shape[0]
    for chunk in prange(chunk_counts.shape[0]):
        block, out = aligned_zeros((OPACITY + 1) * DOUBLES), aligned_zeros((_RADIUS_Y + 1) * DOUBLES)
        basis, log2_opacity = aligned_zeros(25 * DOUBLES), np.empty(DOUBLES)
        seen, non_finite = 0, 0
        for begin in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK), DOUBLES):
            count = min(n - begin, DOUBLES)
            for lane in range(count):
                i = begin + lane
                radii[i, 0], radii[i, 1] = 0, 0
                means2d[i, 0], means2d[i, 1] = 0.0, 0.0
                load_gaussian(block, lane, means, quats, scales, opacities, i)
            lanes, finite = _project_block(block, out, log2_opacity, view, camera, width, height, antialiased)
            every = (np.uint64(1) << np.uint64(count)) - np.uint64(1)
            for lane in range(count):
                non_finite += 1 - int((finite >> np.uint64(lane)) & np.uint64(1))
            lanes &= every
            if lanes == np.uint64(0):
                continue
            if degree >= 0:
                x, y, z, _ = unit_direction(block, centre)
                evaluate_basis(x, y, z, degree, basis)
            while lanes != np.uint64(0):
                lane = int(lowest_bit(lanes))
                lanes &= lanes - np.uint64(1)
                i = begin + lane
                visible[chunk * CHUNK + seen] = i
                seen += 1
                radii[i, 0], radii[i, 1] = (
                    np.int32(out[_RADIUS_X * DOUBLES + lane]),
                    np.int32(out[_RADIUS_Y * DOUBLES + lane]),
                )
                means2d[i, 0], means2d[i, 1] = out[_U * DOUBLES + lane], out[_V * DOUBLES + lane]
                for column in range(RED):
                    records[i, column] = out[column * DOUBLES + lane]
                non_finite += not _write_colour(records, basis, lane, degree, sh0, sh_rest, i)
        chunk_counts[chunk, 0] = seen
        chunk_counts[chunk, 1] = non_finite
