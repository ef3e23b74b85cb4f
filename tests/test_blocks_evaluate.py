"""Figures of a city from its blocks: the choice of blocks within a memory budget, and the files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gs_train.blocks.choose import BlockBounds, blocks_for, bounds_of, grouped
from gs_train.blocks.evaluate import BYTES_PER_GAUSSIAN, evaluate_blocks
from gs_train.blocks.make_plan import make_plan
from gs_train.blocks.merge import merge
from gs_train.blocks.plan import Plan
from gs_train.cameras.camera import Camera
from gs_train.cameras.poses import camera_centre, look_at
from gs_train.config.settings import TrainConfig
from gs_train.errors import UserError
from gs_train.evaluate.evaluate import evaluate_splat
from gs_train.formats.ply import write_ply
from gs_train.formats.splat_data import SplatData
from gs_train.run.open import open_splat
from gs_train.run.splat_frame import write_offset
from gs_train.scene.frame import Frame
from gs_train.scene.load import load_scene
from gs_train.scene.types import View

CAMERA = Camera(width=40, height=30, fx=50.0, fy=45.0, cx=18.0, cy=16.0)
CONFIG = TrainConfig(iterations=12, max_gaussians=1000, device="cpu")


def view_at(eye: tuple[float, float, float], target: tuple[float, float, float]) -> View:
    pose = look_at(np.array(eye), np.array(target))
    return View(name="a", image_path=Path("a.png"), camera=CAMERA, world_to_camera=pose)


def box(low: tuple[float, float, float], side: float = 1.0, gaussians: int = 10) -> BlockBounds:
    return BlockBounds(low=np.array(low), high=np.array(low) + side, gaussians=gaussians)


# ---- the choice


def test_no_block_that_a_view_shows_is_left_out() -> None:
    rng, hidden = np.random.default_rng(0), 0
    for _ in range(300):
        view = view_at(tuple(rng.normal(0, 2, 3)), tuple(rng.normal(0, 2, 3)))
        low = rng.normal(0, 2, 3)
        bounds = BlockBounds(low=low, high=low + rng.uniform(0, 2, 3), gaussians=1)
        inside = rng.uniform(bounds.low, bounds.high, (2000, 3))
        x, y, z = (inside @ view.world_to_camera[:3, :3].T + view.world_to_camera[:3, 3]).T
        u, v = CAMERA.fx * x / z + CAMERA.cx, CAMERA.fy * y / z + CAMERA.cy
        shown = (z > 0) & (u >= 0) & (u < CAMERA.width) & (v >= 0) & (v < CAMERA.height)
        found = bounds.in_view(CAMERA, view.world_to_camera)
        assert found or not shown.any()
        hidden += not found
    # Boxes that are not shown are found, too.
    assert hidden > 100


def test_bounds_hold_the_gaussians_as_far_as_they_are_drawn() -> None:
    splat = SplatData(
        xyz=np.array([[0, 0, 0], [4, 1, 2]], np.float32),
        f_dc=np.zeros((2, 1, 3), np.float32),
        f_rest=np.zeros((2, 0, 3), np.float32),
        opacity=np.zeros((2, 1), np.float32),
        scaling=np.log(np.array([[1, 0.1, 0.1], [0.1, 0.1, 0.2]], np.float32)),
        rotation=np.ones((2, 4), np.float32),
    )
    bounds = bounds_of([splat.keep(slice(0, 1)), splat.keep(slice(1, 2))])
    assert bounds is not None and bounds.gaussians == 2
    assert np.allclose(bounds.low, -3.33) and np.allclose(bounds.high, (4 + 0.666, 3.33, 3.33), atol=1e-4)
    assert bounds_of([splat.keep(slice(0, 0))]) is None


def test_the_nearest_blocks_come_first() -> None:
    bounds = {0: box((-0.5, -0.5, 8)), 1: box((-0.5, -0.5, 2)), 2: box((-0.5, -0.5, 5)), 3: box((-0.5, -0.5, -5))}
    view = View(name="a", image_path=Path("a.png"), camera=CAMERA, world_to_camera=np.eye(4))
    assert blocks_for(view, bounds, 30) == ((1, 2, 0), ())
    assert blocks_for(view, bounds, 29) == ((1, 2), (0,))
    # A large block in between ends the list: a farther one would show through the gap.
    assert blocks_for(view, bounds | {2: box((-0.5, -0.5, 5), gaussians=30)}, 30) == ((1,), (2, 0))
    with pytest.raises(UserError, match=r"--memory-gb has room for 9 Gaussians, and block 1 has 10: give more\."):
        blocks_for(view, bounds, 9)
    # A view of none of the blocks is rendered from the nearest one.
    assert blocks_for(view_at((9.0, 0.0, 2.0), (99.0, 0.0, 2.0)), bounds, 30) == ((1,), ())


def test_views_share_sets_of_blocks_that_fit() -> None:
    bounds = {number: box((0, 0, 0), gaussians=10 * (number + 1)) for number in range(4)}
    wanted = [(0,), (3,), (0, 1), (1, 0), (2,), (0, 3), (2, 1)]
    for most in (50, 60, 70, 100):
        groups = grouped(wanted, bounds, most)
        assert sorted(index for _, members in groups for index in members) == list(range(len(wanted)))
        for blocks, members in groups:
            assert sum(bounds[number].gaussians for number in blocks) <= most
            assert all(set(wanted[index]) <= set(blocks) for index in members)
        assert len(groups) == {50: 3, 60: 2, 70: 2, 100: 1}[most]


# ---- the figures


@pytest.fixture
def city(tiny_scene: Path, tiny_run: Path, tmp_path: Path) -> Plan:
    """A city of two blocks with four held-out views. Both blocks hold the splat of the same run."""
    config = replace(CONFIG, scene=replace(CONFIG.scene, test_every=2))
    scene = load_scene(tiny_scene, config.scene)
    plan = make_plan(scene, config, tmp_path / "city", grid=(2, 1), most_per_block=900, fewest_photos=1)
    assert len(plan.blocks) == 2
    for block in plan.blocks:
        write_ply(plan.run(block).point_cloud(block.iterations), open_splat(tiny_run).splat())
    return plan


def test_the_figures_are_those_of_the_merged_splat(city: Plan, tiny_scene: Path) -> None:
    views: list[int] = []
    figures = evaluate_blocks(city, device="cpu", notify=lambda _: None, after_view=lambda: views.append(1))
    merged = merge(city, notify=lambda _: None)
    opened = open_splat(merged.path)
    shown = load_scene(tiny_scene, replace(CONFIG.scene, test_every=2)).test_views
    expected = evaluate_splat(opened, shown, opened.select_rasterizer("cpu"))
    assert len(views) == len(shown) == figures["views"] == city.test_views == 4
    assert figures["psnr"] == pytest.approx(expected.mean.psnr, abs=1e-3)
    assert figures["ssim"] == pytest.approx(expected.mean.ssim, abs=1e-4)
    assert (figures["blocks"], figures["loads"], figures["views_with_blocks_left_out"]) == (2, 1, 0)
    assert figures["gaussians"] == merged.gaussians and figures["split"] == "test"
    written = json.loads((city.path / "results.json").read_text())
    assert written.items() <= figures.items()
    each = json.loads((city.path / "per_view.json").read_text())
    assert list(each) == [view.name for view in shown]
    for view in shown:
        assert each[view.name]["psnr"] == pytest.approx(expected.per_view[view.name].psnr, abs=1e-3)
    pictures = sorted((city.path / "renders").iterdir())
    assert sorted(map(Path, figures["images"])) == pictures and len(pictures) == 4


def test_a_small_budget_loads_block_after_block(city: Plan) -> None:
    whole = evaluate_blocks(city, device="cpu", notify=lambda _: None)
    counts = merge(city, notify=lambda _: None).per_block
    budget_gb = (max(counts.values()) + 0.5) * BYTES_PER_GAUSSIAN / 1e9
    notes: list[str] = []
    figures = evaluate_blocks(city, memory_gb=budget_gb, device="cpu", notify=notes.append)
    assert 1 <= figures["loads"] <= 2 and figures["views_with_blocks_left_out"] > 0
    assert figures["psnr"] < whole["psnr"] and figures["gaussians"] == whole["gaussians"]
    assert any("because all of them need --memory-gb" in note for note in notes)
    assert any("4 views are rendered without the farthest blocks" in note for note in notes)
    with pytest.raises(UserError, match="--memory-gb has room for 1 Gaussians"):
        evaluate_blocks(city, memory_gb=1.5 * BYTES_PER_GAUSSIAN / 1e9, device="cpu", notify=notes.append)


def test_offsets_of_the_files_do_not_change_the_figures(city: Plan) -> None:
    whole = evaluate_blocks(city, device="cpu", notify=lambda _: None)
    for block, x in zip(city.blocks, (64.0, -32.0), strict=True):
        path = city.run(block).point_cloud(block.iterations)
        splat, frame = open_splat(path).splat(), Frame(offset=(x, 0.0, 8.0))
        write_ply(path, replace(splat, xyz=(splat.xyz - np.array(frame.offset)).astype(np.float32)))
        write_offset(path, frame)
    moved = evaluate_blocks(replace(city, offset=(16.0, 0.0, 0.0)), device="cpu", notify=lambda _: None)
    assert moved["psnr"] == pytest.approx(whole["psnr"], abs=0.01)
    assert abs(moved["gaussians"] - whole["gaussians"]) <= 1  # one may lie on the border


def test_cities_that_cannot_be_measured_are_one_sentence(city: Plan, tiny_scene: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is the plan of another scene"):
        evaluate_blocks(replace(city, fingerprint="other"), notify=lambda _: None)
    first = city.splat(city.blocks[0])
    assert first is not None
    splat = open_splat(first).splat()
    write_ply(first, replace(splat, opacity=np.full_like(splat.opacity, np.nan)))
    with pytest.raises(UserError, match=r"has NaN or infinite values\): copy it again, or train"):
        evaluate_blocks(city, device="cpu", notify=lambda _: None)
    first.unlink()
    with pytest.raises(UserError, match=r"the block 0 has no splat in .* --allow-missing"):
        evaluate_blocks(city, device="cpu", notify=lambda _: None)
    assert evaluate_blocks(city, device="cpu", allow_missing=True, notify=lambda _: None)["blocks"] == 1
    config = replace(CONFIG, scene=replace(CONFIG.scene, test_every=0))
    plan = make_plan(load_scene(tiny_scene, config.scene), config, tmp_path / "all", grid=(1, 1), most_per_block=900)
    with pytest.raises(UserError, match="has no held-out views"):
        evaluate_blocks(plan, notify=lambda _: None)


def test_a_view_inside_a_block_is_nearest_to_it() -> None:
    bounds = {0: box((0, 0, 0), side=10), 1: box((10, 0, 0), side=10)}
    view = view_at((11.0, 5.0, 5.0), (0.0, 5.0, 5.0))
    assert camera_centre(view.world_to_camera) == pytest.approx((11, 5, 5))
    assert blocks_for(view, bounds, 10) == ((1,), (0,))
