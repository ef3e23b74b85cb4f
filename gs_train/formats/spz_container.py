"""The container of .spz files: headers, compression, and the streams of bytes in it.

Versions 2 and 3 are one gzip stream of a 16-byte header and all streams. Version 4 has a plain header, records of
extensions, a table of sizes, and one Zstandard frame per stream. Sizes are checked before anything is unpacked.
"""

from __future__ import annotations

import gzip
import struct
import sys
import zlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError
from gs_train.formats.reading import Damaged, check_expansion
from gs_train.formats.splat_data import MAX_SH_DEGREE

Axes = Literal["rdf", "rub"]
_MAGIC = 0x5053474E
_ANTIALIASED, _EXTENSIONS, _LEVELS_OF_DETAIL = 1, 2, 0x80
_COORDINATES = 0xADBE0003
"""Type of the extension record that names the axes."""
_COORDINATE_CODES: dict[Axes, int] = {"rub": 4, "rdf": 6}
_HEADER_BYTES = 16
_HEADER_BYTES_4 = 32
_GZIP_LEVEL = 5
_ZSTD_LEVEL = 9
"""Higher levels take twice as long or more, for files 1 % smaller."""
_MOST_FRACTION_BITS = 31
_MOST_AFTER = 1 << 20
"""Bytes after the streams that are still unpacked, to reach the checksum."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Facts about the streams."""

    version: int
    """2, 3 or 4."""
    count: int
    """N, the number of Gaussians."""
    sh_degree: int
    """Highest SH degree."""
    fraction_bits: int
    """Bits of a position after the point."""
    antialiased: bool
    """Whether the splat was trained with antialiasing."""
    axes: Axes
    """Right, down, forward (the axes of a .ply) or right, up, back."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Streams:
    """The streams, in the order of the file."""

    positions: NDArray[np.uint8]
    """[N, 3, 3] fixed-point x, y, z of three bytes each, the lowest first."""
    alphas: NDArray[np.uint8]
    """[N, 1]"""
    colours: NDArray[np.uint8]
    """[N, 3]"""
    scales: NDArray[np.uint8]
    """[N, 3]"""
    rotations: NDArray[np.uint8]
    """[N, 4]; [N, 3] in version 2."""
    sh: NDArray[np.uint8]
    """[N, K, 3]"""

    def stored(self) -> list[bytes]:
        """The bytes of each stream that is not empty."""
        arrays = [getattr(self, entry.name) for entry in fields(self)]
        return [array.tobytes() for array in arrays if array.size]


def pack(header: Header, streams: Streams) -> bytes:
    """The content of a file. The same splat always gives the same bytes.

    Raises:
        UserError: version 4 needs the extra ``zstd``, which is missing.
    """
    flags = _ANTIALIASED if header.antialiased else 0
    facts = (_MAGIC, header.version, header.count, header.sh_degree, header.fraction_bits)
    parts = streams.stored()
    if header.version != 4:
        return gzip.compress(
            struct.pack("<IIIBBBB", *facts, flags, 0) + b"".join(parts), compresslevel=_GZIP_LEVEL, mtime=0
        )
    compressor = _zstandard().ZstdCompressor(level=_ZSTD_LEVEL)
    frames = [compressor.compress(part) for part in parts]
    record = struct.pack("<III", _COORDINATES, 4, _COORDINATE_CODES[header.axes])
    start = struct.pack("<IIIBBBBI12x", *facts, flags | _EXTENSIONS, len(parts), _HEADER_BYTES_4 + len(record))
    sizes = (struct.pack("<QQ", len(frame), len(part)) for frame, part in zip(frames, parts, strict=True))
    return b"".join((start, record, *sizes, *frames))


def unpack(path: Path) -> tuple[Header, Streams]:
    """Header and streams of a file.

    Raises:
        OSError: the file cannot be read.
        Damaged: it is not a .spz file, or its sizes do not fit.
        UserError: it needs the extra ``zstd``, which is missing.
    """
    content = path.read_bytes()
    if content.startswith(struct.pack("<I", _MAGIC)):
        return _unpack_4(content)
    unpacker = zlib.decompressobj(wbits=31)
    try:
        start = unpacker.decompress(content, _HEADER_BYTES)
        header, flags = _header(start)
        if header.version not in (2, 3):
            raise Damaged(f"it has version {header.version}, and gs-train reads 2, 3 and 4")
        sizes = _stream_sizes(header)
        total = sum(sizes)
        check_expansion(total, len(content))
        # The length 0 would mean no limit, but no splat is that small.
        data = unpacker.decompress(unpacker.unconsumed_tail, total)
        if len(data) == total:
            unpacker.decompress(unpacker.unconsumed_tail, _MOST_AFTER)
    except zlib.error as error:
        raise Damaged(f"its gzip stream is broken: {error}") from error
    if len(data) < total or not (unpacker.eof or flags & _EXTENSIONS):
        raise Damaged(f"it ends before its {header.count:,} Gaussians do")
    ends = np.cumsum(sizes)
    return header, _streams(header, [data[end - size : end] for size, end in zip(sizes, ends, strict=True)])


def _unpack_4(content: bytes) -> tuple[Header, Streams]:
    header, flags = _header(content)
    if header.version != 4 or len(content) < _HEADER_BYTES_4:
        raise Damaged(f"it has version {header.version} without compression, and gs-train reads 2, 3 and 4")
    count, table = content[15], struct.unpack_from("<I", content, 16)[0]
    sizes = [size for size in _stream_sizes(header) if size]
    if count != len(sizes) or not _HEADER_BYTES_4 <= table <= len(content) - 16 * count:
        raise Damaged("its table of streams does not fit its header")
    check_expansion(sum(sizes), len(content))
    unpacker = _zstandard().ZstdDecompressor()
    place, parts = table + 16 * count, []
    for number, size in enumerate(sizes):
        packed, unpacked = struct.unpack_from("<QQ", content, table + 16 * number)
        if unpacked != size or packed > len(content) - place:
            raise Damaged("its table of streams does not fit its size")
        parts.append(_zstd_frame(unpacker, content[place : place + packed], size))
        place += packed
    if flags & _EXTENSIONS and _stored_axes(content[_HEADER_BYTES_4:table]) == _COORDINATE_CODES["rub"]:
        header = replace(header, axes="rub")
    return header, _streams(header, parts)


def _zstd_frame(unpacker: object, frame: bytes, size: int) -> bytes:
    """The content of a Zstandard frame, of ``size`` bytes; raises Damaged."""
    zstandard = _zstandard()
    try:
        # A stream, because a frame may not name the size of its content, or name a wrong one.
        with unpacker.stream_reader(frame) as stream:  # type: ignore[attr-defined]
            data: bytes = stream.read(size + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise Damaged(f"a Zstandard frame is broken: {error}") from error
    if len(data) != size:
        raise Damaged("a Zstandard frame has another size than the table says")
    return data


def _stored_axes(records: bytes) -> int | None:
    """The code of the axes in the extension records; None if they do not say."""
    while len(records) >= 8:
        kind, length = struct.unpack_from("<II", records)
        if kind == _COORDINATES and length >= 4 and len(records) >= 12:
            return int(struct.unpack_from("<I", records, 8)[0])
        records = records[8 + length :]
    return None


def _header(start: bytes) -> tuple[Header, int]:
    """The fields that all versions share, and the flags."""
    if len(start) < _HEADER_BYTES:
        raise Damaged("it ends in its header")
    magic, version, count, degree, fraction_bits, flags = struct.unpack_from("<IIIBBB", start)
    if magic != _MAGIC:
        raise Damaged("its first bytes are not those of the format")
    if count == 0:
        raise Damaged("it has no Gaussians")
    if degree > MAX_SH_DEGREE or fraction_bits > _MOST_FRACTION_BITS:
        raise Damaged(f"its header has SH degree {degree} and {fraction_bits} bits of fractions")
    if flags & _LEVELS_OF_DETAIL:
        raise Damaged("it holds levels of detail, which gs-train does not read")
    header = Header(
        version=version,
        count=count,
        sh_degree=degree,
        fraction_bits=fraction_bits,
        antialiased=bool(flags & _ANTIALIASED),
        axes="rdf",
    )
    return header, flags


def _shapes(header: Header) -> list[tuple[int, ...]]:
    """Shapes of one Gaussian in each stream."""
    rotation = 3 if header.version == 2 else 4
    return [(3, 3), (1,), (3,), (3,), (rotation,), ((header.sh_degree + 1) ** 2 - 1, 3)]


def _stream_sizes(header: Header) -> list[int]:
    return [header.count * int(np.prod(shape)) for shape in _shapes(header)]


def _streams(header: Header, parts: list[bytes]) -> Streams:
    """The streams as arrays; an empty stream may be left out."""
    arrays = [
        np.frombuffer(part, dtype=np.uint8).reshape(header.count, *shape)
        for part, shape in zip([*parts, b""], _shapes(header), strict=False)
    ]
    names = [entry.name for entry in fields(Streams)]
    return Streams(**dict(zip(names, arrays, strict=True)))


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError as error:
        install = f"`{sys.executable} -m pip install zstandard`"
        raise UserError(f"version 4 of .spz needs the package zstandard: install it ({install}).") from error
    return zstandard
