"""Projection of 3D Gaussians to 2D records, with their colours, one Gaussian at a time.

Not here: the way back (``projection_backward``), tiles and blending. One 64-byte record (one cache line) is written per visible Gaussian.
Geometry is float64, because a thin Gaussian's 2D covariance is a difference of large numbers and scalar float64 costs hardly more than
float32; colours, inputs and records are float32.

The 2D form stored is sigma = 0.5 * (A * u**2 + c * dy**2) with u = dx + k * dy, k = B / A and c = C - B**2 / A = 1 / cov_yy, i.e. the
conic with its square completed: both terms are non-negative, so nothing cancels where an ellipse is long and thin.

The kernel is longer than a function should be: a helper per Gaussian would be handed fifteen arrays, which costs as much as its work.

The invariant: the function computed is gsplat 1.5.3's (EWA splatting, Zwicker et al. 2001; 3D Gaussian Splatting, Kerbl et al. 2023).
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from gs_train.jit import helper, parallel_kernel
from gs_train.render.cpu.harmonics import evaluate_basis

# Columns of a record. Means are split into a whole and a fractional part, so that the distance to a pixel keeps full precision however
# large the image.
MEAN_X, MEAN_Y, MEAN_X_FRACTION, MEAN_Y_FRACTION = 0, 1, 2, 3
HALF_A, SHEAR, HALF_C, LOG2_OPACITY = 4, 5, 6, 7  # HALF_A = A/2 * log2(e), HALF_C = c/2 * log2(e), SHEAR = k
RED, GREEN, BLUE, DEPTH = 8, 9, 10, 11
HALF_WIDTH, HALF_HEIGHT = 12, 13  # px from the mean to the farthest point of the ellipse alpha = 1/255 in x and y
RECORD_SIZE = 16

LOG2_E = 1.4426950408889634
LOG2_255 = math.log2(255.0) + 0.003  # With a margin for float32 rounding in blending: no pixel that contributes is left out.
CHUNK = 512  # Gaussians per parallel work item. Fixed, so that per-chunk sums do not depend on the thread count.

# Columns of the camera vector; the last four limit x/z and y/z in the Jacobian to 0.3 half-widths beyond the image.
FX, FY, CX, CY, NEAR, FAR, EPS2D, LEAST_X, MOST_X, LEAST_Y, MOST_Y = range(11)


def camera_vector(
    intrinsics: tuple[float, float, float, float], width: int, height: int, near: float, far: float, eps2d: float
) -> NDArray[np.float64]:
    """What the kernels want to know of a camera; intrinsics fx, fy, cx, cy in px."""
    fx, fy, cx, cy = intrinsics
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    limits = (-cx / fx - margin_x, (width - cx) / fx + margin_x, -cy / fy - margin_y, (height - cy) / fy + margin_y)
    return np.array([fx, fy, cx, cy, near, far, eps2d, *limits])


@helper
def rotation_of(w: float, x: float, y: float, z: float) -> tuple[float, ...]:
    """The rotation matrix of a unit quaternion, row by row."""
    return (
        1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y),
        2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x),
        2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y),
    )  # fmt: skip


@helper
def limited(value: float, low: float, high: float) -> tuple[float, bool]:
    """The value limited, and whether it was within."""
    return min(max(value, low), high), low <= value <= high


@helper
def in_camera(view: NDArray, x: float, y: float, z: float) -> tuple[float, float, float]:
    """A direction of the world in the camera's frame."""
    return (
        view[0, 0] * x + view[0, 1] * y + view[0, 2] * z,
        view[1, 0] * x + view[1, 1] * y + view[1, 2] * z,
        view[2, 0] * x + view[2, 1] * y + view[2, 2] * z,
    )


