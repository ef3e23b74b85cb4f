"""Splats as .spz, Niantic's format: about 16 to 30 bytes per Gaussian, compressed by gzip (versions 2 and 3) or
Zstandard (version 4).

``spz_container.py`` has the headers and the compression. This module has the streams inside: fixed-point positions, and
one byte for each opacity, colour, scale and SH coefficient.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError
from gs_train.formats.packing import (
    SQRT_HALF,
    from_smallest_three,
    opacities,
    smallest_three,
    to_bytes,
    to_fractions,
    to_logits,
    unit_quaternions,
)
from gs_train.formats.reading import reading, writable, write_file
from gs_train.formats.splat_data import SplatData, SplatFormat
from gs_train.formats.spz_container import Axes, Header, Streams, pack, unpack
from gs_train.formats.turn import Signs, half_turn

_MOST_FRACTION_BITS = 12
"""Of positions: steps of 1/4096 world unit."""
_POSITION_BITS = 23
"""Of a position, without the sign."""
_TO_RUB: Signs = (1, -1, -1)
"""From the axes of a .ply (right, down, forward) to right, up, back, and back again."""


def write_spz(
    path: Path, data: SplatData, *, spz_version: int = 3, sh_bits: str = "8/8", spz_axes: Axes = "rdf"
) -> str:
    """Create or replace a .spz file.

    Args:
        path: the file.
        data: the Gaussians.
        spz_version: 3 (gzip) or 4 (Zstandard, needs the extra ``zstd``).
        sh_bits: bits of the SH coefficients of degree 1, and of higher degrees, for example ``5/4``.
        spz_axes: ``rdf`` stores the axes of a .ply, as most viewers expect; ``rub`` the axes of Niantic's text.

    Returns:
        A sentence about the axes.

    Raises:
        UserError: the splat has no Gaussians, values that are not finite or positions too far from the origin, the
            extra is missing, or the file cannot be written.
    """
    data = writable(path, data)
    bits = parse_sh_bits(sh_bits)
    data = data.up_to_degree(FORMAT.max_sh_degree)
    header = Header(
        version=spz_version,
        count=len(data),
        sh_degree=data.sh_degree,
        fraction_bits=_fraction_bits(path, data.xyz),
        antialiased=data.antialiased,
        axes=spz_axes,
    )
    stored = half_turn(data, _TO_RUB) if spz_axes == "rub" else data
    write_file(path, pack(header, _encode(stored, header.fraction_bits, bits)))
    axes = {"rdf": "the axes of a .ply, as most viewers expect", "rub": "right, up, back, as Niantic's text says"}
    return f"The axes in {path.name} are {axes[spz_axes]}."


def read_spz(path: Path, *, spz_axes: Axes | None = None) -> SplatData:
    """Read a .spz file of version 2, 3 or 4.

    Args:
        path: the file.
        spz_axes: of the file; None for the axes that it names, or the axes of a .ply if it names none.

    Raises:
        UserError: the file does not exist, is damaged, has another version, or needs the extra ``zstd``.
    """
    with reading(path, ".spz"):
        header, streams = unpack(path)
        data = _decode(header, streams)
        return half_turn(data, _TO_RUB) if (spz_axes or header.axes) == "rub" else data


def parse_sh_bits(text: str) -> tuple[int, int]:
    """Bits of degree 1 and of higher degrees; raises UserError for other text than ``6`` or ``5/4`` of 1 to 8."""
    parts = text.split("/")
    if len(parts) > 2 or any(part not in tuple("12345678") for part in parts):
        raise UserError(f"--sh-bits is {text}: give bits from 1 to 8, as 8, or as 5/4 for degree 1 and higher degrees.")
    return int(parts[0]), int(parts[-1])


def _fraction_bits(path: Path, xyz: NDArray[np.float32]) -> int:
    """As many as fit; raises UserError if positions of whole units do not fit either."""
    farthest = float(np.abs(xyz).max())
    whole_bits = math.frexp(farthest)[1]
    if whole_bits > _POSITION_BITS:
        limit = (
            f"a Gaussian lies {farthest:.4g} units from the origin, and .spz files hold at most {2**_POSITION_BITS:,}"
        )
        raise UserError(f"{path} cannot be written ({limit}): leave it out with --drop-outliers or --box.")
    return min(_MOST_FRACTION_BITS, _POSITION_BITS - whole_bits)


# ---- encoding


def _encode(data: SplatData, fraction_bits: int, sh_bits: tuple[int, int]) -> Streams:
    limit = 2**_POSITION_BITS - 1
    fixed = data.xyz.astype(np.float64) * 2.0**fraction_bits
    positions = np.clip(np.trunc(fixed + np.copysign(0.5, fixed)), -limit, limit).astype("<i4")
    return Streams(
        positions=positions.view(np.uint8).reshape(-1, 3, 4)[:, :, :3],
        alphas=to_bytes(255 * opacities(data.opacity)),
        colours=to_bytes(data.f_dc[:, 0] * np.float32(0.15 * 255) + np.float32(127.5)),
        scales=to_bytes((data.scaling + 10) * 16),
        rotations=_encode_rotations(data.rotation),
        sh=_encode_sh(data.f_rest, sh_bits),
    )


def _encode_rotations(rotation: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[N, 4] bytes: two bits for the largest component of xyzw, ten for each other component."""
    largest, others = smallest_three(np.roll(unit_quaternions(rotation), -1, axis=1))
    sizes = np.floor(np.abs(others) * np.float32(511 / SQRT_HALF) + np.float32(0.5)).astype(np.uint32)
    fields = np.minimum(sizes, 511) | (others < 0).astype(np.uint32) << 9
    packed = largest.astype(np.uint32) << 30 | fields[:, 0] << 20 | fields[:, 1] << 10 | fields[:, 2]
    stored: NDArray[np.uint8] = packed.astype("<u4").view(np.uint8).reshape(-1, 4)
    return stored


