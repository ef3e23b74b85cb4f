"""Reads elements of a PLY file: ``vertex`` of splats and point clouds, and the tables of compressed splats.

The size of the file bounds memory and time, also if its header promises more rows. plyfile is not used here: it reads
headers byte by byte, every row of lists in a Python loop (a mesh of a million faces takes ten seconds), and reserves
memory for all promised rows.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LONGEST_HEADER = 1 << 20
"""Bytes. The header of a splat has some 2,000; comments may be longer."""
_BYTE_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}


class NoVertices(ValueError):
    """The file is a PLY file, but it lacks the element, or the element has columns of lists."""


@dataclass(frozen=True, kw_only=True)
class _Element:
    name: str
    count: int
    columns: tuple[tuple[str, str], ...]
    """Name and NumPy type of each column of single values."""
    lists: tuple[str, ...]
    """Names of the columns of lists."""


@dataclass(frozen=True, kw_only=True)
class _Header:
    text: bool
    elements: tuple[_Element, ...]
    comments: tuple[str, ...]
    size: int
    """Bytes, the last line included."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VertexRows:
    """The element ``vertex`` of a file, to be read in pieces."""

    count: int
    """Number of rows."""
    names: tuple[str, ...]
    """Names of the columns."""
    comments: tuple[str, ...]
    """The file's comments."""
    read: Callable[[int, int], NDArray[np.void]]
    """Reads rows into memory: the first one and their number. Raises OSError, or ValueError if the file has become
    shorter."""


def open_vertices(path: Path) -> VertexRows:
    """The element ``vertex`` of a file, of which a binary file is read only on demand.

    Raises:
        OSError, NoVertices, ValueError: as ``read_vertices``.
    """
    header, before, element = _locate(path, "vertex")
    kind = np.dtype(list(element.columns))
    read: Callable[[int, int], NDArray[np.void]]
    if header.text:
        table = _text_rows(path, header, before, element)

        def read(first: int, count: int) -> NDArray[np.void]:
            return table[first : first + count]
    else:
        start = _start(header, before)

        def read(first: int, count: int) -> NDArray[np.void]:
            # Not a memory map: its pages would count as memory of the process.
            rows: NDArray[np.void] = np.fromfile(path, dtype=kind, count=count, offset=start + first * kind.itemsize)
            if len(rows) != count:
                raise ValueError(f"its header promises {element.count:,} vertices, but it has become shorter")
            return rows

    names = tuple(name for name, _ in element.columns)
    return VertexRows(count=element.count, names=names, comments=header.comments, read=read)


def read_vertices(path: Path) -> tuple[NDArray[np.void], tuple[str, ...]]:
    """The rows of the element ``vertex`` as a structured array, memory-mapped if binary, and the file's comments.

    Raises:
        OSError: the file cannot be read.
        NoVertices: it has no element ``vertex``, or some of its columns hold lists.
        ValueError: it is truncated or not a PLY file.
    """
    tables, comments = read_elements(path, ("vertex",))
    return tables["vertex"], comments


def read_elements(path: Path, names: tuple[str, ...]) -> tuple[dict[str, NDArray[np.void]], tuple[str, ...]]:
    """The rows of several elements by name, as ``read_vertices`` returns them.

    Raises:
        OSError, NoVertices, ValueError: as ``read_vertices``.
    """
    comments: tuple[str, ...] = ()
    tables = {}
    for name in names:
        header, before, element = _locate(path, name)
        read = _text_rows if header.text else _binary_rows
        tables[name], comments = read(path, header, before, element), header.comments
    return tables, comments


def element_names(path: Path) -> tuple[str, ...]:
    """Names of the elements of a PLY file, in order; raises OSError and ValueError as ``read_vertices``."""
    with path.open("rb") as file:
        return tuple(element.name for element in _parse_header(file.read(_LONGEST_HEADER)).elements)


