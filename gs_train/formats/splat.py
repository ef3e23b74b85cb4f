"""Splats as .splat: 32 bytes per Gaussian, without a header and without view-dependent colours.

The layout is that of antimatter15's viewer: position and standard deviations as float32, then RGB, opacity and rotation
as bytes. Viewers draw the file while it arrives, so the Gaussians that matter most come first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gs_train.formats.packing import (
    SH_C0,
    linear_scales,
    log_scales,
    opacities,
    to_bytes,
    to_fractions,
    to_logits,
    unit_quaternions,
)
from gs_train.formats.reading import Damaged, reading, writable, write_file
from gs_train.formats.splat_data import SplatData, SplatFormat

_ROW = np.dtype([("xyz", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])


def write_splat_file(path: Path, data: SplatData) -> None:
    """Create or replace a .splat file. Colours are clipped to 0..1, and coefficients above degree 0 are left out.

    Raises:
        UserError: the splat has no Gaussians or values that are not finite, or the file cannot be written.
    """
    data = writable(path, data)
    table = np.empty(len(data), dtype=_ROW)
    table["xyz"] = data.xyz
    table["scale"] = linear_scales(data.scaling)
    alpha = opacities(data.opacity)
    table["rgba"][:, :3] = to_bytes(255 * (0.5 + np.float32(SH_C0) * data.f_dc[:, 0]))
    table["rgba"][:, 3:] = to_bytes(255 * alpha)
    table["rotation"] = to_bytes(128 * unit_quaternions(data.rotation) + 128)
    importance = data.scaling.sum(axis=1, dtype=np.float64) + np.log(alpha[:, 0], dtype=np.float64)
    write_file(path, table[np.argsort(-importance, kind="stable")].tobytes())


def read_splat_file(path: Path) -> SplatData:
    """Read a .splat file.

    Raises:
        UserError: the file does not exist, or its size is not a multiple of 32 bytes.
    """
    with reading(path, ".splat"):
        size = path.stat().st_size
        if size == 0 or size % _ROW.itemsize:
            raise Damaged(f"it has {size:,} bytes, not a multiple of {_ROW.itemsize}")
        table = np.fromfile(path, dtype=_ROW)
        count = len(table)
        colours = (to_fractions(table["rgba"][:, :3]) - np.float32(0.5)) / np.float32(SH_C0)
        return SplatData(
            xyz=table["xyz"].astype(np.float32),
            f_dc=colours.reshape(count, 1, 3),
            f_rest=np.zeros((count, 0, 3), dtype=np.float32),
            opacity=to_logits(to_fractions(table["rgba"][:, 3:])),
            scaling=log_scales(table["scale"]),
            rotation=unit_quaternions(table["rotation"].astype(np.float32) / np.float32(128) - np.float32(1)),
        )


FORMAT = SplatFormat(read=read_splat_file, write=write_splat_file, max_sh_degree=0)
"""The entry for ``registry.py``. The files have no signature: their ending selects the reader."""
