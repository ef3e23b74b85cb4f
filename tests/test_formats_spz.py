"""Splats as .spz: the streams of each version, both conventions of axes, limits of positions, and damaged files."""

from __future__ import annotations

import gzip
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from splats import assert_close, assert_same_bits, finite_splat, trained_splat

from gs_train.errors import UserError
from gs_train.formats.spz import parse_sh_bits, read_spz, write_spz
from gs_train.formats.turn import half_turn

NGSP = 0x5053474E


def one_gaussian() -> bytes:
    """The streams of version 3 at SH degree 1, by hand: fractions of 12 bits."""
    position = (4096).to_bytes(3, "little") + (-2048 & 0xFFFFFF).to_bytes(3, "little") + (3).to_bytes(3, "little")
    # The rotation xyzw is (0, -0.6, 0, 0.8): the largest is w, and 0.6 / sqrt(1/2) * 511 = 433.6.
    rotation = 3 << 30 | 0 << 20 | (512 | 434) << 10 | 0
    return position + bytes([204, 128, 255, 0, 96, 160, 0]) + struct.pack("<I", rotation) + bytes(range(120, 129))


def test_the_bytes_of_a_gaussian(tmp_path: Path) -> None:
    splat = replace(
        finite_splat(1, 1),
        xyz=np.array([[1, -0.5, 3 / 4096]], dtype=np.float32),
        f_dc=np.array([[[0, 99, -99]]], dtype=np.float32),
        f_rest=(np.arange(-8, 1, dtype=np.float32) / 128).reshape(1, 3, 3),
        opacity=np.array([[np.log(4)]], dtype=np.float32),
        scaling=np.array([[-4, 0, -50]], dtype=np.float32),
        rotation=np.array([[-1.6, 0, 1.2, 0]], dtype=np.float32),
        antialiased=True,
    )
    write_spz(tmp_path / "a.spz", splat)
    content = gzip.decompress((tmp_path / "a.spz").read_bytes())
    assert content == struct.pack("<IIIBBBB", NGSP, 3, 1, 1, 12, 1, 0) + one_gaussian()
    write_spz(tmp_path / "b.spz", splat)
    assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()


def test_a_file_of_version_2(tmp_path: Path) -> None:
    """Rotations are x, y and z in three bytes."""
    streams = one_gaussian()
    streams = streams[:16] + bytes([127, 51, 128]) + streams[20:]
    header = struct.pack("<IIIBBBB", NGSP, 2, 1, 1, 8, 0, 0)
    (tmp_path / "a.spz").write_bytes(gzip.compress(header + streams))
    found = read_spz(tmp_path / "a.spz")
    assert found.xyz[0].tolist() == [16, -8, 3 / 256]
    np.testing.assert_allclose(found.rotation[0], [0.8, 0, -0.6, 0], atol=0.005)
    assert not found.antialiased


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_round_trip_is_within_the_steps(tmp_path: Path, version: int, degree: int) -> None:
    if version == 4:
        pytest.importorskip("zstandard", reason="version 4 needs the extra 'zstd'")
    splat = replace(trained_splat(1000, degree), antialiased=degree == 2)
    write_spz(tmp_path / "a.spz", splat, spz_version=version)
    assert (tmp_path / "a.spz").read_bytes().startswith(b"NGSP" if version == 4 else b"\x1f\x8b")
    found = read_spz(tmp_path / "a.spz")
    assert_close(
        found, splat, xyz=0.51 / 4096, covariance=0.09, colour=0.51 / 255 / 0.15, sh=0.51 / 128, alpha=0.51 / 255
    )


@pytest.mark.parametrize(("bits", "steps"), [("8", (1, 1)), ("6", (4, 4)), ("5/4", (8, 16)), ("8/1", (1, 128))])
def test_fewer_bits_of_sh_have_larger_steps(tmp_path: Path, bits: str, steps: tuple[int, int]) -> None:
    splat = trained_splat(500, 2)
    write_spz(tmp_path / "a.spz", splat, sh_bits=bits)
    found = read_spz(tmp_path / "a.spz").f_rest
    for degrees, step in ((slice(0, 3), steps[0]), (slice(3, None), steps[1])):
        stored = found[:, degrees] * 128
        np.testing.assert_array_equal(stored, np.round(stored / step) * step)
        assert np.abs(found[:, degrees] - splat.f_rest[:, degrees]).max() <= (step / 2 + 0.5) / 128


@pytest.mark.parametrize("text", ["", "0", "9", "5/", "/4", "5/4/3", "x", "12"])
def test_other_numbers_of_bits_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--sh-bits"):
        parse_sh_bits(text)


def test_axes(tmp_path: Path) -> None:
    """Version 4 names its axes, version 3 does not."""
    splat = trained_splat(50, 3)
    write_spz(tmp_path / "ply.spz", splat)
    write_spz(tmp_path / "rub.spz", splat, spz_axes="rub")
    plain, turned = read_spz(tmp_path / "ply.spz"), read_spz(tmp_path / "rub.spz")
    np.testing.assert_array_equal(turned.xyz, plain.xyz * [1, -1, -1])
    assert_same_bits(read_spz(tmp_path / "rub.spz", spz_axes="rub"), half_turn(turned, (1, -1, -1)))
    assert_close(half_turn(turned, (1, -1, -1)), plain, xyz=0, covariance=1e-5, colour=0, sh=0.001)
    pytest.importorskip("zstandard", reason="version 4 needs the extra 'zstd'")
    for axes in ("rdf", "rub"):
        write_spz(tmp_path / "named.spz", splat, spz_axes=axes, spz_version=4)  # type: ignore[arg-type]
        assert_close(read_spz(tmp_path / "named.spz"), plain, xyz=0, covariance=1e-5, colour=0, sh=0.001)


