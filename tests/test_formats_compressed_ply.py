"""Splats as .compressed.ply: the layout of the file, the error of a round trip, and files of other programs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData
from splats import assert_close, finite_splat, trained_splat

from gs_train.errors import UserError
from gs_train.formats.compressed_ply import read_compressed_ply, write_compressed_ply


def test_the_numbers_of_a_gaussian(tmp_path: Path) -> None:
    """Two Gaussians at the ends of all ranges, and one between them."""
    ends = np.array([[0, 0, 0], [1, 2, 4], [0.25, 1, 3]], dtype=np.float32)
    splat = replace(
        finite_splat(3, 1),
        xyz=ends,
        scaling=-ends,
        f_dc=ends[:, None],
        f_rest=np.tile(np.array([[[0.0]], [[-4]], [[5]]], dtype=np.float32), (1, 3, 3)),
        opacity=np.array([[0], [99], [-99]], dtype=np.float32),
        rotation=np.array([[1, 0, 0, 0], [0, -2, 0, 0], [1, 1, 0, 0]], dtype=np.float32),
    )
    write_compressed_ply(tmp_path / "a.compressed.ply", splat)
    ply = PlyData.read(str(tmp_path / "a.compressed.ply"))
    assert [element.name for element in ply.elements] == ["chunk", "vertex", "sh"]
    (chunk,) = ply["chunk"].data.tolist()
    half, c0 = 0.5, 0.28209479
    colour_high = (half + c0, half + 2 * c0, half + 4 * c0)
    assert chunk == pytest.approx((0, 0, 0, 1, 2, 4, -1, -2, -4, 0, 0, 0, half, half, half, *colour_high), abs=1e-6)
    rows = {row["packed_color"] & 255: row for row in ply["vertex"].data}
    assert sorted(rows) == [0, 128, 255]
    low, high, middle = rows[128], rows[255], rows[0]
    assert (low["packed_position"], high["packed_position"]) == (0, 2**32 - 1)
    assert middle["packed_position"] == 512 << 21 | 512 << 11 | 1535
    assert (low["packed_scale"], high["packed_scale"]) == (2**32 - 1, 0)
    # The largest component and its index; 512 stands for 0, and 1023 would be the square root of a half.
    assert low["packed_rotation"] == 512 << 20 | 512 << 10 | 512
    assert high["packed_rotation"] == 1 << 30 | 512 << 20 | 512 << 10 | 512
    assert middle["packed_rotation"] == 1023 << 20 | 512 << 10 | 512
    sh = {
        row["packed_color"] & 255: set(values) for row, values in zip(ply["vertex"].data, ply["sh"].data, strict=True)
    }
    assert sh == {128: {128}, 255: {0}, 0: {255}}


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_round_trip_is_within_the_steps(tmp_path: Path, degree: int) -> None:
    # Few enough for one chunk, whose range bounds the error.
    splat = replace(trained_splat(256, degree), antialiased=degree > 1)
    write_compressed_ply(tmp_path / "a.compressed.ply", splat)
    found = read_compressed_ply(tmp_path / "a.compressed.ply")
    step = (splat.xyz.max(axis=0) - splat.xyz.min(axis=0)).max() / 1023 / 2
    assert_close(found, splat, xyz=1.01 * step, covariance=0.05, colour=0.02, sh=1 / 64 + 1e-6, alpha=0.51 / 255)


def test_neighbours_share_chunks_and_the_last_chunk_is_not_whole(tmp_path: Path) -> None:
    splat = trained_splat(2000, 1)
    write_compressed_ply(tmp_path / "a.compressed.ply", splat)
    chunks = PlyData.read(str(tmp_path / "a.compressed.ply"))["chunk"].data
    assert len(chunks) == 8
    sizes = np.stack([chunks[f"max_{axis}"] - chunks[f"min_{axis}"] for axis in "xyz"]).min(axis=0)
    whole = (splat.xyz.max(axis=0) - splat.xyz.min(axis=0)).min()
    assert np.median(sizes) < 0.7 * whole
    assert_close(
        read_compressed_ply(tmp_path / "a.compressed.ply"), splat, xyz=0.01, covariance=0.08, colour=0.03, sh=0.016
    )


def test_chunks_without_ranges_of_colours_are_read(tmp_path: Path) -> None:
    """Older files have twelve columns, and their colours go from 0 to 1."""
    splat = replace(finite_splat(5), f_dc=np.full((5, 1, 3), 0.2 / 0.28209479, dtype=np.float32))
    # Ends of the range at 0 and 1 make the same bytes with and without the columns.
    splat.f_dc[0], splat.f_dc[1] = -0.5 / 0.28209479, 0.5 / 0.28209479
    path = tmp_path / "a.compressed.ply"
    write_compressed_ply(path, splat)
    expected = read_compressed_ply(path)
    content = path.read_bytes()
    header, data = content[: content.index(b"end_header\n") + 11], content[content.index(b"end_header\n") + 11 :]
    header = re.sub(rb"property float (min|max)_[rgb]\n", b"", header)
    path.write_bytes(header + data[:48] + data[72:])
    found = read_compressed_ply(path)
    np.testing.assert_allclose(found.f_dc, expected.f_dc, atol=1e-5)
    np.testing.assert_array_equal(found.xyz, expected.xyz)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"element chunk 2", b"element chunk 1", "1 chunks for 300 Gaussians"),
        (b"element vertex 300", b"element vertex 900000000", "promises 900,000,000 rows|promises 900,000,000 vertices"),
        (b"element vertex 300", b"element vertex 0", "2 chunks for 0 Gaussians"),
        (b"element sh 300", b"element sh 299", "fit no SH degree"),
        (b"f_rest_8", b"f_rest_9", "fit no SH degree"),
        (b"property uint packed_scale", b"property int packed_scale", "not of the type uint"),
        (b"property uint packed_scale", b"property uint packed_scala", "lacks the columns packed_scale"),
        (b"property float max_x", b"property list uchar float max_x", "hold lists"),
        (b"property float max_x", b"property float max_w", "lacks the columns max_x"),
        (b"property uchar f_rest_0", b"property char f_rest_0", "not of the type uchar"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = tmp_path / "a.compressed.ply"
    write_compressed_ply(path, trained_splat(300, 1))
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(UserError, match=rf"a\.compressed\.ply is damaged .*({message})"):
        read_compressed_ply(path)