@helper
def axes_in_image(camera: NDArray, view: NDArray, rotation: tuple, scale: tuple, slopes: tuple, inverse_z: float) -> tuple[float, ...]:
    """The three columns (x, y) of J W R S, so that cov2d is the sum of their outer products."""
    fx, fy = camera[FX] * inverse_z, camera[FY] * inverse_z
    x0, y0, z0 = in_camera(view, rotation[0] * scale[0], rotation[3] * scale[0], rotation[6] * scale[0])
    x1, y1, z1 = in_camera(view, rotation[1] * scale[1], rotation[4] * scale[1], rotation[7] * scale[1])
    x2, y2, z2 = in_camera(view, rotation[2] * scale[2], rotation[5] * scale[2], rotation[8] * scale[2])
    return (
        fx * (x0 - slopes[0] * z0), fy * (y0 - slopes[1] * z0),
        fx * (x1 - slopes[0] * z1), fy * (y1 - slopes[1] * z1),
        fx * (x2 - slopes[0] * z2), fy * (y2 - slopes[1] * z2),
    )  # fmt: skip


@helper
def covariance_of(axes: tuple) -> tuple[float, float, float]:
    """cov2d xx, xy, yy before the low-pass, px^2."""
    x0, y0, x1, y1, x2, y2 = axes
    return x0 * x0 + x1 * x1 + x2 * x2, x0 * y0 + x1 * y1 + x2 * y2, y0 * y0 + y1 * y1 + y2 * y2


@helper
def unit_quaternion(quats: NDArray, i: int) -> tuple[float, float, float, float, float]:
    """w, x, y, z of length 1, and the inverse of the length before."""
    w, x, y, z = np.float64(quats[i, 0]), np.float64(quats[i, 1]), np.float64(quats[i, 2]), np.float64(quats[i, 3])
    inverse = 1.0 / math.sqrt(w * w + x * x + y * y + z * z)
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@helper
def unit_direction(x: float, y: float, z: float) -> tuple[float, float, float, float]:
    """x, y, z of length 1, and the inverse of the length before."""
    inverse = 1.0 / math.sqrt(x * x + y * y + z * z)
    return x * inverse, y * inverse, z * inverse, inverse


@helper
def compensation_of(xx: float, xy: float, yy: float, eps2d: float) -> float:
    """Anti-aliased mode: sqrt of the ratio of the 2D determinants before and after the low-pass (Mip-Splatting, Yu et al. 2024)."""
    before = xx * yy - xy * xy
    after = (xx + eps2d) * (yy + eps2d) - xy * xy
    return math.sqrt(max(0.0, before / after))


@helper
def _write_colour(records: NDArray, basis: NDArray, degree: int, sh0: NDArray, sh_rest: NDArray, i: int) -> bool:
    """Write the colour; say whether it is finite."""
    half, zero = np.float32(0.5), np.float32(0.0)
    red, green, blue = basis[0] * sh0[i, 0] + half, basis[0] * sh0[i, 1] + half, basis[0] * sh0[i, 2] + half
    for k in range(1, (degree + 1) * (degree + 1)):
        red += basis[k] * sh_rest[i, k - 1, 0]
        green += basis[k] * sh_rest[i, k - 1, 1]
        blue += basis[k] * sh_rest[i, k - 1, 2]
    records[i, RED], records[i, GREEN], records[i, BLUE] = max(red, zero), max(green, zero), max(blue, zero)
    return math.isfinite(red + green + blue)


