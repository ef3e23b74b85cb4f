"""Small splats for the tests of formats, and their comparison bit by bit."""

from __future__ import annotations

import numpy as np

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
