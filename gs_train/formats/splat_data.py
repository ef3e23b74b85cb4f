"""The splat that every file format shares: six raw NumPy arrays. No torch, no activation, no normalisation.

The arrays are float32, have equal numbers of rows, and hold the exact values of the model or the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAX_SH_DEGREE = 4
"""The highest spherical-harmonics degree of a splat; published files use 0 to 3."""
ROWS_PER_PIECE = 1 << 16
"""Gaussians in memory at a time when a splat is streamed: 16 MB at SH degree 3."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SplatData:
    """Raw parameters of N Gaussians.

    Raises:
        ValueError: an array is not float32, has the wrong shape, or its number of coefficients fits no SH degree.
    """

    xyz: NDArray[np.float32]
    """[N, 3] positions, world units."""
    f_dc: NDArray[np.float32]
    """[N, 1, 3] degree-0 SH coefficients; colour = 0.5 + 0.28209479 f_dc."""
    f_rest: NDArray[np.float32]
    """[N, (d + 1)^2 - 1, 3] higher SH coefficients, coefficient-major."""
    opacity: NDArray[np.float32]
    """[N, 1] logit."""
    scaling: NDArray[np.float32]
    """[N, 3] natural logarithm, world units."""
    rotation: NDArray[np.float32]
    """[N, 4] quaternion wxyz, not normalised."""
    antialiased: bool = False
    """Whether the splat was trained with antialiasing; a viewer should render it with the same filter."""

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

    def is_finite(self) -> NDArray[np.bool_]:
        """[N] whether a Gaussian has neither NaN nor infinite values."""
        arrays = (self.xyz, self.f_dc, self.f_rest, self.opacity, self.scaling, self.rotation)
        finite: NDArray[np.bool_] = np.ones(len(self), dtype=bool)
        for array in arrays:
            finite &= np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
        return finite

    def keep(self, mask: NDArray[np.bool_] | NDArray[np.int64] | slice) -> SplatData:
        """The Gaussians where the mask [N] is true, or the Gaussians of these row numbers, in their order. A
        slice gives views of the arrays."""
        names = ("xyz", "f_dc", "f_rest", "opacity", "scaling", "rotation")
        return replace(self, **{name: getattr(self, name)[mask] for name in names})

    def up_to_degree(self, degree: int) -> SplatData:
        """The splat without the SH coefficients of higher degrees than ``degree``."""
        return replace(self, f_rest=self.f_rest[:, : (degree + 1) ** 2 - 1])


@dataclass(frozen=True, kw_only=True, eq=False)
class SplatStream:
    """A splat that is read in pieces, for splats that may be larger than the memory."""

    count: int
    """Number of Gaussians."""
    sh_degree: int
    """Highest spherical-harmonics degree."""
    antialiased: bool
    """As in ``SplatData``."""
    pieces: Callable[[], Iterator[SplatData]]
    """Starts a reading, which yields ``count`` Gaussians in all. It raises UserError if the file has changed."""

    @classmethod
    def of(cls, data: SplatData) -> SplatStream:
        """The stream of a splat in memory."""

        def pieces() -> Iterator[SplatData]:
            for start in range(0, len(data), ROWS_PER_PIECE):
                yield data.keep(slice(start, start + ROWS_PER_PIECE))

        return cls(count=len(data), sh_degree=data.sh_degree, antialiased=data.antialiased, pieces=pieces)

    def mapped(self, change: Callable[[SplatData], SplatData], count: int | None = None) -> SplatStream:
        """The stream of the changed pieces; they have ``count`` Gaussians in all, or as many as before."""

        def pieces() -> Iterator[SplatData]:
            return map(change, self.pieces())

        return replace(self, count=self.count if count is None else count, pieces=pieces)

    def collect(self) -> SplatData:
        """The whole splat."""
        rest = (self.sh_degree + 1) ** 2 - 1
        shapes = {"xyz": (3,), "f_dc": (1, 3), "f_rest": (rest, 3), "opacity": (1,), "scaling": (3,), "rotation": (4,)}
        whole = {name: np.empty((self.count, *shape), np.float32) for name, shape in shapes.items()}
        start = 0
        for piece in self.pieces():
            for name, array in whole.items():
                array[start : start + len(piece)] = getattr(piece, name)
            start += len(piece)
        return SplatData(**whole, antialiased=self.antialiased)


@dataclass(frozen=True, kw_only=True)
class SplatFormat:
    """A file format: the module of the format defines one as ``FORMAT``, and ``registry.py`` lists the module."""

    read: Callable[..., SplatData] | None = None
    """Reads a file from a path and ``read_options``; raises UserError when the file is missing or damaged. None: the
    format is write-only."""
    write: Callable[..., str | None] | None = None
    """Creates or replaces a file from a path, a splat and ``write_options``; raises UserError when that fails. It may
    return a sentence for the user. None: the format is read-only."""
    stream: Callable[[Path], SplatStream] | None = None
    """As ``read``, in pieces; None if the format must be read as a whole."""
    write_stream: Callable[[Path, SplatStream], None] | None = None
    """As ``write``, in pieces; None if the format must be written as a whole."""
    read_offset: Callable[[Path], tuple[float, float, float]] | None = None
    """Offset that a file of the format holds itself: scene coordinates = offset + positions. None if it holds none."""
    signature: bytes = b""
    """The first bytes of every file of the format; empty when the format has no signature."""
    recognise: Callable[[bytes], bool] | None = None
    """In place of ``signature``: whether a file that begins with these bytes (at most 4096) is of the format."""
    max_sh_degree: int = MAX_SH_DEGREE
    """Highest SH degree that files hold; ``registry.py`` removes higher degrees before it writes."""
    read_options: tuple[str, ...] = ()
    """Names of the keyword arguments of ``read``, which are flags of ``gs-train export``."""
    write_options: tuple[str, ...] = ()
    """Names of the keyword arguments of ``write``, which are flags of ``gs-train export``."""

    def holds(self, head: bytes) -> bool:
        """Whether a file that begins with ``head`` is of the format."""
        if self.recognise is not None:
            return self.recognise(head)
        return self.signature != b"" and head.startswith(self.signature)
