"""Writes TIFF files that Pillow cannot write: separate planes, more than 8 bits per colour, big-endian numbers."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

_CODES = {3: "H", 4: "I"}


def write_tiff(
    path: Path, pixels: NDArray[Any], *, planar: bool = False, deflated: bool = False, big: bool = False
) -> Path:
    """Write pixels [H, W] or [H, W, C] of unsigned integers, signed integers or floats; returns ``path``."""
    order = ">" if big else "<"
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    values = pixels.astype(pixels.dtype.newbyteorder(order)).reshape(height, width, channels)
    strips = [values[:, :, c].tobytes() for c in range(channels)] if planar else [values.tobytes()]
    if deflated:
        strips = [zlib.compress(strip) for strip in strips]
    tags: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8 * pixels.dtype.itemsize] * channels),
        259: (3, [8 if deflated else 1]),
        262: (3, [2 if channels >= 3 else 1]),
        273: (4, [0] * len(strips)),  # replaced below
        277: (3, [channels]),
        278: (4, [height]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [2 if planar else 1]),
        339: (3, [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * channels),
    }
    if channels == 4:
        tags[338] = (3, [2])  # The fourth channel is alpha.
    packed_sizes = {tag: struct.calcsize(_CODES[kind]) * len(values) for tag, (kind, values) in tags.items()}
    beyond = 8 + 2 + 12 * len(tags) + 4
    data = beyond + sum(size for size in packed_sizes.values() if size > 4)
    tags[273] = (4, [data + sum(map(len, strips[:number])) for number in range(len(strips))])
    entries, extra = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}{_CODES[kind]}", *numbers)
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}I", beyond + len(extra)), extra + packed
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{order}IH", 8, len(tags))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + entries + bytes(4) + extra + b"".join(strips))
    return path
