"""Splats as .ply in the original trainer's layout: one element ``vertex`` of float32 columns.

Opacity stays a logit, scales stay logarithms, quaternions keep their length: write and read return every float bit for
bit. Files are written atomically.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement

from gs_train.atomic_write import atomic_write
from gs_train.errors import UserError
from gs_train.formats.ply_vertices import NoVertices, open_vertices
from gs_train.formats.splat_data import MAX_SH_DEGREE, ROWS_PER_PIECE, SplatData, SplatFormat, SplatStream

_XYZ = ("x", "y", "z")
_NORMALS = ("nx", "ny", "nz")
_F_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALES = ("scale_0", "scale_1", "scale_2")
_ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")
_PLAIN, _ANTIALIASED = "SplatRenderMode: default", "SplatRenderMode: mip"
_REQUIRED = (*_XYZ, *_F_DC, "opacity", *_SCALES, *_ROTATION)


def write_ply(path: Path | str, data: SplatData) -> None:
    """Write a splat, binary little-endian, with zero normals (the original's viewers expect these columns).

    The header comment ``SplatRenderMode`` is ``mip`` for an antialiased splat, else ``default``.

    Args:
        path: the file to create or replace; a missing folder is created.
        data: the Gaussians.

    Raises:
        UserError: the file cannot be written. An earlier file of the same name then stays intact.
    """
    write_ply_stream(path, SplatStream.of(data))


def write_ply_stream(path: Path | str, stream: SplatStream) -> None:
    """As ``write_ply``, in pieces: the memory does not grow with the number of Gaussians.

    Raises:
        UserError: as ``write_ply``, or the source of the stream has become damaged.
    """
    path = Path(path)
    rest = (stream.sh_degree + 1) ** 2 - 1
    names = [*_XYZ, *_NORMALS, *_F_DC, *(f"f_rest_{i}" for i in range(3 * rest)), "opacity", *_SCALES, *_ROTATION]
    # The header needs the number of rows only: all rows of this array are the same one.
    rows = np.broadcast_to(np.zeros((), np.dtype([(name, "<f4") for name in names])), (stream.count,))
    mode = _ANTIALIASED if stream.antialiased else _PLAIN
    # Comments follow the line of the element: SIBR, the original's viewer, takes the number of Gaussians from the third
    # line.
    header = PlyData([PlyElement.describe(rows, "vertex", comments=[mode])], byte_order="<").header

    def write(file: BinaryIO) -> None:
        file.write(header.encode("ascii") + b"\n")
        for piece in stream.pieces():
            file.write(_table(piece).data)

    try:
        atomic_write(path, write)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): free space or choose another place."
        ) from error


def _table(data: SplatData) -> NDArray[np.float32]:
    """[N, columns] the rows of a file."""
    count = len(data)
    # The original stores f_rest channel-major: all coefficients of red, then of green, then of blue.
    channel_major = data.f_rest.transpose(0, 2, 1).reshape(count, 3 * data.f_rest.shape[1])
    blocks = [
        data.xyz,
        np.zeros_like(data.xyz),
        data.f_dc.reshape(count, 3),
        channel_major,
        data.opacity,
        data.scaling,
        data.rotation,
    ]
    return np.ascontiguousarray(np.concatenate(blocks, axis=1), dtype="<f4")


def read_ply(path: Path | str) -> SplatData:
    """Read a splat in the original trainer's layout. Nothing is normalised.

    Accepts ASCII and binary of either byte order, SH degree 0 to 4, columns in any order, and files without normals.
    Other columns and elements are ignored.

    Raises:
        UserError: the file does not exist, is not a PLY, it is truncated, or it is a PLY of something else.
    """
    return stream_ply(path).collect()


def stream_ply(path: Path | str) -> SplatStream:
    """As ``read_ply``, in pieces. A text file is read as a whole."""
    path = Path(path)
    with _reading(path):
        rows = open_vertices(path)
    missing = [name for name in _REQUIRED if name not in rows.names]
    if missing:
        raise UserError(
            f"{path} is a PLY but not a splat: it lacks the columns {', '.join(missing)}; name a splat .ply file."
        )
    rest_names, antialiased = _rest_names(path, rows.names), _ANTIALIASED in rows.comments

    def pieces() -> Iterator[SplatData]:
        for start in range(0, rows.count, ROWS_PER_PIECE):
            with _reading(path):
                part = rows.read(start, min(ROWS_PER_PIECE, rows.count - start))
            yield _splat(part, rest_names, antialiased=antialiased)

    degree = math.isqrt(len(rest_names) // 3 + 1) - 1
    return SplatStream(count=rows.count, sh_degree=degree, antialiased=antialiased, pieces=pieces)


def _splat(rows: NDArray[np.void], rest_names: list[str], *, antialiased: bool) -> SplatData:
    count, rest = len(rows), len(rest_names) // 3
    return SplatData(
        xyz=_columns(rows, _XYZ),
        f_dc=_columns(rows, _F_DC).reshape(count, 1, 3),
        f_rest=_columns(rows, rest_names).reshape(count, 3, rest).transpose(0, 2, 1),
        opacity=_columns(rows, ("opacity",)),
        scaling=_columns(rows, _SCALES),
        rotation=_columns(rows, _ROTATION),
        antialiased=antialiased,
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn faults of a file that is read inside the block into UserError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; name a splat .ply file.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); name a splat .ply file.") from error
    except NoVertices as error:
        raise UserError(f"{path} is a PLY but not a splat: {error}; name a splat .ply file.") from error
    except ValueError as error:
        # NumPy and the decoder of text raise some of these.
        raise UserError(
            f"{path} is truncated or is not a PLY file ({' '.join(str(error).split())}): export or copy it again."
        ) from error


def _rest_names(path: Path, names: tuple[str, ...]) -> list[str]:
    """The columns ``f_rest_0``, ``f_rest_1``, ... in order; raises UserError unless their number fits an SH degree."""
    found = sum(name.startswith("f_rest_") for name in names)
    ordered = [f"f_rest_{i}" for i in range(found)]
    allowed = [3 * ((degree + 1) ** 2 - 1) for degree in range(MAX_SH_DEGREE + 1)]
    if found not in allowed or any(name not in names for name in ordered):
        counts = ", ".join(str(count) for count in allowed)
        raise UserError(
            f"{path} has {found} columns f_rest_*; a splat has f_rest_0, f_rest_1, ..., {counts} of them: export it "
            "again."
        )
    return ordered


def _columns(rows: NDArray[np.void], names: list[str] | tuple[str, ...]) -> NDArray[np.float32]:
    """[N, len(names)] float32 copy of the named columns."""
    out = np.empty((len(rows), len(names)), dtype=np.float32)
    for i, name in enumerate(names):
        out[:, i] = rows[name]
    return out


FORMAT = SplatFormat(read=read_ply, write=write_ply, stream=stream_ply, write_stream=write_ply_stream, signature=b"ply")
"""The entry for ``registry.py``."""
