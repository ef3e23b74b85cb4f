"""Arithmetic that the compact formats share: quaternions, opacities, bytes and the order of the Gaussians."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SH_C0 = 0.28209479177387814
"""The degree-0 basis function, 1 / (2 sqrt(pi))."""
SQRT_HALF = 0.5**0.5
_LEAST_OPACITY = 1e-6
_LEAST_SCALE = 1.2e-38
_MORTON_BITS = 21
"""Bits per axis; so many, because one far Gaussian widens the cells of all."""
_SPREAD = (
    (32, 0x001F00000000FFFF),
    (16, 0x001F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)
"""Shifts and masks that put two zero bits before each of 21 bits."""
_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
"""Row L: the indices of a quaternion's components other than L."""


def unit_quaternions(rotation: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, 4] the quaternions at unit length; 1, 0, 0, 0 for a quaternion of length zero."""
    # In float64, because squares of tiny and huge float32 numbers are 0 or infinite.
    exact = rotation.astype(np.float64)
    length = np.sqrt(np.einsum("ni,ni->n", exact, exact))
    unit = (exact / np.where(length == 0, 1, length)[:, None]).astype(np.float32)
    unit[length == 0, 0] = 1
    return unit


def smallest_three(unit: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Split unit quaternions into the index [N] of the largest component and the other three [N, 3], in order.

    Their signs are chosen for a positive largest component, which gives the same rotation.
    """
    largest = np.abs(unit).argmax(axis=1)
    negative = np.take_along_axis(unit, largest[:, None], axis=1) < 0
    others = np.take_along_axis(unit, _OTHERS[largest], axis=1)
    return largest, np.where(negative, -others, others)


def from_smallest_three(largest: NDArray[Any], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, 4] the quaternions of ``smallest_three``."""
    unit = np.empty((len(others), 4), dtype=np.float32)
    np.put_along_axis(unit, _OTHERS[largest], others, axis=1)
    missing = np.sqrt(np.maximum(0, 1 - np.einsum("ni,ni->n", others, others)))
    np.put_along_axis(unit, np.asarray(largest, dtype=np.int64)[:, None], missing[:, None].astype(np.float32), axis=1)
    return unit


def opacities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Opacities from 0 to 1 of logits, any shape."""
    # The clip keeps the exponential finite; the opacity is 0 or 1 long before.
    return (1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -80, 80)))).astype(np.float32)


def to_logits(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Logits of opacities, any shape. Opacities are clamped to 1e-6 .. 1 - 1e-6, so that the logits are finite."""
    clamped = np.clip(values.astype(np.float64), _LEAST_OPACITY, 1 - _LEAST_OPACITY)
    return np.log(clamped / (1 - clamped)).astype(np.float32)


def to_bytes(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The nearest whole numbers from 0 to 255."""
    found: NDArray[np.uint8] = np.clip(np.floor(values + np.float32(0.5)), 0, 255).astype(np.uint8)
    return found


def to_fractions(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes as fractions of 255."""
    return stored.astype(np.float32) / np.float32(255)


def linear_scales(scaling: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard deviations of logarithms. Both are clamped to the range of normal float32 numbers."""
    return np.exp(np.clip(scaling, -87, 88).astype(np.float64)).astype(np.float32)


def log_scales(linear: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithms of standard deviations; a value of 0 or less counts as the smallest normal float32 number."""
    return np.log(np.maximum(linear.astype(np.float64), _LEAST_SCALE)).astype(np.float32)


def morton_order(xyz: NDArray[np.float32]) -> NDArray[np.int64]:
    """[N] the order of positions [N, 3] along a Morton curve through their bounding box."""
    low, high = xyz.min(axis=0).astype(np.float64), xyz.max(axis=0).astype(np.float64)
    size = np.where(high > low, high - low, 1.0)
    cells = ((xyz - low) / size * (2**_MORTON_BITS - 1)).astype(np.uint64)
    for shift, mask in _SPREAD:
        cells = (cells | cells << np.uint64(shift)) & np.uint64(mask)
    code = cells[:, 0] | cells[:, 1] << np.uint64(1) | cells[:, 2] << np.uint64(2)
    order: NDArray[np.int64] = code.argsort(kind="stable")
    return order
