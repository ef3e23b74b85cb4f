"""Reader of sparse points in a PLY file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError
from gs_train.formats.ply_vertices import read_vertices
from gs_train.scene.types import PointCloud

_GREY = 128


def read_ply_points(ply: Path, named_by: Path) -> PointCloud:
    """The vertices of a PLY file, grey if they have no colours; may hold NaN or infinity.

    Args:
        ply: the file.
        named_by: the transforms file that names it, for messages.

    Raises:
        UserError: the file cannot be read or is not a PLY file of points.
    """
    named = f"{ply}, which {named_by} names as its points"
    remedy = f"put the points there, or remove ply_file_path from {named_by.name} to start from random points"
    try:
        vertex = read_vertices(ply)[0]
        xyz = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], axis=1)
        colours = [vertex[name] for name in ("red", "green", "blue") if name in (vertex.dtype.names or ())]
        rgb = _to_bytes(np.stack(colours, axis=1)) if len(colours) == 3 else np.full(xyz.shape, _GREY, np.uint8)
    except OSError as error:
        raise UserError(f"{named}, cannot be read ({error.strerror or error}): {remedy}.") from error
    except ValueError as error:
        # NumPy and the decoder of text raise some of these, and NumPy for a missing column.
        raise UserError(f"{named}, is not a PLY file of points ({' '.join(str(error).split())}): {remedy}.") from error
    return PointCloud(xyz=xyz, rgb=rgb)


def _to_bytes(colours: NDArray[Any]) -> NDArray[np.uint8]:
    """[P, 3] colours as bytes, from floats in 0..1 or integers in 0..255."""
    if np.issubdtype(colours.dtype, np.floating):
        colours = np.round(np.nan_to_num(colours) * 255.0)
    return np.asarray(np.clip(colours, 0, 255), np.uint8)
