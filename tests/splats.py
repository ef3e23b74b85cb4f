"""Small splats for the tests of formats, and their comparison bit by bit or within the steps of a format."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from gs_train.formats.splat_data import SplatData

ARRAYS = ("xyz", "f_dc", "f_rest", "opacity", "scaling", "rotation")


def make_splat(rows: int, degree: int) -> SplatData:
    """Random bits, so that denormal, infinite and NaN floats are among them."""
    rest = (degree + 1) ** 2 - 1
    shapes = {"xyz": (3,), "f_dc": (1, 3), "f_rest": (rest, 3), "opacity": (1,), "scaling": (3,), "rotation": (4,)}
    rng = np.random.default_rng(7)
    return SplatData(
        **{n: rng.integers(0, 2**32, (rows, *s), dtype=np.uint32).view(np.float32) for n, s in shapes.items()}
    )


def finite_splat(rows: int, degree: int = 0) -> SplatData:
    """Ordinary values: normal draws."""
    rest = (degree + 1) ** 2 - 1
    shapes = {"xyz": (3,), "f_dc": (1, 3), "f_rest": (rest, 3), "opacity": (1,), "scaling": (3,), "rotation": (4,)}
    rng = np.random.default_rng(7)
    return SplatData(**{n: rng.normal(size=(rows, *s)).astype(np.float32) for n, s in shapes.items()})


def assert_same_bits(actual: SplatData, expected: SplatData) -> None:
    """Assert that all arrays are equal, NaN payloads included."""
    for name in ARRAYS:
        a, b = getattr(actual, name), getattr(expected, name)
        assert a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32)), name


def trained_splat(rows: int, degree: int = 3) -> SplatData:
    """Values as training leaves them: small Gaussians in a room, coefficients below 0.3, quaternions of any length."""
    rest = (degree + 1) ** 2 - 1
    rng = np.random.default_rng(11)
    arrays = {
        "xyz": rng.normal(0, 2, (rows, 3)),
        "f_dc": rng.normal(0, 0.8, (rows, 1, 3)),
        "f_rest": rng.normal(0, 0.08, (rows, rest, 3)),
        "opacity": rng.normal(0, 2, (rows, 1)),
        "scaling": rng.normal(-4, 1, (rows, 3)),
        "rotation": rng.normal(0, 1, (rows, 4)) * rng.uniform(0.1, 10, (rows, 1)),
    }
    return SplatData(**{name: array.astype(np.float32) for name, array in arrays.items()})


def in_order_of(splat: SplatData, other: SplatData) -> SplatData:
    """The Gaussians of ``splat`` in the order of ``other``, matched by their centres; every row is used once."""
    nearest = cKDTree(splat.xyz).query(other.xyz)[1]
    assert len(splat) == len(other) and sorted(nearest) == list(range(len(other)))
    return splat.keep(nearest)


def covariances(splat: SplatData) -> NDArray[np.float64]:
    """[N, 3, 3] in world units, computed without the project's own code."""
    q = splat.rotation.astype(np.float64)
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    turn = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
    axes = turn.transpose(2, 0, 1) * np.exp(splat.scaling.astype(np.float64))[:, None, :]
    return axes @ axes.transpose(0, 2, 1)


def alphas(splat: SplatData) -> NDArray[np.float64]:
    """[N] opacities from 0 to 1."""
    opacities: NDArray[np.float64] = 1 / (1 + np.exp(-splat.opacity[:, 0].astype(np.float64)))
    return opacities


def assert_close(
    actual: SplatData,
    expected: SplatData,
    *,
    xyz: float,
    covariance: float,
    colour: float,
    sh: float | None,
    alpha: float = 1 / 500,
) -> None:
    """Assert that two splats agree within the steps of a format, whatever the order of their Gaussians.

    Args:
        actual, expected: the splats.
        xyz: largest difference of centres, world units.
        covariance: largest difference of covariances, as a fraction of the covariance's norm.
        colour: largest difference of ``f_dc``.
        sh: largest difference of ``f_rest``; None for a format without it.
        alpha: largest difference of opacities.
    """
    actual = in_order_of(actual, expected)
    assert np.abs(actual.xyz - expected.xyz).max() <= xyz
    norms = np.linalg.norm(covariances(expected), axis=(1, 2))
    assert (np.linalg.norm(covariances(actual) - covariances(expected), axis=(1, 2)) / norms).max() <= covariance
    assert np.abs(actual.f_dc - expected.f_dc).max() <= colour
    assert np.abs(alphas(actual) - alphas(expected)).max() <= alpha
    if sh is None:
        assert actual.sh_degree == 0
    else:
        assert actual.f_rest.shape == expected.f_rest.shape
        assert np.abs(actual.f_rest - expected.f_rest).max(initial=0) <= sh
    assert actual.antialiased == expected.antialiased
