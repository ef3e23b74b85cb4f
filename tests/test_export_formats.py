"""``gs-train export``: all formats, Gaussians that are left out, and splats that are turned."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import gs_train_here
from scipy.spatial.transform import Rotation
from splats import assert_close, assert_same_bits, covariances, finite_splat, in_order_of, trained_splat

from gs_train.config.settings import TrainConfig
from gs_train.formats.ply import read_ply, write_ply
from gs_train.formats.registry import read_splat, readable_endings, writable_endings, write_splat
from gs_train.formats.splat_data import SplatData
from gs_train.scene.frame import Frame
from gs_train.training.initial_splat import initial_splat

ENDINGS = [ending for ending in writable_endings() if ending in readable_endings()]


def at(positions: list[list[float]], **arrays: list[list[float]]) -> SplatData:
    """Gaussians at the positions."""
    splat = replace(finite_splat(len(positions)), xyz=np.array(positions, dtype=np.float32))
    return replace(splat, **{name: np.array(values, dtype=np.float32) for name, values in arrays.items()})


def export(splat: SplatData, folder: Path, *flags: object) -> tuple[SplatData, str]:
    """The splat after an export with flags, and the notes."""
    write_ply(folder / "in.ply", splat)
    done = gs_train_here("export", folder / "in.ply", folder / "out.ply", *flags)
    assert done.returncode == 0, done.stderr
    return read_ply(folder / "out.ply"), done.stderr


def refusal(*arguments: object) -> str:
    done = gs_train_here("export", *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    return done.stderr


# ---- formats


def test_from_every_format_to_every_other(tmp_path: Path) -> None:
    splat = trained_splat(30, 2)
    write_ply(tmp_path / "first.ply", splat)
    for ending in ENDINGS:
        assert gs_train_here("export", tmp_path / "first.ply", tmp_path / f"a{ending}").returncode == 0
        shown = gs_train_here("info", tmp_path / f"a{ending}")
        assert shown.returncode == 0 and "30" in shown.stdout
    for source, target in itertools.product(ENDINGS, repeat=2):
        done = gs_train_here("export", tmp_path / f"a{source}", tmp_path / f"b{target}")
        assert done.returncode == 0, done.stderr
        assert "Wrote 30 Gaussians" in done.stdout
        found = read_splat(tmp_path / f"b{target}")
        assert found.sh_degree == (0 if ".splat" in (source, target) else 2)
        np.testing.assert_allclose(in_order_of(found, splat).xyz, splat.xyz, atol=0.02)


def test_training_starts_from_every_format(tiny_run: Path, tiny_scene: Path, tmp_path: Path) -> None:
    config = TrainConfig().resolved()
    assert gs_train_here("export", tiny_run, tmp_path / "first.ply").returncode == 0
    expected = read_ply(tmp_path / "first.ply")
    for ending in ENDINGS:
        write_splat(tmp_path / f"a{ending}", expected)
        named = replace(config, init_from=str(tmp_path / f"a{ending}"))
        found = initial_splat(named, 5.0, Frame())
        np.testing.assert_allclose(in_order_of(found, expected).xyz, expected.xyz, atol=0.02)
    (tmp_path / "a.spz").replace(tmp_path / "a.ply")
    few = ("--iterations", 2, "--device", "cpu", "--out", tmp_path / "run")
    done = gs_train_here("train", tiny_scene, "--init-from", tmp_path / "a.ply", *few)
    assert done.returncode == 0, done.stderr
    assert "a.ply holds a .spz splat, though its name ends in .ply: it is read as .spz." in done.stderr


def test_an_unknown_ending_lists_the_known_ones(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", finite_splat(3))
    message = refusal(tmp_path / "a.ply", tmp_path / "a.ksplat")
    assert message.endswith(f"ends in {' or '.join(writable_endings())}.\n")
    assert {".ply", ".compressed.ply", ".splat", ".spz", ".sog", ".glb"} <= set(writable_endings())


def test_options_of_formats(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", trained_splat(400, 3))
    sizes = {}
    for bits in ("8", "5/4"):
        done = gs_train_here("export", tmp_path / "a.ply", tmp_path / "a.spz", "--sh-bits", bits)
        assert "The axes in a.spz are the axes of a .ply" in done.stderr
        sizes[bits] = (tmp_path / "a.spz").stat().st_size
    assert sizes["5/4"] < 0.75 * sizes["8"]
    assert gs_train_here("export", tmp_path / "a.ply", tmp_path / "a.sog", "--quality", "high").returncode == 0
    assert "--quality is an option of .sog" in refusal(tmp_path / "a.ply", tmp_path / "a.spz", "--quality", "high")
    assert "--sh-bits is 9" in refusal(tmp_path / "a.ply", tmp_path / "a.spz", "--sh-bits", 9)
    assert "leave out --spz-axes" in refusal(tmp_path / "a.ply", tmp_path / "a.sog", "--spz-axes", "rub")
    assert "leave out --spz-axes" in refusal(tmp_path, tmp_path / "a.sog", "--spz-axes", "rub")


def test_axes_of_spz_hold_for_the_target_or_else_for_the_source(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", trained_splat(30))
    assert gs_train_here("export", tmp_path / "a.ply", tmp_path / "rub.spz", "--spz-axes", "rub").returncode == 0
    assert gs_train_here("export", tmp_path / "rub.spz", tmp_path / "raw.ply").returncode == 0
    assert gs_train_here("export", tmp_path / "rub.spz", tmp_path / "b.ply", "--spz-axes", "rub").returncode == 0
    raw, back = read_ply(tmp_path / "raw.ply"), read_ply(tmp_path / "b.ply")
    np.testing.assert_array_equal(raw.xyz * [1, -1, -1], back.xyz)
    assert_close(back, read_ply(tmp_path / "a.ply"), xyz=2e-4, covariance=0.1, colour=0.02, sh=0.01)


def test_a_position_beyond_the_format_has_a_remedy_that_works(tmp_path: Path) -> None:
    splat = trained_splat(100)
    splat.xyz[7] = 1e8
    write_ply(tmp_path / "a.ply", splat)
    message = refusal(tmp_path / "a.ply", tmp_path / "a.spz")
    assert "a Gaussian lies 1e+08 units from the origin" in message and "--drop-outliers" in message
    assert not (tmp_path / "a.spz").exists()
    done = gs_train_here("export", tmp_path / "a.ply", tmp_path / "a.spz", "--drop-outliers")
    assert done.returncode == 0
    assert "Left out 1 of 100 Gaussians: 1 far from all others (--drop-outliers)." in done.stderr
    assert len(read_splat(tmp_path / "a.spz")) == 99


# ---- Gaussians left out


def test_a_box_keeps_its_sides(tmp_path: Path) -> None:
    splat = at([[0, 0, 0], [0.1, 0, 0], [0.11, 0, 0], [-0.7, 2, -3], [-0.7001, 2, -3], [0, 2.01, 0], [0, 0, -3.1]])
    found, notes = export(splat, tmp_path, "--box", "-0.7,0,-3,0.1,2,0")
    assert_same_bits(found, splat.keep(np.array([0, 1, 3])))
    assert notes == "Left out 4 of 7 Gaussians: 4 outside --box.\n"


def test_scale_and_opacity(tmp_path: Path) -> None:
    scales = np.log([[1, 1, 1], [1, 1, 3], [0.1, 0.1, 0.1], [9, 9, 9]])
    opacities = [[0.0], [0], [-5], [-5]]
    splat = at([[0, 0, 0]] * 4, scaling=scales.tolist(), opacity=opacities)
    found, notes = export(splat, tmp_path, "--max-scale", 2.5, "--min-opacity", 0.01)
    assert_same_bits(found, splat.keep(np.array([0])))
    assert notes == "Left out 3 of 4 Gaussians: 2 larger than --max-scale, 1 below --min-opacity.\n"
    # The limits themselves stay.
    found, notes = export(splat, tmp_path, "--max-scale", 9.0001, "--min-opacity", 0.0066)
    assert len(found) == 4 and notes == "Left out 0 of 4 Gaussians: 0 larger than --max-scale, 0 below --min-opacity.\n"


def test_outliers_are_far_from_all_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(200, 3)) + 50
    # The distance of 95 % is about 2.8.
    positions[:3] = [[50 + 350, 50, 50], [50, 50 - 240, 50], [50, 50, 1e6]]
    splat = at(positions.tolist())
    found, notes = export(splat, tmp_path, "--drop-outliers")
    assert_same_bits(found, splat.keep(np.array([1, *range(3, 200)])))
    assert notes == "Left out 2 of 200 Gaussians: 2 far from all others (--drop-outliers).\n"
    equal = at([[1, 1, 1]] * 9 + [[2, 2, 2]])
    assert len(export(equal, tmp_path, "--drop-outliers")[0]) == 10


@pytest.mark.parametrize("ending", [".ply", ".sog"])
def test_no_gaussians_left(tmp_path: Path, ending: str) -> None:
    write_ply(tmp_path / "a.ply", finite_splat(5))
    message = refusal(tmp_path / "a.ply", tmp_path / f"b{ending}", "--box", "90,90,90,91,91,91", "--max-scale", 3)
    reasons = "5 outside --box, 0 larger than --max-scale"
    assert f"no Gaussians of {tmp_path / 'a.ply'} are left ({reasons}): give wider limits." in message
    assert not (tmp_path / f"b{ending}").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--box 1,2,3", "--box is 1,2,3: give 6 numbers as x,y,z,X,Y,Z"),
        ("--box 0,0,0,1,-1,1", "smallest x,y,z first"),
        ("--box 0,0,0,1,nan,1", "give 6 numbers"),
        ("--max-scale -1", "--max-scale is -1"),
        ("--min-opacity 1.5", "--min-opacity is 1.5"),
        ("--rotate 90", "--rotate is 90: give 3 numbers as x,y,z"),
        ("--scale 0", "--scale is 0"),
        ("--translate 1,2,inf", "--translate is 1,2,inf"),
        ("--up w", "--up"),
        ("--up auto", "--up auto needs the cameras of a run"),
        ("--scale 1e300", "beyond the numbers of splat files"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, flags: str, message: str) -> None:
    write_ply(tmp_path / "a.ply", finite_splat(5))
    assert message in refusal(tmp_path / "a.ply", tmp_path / "b.ply", *flags.split())
    assert not (tmp_path / "b.ply").exists()


# ---- placement


def test_rotate_scale_and_move(tmp_path: Path) -> None:
    splat = trained_splat(50, 3)
    found, notes = export(splat, tmp_path, "--rotate", "90,0,30", "--scale", 2, "--translate", "-1,0.5,7")
    rotation = Rotation.from_euler("xyz", [90, 0, 30], degrees=True).as_matrix()
    np.testing.assert_allclose(found.xyz, 2 * splat.xyz @ rotation.T + [-1, 0.5, 7], atol=1e-5)
    np.testing.assert_allclose(covariances(found), 4 * rotation @ covariances(splat) @ rotation.T, atol=1e-5)
    assert np.abs(found.f_rest - splat.f_rest).max() > 0.01
    np.testing.assert_allclose(
        np.linalg.norm(found.f_rest, axis=(1, 2)), np.linalg.norm(splat.f_rest, axis=(1, 2)), rtol=1e-4
    )
    assert notes == ""


def test_limits_hold_before_the_placement(tmp_path: Path) -> None:
    splat = at([[0, 0, 0], [5, 0, 0]])
    found, _ = export(splat, tmp_path, "--translate", "10,0,0", "--box", "-1,-1,-1,1,1,1")
    assert found.xyz.tolist() == [[10, 0, 0]]


@pytest.mark.parametrize(
    ("up", "top"), [("y", [0, 2, 0]), ("-y", [0, -2, 0]), ("z", [0, 0, 2]), ("-x", [-2, 0, 0]), ("x", [2, 0, 0])]
)
def test_an_axis_is_turned_upwards(tmp_path: Path, up: str, top: list[float]) -> None:
    found, _ = export(at([[0, 0, 0], top]), tmp_path, "--up", up)
    np.testing.assert_allclose(found.xyz, [[0, 0, 0], [0, -2, 0]], atol=1e-6)


def test_up_comes_from_the_cameras_of_a_run(own_run: Path, tmp_path: Path) -> None:
    cameras = json.loads((own_run / "cameras.json").read_text())
    up = -np.array([camera["rotation"] for camera in cameras])[:, :, 1].mean(axis=0)
    tilt = math.degrees(math.acos(-up[1] / np.linalg.norm(up)))
    assert tilt > 10
    plain = gs_train_here("export", own_run, tmp_path / "a.ply")
    hint = f"Viewers show the scene tilted by {tilt:.0f} degrees: export it with --up auto to turn it upright."
    assert hint not in plain.stdout
    assert hint in gs_train_here("export", own_run, tmp_path / "a.sog").stdout
    (splat,) = own_run.rglob("point_cloud.ply")
    (checkpoint, *_) = sorted((own_run / "checkpoints").iterdir(), reverse=True)
    for source in (own_run, splat, checkpoint):
        done = gs_train_here("export", source, tmp_path / "b.ply", "--up", "auto")
        assert done.returncode == 0 and hint not in done.stdout
        before, after = read_ply(tmp_path / "a.ply").xyz, read_ply(tmp_path / "b.ply").xyz
        np.testing.assert_allclose(-after[:, 1], before @ up / np.linalg.norm(up), atol=1e-5)
    # A run that has not ended has no cameras.json, but its scene.
    (own_run / "cameras.json").unlink()
    assert gs_train_here("export", own_run, tmp_path / "c.ply", "--up", "auto").returncode == 0
    np.testing.assert_allclose(read_ply(tmp_path / "c.ply").xyz, after, atol=1e-5)


def test_cameras_that_do_not_agree_turn_nothing(own_run: Path, tmp_path: Path) -> None:
    cameras = json.loads((own_run / "cameras.json").read_text())
    for number, camera in enumerate(cameras):
        camera["rotation"] = Rotation.from_euler("z", 360 * number / len(cameras), degrees=True).as_matrix().tolist()
    (own_run / "cameras.json").write_text(json.dumps(cameras))
    assert gs_train_here("export", own_run, tmp_path / "a.sog").stdout.count("tilted") == 0
    done = gs_train_here("export", own_run, tmp_path / "a.ply", "--up", "auto")
    assert "The cameras do not agree which direction is up: the splat keeps its orientation." in done.stderr
    assert gs_train_here("export", own_run, tmp_path / "b.ply").returncode == 0
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


def test_a_splat_with_an_offset_keeps_its_place(tmp_path: Path) -> None:
    """Scene coordinates are offset + position, for the box and after the placement."""
    splat = at([[0, 0, 0], [1, 2, 3]])
    write_ply(tmp_path / "a.ply", splat)
    (tmp_path / "a.ply.offset.json").write_text('{"offset": [400000, 5600000, 100]}')
    for ending in (".spz", ".sog", ".glb", ".splat", ".compressed.ply"):
        done = gs_train_here("export", tmp_path / "a.ply", tmp_path / f"b{ending}")
        assert done.returncode == 0 and f"b{ending}.offset.json holds this offset" in done.stderr
        assert json.loads((tmp_path / f"b{ending}.offset.json").read_text()) == {"offset": [400000, 5600000, 100]}
    flags = ("--box", "400000.5,5600001,100,400002,5600003,104", "--rotate", "0,0,90", "--scale", 2)
    assert gs_train_here("export", tmp_path / "a.ply", tmp_path / "c.ply", *flags).returncode == 0
    (position,) = read_ply(tmp_path / "c.ply").xyz
    offset = np.array(json.loads((tmp_path / "c.ply.offset.json").read_text())["offset"])
    np.testing.assert_allclose(position + offset, [-2 * 5600002, 2 * 400001, 206], rtol=1e-9)
    np.testing.assert_allclose(position, [-4, 2, 6], atol=1e-5)
