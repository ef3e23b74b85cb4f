"""Binary glTF: a chunk of JSON and a chunk of bytes, and arrays in them."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.formats.reading import Damaged, check_expansion, member

_MAGIC = 0x46546C67
_JSON, _BIN = 0x4E4F534A, 0x004E4942
_ARRAY_BUFFER = 34962
_LONGEST_JSON = 16 << 20
"""Bytes. Python needs some 20 times as many for lists and objects; a splat has 10,000."""
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
_CODES = {np.dtype("<f4"): 5126, np.dtype("u1"): 5121}


@dataclass(kw_only=True, eq=False)
class Writer:
    """Collects arrays, and writes them as one file."""

    _accessors: list[dict[str, Any]] = field(default_factory=list)
    _views: list[dict[str, Any]] = field(default_factory=list)
    _parts: list[bytes] = field(default_factory=list)
    _size: int = 0

    def add(self, values: NDArray[Any], *, bounds: bool = False) -> int:
        """Add an array and return the number of its accessor.

        Args:
            values: [N, 1, 3 or 4] of float32, or of uint8, which stand for fractions of 255.
            bounds: whether to store the smallest and largest value of each column.
        """
        width = values.shape[1]
        accessor: dict[str, Any] = {
            "bufferView": len(self._views),
            "componentType": _CODES[values.dtype],
            "count": len(values),
            "type": next(name for name, columns in _WIDTHS.items() if columns == width),
        }
        if values.dtype == np.uint8:
            accessor["normalized"] = True
        if bounds:
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        content = np.ascontiguousarray(values).tobytes()
        self._views.append({"buffer": 0, "byteOffset": self._size, "byteLength": len(content), "target": _ARRAY_BUFFER})
        self._accessors.append(accessor)
        self._parts.append(content)
        # All rows have a multiple of four bytes, so every array begins at one.
        self._size += len(content)
        return len(self._accessors) - 1

    def content(self, scene: dict[str, Any]) -> bytes:
        """The bytes of the file; ``scene`` has the members of the JSON other than the arrays."""
        table = {
            "asset": {"version": "2.0", "generator": "gs-train"},
            **scene,
            "buffers": [{"byteLength": self._size}],
            "bufferViews": self._views,
            "accessors": self._accessors,
        }
        text = json.dumps(table).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self._size
        start = struct.pack("<IIIII", _MAGIC, 2, total, len(text), _JSON)
        return b"".join((start, text, struct.pack("<II", self._size, _BIN), *self._parts))


@dataclass(frozen=True, kw_only=True, eq=False)
class Container:
    """A file that was read."""

    json: Any
    """The content of the JSON chunk."""
    binary: bytes
    """The content of the chunk of bytes."""

    @classmethod
    def open(cls, path: Path) -> Container:
        """Read a file.

        Raises:
            OSError: the file cannot be read.
            Damaged: it is not a .glb file.
        """
        content = path.read_bytes()
        if len(content) < 20:
            raise Damaged("it ends in its header")
        magic, version, _, size, kind = struct.unpack_from("<IIIII", content)
        if magic != _MAGIC or version != 2 or kind != _JSON or size > len(content) - 20:
            raise Damaged("its header is not that of glTF 2")
        if size > _LONGEST_JSON:
            raise Damaged(f"its JSON has {size:,} bytes")
        try:
            table = json.loads(content[20 : 20 + size])
        except (ValueError, RecursionError) as error:
            raise Damaged("its first chunk is not JSON") from error
        start = 20 + size
        if len(content) < start + 8:
            return cls(json=table, binary=b"")
        size, kind = struct.unpack_from("<II", content, start)
        if kind != _BIN or size > len(content) - start - 8:
            raise Damaged("its second chunk is truncated")
        return cls(json=table, binary=content[start + 8 : start + 8 + size])

    def read(self, number: int, width: int) -> NDArray[np.float32]:
        """[N, width] the values of an accessor; normalised integers become fractions.

        Raises:
            Damaged: the accessor does not exist, has another width, or lies outside the file.
        """
        accessor = self._entry("accessors", number)
        code, count = member(accessor, "componentType", int), member(accessor, "count", int)
        if code not in _COMPONENTS or _WIDTHS.get(member(accessor, "type", str)) != width or count < 0:
            raise Damaged(f"its accessor {number} has another type than its attribute needs")
        if "sparse" in accessor or "bufferView" not in accessor:
            raise Damaged(f"its accessor {number} has no plain values, which gs-train does not read")
        view = self._entry("bufferViews", member(accessor, "bufferView", int))
        if _optional(view, "buffer") != 0:
            raise Damaged(f"its accessor {number} lies in another file, which gs-train does not read")
        component = np.dtype(_COMPONENTS[code])
        row = component.itemsize * width
        stride = _optional(view, "byteStride") or row
        inside, begin = _optional(accessor, "byteOffset"), _optional(view, "byteOffset")
        length = member(view, "byteLength", int)
        if count == 0:
            return np.empty((0, width), dtype=np.float32)
        last = inside + stride * (count - 1) + row
        if stride < row or last > length or begin + length > len(self.binary):
            raise Damaged(f"its accessor {number} promises {count:,} rows, more than its bytes")
        # Views may overlap, so the size of the file does not bound the sum of all rows.
        check_expansion(4 * width * count, len(self.binary))
        values = np.ndarray((count, width), component, self.binary, begin + inside, (stride, component.itemsize))
        found = values.astype(np.float32)
        if component.kind != "f" and accessor.get("normalized") is True:
            found = np.maximum(found / np.iinfo(component).max, -1)
        return found

    def _entry(self, table: str, number: int) -> dict[str, Any]:
        entries = member(self.json, table, list)
        if not 0 <= number < len(entries) or not isinstance(entries[number], dict):
            raise Damaged(f"it has no entry {number} in '{table}'")
        return dict(entries[number])


def _optional(table: dict[str, Any], name: str) -> int:
    """A whole number from 0; 0 if it is missing."""
    value = member(table, name, int) if name in table else 0
    if value < 0:
        raise Damaged(f"its JSON has no valid '{name}'")
    return value
