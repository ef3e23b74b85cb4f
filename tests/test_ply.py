"""Splats as .ply: round trips, foreign layouts, damaged files. test_ply_outside_reader.py uses an outside reader."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement
from splats import ARRAYS, assert_same_bits, make_splat

from gs_train.errors import UserError
from gs_train.formats.ply import read_ply, write_ply
from gs_train.formats.splat_data import SplatData


def vertex_rows(path: Path) -> NDArray[np.void]:
    rows: NDArray[np.void] = np.array(PlyData.read(str(path))["vertex"].data)
    return rows


# ---- round trips ----


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("rows", [0, 1, 17])
def test_every_bit_survives(tmp_path: Path, rows: int, degree: int) -> None:
    splat = make_splat(rows, degree)
    write_ply(tmp_path / "new" / "folder" / "s.ply", splat)
    assert_same_bits(read_ply(tmp_path / "new" / "folder" / "s.ply"), splat)


def test_the_original_trainers_file_survives(tmp_path: Path, shared_scenes: Path) -> None:
    source = shared_scenes / "reader_assets" / "inria_sh3_9080.ply"
    splat = read_ply(source)
    assert len(splat) == 9080 and splat.sh_degree == 3
    write_ply(tmp_path / "s.ply", splat)
    assert_same_bits(read_ply(tmp_path / "s.ply"), splat)
    # Read with plyfile alone: equal mistakes in our reader and writer would show.
    ours, theirs = vertex_rows(tmp_path / "s.ply"), vertex_rows(source)
    assert ours.dtype.names == theirs.dtype.names
    assert ours.tobytes() == theirs.tobytes()


def test_the_layout(tmp_path: Path) -> None:
    splat = make_splat(2, 1)
    write_ply(tmp_path / "s.ply", splat)
    header = (tmp_path / "s.ply").read_bytes().split(b"end_header\n")[0].decode()
    names = (
        "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 f_rest_0 f_rest_1 f_rest_2 f_rest_3 f_rest_4 f_rest_5 f_rest_6 f_rest_7 "
        "f_rest_8 "
        "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    ).split()
    assert header == (
        "ply\nformat binary_little_endian 1.0\nelement vertex 2\ncomment SplatRenderMode: default\n"
        + "".join(f"property float {name}\n" for name in names)
    )
    rows = vertex_rows(tmp_path / "s.ply").view("<u4").reshape(2, len(names))
    assert np.array_equal(rows[:, 3:6], np.zeros((2, 3)))
    # Channel-major: three coefficients of red, then of green, then of blue.
    assert np.array_equal(
        rows[:, 9:18], np.concatenate([splat.f_rest[:, :, c] for c in range(3)], axis=1).view(np.uint32)
    )


def test_the_render_mode_is_named_and_the_bytes_repeat(tmp_path: Path) -> None:
    splat = replace(make_splat(3, 0), antialiased=True)
    write_ply(tmp_path / "a.ply", splat)
    write_ply(tmp_path / "b.ply", splat)
    assert read_ply(tmp_path / "a.ply").antialiased
    assert b"comment SplatRenderMode: mip\n" in (tmp_path / "a.ply").read_bytes()
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


# ---- foreign layouts ----


@pytest.mark.parametrize(
    "variant", ["ascii", "big-endian", "float64", "shuffled", "no normals", "extra columns", "extra element"]
)
def test_foreign_layouts(tmp_path: Path, variant: str) -> None:
    rng = np.random.default_rng(3)
    finite = make_splat(4, 2)
    finite = SplatData(**{name: rng.normal(size=getattr(finite, name).shape).astype(np.float32) for name in ARRAYS})
    write_ply(tmp_path / "s.ply", finite)
    rows = vertex_rows(tmp_path / "s.ply")
    names, kind = list(rows.dtype.names or ()), "f4"
    if variant == "float64":
        kind = "f8"
    elif variant == "shuffled":
        names = [names[i] for i in rng.permutation(len(names))]
    elif variant == "no normals":
        names = [name for name in names if name not in ("nx", "ny", "nz")]
    extra = [("red", "u1"), ("segment", "i4")] if variant == "extra columns" else []
    table = np.zeros(len(rows), dtype=[*extra, *((name, kind) for name in names)])
    for name in names:
        table[name] = rows[name]
    elements = [PlyElement.describe(table, "vertex")]
    if variant == "extra element":
        elements.insert(0, PlyElement.describe(np.zeros(3, dtype=[("i", "i4")]), "camera"))
    PlyData(elements, text=variant == "ascii", byte_order=">" if variant == "big-endian" else "<").write(
        str(tmp_path / "f.ply")
    )
    if variant == "ascii":
        for name in ARRAYS:
            assert np.allclose(getattr(read_ply(tmp_path / "f.ply"), name), getattr(finite, name), rtol=1e-6)
    else:
        assert_same_bits(read_ply(tmp_path / "f.ply"), finite)


def test_a_file_may_be_replaced_while_its_splat_is_in_use(tmp_path: Path) -> None:
    splat = make_splat(5, 1)
    write_ply(tmp_path / "s.ply", splat)
    read, other = read_ply(tmp_path / "s.ply"), make_splat(9, 0)
    write_ply(tmp_path / "s.ply", other)
    assert_same_bits(read, splat)
    assert_same_bits(read_ply(tmp_path / "s.ply"), other)


# ---- damaged files ----


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_ply(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.endswith(".")
    return message


def test_a_ply_that_is_no_splat(shared_scenes: Path) -> None:
    message = refusal(shared_scenes / "reader_assets" / "not_a_splat.ply")
    assert "lacks the columns f_dc_0, f_dc_1, f_dc_2, opacity;" in message


@pytest.mark.parametrize("keep", [0, 2, 40, 500, -1])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    write_ply(tmp_path / "s.ply", make_splat(3, 3))
    (tmp_path / "cut.ply").write_bytes((tmp_path / "s.ply").read_bytes()[:keep])
    assert "truncated or is not a PLY" in refusal(tmp_path / "cut.ply")


HEADER = b"ply\nformat ascii 1.0\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "not a PLY"),
        (HEADER + b"element vertex 2\nproperty float x\nend_header\n1\nabc\n", "not a PLY"),
        (HEADER + b"element vertex 99999999999999999999\nproperty float x\nend_header\n1\n", "not a PLY"),
        (HEADER + b"element vertex -2\nproperty float x\nend_header\n1\n", "not a PLY"),
        (HEADER + b"element vertex 1\nproperty list uchar int x\nend_header\n1 1\n", "hold lists"),
        (HEADER + b"element face 1\nproperty float x\nend_header\n1\n", "no element 'vertex'"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.ply").write_bytes(content)
    assert message in refusal(tmp_path / "bad.ply")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.ply")
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("gone", ["f_rest_8", "f_rest_0"])
def test_a_number_of_coefficients_that_fits_no_degree(tmp_path: Path, gone: str) -> None:
    write_ply(tmp_path / "s.ply", make_splat(2, 1))
    rows = vertex_rows(tmp_path / "s.ply")
    kept = np.array(rows[[name for name in rows.dtype.names or () if name != gone]].tolist(), dtype="<f4").reshape(
        2, -1
    )
    table = kept.view([(name, "<f4") for name in rows.dtype.names or () if name != gone]).reshape(2)
    PlyData([PlyElement.describe(table, "vertex")], byte_order="<").write(str(tmp_path / "f.ply"))
    assert "has 8 columns f_rest_*" in refusal(tmp_path / "f.ply")


# ---- atomic writes, checked arrays ----


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splat = make_splat(3, 0)
    write_ply(tmp_path / "s.ply", splat)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"s\.ply cannot be written \(No space left on device\): free space"):
        write_ply(tmp_path / "s.ply", make_splat(9, 3))
    assert_same_bits(read_ply(tmp_path / "s.ply"), splat)
    assert os.listdir(tmp_path) == ["s.ply"]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("rotation", np.zeros((2, 3), np.float32), r"rotation: expected shape \(2, 4\), got \(2, 3\)"),
        ("opacity", np.zeros((2, 1)), "opacity: expected float32, got float64"),
        ("f_rest", np.zeros((2, 4, 3), np.float32), "f_rest: 4 coefficients"),
        ("f_rest", np.zeros((2, 9), np.float32), "f_rest: expected shape"),
    ],
)
def test_splat_data_checks_its_arrays(name: str, array: NDArray[np.float32], message: str) -> None:
    splat = make_splat(2, 1)
    arrays = {name: getattr(splat, name) for name in ARRAYS}
    with pytest.raises(ValueError, match=message):
        SplatData(**{**arrays, name: array})
