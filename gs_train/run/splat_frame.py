"""Moves splats between frames, and keeps the offset of a georeferenced splat in a file beside it.

Splat files hold float32 positions, and few formats have room for an offset. ``NAME.offset.json`` beside a file NAME
holds it: scene coordinates = offset + positions in the file. The manifest of a city holds its offset itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gs_train.atomic_write import atomic_write_text
from gs_train.errors import UserError
from gs_train.formats.registry import offset_inside, splat_stream
from gs_train.formats.splat_data import SplatData, SplatStream
from gs_train.scene.frame import Frame

_ENDING = ".offset.json"


def moved(data: SplatData, source: Frame, target: Frame) -> SplatData:
    """Move a splat from the coordinates of ``source`` to those of ``target``; spherical harmonics do not change."""
    if source == target:
        return data
    growth = math.log(target.scale / source.scale)
    return replace(
        data,
        xyz=target.to_training(source.to_scene(data.xyz.astype(np.float64))).astype(np.float32),
        scaling=(data.scaling.astype(np.float64) + growth).astype(np.float32),
    )


def stream_splat(path: Path, notify: Callable[[str], None], **options: Any) -> tuple[SplatStream, Frame]:
    """A splat file in pieces, in the coordinates that splat files use, and these coordinates.

    Args:
        path, notify, options: as for ``read_splat``.

    Raises:
        UserError: as ``read_splat``.
    """
    stream, frame = splat_stream(path, notify, **options), read_offset(path)
    return stream.mapped(lambda piece: moved(piece, frame, frame.of_files)), frame.of_files


def offset_path(splat: Path) -> Path:
    """The file that holds the offset of the file ``splat``."""
    return splat.with_name(splat.name + _ENDING)


def write_offset(splat: Path, frame: Frame) -> str | None:
    """Write the offset of ``frame`` beside the file ``splat``, or remove an old one if there is no offset.

    Returns:
        A sentence for the user; None without an offset.

    Raises:
        OSError: the file cannot be written.
    """
    path = offset_path(splat)
    if frame == Frame():
        path.unlink(missing_ok=True)
        return None
    atomic_write_text(path, json.dumps({"offset": list(frame.offset)}) + "\n")
    x, y, z = (f"{value:.12g}" for value in frame.offset)
    message = f"{splat} holds positions relative to ({x}, {y}, {z}), because the scene is far from the origin"
    return f"{message} and the 32-bit numbers of splats would lose its details: {path.name} holds this offset."


def read_offset(splat: Path) -> Frame:
    """The frame of a splat file: the offset in it or beside it, or the identity.

    Raises:
        UserError: the file with the offset is damaged.
    """
    inside = offset_inside(splat)
    if inside is not None:
        return Frame(offset=inside)
    path = offset_path(splat)
    if not path.is_file():
        return Frame()
    try:
        x, y, z = (float(value) for value in json.loads(path.read_text(encoding="utf-8"))["offset"])
        if not all(map(math.isfinite, (x, y, z))):
            raise ValueError("not finite")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        message = f'{path} does not hold the offset of {splat.name} as {{"offset": [x, y, z]}}'
        raise UserError(f"{message}: restore it, or remove it to use the positions as they are.") from error
    return Frame(offset=(x, y, z))
