"""The splat as every file format sees it: six raw NumPy arrays. No torch, no activation, no normalisation.

The invariant: the arrays are float32, agree on the number of rows, and hold exactly what the model or the file held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ARRAY_NAMES = ("xyz", "f_dc", "f_rest", "opacity", "scaling", "rotation")
"""The six arrays."""
MAX_SH_DEGREE = 4
"""The highest degree a splat may have; files in the wild use 0 to 3."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SplatData:
    """Raw parameters of N Gaussians.

    Raises:
        ValueError: an array is not float32, has the wrong shape, or holds a number of coefficients that fits no SH degree.
    """

    xyz: NDArray[np.float32]
    """[N, 3] positions, world units."""
    f_dc: NDArray[np.float32]
    """[N, 1, 3] degree-0 SH coefficients; colour = 0.5 + 0.28209479 f_dc."""
    f_rest: NDArray[np.float32]
    """[N, (d + 1)^2 - 1, 3] the higher coefficients, coefficient-major."""
    opacity: NDArray[np.float32]
    """[N, 1] logit."""
    scaling: NDArray[np.float32]
    """[N, 3] natural logarithm, world units."""
    rotation: NDArray[np.float32]
    """[N, 4] quaternion wxyz, not normalised."""
    antialiased: bool = False
    """Whether it wants to be rendered with the antialiasing that it was trained with."""

    def __post_init__(self) -> None:
        rows = self.xyz.shape[0] if self.xyz.ndim > 0 else 0
        rest = self.f_rest.shape[1] if self.f_rest.ndim > 1 else 0
        expected = {
            "xyz": (rows, 3),
            "f_dc": (rows, 1, 3),
            "f_rest": (rows, rest, 3),
            "opacity": (rows, 1),
            "scaling": (rows, 3),
            "rotation": (rows, 4),
        }
        for name, shape in expected.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
            if array.dtype != np.float32:
                raise ValueError(f"{name}: expected float32, got {array.dtype}")
        if (self.sh_degree + 1) ** 2 != rest + 1 or self.sh_degree > MAX_SH_DEGREE:
            raise ValueError(f"f_rest: {rest} coefficients per channel fit no SH degree from 0 to {MAX_SH_DEGREE}")

    def __len__(self) -> int:
        """The number of Gaussians."""
        return int(self.xyz.shape[0])

    @property
    def sh_degree(self) -> int:
        """Highest spherical-harmonics degree, from the width of ``f_rest``."""
        return math.isqrt(self.f_rest.shape[1] + 1) - 1