def _encode_sh(f_rest: NDArray[np.float32], bits: tuple[int, int]) -> NDArray[np.uint8]:
    """[N, K, 3] bytes: steps of 1/128, rounded to buckets if there are fewer bits than 8."""
    values = np.trunc(f_rest * 128 + np.copysign(np.float32(0.5), f_rest)) + 128
    for degrees, count in ((slice(0, 3), bits[0]), (slice(3, None), bits[1])):
        if count < 8:
            bucket = 2 ** (8 - count)
            values[:, degrees] = np.floor((values[:, degrees] + bucket // 2) / bucket) * bucket
    stored: NDArray[np.uint8] = np.clip(values, 0, 255).astype(np.uint8)
    return stored


# ---- decoding


def _decode(header: Header, streams: Streams) -> SplatData:
    count = header.count
    raw = np.empty((count, 3, 4), dtype=np.uint8)
    raw[:, :, 1:] = streams.positions
    # The sign is the highest bit of three bytes: a shift of the four bytes' number extends it.
    positions = raw.view("<i4")[:, :, 0] >> 8
    decode_rotations = _decode_rotations_2 if header.version == 2 else _decode_rotations
    colours = (to_fractions(streams.colours) - np.float32(0.5)) / np.float32(0.15)
    return SplatData(
        xyz=np.ldexp(positions.astype(np.float32), -header.fraction_bits),
        f_dc=colours.reshape(count, 1, 3),
        f_rest=streams.sh.astype(np.float32) / np.float32(128) - np.float32(1),
        opacity=to_logits(to_fractions(streams.alphas)),
        scaling=streams.scales.astype(np.float32) / np.float32(16) - np.float32(10),
        rotation=decode_rotations(streams.rotations),
        antialiased=header.antialiased,
    )


def _decode_rotations(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    packed = np.ascontiguousarray(stored).view("<u4")[:, 0]
    fields = np.stack([packed >> shift & 1023 for shift in (20, 10, 0)], axis=1)
    sizes = (fields & 511).astype(np.float32) * np.float32(SQRT_HALF / 511)
    xyzw = from_smallest_three(packed >> 30, np.where(fields & 512, -sizes, sizes))
    return unit_quaternions(np.roll(xyzw, 1, axis=1))


def _decode_rotations_2(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Version 2 stores x, y and z of the quaternion whose w is positive."""
    xyz = stored.astype(np.float32) / np.float32(127.5) - 1
    w = np.sqrt(np.maximum(0, 1 - np.einsum("ni,ni->n", xyz, xyz)))
    return unit_quaternions(np.concatenate([w[:, None], xyz], axis=1))


FORMAT = SplatFormat(
    read=read_spz,
    write=write_spz,
    recognise=lambda head: head.startswith((b"NGSP", b"\x1f\x8b\x08")),
    max_sh_degree=3,
    read_options=("spz_axes",),
    write_options=("spz_version", "sh_bits", "spz_axes"),
)
"""The entry for ``registry.py``."""
