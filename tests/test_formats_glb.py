"""Splats as .glb: the JSON and the arrays, the error of a round trip, files of other programs, and damaged files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from splats import assert_close, finite_splat, trained_splat

from gs_train.errors import UserError
from gs_train.formats.glb import read_glb, write_glb

KHR = "KHR_gaussian_splatting"


def parts(path: Path) -> tuple[Any, bytes]:
    """The JSON and the bytes of a file."""
    content = path.read_bytes()
    magic, version, total, size, kind = struct.unpack_from("<4sIII4s", content)
    assert (magic, version, total, kind, size % 4) == (b"glTF", 2, len(content), b"JSON", 0)
    size_2, kind_2 = struct.unpack_from("<I4s", content, 20 + size)
    assert (kind_2, size_2, size_2 % 4) == (b"BIN\0", len(content) - 28 - size, 0)
    return json.loads(content[20 : 20 + size]), content[28 + size :]


def join(path: Path, table: Any, binary: bytes) -> None:
    """The inverse of ``parts``."""
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sIIII", b"glTF", 2, 28 + len(text) + len(binary), len(text), 0x4E4F534A)
    path.write_bytes(header + text + struct.pack("<II", len(binary), 0x4E4942) + binary)


def attribute(table: Any, binary: bytes, name: str) -> list[list[float]]:
    """The rows of an attribute, without the project's own code."""
    accessor = table["accessors"][table["meshes"][0]["primitives"][0]["attributes"][name]]
    view = table["bufferViews"][accessor["bufferView"]]
    width, letter = (
        {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]],
        {5126: "f", 5121: "B"}[accessor["componentType"]],
    )
    numbers = struct.unpack_from(f"<{accessor['count'] * width}{letter}", binary, view["byteOffset"])
    return [list(numbers[i : i + width]) for i in range(0, len(numbers), width)]


