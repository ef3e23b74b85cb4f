"""Our splat files in readers that are not ours, and their files in our readers.

Optional: each test skips where Node or the package is missing. These variables name the packages:
``GS_TRAIN_SPLAT_TRANSFORM`` and ``GS_TRAIN_SPLAT_TRANSFORM_3`` the bin/cli.mjs of @playcanvas/splat-transform 2.7.1 and
3.7.0, ``GS_TRAIN_THREE`` the folder of three 0.187.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from splats import alphas, assert_close, covariances, trained_splat

from gs_train.formats.ply import read_ply
from gs_train.formats.registry import read_splat, write_splat
from gs_train.formats.splat_data import SplatData
from gs_train.formats.turn import half_turn

TO_RUB = (1, -1, -1)
SH_C0 = 0.28209479177387814
SCRIPT = Path(__file__).parent / "outside_readers" / "three_splats.mjs"


def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("Node is not installed")
    return found


def named(variable: str, package: str) -> str:
    """The path that a variable names; skips the test without it."""
    path = os.environ.get(variable)
    if not path or not Path(path).exists():
        pytest.skip(f"{package} is not installed ({variable} does not name it)")
    return path


@pytest.fixture(params=["2.7.1", "3.7.0"])
def transform(request: pytest.FixtureRequest) -> Any:
    """A function that converts a file with splat-transform; ``transform.version`` is the major version."""
    variable = "GS_TRAIN_SPLAT_TRANSFORM" if request.param == "2.7.1" else "GS_TRAIN_SPLAT_TRANSFORM_3"
    cli = named(variable, f"@playcanvas/splat-transform {request.param}")

    def convert(source: Path, target: Path, *flags: str) -> None:
        command = [node(), cli, "-w", *flags, str(source), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return convert, int(request.param[0])


def bounded(splat: SplatData) -> SplatData:
    """Colours that every format holds."""
    return replace(splat, f_dc=np.clip(splat.f_dc, -1.7, 1.7))


# The tolerance is the rounding of float32: both readers start from the same bytes.
SAME: dict[str, Any] = {"xyz": 2e-6, "covariance": 1e-4, "colour": 1e-5, "sh": 1e-6, "alpha": 1e-6}


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("ending", [".compressed.ply", ".sog", ".spz", ".splat"])
def test_splat_transform_reads_our_file_as_we_do(tmp_path: Path, transform: Any, ending: str, degree: int) -> None:
    convert, version = transform
    splat = bounded(trained_splat(300, degree))
    write_splat(tmp_path / f"a{ending}", splat)
    convert(tmp_path / f"a{ending}", tmp_path / "b.ply")
    found, ours = read_ply(tmp_path / "b.ply"), read_splat(tmp_path / f"a{ending}")
    if ending == ".spz" and version == 2:
        # It takes the stored axes for right, up, back.
        found = half_turn(found, TO_RUB)
    # It divides the bytes of rotations in .splat by 127.5, where the writer of the format multiplied by 128.
    rotation = {"covariance": 0.03} if ending == ".splat" else {}
    sh = {"sh": None} if ending == ".splat" or degree == 0 else {}
    assert_close(found, ours, **{**SAME, **rotation, **sh})


@pytest.mark.parametrize("axes", ["rdf", "rub"])
def test_version_2_of_splat_transform_obeys_the_named_axes_of_spz_4(tmp_path: Path, transform: Any, axes: str) -> None:
    pytest.importorskip("zstandard", reason="version 4 needs the extra 'zstd'")
    convert, version = transform
    write_splat(tmp_path / "a.spz", trained_splat(300), spz_version=4, spz_axes=axes)
    convert(tmp_path / "a.spz", tmp_path / "b.ply")
    found = read_ply(tmp_path / "b.ply")
    if version == 3 and axes == "rub":
        # It ignores the record and takes all axes for those of a .ply.
        found = half_turn(found, TO_RUB)
    assert_close(found, read_splat(tmp_path / "a.spz"), **SAME)


@pytest.mark.parametrize("version", [3, 4])
def test_splat_transform_reads_both_axes_of_spz_3(tmp_path: Path, transform: Any, version: int) -> None:
    convert, major = transform
    splat = trained_splat(100)
    write_splat(tmp_path / "a.spz", splat, spz_axes="rub" if major == 2 else "rdf")
    convert(tmp_path / "a.spz", tmp_path / "b.ply")
    assert_close(read_ply(tmp_path / "b.ply"), splat, xyz=2e-4, covariance=0.09, colour=0.02, sh=0.005, alpha=0.003)


@pytest.mark.parametrize(
    ("ending", "flags"),
    [
        (".compressed.ply", ()),
        (".sog", ("-g", "cpu")),
        (".spz", ("--spz-version", "3")),
        (".spz", ("--spz-version", "4")),
    ],
)
def test_we_read_the_files_of_splat_transform_as_it_does(
    tmp_path: Path, transform: Any, ending: str, flags: tuple[str, ...]
) -> None:
    if "4" in flags:
        pytest.importorskip("zstandard", reason="version 4 needs the extra 'zstd'")
    convert, version = transform
    write_splat(tmp_path / "a.ply", trained_splat(300))
    convert(tmp_path / "a.ply", tmp_path / f"b{ending}", *flags)
    convert(tmp_path / f"b{ending}", tmp_path / "c.ply")
    # Version 2 stores right, up, back; its files of version 4 say so.
    options = {"spz_axes": "rub"} if ending == ".spz" and version == 2 else {}
    assert_close(read_splat(tmp_path / f"b{ending}", **options), read_ply(tmp_path / "c.ply"), **SAME)


def test_we_read_the_glb_files_of_splat_transform(tmp_path: Path, transform: Any) -> None:
    convert, _ = transform
    splat = trained_splat(300)
    write_splat(tmp_path / "a.ply", splat)
    convert(tmp_path / "a.ply", tmp_path / "b.glb")
    assert_close(read_splat(tmp_path / "b.glb"), splat, **SAME)


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("kind", ["splat", "spz", "glb"])
def test_three_reads_our_file_as_we_do(tmp_path: Path, kind: str, degree: int) -> None:
    three = named("GS_TRAIN_THREE", "three")
    splat = bounded(trained_splat(200, degree))
    write_splat(tmp_path / f"a.{kind}", splat)
    command = [node(), str(SCRIPT), three, str(tmp_path / f"a.{kind}"), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = {name: np.array(values) for name, values in json.loads(done.stdout).items()}
    ours = read_splat(tmp_path / f"a.{kind}")
    if kind == "glb":
        ours = half_turn(ours, (-1, -1, 1))
    np.testing.assert_allclose(found["position"].reshape(-1, 3), ours.xyz, atol=1e-6)
    expected = covariances(ours)[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    np.testing.assert_allclose(found["covariance"].reshape(-1, 6), expected, rtol=1e-3, atol=1e-6)
    rgba = found["color"].reshape(-1, 4)
    np.testing.assert_allclose(rgba[:, :3], 255 * (0.5 + SH_C0 * ours.f_dc[:, 0]), atol=1.01)
    np.testing.assert_allclose(rgba[:, 3], 255 * alphas(ours), atol=1.01)
    for band in range(1, ours.sh_degree + 1):
        words = found[f"sphericalHarmonics{band}"].astype("<u4").view(np.uint8).reshape(len(ours), -1)
        coefficients = ours.f_rest[:, band**2 - 1 : (band + 1) ** 2 - 1].reshape(len(ours), -1)
        stored = words[:, : coefficients.shape[1]]
        np.testing.assert_allclose((stored / 128.0) - 1, coefficients, atol=1.01 / 128)
