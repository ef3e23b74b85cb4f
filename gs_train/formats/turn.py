"""Turns, scales and moves splats, their spherical harmonics included.

A rotation mixes the coefficients of each degree by a matrix. A half turn about an axis only changes signs; formats with
other axes than a .ply need no more.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gs_train.formats.packing import unit_quaternions
from gs_train.formats.splat_data import SplatData

Signs = tuple[int, int, int]
_SH_PARITY = (
    ("y", "z", "x"),
    ("xy", "yz", "", "xz", ""),
    ("y", "xyz", "y", "z", "x", "z", "x"),
    ("xy", "yz", "xy", "yz", "", "xz", "", "xz", ""),
)
"""For each SH basis function of degrees 1 to 4: the axes in which it is odd."""
_DIRECTIONS = 64


def half_turn(data: SplatData, signs: Signs) -> SplatData:
    """Turn a splat by half a turn about an axis. Exact, and its own inverse.

    Args:
        data: the Gaussians.
        signs: factors of x, y and z, -1 or 1, of product 1.
    """
    x, y, z = signs
    factors = {"x": x, "y": y, "z": z}
    parity = [math.prod(factors[axis] for axis in axes) for degree in _SH_PARITY for axes in degree]
    sh = np.array(parity[: data.f_rest.shape[1]], dtype=np.float32)
    return replace(
        data,
        xyz=data.xyz * np.array(signs, dtype=np.float32),
        rotation=data.rotation * np.array([1, y * z, x * z, x * y], dtype=np.float32),
        f_rest=data.f_rest * sh[None, :, None],
    )


def transformed(
    data: SplatData, rotation: NDArray[np.float64], scale: float = 1.0, shift: tuple[float, ...] = (0.0, 0.0, 0.0)
) -> SplatData:
    """Turn, scale and move a splat: x' = scale * rotation @ x + shift.

    Args:
        data: the Gaussians.
        rotation: [3, 3], proper.
        scale: above 0.
        shift: x, y, z, in units after the scaling.
    """
    if np.array_equal(rotation, np.eye(3)) and scale == 1.0:
        return replace(data, xyz=(data.xyz.astype(np.float64) + shift).astype(np.float32))
    turn = quaternion_of(rotation)
    return replace(
        data,
        xyz=(scale * (data.xyz.astype(np.float64) @ rotation.T) + shift).astype(np.float32),
        scaling=(data.scaling.astype(np.float64) + math.log(scale)).astype(np.float32),
        rotation=_product(turn, unit_quaternions(data.rotation).astype(np.float64)).astype(np.float32),
        f_rest=_rotated_sh(data.f_rest, rotation),
    )


def rotation_between(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3, 3] the smallest rotation that turns the direction ``source`` to the direction ``target``, [3] each."""
    source, target = source / np.linalg.norm(source), target / np.linalg.norm(target)
    cosine = float(source @ target)
    if cosine < -1 + 1e-12:
        # Half a turn about any axis across; the axis that is farthest from the direction is a sound start.
        across = np.cross(source, np.eye(3)[np.abs(source).argmin()])
        across /= np.linalg.norm(across)
        half: NDArray[np.float64] = 2 * np.outer(across, across) - np.eye(3)
        return half
    axis = np.cross(source, target)
    x, y, z = axis
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    # Rodrigues' formula, with the sine and cosine taken from the cross and dot products.
    rotation: NDArray[np.float64] = np.eye(3) + skew + skew @ skew / (1 + cosine)
    return rotation


def rotation_about_axes(x_deg: float, y_deg: float, z_deg: float) -> NDArray[np.float64]:
    """[3, 3] the rotation about the fixed axes x, then y, then z, right-handed."""
    rotation = np.eye(3)
    for axis, degrees in enumerate((x_deg, y_deg, z_deg)):
        # Whole quarter turns are exact.
        quarter = degrees / 90
        cosine, sine = (
            ((1, 0), (0, 1), (-1, 0), (0, -1))[int(quarter) % 4]
            if quarter == int(quarter)
            else (math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
        )
        first, second = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[first, first] = step[second, second] = cosine
        step[second, first], step[first, second] = sine, -sine
        rotation = step @ rotation
    return rotation


def quaternion_of(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """[4] the unit quaternion wxyz of a rotation [3, 3]."""
    r = rotation
    # The largest component is found first, because the others are divided by it.
    squares = 1 + np.array([np.trace(r), *(2 * np.diag(r) - np.trace(r))])
    rows = [
        [squares[0], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
        [r[2, 1] - r[1, 2], squares[1], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
        [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], squares[2], r[1, 2] + r[2, 1]],
        [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], squares[3]],
    ]
    found: NDArray[np.float64] = np.array(rows[int(squares.argmax())])
    found /= np.linalg.norm(found)
    return found


def _product(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, 4] Hamilton products of one quaternion and N quaternions, wxyz."""
    a, b, c, d = left
    w, x, y, z = right.T
    columns = (
        a * w - b * x - c * y - d * z,
        a * x + b * w + c * z - d * y,
        a * y - b * z + c * w + d * x,
        a * z + b * y - c * x + d * w,
    )
    return np.stack(columns, axis=1)


def _rotated_sh(f_rest: NDArray[np.float32], rotation: NDArray[np.float64]) -> NDArray[np.float32]:
    """[N, K, 3] coefficients whose colour in the direction ``rotation @ d`` is the old colour in the direction d."""
    directions = np.random.default_rng(0).normal(size=(_DIRECTIONS, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    before, after = _basis(directions), _basis(directions @ rotation.T)
    turned, start = f_rest.copy(), 0
    for degree in range(1, math.isqrt(f_rest.shape[1] + 1)):
        of_degree = slice(start, start + 2 * degree + 1)
        matrix = np.linalg.lstsq(after[:, of_degree], before[:, of_degree], rcond=None)[0]
        turned[:, of_degree] = np.einsum("ij,njc->nic", matrix.astype(np.float32), f_rest[:, of_degree])
        start = of_degree.stop
    return turned


def _basis(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M, 24] the SH basis functions of degrees 1 to 4 at unit directions [M, 3], in the signs of the original trainer.

    Constant factors that all functions of a degree share are left out.
    """
    x, y, z = directions.T
    xx, yy, zz = x * x, y * y, z * z
    degree_2 = (2 * 3**0.5 * x * y, -2 * 3**0.5 * y * z, 3 * zz - 1, -2 * 3**0.5 * x * z, 3**0.5 * (xx - yy))
    degree_3 = (
        -(10**0.5) * y * (3 * xx - yy),
        2 * 60**0.5 * x * y * z,
        -(6**0.5) * y * (5 * zz - 1),
        2 * z * (5 * zz - 3),
        -(6**0.5) * x * (5 * zz - 1),
        60**0.5 * z * (xx - yy),
        -(10**0.5) * x * (xx - 3 * yy),
    )
    degree_4 = (
        4 * 35**0.5 * x * y * (xx - yy),
        -2 * 70**0.5 * y * z * (3 * xx - yy),
        4 * 5**0.5 * x * y * (7 * zz - 1),
        -2 * 10**0.5 * y * z * (7 * zz - 3),
        35 * zz * zz - 30 * zz + 3,
        -2 * 10**0.5 * x * z * (7 * zz - 3),
        2 * 5**0.5 * (xx - yy) * (7 * zz - 1),
        -2 * 70**0.5 * x * z * (xx - 3 * yy),
        35**0.5 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
    )
    return np.stack((-y, z, -x, *degree_2, *degree_3, *degree_4), axis=1)