def _locate(path: Path, name: str) -> tuple[_Header, list[_Element], _Element]:
    """The header of a file, the elements before the element ``name``, and the element. Raises as ``read_vertices``."""
    with path.open("rb") as file:
        header = _parse_header(file.read(_LONGEST_HEADER))
        size = os.fstat(file.fileno()).st_size
    before: list[_Element] = []
    for element in header.elements:
        if element.name == name:
            break
        before.append(element)
    else:
        raise NoVertices(f"it has no element '{name}'")
    if element.lists:
        raise NoVertices(f"its columns {', '.join(element.lists)} hold lists")
    for other in before:
        if other.lists and not header.text:
            raise NoVertices(f"its element '{name}' comes after the element '{other.name}', which holds lists")
    smallest = sum(_smallest_size(entry, header.text) for entry in (*before, element))
    # The last line of a text may lack its end.
    if header.size + smallest > size + header.text:
        rows = f"{element.count:,} {'vertices' if name == 'vertex' else f'rows of {name}'}"
        raise ValueError(f"its header promises {rows}, but the file has {size:,} bytes")
    return header, before, element


def _start(header: _Header, before: list[_Element]) -> int:
    """Bytes of a binary file before an element."""
    return header.size + sum(other.count * np.dtype(list(other.columns)).itemsize for other in before)


def _smallest_size(element: _Element, text: bool) -> int:
    """Fewest bytes that the rows of an element take; at least one per row, so that every count is bounded."""
    columns = len(element.columns) + len(element.lists)
    row = 2 * columns if text else np.dtype(list(element.columns)).itemsize
    return element.count * max(row, 1)


def _binary_rows(path: Path, header: _Header, before: list[_Element], element: _Element) -> NDArray[np.void]:
    kind = np.dtype(list(element.columns))
    if element.count == 0 or kind.itemsize == 0:
        return np.empty(element.count, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r", offset=_start(header, before), shape=(element.count,))


def _text_rows(path: Path, header: _Header, before: list[_Element], element: _Element) -> NDArray[np.void]:
    kind = np.dtype(list(element.columns))
    if element.count == 0 or kind.itemsize == 0:
        return np.empty(element.count, dtype=kind)
    skipped = sum(other.count for other in before)
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a file without data; the count below tells
        file.seek(header.size)
        lines = islice(io.TextIOWrapper(file, encoding="ascii"), skipped, skipped + element.count)
        rows: NDArray[np.void] = np.loadtxt(lines, dtype=kind, comments=None, ndmin=1)
    if len(rows) != element.count:
        raise ValueError(f"its header promises {element.count:,} vertices, but there are {len(rows):,}")
    return rows


def _parse_header(data: bytes) -> _Header:
    """Parse the start of a PLY file; raises ValueError."""
    start = next((line for line in (b"ply\r\n", b"ply\n", b"ply\r") if data.startswith(line)), None)
    if start is None:
        raise ValueError("it does not begin with the line 'ply'")
    newline = start[3:]
    end = data.find(newline + b"end_header" + newline)
    if end < 0:
        raise ValueError("its header has no end")
    text, elements, comments = "", list[dict[str, Any]](), list[str]()
    for line in data[len(start) : end].decode("utf-8", "replace").split(newline.decode()):
        match line.split():
            case ["format", name, _] if name in _BYTE_ORDERS:
                text = name
            case ["comment", *_]:
                comments.append(line.partition(" ")[2])
            case ["obj_info", *_]:
                pass
            case ["element", name, count] if count.isdecimal() and len(count) < 19:
                elements.append({"name": name, "count": int(count), "columns": [], "lists": []})
            case ["property", "list", counted, kind, name] if elements and {counted, kind} <= _TYPES.keys():
                elements[-1]["lists"].append(name)
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1]["columns"].append((name, _TYPES[kind]))
            case _:
                raise ValueError(f"a line of its header is {line[:80]!r}")
    if not text:
        raise ValueError("its header has no format")
    order = _BYTE_ORDERS[text]
    return _Header(
        text=text == "ascii",
        elements=tuple(
            _Element(
                name=entry["name"],
                count=entry["count"],
                columns=tuple((name, order + kind) for name, kind in entry["columns"]),
                lists=tuple(entry["lists"]),
            )
            for entry in elements
        ),
        comments=tuple(comments),
        size=end + 2 * len(newline) + len(b"end_header"),
    )