@parallel_kernel
def project_forward(  # type: ignore[no-untyped-def]  # noqa: PLR0915
    means, quats, scales, opacities, sh0, sh_rest, degree, view, centre, camera, width, height, antialiased, records, radii, means2d,
    visible, chunk_counts,
):  # fmt: skip
    """Project every Gaussian; write a record, radii and mean for those that can be seen.

    Args:
        means [N, 3], quats [N, 4] wxyz, scales [N, 3] activated, opacities [N] activated: float32, contiguous.
        sh0 [N, 3], sh_rest [N, K-1, 3]: float32. With ``degree`` < 0, sh0 holds colours as they are.
        view [4, 4] world -> camera, centre [3] camera centre in the world, camera from ``camera_vector``: float64.
        records [N, 16] float32, radii [N, 2] int32, means2d [N, 2] float32 px: written. Radii 0 = not visible.
        visible: [N] int32, written: from each multiple of CHUNK on, the Gaussians of that chunk that can be seen, ascending.
        chunk_counts: [chunks, 2] int32, written: how many those are, and how many of the chunk have a geometry or a
            colour that is not finite.
    """
    n = means.shape[0]
    for chunk in prange(chunk_counts.shape[0]):
        basis = np.empty(25, np.float32)
        seen, broken = 0, 0
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            radii[i, 0] = 0
            radii[i, 1] = 0
            means2d[i, 0] = 0.0
            means2d[i, 1] = 0.0
            mx, my, mz = np.float64(means[i, 0]), np.float64(means[i, 1]), np.float64(means[i, 2])
            w, x, y, z, _ = unit_quaternion(quats, i)
            scale = (np.float64(scales[i, 0]), np.float64(scales[i, 1]), np.float64(scales[i, 2]))
            opacity = np.float64(opacities[i])
            turn = np.float64(quats[i, 0]) + np.float64(quats[i, 1]) + np.float64(quats[i, 2]) + np.float64(quats[i, 3])
            # No sum of float32 overflows a float64, so this is finite if they all are.
            if not math.isfinite(mx + my + mz + turn + scale[0] + scale[1] + scale[2] + opacity):
                broken += 1
                continue
            x_rotated, y_rotated, z_rotated = in_camera(view, mx, my, mz)
            tx, ty, tz = x_rotated + view[0, 3], y_rotated + view[1, 3], z_rotated + view[2, 3]
            if not (tz >= camera[NEAR] and tz <= camera[FAR]):
                continue
            inverse_z = 1.0 / tz
            slope_x, slope_y = tx * inverse_z, ty * inverse_z
            slopes = (
                limited(slope_x, camera[LEAST_X], camera[MOST_X])[0],
                limited(slope_y, camera[LEAST_Y], camera[MOST_Y])[0],
            )
            xx, xy, yy = covariance_of(axes_in_image(camera, view, rotation_of(w, x, y, z), scale, slopes, inverse_z))
            if antialiased:
                opacity *= compensation_of(xx, xy, yy, camera[EPS2D])
            xx += camera[EPS2D]
            yy += camera[EPS2D]
            if not (xx * yy - xy * xy > 0.0 and opacity >= 1.0 / 255.0):
                continue
            log2_opacity = math.log2(opacity)
            extent = min(3.33, math.sqrt(max(2.0 / LOG2_E * (log2_opacity + math.log2(255.0)), 0.0)))
            radius_x, radius_y = math.ceil(extent * math.sqrt(xx)), math.ceil(extent * math.sqrt(yy))
            u, v = camera[FX] * slope_x + camera[CX], camera[FY] * slope_y + camera[CY]
            if not (u + radius_x > 0.0 and u - radius_x < width and v + radius_y > 0.0 and v - radius_y < height):
                continue
            visible[chunk * CHUNK + seen] = i
            seen += 1
            # A limit far above any image keeps the conversion to int32 defined for absurd scales.
            radii[i, 0] = np.int32(min(radius_x, 1.0e9))
            radii[i, 1] = np.int32(min(radius_y, 1.0e9))
            means2d[i, 0] = u
            means2d[i, 1] = v
            records[i, MEAN_X], records[i, MEAN_X_FRACTION] = math.floor(u), u - math.floor(u)
            records[i, MEAN_Y], records[i, MEAN_Y_FRACTION] = math.floor(v), v - math.floor(v)
            inverse_yy = 1.0 / yy
            records[i, HALF_A] = 0.5 * LOG2_E / (xx - xy * xy * inverse_yy)
            records[i, SHEAR] = -xy * inverse_yy
            records[i, HALF_C] = 0.5 * LOG2_E * inverse_yy
            records[i, LOG2_OPACITY] = log2_opacity
            records[i, DEPTH] = tz
            reach = 2.0 / LOG2_E * (log2_opacity + LOG2_255)
            records[i, HALF_WIDTH] = math.sqrt(reach * xx)
            records[i, HALF_HEIGHT] = math.sqrt(reach * yy)
            if degree < 0:
                records[i, RED], records[i, GREEN], records[i, BLUE] = sh0[i, 0], sh0[i, 1], sh0[i, 2]
                broken += not math.isfinite(sh0[i, 0] + sh0[i, 1] + sh0[i, 2])
            else:
                x, y, z, _ = unit_direction(mx - centre[0], my - centre[1], mz - centre[2])
                evaluate_basis(x, y, z, degree, basis)
                broken += not _write_colour(records, basis, degree, sh0, sh_rest, i)
        chunk_counts[chunk, 0] = seen
        chunk_counts[chunk, 1] = broken
