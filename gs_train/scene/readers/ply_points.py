"""Finds and reads points in PLY files: the file that a scene names, or a file with a usual name beside the cameras."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError, first_few
from gs_train.formats.ply_vertices import read_vertices
from gs_train.scene.types import PointCloud

_USUAL_STEMS = ("sparse_pc", "sparse_points", "points3d", "pointcloud", "point_cloud")
"""Lower-case names without .ply, of nerfstudio, the original trainer and others. The first match wins."""
_COLOURS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
_SPLAT_COLUMNS = {"f_dc_0", "opacity", "scale_0"}
_GREY = 128
_WHITES = (1.0, 255.0, 65535.0)
_BEYOND = 2.0
"""Colours may exceed white by this factor."""


def read_ply_points(ply: Path, origin: str, remedy: str) -> PointCloud:
    """The vertices of a PLY file, grey if they have no colours; may hold NaN or infinity.

    Colours are named red, r or diffuse_red, and so on. White is 255 for bytes; for other types it is 1 (floats only),
    255 or 65535, whichever the colours reach. The colours of a splat (f_dc) do not count.

    Args:
        ply: the file.
        origin: the reason to read the file, for messages: ``which FILE names as its points``.
        remedy: for messages.

    Raises:
        UserError: the file cannot be read or is not a PLY file of points.
    """
    named = f"{ply}, {origin}"
    try:
        vertex = read_vertices(ply)[0]
        columns = {name.lower(): name for name in vertex.dtype.names or ()}
        with np.errstate(invalid="ignore"):  # signalling NaNs of damaged files
            xyz = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], axis=1)
        names = next((names for names in _COLOURS if columns.keys() >= set(names)), None)
        if names is None:
            rgb = np.full(xyz.shape, _GREY, np.uint8)
        else:
            rgb = _to_bytes(np.stack([vertex[columns[name]] for name in names], axis=1))
    except OSError as error:
        raise UserError(f"{named}, cannot be read ({error.strerror or error}): {remedy}.") from error
    except ValueError as error:
        # NumPy and the decoder of text raise some of these, and NumPy for a missing column.
        raise UserError(f"{named}, is not a PLY file of points ({' '.join(str(error).split())}): {remedy}.") from error
    return PointCloud(xyz=xyz, rgb=rgb)


def find_points(folders: Sequence[Path], usual_name: str) -> tuple[Path | None, list[str]]:
    """The point cloud with a usual name in the first folder that holds one, and notices about other PLY files.

    Args:
        folders: existing folders.
        usual_name: the name to recommend for a point cloud with another name.
    """
    files = [file for folder in dict.fromkeys(folders) for file in sorted(folder.iterdir()) if file.is_file()]
    files = [file for file in files if file.suffix.lower() == ".ply"]
    usual = [file for file in files if file.stem.lower() in _USUAL_STEMS]
    usual.sort(key=lambda file: (folders.index(file.parent), _USUAL_STEMS.index(file.stem.lower())))
    splats = [file for file in usual if _is_splat(file)]
    clouds = [file for file in usual if file not in splats]
    if clouds:
        unused = first_few([str(file) for file in clouds[1:]])
        return clouds[0], [f"{clouds[0]} is used, not {unused}."] if unused else []
    flag = "--init-from"
    notices = [
        f"{splat} is a splat and not a point cloud: to start from it, train with {shlex.join([flag, str(splat)])}."
        for splat in splats[:1]
    ]
    others = [file for file in files if file not in usual and _is_splat(file) is False]
    notices += [f"{other} is not used: to start from its points, rename it to {usual_name}." for other in others[:1]]
    return None, notices


def _is_splat(ply: Path) -> bool | None:
    """Whether a PLY file holds Gaussians; None if it holds no vertices."""
    try:
        columns = set(read_vertices(ply)[0].dtype.names or ())
    except (OSError, ValueError):
        return None
    return columns >= _SPLAT_COLUMNS


def _to_bytes(colours: NDArray[Any]) -> NDArray[np.uint8]:
    """[P, 3] colours as bytes, from numbers whose white is one of ``_WHITES``."""
    if colours.dtype == np.uint8:
        return colours
    whites = _WHITES if np.issubdtype(colours.dtype, np.floating) else _WHITES[1:]
    values = np.nan_to_num(colours.astype(np.float64), posinf=0.0, neginf=0.0)
    # A few bright colours may exceed white.
    reached = float(np.percentile(values, 99)) if values.size else 0.0
    white = next((white for white in whites if reached <= _BEYOND * white), whites[-1])
    return np.asarray(np.clip(np.round(values * (255.0 / white)), 0, 255), np.uint8)