@pytest.mark.parametrize(("farthest", "bits"), [(0, 12), (2047, 12), (2048, 11), (5304, 10), (1e6, 3), (2**23 - 1, 0)])
def test_far_positions_take_bits_of_the_fraction(tmp_path: Path, farthest: float, bits: int) -> None:
    splat = finite_splat(4)
    splat.xyz[:] = [[0.5, 0, 0], [-farthest, 0, 0], [0, farthest, 0], [0, 0, -0.25]]
    write_spz(tmp_path / "a.spz", splat)
    assert gzip.decompress((tmp_path / "a.spz").read_bytes())[13] == bits
    np.testing.assert_allclose(read_spz(tmp_path / "a.spz").xyz, splat.xyz, atol=0.5001 / 2**bits)


def test_positions_beyond_the_format_are_refused_with_a_remedy(tmp_path: Path) -> None:
    splat = finite_splat(4)
    splat.xyz[2] = [0, 2**23, 0]
    with pytest.raises(UserError, match=r"8\.389e\+06 units from the origin.*8,388,608.*--drop-outliers or --box"):
        write_spz(tmp_path / "a.spz", splat)


def test_a_missing_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match=r"needs the package zstandard: install it \(`.* -m pip install zstandard`\)"):
        write_spz(tmp_path / "a.spz", finite_splat(4), spz_version=4)
    write_spz(tmp_path / "a.spz", finite_splat(4))


def header(version: int = 3, count: int = 1, degree: int = 1, bits: int = 12, flags: int = 0) -> bytes:
    return struct.pack("<IIIBBBB", NGSP, version, count, degree, bits, flags, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header() + one_gaussian()[:-1], "ends before its 1 Gaussians do"),
        (header(count=2) + one_gaussian(), "ends before its 2 Gaussians do"),
        (header(count=2**32 - 1) + one_gaussian(), "its header promises 124,554,051,555 bytes"),
        (header(count=0), "no Gaussians"),
        (header(degree=5) + one_gaussian(), "SH degree 5"),
        (header(bits=60) + one_gaussian(), "60 bits"),
        (header(version=1) + one_gaussian(), "version 1"),
        (header(version=9) + one_gaussian(), "version 9"),
        (header(flags=0x80) + one_gaussian(), "levels of detail"),
        (b"", "ends in its header"),
        (b"x" * 60, "first bytes"),
    ],
)
def test_damaged_contents(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.spz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=rf"a\.spz is damaged or is not a \.spz splat \(.*{message}"):
        read_spz(tmp_path / "a.spz")


def test_extensions_after_the_streams_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.spz").write_bytes(gzip.compress(header(flags=2) + one_gaussian() + bytes(5_000_000)))
    assert len(read_spz(tmp_path / "a.spz")) == 1


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    count = 3_000_000
    (tmp_path / "a.spz").write_bytes(gzip.compress(header(count=count, degree=3) + bytes(count * 65), 1))
    assert (tmp_path / "a.spz").stat().st_size < 2_000_000
    with pytest.raises(UserError, match="its header promises 195,000,000 bytes, but the file has"):
        read_spz(tmp_path / "a.spz")


def test_damaged_files_of_version_4(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="version 4 needs the extra 'zstd'")
    write_spz(tmp_path / "a.spz", trained_splat(30, 1), spz_version=4)
    content = bytearray((tmp_path / "a.spz").read_bytes())
    table = struct.unpack_from("<I", content, 16)[0]
    assert (content[15], table) == (6, 44)
    larger = zstandard.ZstdCompressor().compress(bytes(10**8))
    for place, value, message in (
        (8, struct.pack("<I", 2**31), "header promises"),
        (8, struct.pack("<I", 31), "table of streams"),
        (15, b"\x05", "table of streams"),
        (16, struct.pack("<I", 2**31), "table of streams"),
        (16, struct.pack("<I", 8), "table of streams"),
        (table, struct.pack("<Q", 2**63), "table of streams"),
        (table, struct.pack("<Q", 10), "frame"),
        (table + 8, struct.pack("<Q", 2**40), "table of streams"),
        (table + 96, b"\0\0\0\0", "frame is broken"),
        (table + 96, larger, "another size than the table says|frame is broken"),
    ):
        damaged = content.copy()
        damaged[place : place + len(value)] = value
        (tmp_path / "b.spz").write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            read_spz(tmp_path / "b.spz")
    # An endless record of extensions ends with the table.
    content[32 + 4 : 32 + 8] = b"\xff\xff\xff\xff"
    (tmp_path / "b.spz").write_bytes(content)
    assert len(read_spz(tmp_path / "b.spz")) == 30
