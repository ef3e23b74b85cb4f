"""``gs-train export``: rows that viewers cannot show are left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import gs_train_here
from splats import ARRAYS, assert_same_bits, finite_splat

from gs_train.formats.ply import read_ply, write_ply


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_gaussians_with_values_that_are_not_finite_are_left_out(tmp_path: Path, name: str, value: float) -> None:
    splat = finite_splat(6, 1)
    damaged = np.array(getattr(splat, name))
    damaged[[1, 4], ..., -1] = value
    write_ply(tmp_path / "nan.ply", replace(splat, **{name: damaged}))  # type: ignore[arg-type]
    done = gs_train_here("export", tmp_path / "nan.ply", tmp_path / "out.ply")
    assert done.returncode == 0, done.stderr
    assert f"Left out 2 Gaussians of {tmp_path / 'nan.ply'} with NaN or infinite values." in done.stderr
    assert "Wrote 4 Gaussians" in done.stdout
    assert_same_bits(read_ply(tmp_path / "out.ply"), splat.keep(np.array([True, False, True, True, False, True])))


def test_a_splat_without_finite_gaussians_is_refused(tmp_path: Path) -> None:
    splat = finite_splat(3)
    write_ply(tmp_path / "nan.ply", replace(splat, xyz=splat.xyz * np.float32(np.nan)))
    done = gs_train_here("export", tmp_path / "nan.ply", tmp_path / "out.ply")
    assert done.returncode == 2
    assert "have NaN or infinite values: export another splat." in done.stderr
    assert not (tmp_path / "out.ply").exists()


def test_a_finite_splat_and_an_empty_one_pass_without_a_word(tmp_path: Path) -> None:
    for rows in (0, 4):
        write_ply(tmp_path / "in.ply", finite_splat(rows))
        done = gs_train_here("export", tmp_path / "in.ply", tmp_path / "out.ply")
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "out.ply").read_bytes() == (tmp_path / "in.ply").read_bytes()
