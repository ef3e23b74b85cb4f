"""Splats as .sog version 2, PlayCanvas's format: about 14 to 22 bytes per Gaussian in lossless WebP images.

Pixel i of each image holds Gaussian i. ``codebook.py`` finds the 256 values that stand for scales and colours,
``palette.py`` the sets of SH coefficients that the Gaussians share, and ``sog_container.py`` has the zip file and the
images. A folder with the same files is read, too.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gs_train.formats.codebook import ENTRIES, make_codebook, nearest_entries
from gs_train.formats.packing import (
    SQRT_HALF,
    from_smallest_three,
    morton_order,
    opacities,
    smallest_three,
    to_bytes,
    to_fractions,
    to_logits,
    unit_quaternions,
)
from gs_train.formats.palette import MOST_LOG_SCALE, distinct_rows, importance_of, make_palette
from gs_train.formats.reading import Damaged, check_expansion, member, numbers, reading, writable, write_file
from gs_train.formats.sog_container import Files, decode_image, encode_image, image_size, pack, unpack, unpack_zip
from gs_train.formats.splat_data import SplatData, SplatFormat
from gs_train.machine import cpu_threads

Quality = Literal["small", "normal", "high"]
Images = dict[str, tuple[NDArray[np.uint8], tuple[int, int]]]
"""File name -> channels of the pixels, width and height."""
_MOST_SH = 1000.0
"""Largest coefficient, so that sums of squares stay finite. Coefficients above 10 are defects."""
_PALETTE_LEAST, _PALETTE_MOST = 4096, 65536
_PALETTE_FACTORS: dict[Quality, float] = {"small": 0.125, "normal": 1, "high": 4}
_SHARED = 4
"""Gaussians per set of SH coefficients, on average, that show that training made them share sets."""
_PALETTE_COLUMNS = 64
_ZIP_HEADER = 30
"""Bytes before the name of an entry of a zip file."""
_NO_ROTATION_ALPHA = 252
"""Alpha of a rotation whose component 0 is the largest; others follow."""


def write_sog(path: Path, data: SplatData, *, quality: Quality = "normal") -> None:
    """Create or replace a .sog file.

    Args:
        path: the file.
        data: the Gaussians.
        quality: ``high`` shares SH coefficients among fewer Gaussians, so the file is up to twice as large; ``small``
            shares them among eight times as many, so it is a quarter smaller.

    Raises:
        UserError: the splat has no Gaussians or values that are not finite, or the file cannot be written.
    """
    data = writable(path, data)
    write_file(path, encode_sog(data, quality=quality))


def encode_sog(data: SplatData, *, quality: Quality = "normal") -> bytes:
    """The content of a .sog file. The same splat always gives the same bytes.

    Args:
        data: at least one Gaussian; all values finite.
        quality: as for ``write_sog``.
    """
    data = data.up_to_degree(FORMAT.max_sh_degree)
    positions = np.sign(data.xyz) * np.log1p(np.abs(data.xyz.astype(np.float64)))
    order = morton_order(positions.astype(np.float32))
    data, positions = data.keep(order), positions[order]
    images: Images = {}
    meta: dict[str, Any] = {"version": 2, "asset": {"generator": "gs-train"}, "count": len(data)}
    if data.antialiased:
        # The published text has the first name, PlayCanvas's own tool the second.
        meta |= {"antialias": True, "model": "antialiased"}
    size = image_size(len(data))

    def add(name: str, columns: NDArray[np.uint8]) -> str:
        images[f"{name}.webp"] = columns, size
        return f"{name}.webp"

    low, high = positions.min(axis=0), positions.max(axis=0)
    # Rounding of the bounds to float32 must not move positions.
    low, high = low.astype(np.float32).astype(np.float64), high.astype(np.float32).astype(np.float64)
    steps = np.clip(np.floor(65535 * (positions - low) / np.where(high > low, high - low, 1) + 0.5), 0, 65535)
    words = steps.astype("<u2").view(np.uint8).reshape(-1, 3, 2)
    files = [add("means_l", words[:, :, 0]), add("means_u", words[:, :, 1])]
    meta["means"] = {"mins": low.tolist(), "maxs": high.tolist(), "files": files}
    scales = np.clip(data.scaling, -MOST_LOG_SCALE, MOST_LOG_SCALE)
    importance = importance_of(data.xyz, scales, data.opacity)
    codebook = make_codebook(scales, np.broadcast_to(np.sqrt(importance)[:, None], scales.shape))
    files = [add("scales", nearest_entries(codebook, scales))]
    meta["scales"] = {"codebook": _rounded(codebook), "files": files}
    meta["quats"] = {"files": [add("quats", _encode_rotations(data.rotation))]}
    codebook = make_codebook(data.f_dc)
    alpha = to_bytes(255 * opacities(data.opacity))
    colours = np.concatenate([nearest_entries(codebook, data.f_dc[:, 0]), alpha], axis=1)
    meta["sh0"] = {"codebook": _rounded(codebook), "files": [add("sh0", colours)]}
    if data.sh_degree:
        meta["shN"] = _encode_sh(data, importance, quality, images)
    with ThreadPoolExecutor(cpu_threads()) as pool:
        encoded = dict(zip(images, pool.map(lambda image: encode_image(*image), images.values()), strict=True))
    return pack({"meta.json": json.dumps(meta).encode(), **encoded})


def read_sog(path: Path) -> SplatData:
    """Read a .sog file, or the meta.json of an unpacked one.

    Raises:
        UserError: the file does not exist, is damaged, or has version 1.
    """
    with reading(path, ".sog"):
        return _decode(unpack(path))


def decode_sog(content: bytes) -> SplatData:
    """The splat in the content of a .sog file; raises ``Damaged``."""
    return _decode(unpack_zip(content))


def palette_size(count: int, quality: Quality) -> int:
    """Number of sets of SH coefficients for ``count`` Gaussians: a power of two, or ``count``."""
    eighth = 1 << max(0, (count // 8).bit_length() - 1)
    normal = min(max(eighth, _PALETTE_LEAST), _PALETTE_MOST)
    return min(count, _PALETTE_MOST, int(_PALETTE_FACTORS[quality] * normal))


# ---- encoding


def _encode_rotations(rotation: NDArray[np.float32]) -> NDArray[np.uint8]:
    largest, others = smallest_three(unit_quaternions(rotation))
    rgb = to_bytes(255 * (others * np.float32(SQRT_HALF) + np.float32(0.5)))
    return np.concatenate([rgb, (_NO_ROTATION_ALPHA + largest[:, None]).astype(np.uint8)], axis=1)


def _encode_sh(data: SplatData, importance: NDArray[np.float32], quality: Quality, images: Images) -> dict[str, Any]:
    """The entry ``shN`` of meta.json; adds the images of the palette and of the labels."""
    count, rest = len(data), data.f_rest.shape[1]
    flat = data.f_rest.transpose(0, 2, 1).reshape(count, 3 * rest)
    flat = np.clip(flat, -_MOST_SH, _MOST_SH)
    size = palette_size(count, quality)
    most = size if quality == "small" else max(size, min(count // _SHARED, _PALETTE_MOST))
    centres, labels = distinct_rows(flat)
    if len(centres) > most:
        centres, labels = make_palette(flat, size, importance)
    codebook = make_codebook(centres)
    entries = nearest_entries(codebook, centres).reshape(len(centres), 3, rest).transpose(0, 2, 1)
    rows = -(-len(centres) // _PALETTE_COLUMNS)
    images["shN_centroids.webp"] = entries.reshape(-1, 3), (_PALETTE_COLUMNS * rest, rows)
    label_bytes = labels.astype("<u2").view(np.uint8).reshape(-1, 2)
    images["shN_labels.webp"] = np.pad(label_bytes, ((0, 0), (0, 1))), image_size(count)
    files = ["shN_centroids.webp", "shN_labels.webp"]
    return {"count": len(centres), "bands": data.sh_degree, "codebook": _rounded(codebook), "files": files}


def _rounded(codebook: NDArray[np.float32]) -> list[float]:
    """The entries with the nine digits that a float32 needs."""
    return [float(f"{value:.9g}") for value in codebook]


# ---- decoding


def _decode(files: Files) -> SplatData:
    meta = files.meta
    if not isinstance(meta, dict) or "version" not in meta:
        raise Damaged("it has version 1 of the format, and gs-train reads version 2")
    if member(meta, "version", int) != 2:
        raise Damaged(f"it has version {meta['version']} of the format, and gs-train reads version 2")
    count = member(meta, "count", int)
    if count < 1:
        raise Damaged("it has no Gaussians")
    files.check_count(count)
    means = member(meta, "means", dict)
    low_bytes, high_bytes = _images(files, means, 2, count)
    low, high = numbers(means, "mins", 3).astype(np.float64), numbers(means, "maxs", 3).astype(np.float64)
    steps = low_bytes[:, :3].astype(np.float64) + 256.0 * high_bytes[:, :3]
    positions = low + steps * ((high - low) / 65535)
    scales, colours = member(meta, "scales", dict), member(meta, "sh0", dict)
    (scale_bytes,) = _images(files, scales, 1, count)
    (colour_bytes,) = _images(files, colours, 1, count)
    (rotation_bytes,) = _images(files, member(meta, "quats", dict), 1, count)
    xyz = (np.sign(positions) * np.expm1(np.abs(positions))).astype(np.float32)
    return SplatData(
        xyz=xyz,
        f_dc=numbers(colours, "codebook", ENTRIES)[colour_bytes[:, :3]].reshape(count, 1, 3),
        f_rest=_decode_sh(files, meta, count),
        opacity=to_logits(to_fractions(colour_bytes[:, 3:])),
        scaling=numbers(scales, "codebook", ENTRIES)[scale_bytes[:, :3]],
        rotation=_decode_rotations(rotation_bytes),
        antialiased=meta.get("antialias") is True or meta.get("model") == "antialiased",
    )


def _images(files: Files, entry: dict[str, Any], count: int, pixels: int) -> list[NDArray[np.uint8]]:
    """The first pixels [pixels, 4] of the images that an entry of meta.json names."""
    names = member(entry, "files", list)
    if len(names) != count or not all(isinstance(name, str) for name in names):
        raise Damaged("its JSON has no valid 'files'")
    return [decode_image(files.read(name), pixels) for name in names]


def _decode_rotations(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    others = (pixels[:, :3].astype(np.float32) / np.float32(127.5) - np.float32(1)) * np.float32(SQRT_HALF)
    largest = np.maximum(pixels[:, 3], _NO_ROTATION_ALPHA) - _NO_ROTATION_ALPHA
    return unit_quaternions(from_smallest_three(largest, others))


def _decode_sh(files: Files, meta: dict[str, Any], count: int) -> NDArray[np.float32]:
    """[N, K, 3]"""
    if "shN" not in meta:
        return np.zeros((count, 0, 3), dtype=np.float32)
    entry = member(meta, "shN", dict)
    bands, size = member(entry, "bands", int), member(entry, "count", int)
    if not 1 <= bands <= 3 or not 1 <= size <= _PALETTE_MOST:
        raise Damaged(f"its palette has {size} entries of {bands} bands")
    rest = (bands + 1) ** 2 - 1
    # Many Gaussians may share one entry, so the coefficients need far more memory than the images.
    check_expansion(12 * rest * count, files.size)
    names = member(entry, "files", list)
    pixels = _PALETTE_COLUMNS * rest * -(-size // _PALETTE_COLUMNS)
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise Damaged("its JSON has no valid 'files'")
    centroids = decode_image(files.read(names[0]), pixels, width=_PALETTE_COLUMNS * rest)
    label_bytes = decode_image(files.read(names[1]), count)
    labels = label_bytes[:, 0] + 256 * label_bytes[:, 1].astype(np.int64)
    if int(labels.max()) >= size:
        raise Damaged(f"a Gaussian names entry {int(labels.max())} of a palette of {size}")
    codebook = numbers(entry, "codebook", ENTRIES)
    palette = codebook[centroids[: size * rest, :3]].reshape(size, rest, 3)
    coefficients: NDArray[np.float32] = palette[labels]
    return coefficients


def _is_sog(head: bytes) -> bool:
    """A zip file whose first entry is an image or meta.json, or the meta.json of an unpacked file."""
    if head.startswith(b"PK\x03\x04") and len(head) >= _ZIP_HEADER:
        length = int.from_bytes(head[26:28], "little")
        return head[_ZIP_HEADER : _ZIP_HEADER + length].endswith((b".webp", b"meta.json"))
    return head.lstrip().startswith(b"{") and b'"means"' in head


FORMAT = SplatFormat(read=read_sog, write=write_sog, recognise=_is_sog, max_sh_degree=3, write_options=("quality",))
"""The entry for ``registry.py``."""
