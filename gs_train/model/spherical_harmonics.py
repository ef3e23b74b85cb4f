"""Constants of the stored spherical harmonics: the degree-0 basis function and the number of coefficients of a degree.

A model of degree d has (d + 1)^2 coefficients per colour channel: the first is ``f_dc``, the others are ``f_rest``. The
rasterizers evaluate the harmonics.
"""

from __future__ import annotations

import math

from torch import Tensor

from gs_train.formats import splat_data

SH_C0 = 0.28209479177387814
"""The degree-0 basis function, 1 / (2 sqrt(pi))."""

MAX_SH_DEGREE = splat_data.MAX_SH_DEGREE
"""Highest degree that models may have and rasterizers evaluate. Training uses 0 to 3."""


def rgb_to_f_dc(rgb: Tensor) -> Tensor:
    """Degree-0 coefficients of the colours ``rgb`` (0 to 1, any shape); RGB2SH in the original."""
    return (rgb - 0.5) / SH_C0


def rest_count(degree: int) -> int:
    """Number of coefficients per channel in ``f_rest`` at ``degree``: (degree + 1)^2 - 1."""
    return (degree + 1) ** 2 - 1


def degree_of_rest(count: int) -> int:
    """The degree whose ``f_rest`` has ``count`` coefficients per channel.

    Raises:
        ValueError: no degree from 0 to ``MAX_SH_DEGREE`` has ``count`` coefficients.
    """
    degree = math.isqrt(count + 1) - 1
    if degree > MAX_SH_DEGREE or rest_count(degree) != count:
        raise ValueError(f"f_rest: {count} coefficients per channel fit no SH degree from 0 to {MAX_SH_DEGREE}")
    return degree
