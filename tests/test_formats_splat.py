"""Splats as .splat: the bytes of a Gaussian, the order of the file, and the error of a round trip."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from splats import assert_close, finite_splat, trained_splat

from gs_train.errors import UserError
from gs_train.formats.splat import read_splat_file, write_splat_file

SH_C0 = 0.28209479177387814


def test_the_bytes_of_a_gaussian(tmp_path: Path) -> None:
    splat = replace(
        finite_splat(1),
        xyz=np.array([[1.5, -2, 3]], dtype=np.float32),
        scaling=np.log([[0.5, 0.25, 4]]).astype(np.float32),
        f_dc=np.array([[[0.25 / SH_C0, 9, -9]]], dtype=np.float32),
        opacity=np.array([[np.log(0.8 / 0.2)]], dtype=np.float32),
        # Half the length, and 90 degrees about z.
        rotation=np.array([[0.5**0.5 / 2, 0, 0, 0.5**0.5 / 2]], dtype=np.float32),
    )
    write_splat_file(tmp_path / "a.splat", splat)
    content = (tmp_path / "a.splat").read_bytes()
    assert struct.unpack("<6f", content[:24]) == pytest.approx((1.5, -2, 3, 0.5, 0.25, 4), rel=1e-6)
    assert list(content[24:]) == [191, 255, 0, 204, 219, 128, 128, 219]


def test_a_round_trip_is_within_the_steps(tmp_path: Path) -> None:
    splat = trained_splat(2000)
    bounded = replace(splat, f_dc=np.clip(splat.f_dc, -0.5 / SH_C0, 0.5 / SH_C0))
    write_splat_file(tmp_path / "a.splat", bounded)
    found = read_splat_file(tmp_path / "a.splat")
    assert_close(found, bounded, xyz=0, covariance=0.03, colour=0.51 / 255 / SH_C0, sh=None, alpha=0.51 / 255)


def test_large_opaque_gaussians_come_first(tmp_path: Path) -> None:
    splat = trained_splat(500)
    write_splat_file(tmp_path / "a.splat", replace(splat, opacity=np.tanh(splat.opacity)))
    found = read_splat_file(tmp_path / "a.splat")
    importance = found.scaling.sum(axis=1) - np.log1p(np.exp(-found.opacity[:, 0]))
    # Opacities were rounded to 255 steps, of which each has at least 68.
    assert (np.diff(importance) <= 1 / 68).all()
    assert importance[0] > importance[-1] + 3


@pytest.mark.parametrize("size", [0, 31, 33, 1000])
def test_another_size_than_whole_rows_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.splat").write_bytes(bytes(size))
    with pytest.raises(UserError, match=rf"it has {size:,} bytes, not a multiple of 32"):
        read_splat_file(tmp_path / "a.splat")


def test_negative_scales_and_quaternions_of_length_zero_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.splat").write_bytes(struct.pack("<6f8B", 0, 0, 0, -1, 0, 1, 1, 2, 3, 4, *[128] * 4))
    found = read_splat_file(tmp_path / "a.splat")
    assert found.is_finite().all()
    assert found.scaling[0].tolist() == pytest.approx([-87.3, -87.3, 0], abs=0.1)
    assert found.rotation[0].tolist() == [1, 0, 0, 0]
