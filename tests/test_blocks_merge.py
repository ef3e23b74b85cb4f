"""Merging blocks: the manifest and the one file, in pieces; a manifest as a splat. Figures: test_blocks_evaluate.py."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cities import write_city
from command_line import gs_train_here
from splats import ARRAYS, assert_same_bits, finite_splat, make_splat, trained_splat

from gs_train.blocks.merge import MergeResult, merge
from gs_train.blocks.plan import Plan
from gs_train.errors import UserError
from gs_train.formats.ply import read_ply, stream_ply, write_ply, write_ply_stream
from gs_train.formats.registry import is_splat_file, read_splat
from gs_train.formats.splat_data import ROWS_PER_PIECE, SplatData
from gs_train.run.open import open_splat
from gs_train.run.splat_frame import read_offset
from gs_train.scene.frame import Frame
from gs_train.viewer.page_of import page_of_splat


def merged(plan: Plan) -> MergeResult:
    return merge(plan, notify=lambda _: None)


def joined(*parts: SplatData) -> SplatData:
    return replace(
        parts[0],
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS},  # type: ignore[arg-type]
    )


def with_x(splat: SplatData, x: list[float]) -> SplatData:
    xyz = splat.xyz.copy()
    xyz[: len(x), 0] = x
    return replace(splat, xyz=xyz)


# ---- merging


@pytest.mark.parametrize("degree", [0, 3])
def test_a_gaussian_on_a_border_is_in_one_block_and_the_bytes_are_those_of_one_splat(
    tmp_path: Path, degree: int
) -> None:
    splat = with_x(finite_splat(40, degree), [0.0, -0.0, np.nextafter(np.float32(0), np.float32(-1)), 1.5, 1.5])
    plan = write_city(tmp_path / "city", [splat] * 3, [0.0, 1.5])
    result = merged(plan)
    x = splat.xyz[:, 0]
    parts = [splat.keep(x < 0), splat.keep((x >= 0) & (x < 1.5)), splat.keep(x >= 1.5)]
    assert result.per_block == {number: len(part) for number, part in enumerate(parts)}
    assert result.gaussians == 40 and len(parts[2]) >= 2
    write_ply(tmp_path / "one.ply", joined(*parts))
    assert result.path == tmp_path / "city" / "city.ply"
    assert result.path.read_bytes() == (tmp_path / "one.ply").read_bytes()
    assert_same_bits(read_splat(result.manifest), joined(*parts))


def test_every_gaussian_is_in_one_block_if_borders_are_oblique(tmp_path: Path) -> None:
    splat = finite_splat(3000, 0)
    first = (0.6, 0.48, 0.64)
    a, b, c = (splat.xyz[:, i].astype(np.float64) for i in range(3))
    along = first[0] * a + first[1] * b + first[2] * c
    # Each border goes through the centres of some Gaussians, and the blocks hold them at different rows.
    borders = sorted(along[:20].tolist())
    splats: list[SplatData | None] = [splat.keep(np.roll(np.arange(3000), 7 * shift)) for shift in range(21)]
    plan = write_city(tmp_path / "city", splats, borders, axes=(first, (0.8, -0.36, -0.48)))
    whole = read_ply(merged(plan).path)
    assert len(whole) == 3000
    assert {row.tobytes() for row in whole.xyz} == {row.tobytes() for row in splat.xyz}


def test_positions_move_to_the_offset_of_the_city(tmp_path: Path) -> None:
    splats: list[SplatData | None] = [finite_splat(20, 1), finite_splat(20, 1)]
    offset = (5e5 + 4, 4e6, 0.0)
    offsets = [(5e5, 4e6, 0.0), (5e5 + 8, 4e6, 0.0)]
    plan = write_city(tmp_path / "city", splats, [5e5 + 4.0], offset=offset, offsets=offsets)
    notes: list[str] = []
    result = merge(plan, notify=notes.append)
    scene = [finite_splat(20, 1).xyz.astype(np.float64) + own for own in offsets]
    west, east = scene[0][scene[0][:, 0] < 5e5 + 4], scene[1][scene[1][:, 0] >= 5e5 + 4]
    assert 0 < len(west) and 0 < len(east)
    whole = read_ply(result.path)
    assert np.array_equal(whole.xyz, (np.concatenate([west, east]) - offset).astype(np.float32))
    assert read_offset(result.path).offset == offset and "city.ply.offset.json" in notes[-1]
    opened = open_splat(result.manifest)
    assert opened.frame == Frame(offset=offset)
    assert_same_bits(opened.splat(), whole)


def test_gaussians_without_a_position_are_left_out(tmp_path: Path) -> None:
    splat = with_x(finite_splat(6, 0), [np.nan, np.inf, -np.inf])
    assert merged(write_city(tmp_path / "city", [splat], [])).gaussians == 3


def test_missing_blocks_are_named_and_may_be_left_out(tmp_path: Path) -> None:
    plan = write_city(tmp_path / "city", [None, finite_splat(9, 0), None], [-9.0, 9.0])
    with pytest.raises(UserError, match=r"the blocks 0, 2 have no splat in .* blocks train .* --allow-missing\.$"):
        merged(plan)
    assert not (tmp_path / "city" / "city.json").exists()
    notes: list[str] = []
    result = merge(plan, allow_missing=True, notify=notes.append)
    assert result.per_block == {1: 9} and len(read_ply(result.path)) == 9
    assert notes == ["Left out 2 of 3 blocks, which have no splat yet: 0, 2."]
    with pytest.raises(UserError, match=r"no block of .* has a splat yet"):
        merge(write_city(tmp_path / "empty", [None], []), allow_missing=True, notify=notes.append)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (finite_splat(4, 2), "has SH degree 1, not antialiased, and .* has SH degree 2, not antialiased"),
        (replace(finite_splat(4, 1), antialiased=True), "has SH degree 1, antialiased: train all blocks"),
    ],
)
def test_blocks_of_different_kinds_are_one_sentence(tmp_path: Path, other: SplatData, words: str) -> None:
    with pytest.raises(UserError, match=words):
        merged(write_city(tmp_path / "city", [finite_splat(4, 1), other], [0.0]))


def test_a_truncated_block_is_one_sentence_and_the_old_files_stay(tmp_path: Path) -> None:
    plan = write_city(tmp_path / "city", [finite_splat(40, 1), finite_splat(40, 1)], [0.0])
    result = merged(plan)
    before = result.path.read_bytes(), result.manifest.read_bytes()
    block = plan.splat(plan.blocks[1])
    assert block is not None
    block.write_bytes(block.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"point_cloud\.ply is truncated"):
        merged(plan)
    assert (result.path.read_bytes(), result.manifest.read_bytes()) == before


# ---- the manifest as a splat


def test_the_commands_read_a_manifest(tmp_path: Path) -> None:
    splat = trained_splat(300, 1)
    plan = write_city(tmp_path / "city", [splat, splat], [0.1])
    result = merged(plan)
    described = [gs_train_here("info", path, "--json") for path in (result.manifest, result.path)]
    assert described[0].returncode == 0 and described[0].stdout == described[1].stdout
    assert json.loads(described[0].stdout)["Gaussians"] == 300
    for ending in (".ply", ".splat"):
        outs = [tmp_path / f"{path.name}{ending}" for path in (result.manifest, result.path)]
        for path, out in zip((result.manifest, result.path), outs, strict=True):
            done = gs_train_here("export", path, out)
            assert done.returncode == 0 and "Wrote 300 Gaussians" in done.stdout, done.stderr
        assert outs[0].read_bytes() == outs[1].read_bytes()
    assert (tmp_path / "city.json.ply").read_bytes() == result.path.read_bytes()
    frames = (
        tmp_path / "frames",
        "--path",
        "orbit",
        "--seconds",
        0.1,
        "--width",
        32,
        "--height",
        32,
        "--device",
        "cpu",
    )
    done = gs_train_here("render", result.manifest, *frames)
    assert done.returncode == 0 and (tmp_path / "frames" / "frame_00001.png").is_file(), done.stderr
    assert "city.json" in page_of_splat(open_splat(result.manifest), print)


def test_a_city_may_be_moved(tmp_path: Path) -> None:
    result = merged(write_city(tmp_path / "city", [finite_splat(9, 0)], []))
    (tmp_path / "city").rename(tmp_path / "moved")
    assert len(read_splat(tmp_path / "moved" / result.manifest.name)) == 9


@pytest.mark.parametrize(
    "change",
    [
        {"gs_train_city": 2},
        {"offset": [0, 0]},
        {"offset": [0, 0, math.inf]},
        {"blocks": []},
        {"blocks": 3},
        {"file": "../secret.ply"},
        {"file": "/etc/passwd"},
        {"file": ""},
        {"file": 4},
        {"axes": [[1, 0, 0]]},
        {"low": [math.nan, 0]},
        {"gaussians": -1},
        {"gaussians": True},
        {"number": None},
    ],
)
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, change: dict[str, object]) -> None:
    path = merged(write_city(tmp_path / "city", [finite_splat(9, 0)], [])).manifest
    content = json.loads(path.read_text())
    target = content if change.keys() <= content.keys() else content["blocks"][0]
    target.update(change)
    path.write_text(json.dumps(content))
    assert is_splat_file(path)
    done = gs_train_here("info", path)
    assert done.returncode == 2 and "is no intact manifest of a city" in done.stderr
    assert f"gs-train blocks merge {path.parent}." in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"{", b'{"gs_train_city"', b"\xff"])
def test_a_manifest_that_is_cut_off_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "city.json").write_bytes(content)
    done = gs_train_here("export", tmp_path / "city.json", tmp_path / "out.ply")
    assert done.returncode == 2 and "is no intact manifest of a city" in done.stderr
    assert not (tmp_path / "out.ply").exists()


@pytest.mark.parametrize("change", ["fewer", "more", "gone", "moved"])
def test_blocks_that_changed_since_the_merge_are_one_sentence(tmp_path: Path, change: str) -> None:
    plan = write_city(tmp_path / "city", [finite_splat(30, 0)] * 2, [0.0])
    manifest = merged(plan).manifest
    path = plan.splat(plan.blocks[1])
    assert path is not None
    splat = read_ply(path)
    if change == "gone":
        path.unlink()
    elif change == "moved":
        write_ply(path, replace(splat, xyz=splat.xyz - 100))
    else:
        write_ply(path, splat.keep(slice(0, 5)) if change == "fewer" else joined(splat, splat))
    (tmp_path / "out.ply").write_text("old")
    done = gs_train_here("export", manifest, tmp_path / "out.ply")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (
        "does not exist: copy it there" if change == "gone" else "has changed since the merge: merge again"
    ) in done.stderr
    assert (tmp_path / "out.ply").read_text() == "old"


def test_a_scene_named_like_a_city_is_no_splat(tmp_path: Path) -> None:
    (tmp_path / "my_city.json").write_text("{}")
    assert not is_splat_file(tmp_path / "my_city.json")


# ---- pieces


def test_bits_survive_the_borders_of_pieces(tmp_path: Path) -> None:
    for rows in (ROWS_PER_PIECE, ROWS_PER_PIECE + 1):
        splat = make_splat(rows, 0)
        write_ply(tmp_path / "s.ply", splat)
        assert_same_bits(read_ply(tmp_path / "s.ply"), splat)


def test_export_and_info_of_several_pieces(tmp_path: Path) -> None:
    splat = finite_splat(ROWS_PER_PIECE + 500, 0)
    splat.opacity[[3, ROWS_PER_PIECE + 2]] = np.nan
    write_ply(tmp_path / "in.ply", splat)
    done = gs_train_here("export", tmp_path / "in.ply", tmp_path / "out.ply")
    assert done.returncode == 0 and "Left out 2 Gaussians of" in done.stderr
    finite = splat.keep(splat.is_finite())
    assert_same_bits(read_ply(tmp_path / "out.ply"), finite)
    facts = json.loads(gs_train_here("info", tmp_path / "in.ply", "--json").stdout)
    assert facts["damaged"].startswith("2 Gaussians")
    assert facts["opacity"] == f"median {np.median(1 / (1 + np.exp(-finite.opacity.astype(np.float64)))):.3f}"
    assert facts["scale"] == f"median {np.median(np.exp(finite.scaling.astype(np.float64))):.4g} world units"
    low, high = (", ".join(f"{value:.3g}" for value in side) for side in (finite.xyz.min(0), finite.xyz.max(0)))
    assert facts["box"] == f"({low}) to ({high})"


def test_memory_does_not_grow_with_the_number_of_gaussians(tmp_path: Path) -> None:
    count = 6 * ROWS_PER_PIECE
    write_ply(tmp_path / "in.ply", finite_splat(count, 0))
    tracemalloc.start()
    write_ply_stream(tmp_path / "out.ply", stream_ply(tmp_path / "in.ply"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out.ply").read_bytes() == (tmp_path / "in.ply").read_bytes()
    assert peak < 0.7 * (tmp_path / "in.ply").stat().st_size


def test_a_source_that_becomes_shorter_while_it_is_copied_is_one_sentence(tmp_path: Path) -> None:
    write_ply(tmp_path / "in.ply", finite_splat(50, 0))
    stream = stream_ply(tmp_path / "in.ply")
    (tmp_path / "in.ply").write_bytes((tmp_path / "in.ply").read_bytes()[:-10])
    with pytest.raises(UserError, match=r"in\.ply is truncated"):
        write_ply_stream(tmp_path / "out.ply", stream)
    assert [path.name for path in tmp_path.iterdir()] == ["in.ply"]