def test_the_attributes_of_a_gaussian(tmp_path: Path) -> None:
    splat = replace(
        finite_splat(1, 1),
        xyz=np.array([[1, 2, 3]], dtype=np.float32),
        f_dc=np.array([[[0, 9, -9]]], dtype=np.float32),
        f_rest=np.arange(9, dtype=np.float32).reshape(1, 3, 3),
        opacity=np.array([[np.log(4)]], dtype=np.float32),
        scaling=np.log([[0.5, 2, 1]]).astype(np.float32),
        rotation=np.array([[1, 2, 3, 4]], dtype=np.float32),
        antialiased=True,
    )
    write_glb(tmp_path / "a.glb", splat)
    table, binary = parts(tmp_path / "a.glb")
    assert table["extensionsUsed"] == [KHR] and "extensionsRequired" not in table
    primitive = table["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0
    assert primitive["extensions"][KHR] == {
        **{"kernel": "ellipse", "colorSpace": "srgb_rec709_display"},
        **{"projection": "perspective", "sortingMethod": "cameraDistance"},
    }
    rows = {name: attribute(table, binary, name)[0] for name in primitive["attributes"]}
    length = 30**0.5
    # Half a turn about z: x and y change their signs.
    assert rows["POSITION"] == [-1, -2, 3]
    assert rows[f"{KHR}:ROTATION"] == pytest.approx([-2 / length, -3 / length, 4 / length, 1 / length])
    assert rows[f"{KHR}:SCALE"] == pytest.approx([0.5, 2, 1])
    assert rows[f"{KHR}:OPACITY"] == pytest.approx([0.8])
    assert rows[f"{KHR}:SH_DEGREE_0_COEF_0"] == [0, 9, -9]
    assert [rows[f"{KHR}:SH_DEGREE_1_COEF_{n}"] for n in range(3)] == [[0, -1, -2], [3, 4, 5], [-6, -7, -8]]
    # 0.5 of sRGB is 0.214 linear.
    assert rows["COLOR_0"] == [55, 255, 0, 204]
    assert (table["accessors"][0]["min"], table["accessors"][0]["max"]) == ([-1, -2, 3], [-1, -2, 3])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_round_trip_keeps_all_values(tmp_path: Path, degree: int) -> None:
    splat = replace(trained_splat(300, degree), antialiased=degree == 1)
    write_glb(tmp_path / "a.glb", splat)
    found = read_glb(tmp_path / "a.glb")
    assert_close(found, splat, xyz=0, covariance=1e-5, colour=0, sh=0, alpha=1e-6)


def test_small_types_and_strides_of_other_programs_are_read(tmp_path: Path) -> None:
    """One interleaved view of 28 bytes per Gaussian: float positions and colours, and normalised integers."""
    row = np.dtype([("xyz", "<f4", 3), ("q", "<i2", 4), ("scale", "u1", 3), ("alpha", "u1"), ("pad", "u1", 4)])
    table = np.zeros(2, dtype=row)
    table["xyz"], table["q"], table["scale"], table["alpha"] = (
        [[1, 2, 3], [4, 5, 6]],
        [0, -32767, 0, 0],
        [255, 51, 0],
        51,
    )
    floats = np.array([[1, 2, 3], [4, 5, 6]], dtype="<f4").tobytes()
    accessors = [
        {"bufferView": 0, "componentType": 5126, "count": 2, "type": "VEC3"},
        {"bufferView": 0, "byteOffset": 12, "componentType": 5122, "normalized": True, "count": 2, "type": "VEC4"},
        {"bufferView": 0, "byteOffset": 20, "componentType": 5121, "normalized": True, "count": 2, "type": "VEC3"},
        {"bufferView": 0, "byteOffset": 23, "componentType": 5121, "normalized": True, "count": 2, "type": "SCALAR"},
        {"bufferView": 1, "componentType": 5126, "count": 2, "type": "VEC3"},
    ]
    names = ("POSITION", *(f"{KHR}:{name}" for name in ("ROTATION", "SCALE", "OPACITY", "SH_DEGREE_0_COEF_0")))
    primitives = [
        {"attributes": {"POSITION": 0}},
        {"attributes": dict(zip(names, range(5), strict=True)), "extensions": {KHR: {}}},
    ]
    views = [{"buffer": 0, "byteLength": 56, "byteStride": 28}, {"buffer": 0, "byteOffset": 56, "byteLength": 24}]
    content = {"meshes": [{"primitives": primitives}], "bufferViews": views, "accessors": accessors}
    join(tmp_path / "a.glb", content, table.tobytes() + floats)
    found = read_glb(tmp_path / "a.glb")
    assert found.xyz.tolist() == [[-1, -2, 3], [-4, -5, 6]]
    assert np.abs(found.rotation[0]).tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(np.exp(found.scaling[1]), [1, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-found.opacity)), 0.2, atol=1e-6)
    assert found.f_dc[1, 0].tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.pop("meshes"), "no valid 'meshes'"),
        (lambda table: table["meshes"][0]["primitives"][0].pop("extensions"), "no mesh with the extension"),
        (lambda table: table["accessors"][0].update(count=10**12), "more than its bytes"),
        (lambda table: table["accessors"][0].update(count=-1), "another type"),
        (lambda table: table["accessors"][0].update(count=0), "no Gaussians"),
        (lambda table: table["accessors"][1].update(count=3), "different numbers of rows"),
        (lambda table: table["accessors"][1].update(type="VEC3"), "another type"),
        (lambda table: table["accessors"][1].update(componentType=5125), "another type"),
        (lambda table: table["accessors"][1].update(sparse={}), "no plain values"),
        (lambda table: table["accessors"][1].update(byteOffset=-4), "no valid 'byteOffset'"),
        (lambda table: table["accessors"][1].update(bufferView=99), "no entry 99 in 'bufferViews'"),
        (lambda table: table["bufferViews"][1].update(byteOffset=10**9), "more than its bytes"),
        (lambda table: table["bufferViews"][1].update(byteStride=4), "more than its bytes"),
        (lambda table: table["bufferViews"][1].update(buffer=1), "lies in another file"),
        (lambda table: table["bufferViews"].__setitem__(1, 7), "no entry 1 in 'bufferViews'"),
        (
            lambda table: table["meshes"][0]["primitives"][0]["extensions"][KHR].update(
                extensions={f"{KHR}_compression_spz_2": {}}
            ),
            "compressed",
        ),
    ],
)
def test_damaged_files(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    write_glb(tmp_path / "a.glb", trained_splat(5, 1))
    table, binary = parts(tmp_path / "a.glb")
    change(table)
    join(tmp_path / "a.glb", table, binary)
    with pytest.raises(UserError, match=rf"a\.glb is damaged or is not a \.glb splat \(.*{message}"):
        read_glb(tmp_path / "a.glb")


def test_overlapping_views_cannot_fill_the_memory(tmp_path: Path) -> None:
    """A stride of one row for many rows is refused, because it is smaller than a row."""
    write_glb(tmp_path / "a.glb", trained_splat(5, 3))
    table, binary = parts(tmp_path / "a.glb")
    table["bufferViews"][0]["byteStride"] = 1
    table["accessors"][0]["count"] = len(binary) // 2
    join(tmp_path / "a.glb", table, binary)
    with pytest.raises(UserError, match="more than its bytes"):
        read_glb(tmp_path / "a.glb")


@pytest.mark.parametrize("size", [0, 4, 11, 20, 100, 2500, -1])
def test_truncated_files(tmp_path: Path, size: int) -> None:
    write_glb(tmp_path / "a.glb", trained_splat(5, 1))
    (tmp_path / "a.glb").write_bytes((tmp_path / "a.glb").read_bytes()[:size])
    with pytest.raises(UserError, match=r"a\.glb is damaged"):
        read_glb(tmp_path / "a.glb")
