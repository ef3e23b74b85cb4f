"""The element ``vertex`` of a PLY file: equal to plyfile's, and within the file's size if the header lies."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from gs_train.formats.ply_vertices import NoVertices, read_vertices

XYZ = "property float x\nproperty float y\nproperty float z\n"
KINDS = ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"]


def ply(body: str, data: bytes = b"", encoding: str = "binary_little_endian") -> bytes:
    return f"ply\nformat {encoding} 1.0\n{body}end_header\n".encode() + data


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_rows_equal_those_of_plyfile(tmp_path: Path, text: bool, order: Any) -> None:
    rng = np.random.default_rng(0)
    rows = np.zeros(7, dtype=[(kind, kind) for kind in KINDS])
    for kind in KINDS:
        rows[kind] = rng.normal(size=7) if kind[0] == "f" else rng.integers(0, 100, 7)
    faces = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "O")])
    elements = [
        PlyElement.describe(np.zeros(3, dtype=[("a", "f4"), ("b", "u1")]), "camera"),
        PlyElement.describe(rows, "vertex", comments=["of the element"]),
        PlyElement.describe(faces, "face"),
    ]
    path = tmp_path / "a.ply"
    PlyData(elements, text=text, byte_order=order, comments=["of the file"]).write(str(path))
    read, comments = read_vertices(path)
    theirs = PlyData.read(str(path))["vertex"].data
    assert read.dtype.names == theirs.dtype.names
    for kind in KINDS:
        assert read.dtype[kind].newbyteorder("=") == np.dtype(kind)
        np.testing.assert_array_equal(read[kind], theirs[kind])
    assert comments == ("of the file", "of the element")


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_every_kind_of_line_end(tmp_path: Path, newline: bytes) -> None:
    content = ply("element vertex 2\n" + XYZ, b"1 2 3\n4 5 6\n", "ascii").replace(b"\n", newline)
    (tmp_path / "a.ply").write_bytes(content)
    assert read_vertices(tmp_path / "a.ply")[0].tolist() == [(1, 2, 3), (4, 5, 6)]


def test_no_rows(tmp_path: Path) -> None:
    for encoding in ("ascii", "binary_big_endian"):
        (tmp_path / "a.ply").write_bytes(ply("element vertex 0\n" + XYZ, encoding=encoding))
        rows = read_vertices(tmp_path / "a.ply")[0]
        assert len(rows) == 0
        assert rows.dtype.names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ply("element vertex 1000000000\n" + XYZ, bytes(1200)), "promises 1,000,000,000 vertices"),
        (ply("element vertex 1000000000\n" + XYZ, b"1 2 3\n" * 9, "ascii"), "promises 1,000,000,000 vertices"),
        (ply("element vertex 1000000000\n", bytes(1200)), "promises 1,000,000,000 vertices"),
        (ply("element a 1000000000\nelement vertex 1\n" + XYZ, bytes(1200)), "promises 1 vertices"),
        (ply("element vertex 2\n" + XYZ, b"1 2 3\n\n\n\n\n\n\n\n", "ascii"), "there are 1"),
        (ply("element vertex 2\n" + XYZ, b"\n" * 20, "ascii"), "there are 0"),
        (ply("element vertex 1\n" + XYZ, b"1 2 3 4\n", "ascii"), "columns"),
        (ply("element vertex 1\n" + XYZ, b"1 2 \xff\n", "ascii"), "ascii"),
        (ply("element vertex 1\nproperty uchar x\n", b"300\n", "ascii"), "300"),
        (ply("element vertex 1\nproperty float x\nproperty float x\n", bytes(8)), "'x'"),
        (ply("element vertex 1\nproperty rational x\n", bytes(8)), "property rational x"),
        (ply("element vertex 1" + "0" * 30 + "\n" + XYZ, bytes(80)), "element vertex 1000"),
        (ply("property float x\n"), "property float x"),
        (b"ply\nelement vertex 0\nend_header\n", "no format"),
        (b"ply\nformat ascii 1.0\n" + b"comment of many\n" * 1_000_000, "no end"),
        (b"ply\nformat ascii 1.0\ncomment " + b"x" * 20_000_000, "no end"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nend_header", "no end"),
    ],
)
def test_a_header_that_lies_costs_neither_time_nor_memory(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(content)
    began_s = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read_vertices(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20
    assert time.perf_counter() - began_s < 5.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("element face 1\nproperty float x\n", "no element 'vertex'"),
        ("element vertex 9\n" + XYZ + "property list uint double q\n", "columns q hold lists"),
        ("element face 1\nproperty list uint double q\nelement vertex 9\n" + XYZ, "after the element 'face'"),
    ],
)
def test_vertices_that_cannot_be_read_as_columns(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "a.ply").write_bytes(ply(body, b"\xff" * 400))
    with pytest.raises(NoVertices, match=message):
        read_vertices(tmp_path / "a.ply")


def test_a_mesh_of_many_faces_is_read_at_once(tmp_path: Path) -> None:
    """Faces follow the vertices and are not read: a loop over a million of them would take ten seconds."""
    count = 1_000_000
    body = f"element vertex 1\n{XYZ}element face {count}\nproperty list uchar int i\n"
    (tmp_path / "a.ply").write_bytes(ply(body, bytes(12) + b"\x01\0\0\0\0" * count))
    began_s = time.perf_counter()
    assert len(read_vertices(tmp_path / "a.ply")[0]) == 1
    assert time.perf_counter() - began_s < 2.0
