"""Blocks: the partition, parts of a scene, the plan, and the training of blocks. Merging is in test_blocks_merge.py."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from command_line import environment, gs_train_here

from gs_train.blocks import train as block_training
from gs_train.blocks.make_plan import make_plan
from gs_train.blocks.partition import grid_for, partition
from gs_train.blocks.plan import Plan, read_plan
from gs_train.blocks.status import status_of
from gs_train.blocks.train import train_block
from gs_train.cameras.camera import Camera
from gs_train.cameras.poses import look_at
from gs_train.config.settings import TrainConfig
from gs_train.config.toml import read_config
from gs_train.errors import UserError
from gs_train.run.lock import hold_lock
from gs_train.scene.load import load_scene
from gs_train.scene.part import PART, Region, read_part
from gs_train.scene.types import PointCloud, Scene, View

CAMERA = Camera(width=20, height=20, fx=20.0, fy=20.0, cx=10.0, cy=10.0)
SHORT = TrainConfig(iterations=12, max_gaussians=1000, device="cpu", log_every=1, save_every=4)


def plain(columns: int = 12, rows: int = 6, *, tracks: bool = True) -> Scene:
    """A plain of 12 by 6 units with a camera over each unit, which sees the points below it."""
    rng = np.random.default_rng(0)
    xyz = rng.uniform((0, 0, 0), (columns, rows, 0.3), (columns * rows * 20, 3))
    ids, views = np.arange(len(xyz)) + 7, []
    for x in range(columns):
        for y in range(rows):
            below = np.flatnonzero((np.floor(xyz[:, :2]) == (x, y)).all(axis=1))
            middle = np.array((x + 0.5, y + 0.5, 0.0))
            views.append(
                View(
                    name=f"{x:02d}_{y:02d}.png",
                    image_path=Path("none.png"),
                    camera=CAMERA,
                    world_to_camera=look_at(middle + np.array((0.0, -0.6, 1.0)), middle),
                    point_ids=np.append(ids[below], 3) if tracks else None,
                )
            )
    points = PointCloud(xyz=xyz, rgb=np.zeros((len(xyz), 3), np.uint8), ids=ids if tracks else None)
    return Scene(path=Path("plain"), train_views=tuple(views), test_views=(), points=points, extent=8.0)


# ---- the partition


@pytest.mark.parametrize("tracks", [True, False])
def test_boxes_cover_the_plain_once_and_every_photo_has_a_block(tracks: bool) -> None:
    scene = plain(tracks=tracks)
    made = partition(scene, 2, 2, fewest_photos=5)
    inside = np.stack([block.region.contains(scene.points.xyz) for block in made.blocks])
    assert (inside.sum(axis=0) == 1).all()
    assert inside.sum(axis=1).tolist() == [block.points for block in made.blocks]
    assert max(inside.sum(axis=1)) < 1.1 * min(inside.sum(axis=1))
    assert {name for block in made.blocks for name in block.photos} == {view.name for view in scene.train_views}
    # The longer side is cut first, so the column of a photo shows in its name.
    assert all(name < "08" for block in made.blocks[:2] for name in block.photos) or all(
        name > "04" for block in made.blocks[:2] for name in block.photos
    )


def test_a_point_on_a_border_is_in_one_block() -> None:
    left = Region(axes=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), low=(-math.inf, -math.inf), high=(3.0, math.inf))
    right = replace(left, low=(3.0, -math.inf), high=(math.inf, math.inf))
    border = np.array([[3.0, 1.0, 5.0]])
    assert not left.contains(border)[0] and right.contains(border)[0]
    assert left.widened(0.5).contains(border)[0]


def test_a_photo_belongs_to_a_block_from_3_percent_of_its_points() -> None:
    scene = plain()
    made = partition(scene, 2, 1, fewest_photos=5)
    for view in scene.train_views:
        seen = np.isin(scene.points.ids, view.point_ids)
        for block in made.blocks:
            share = block.region.contains(scene.points.xyz[seen]).mean()
            assert (view.name in block.photos) == (share >= 0.03)


def test_blocks_with_few_photos_are_merged_and_it_is_said() -> None:
    made = partition(plain(), 4, 2, fewest_photos=25)
    assert 1 < len(made.blocks) < 8
    assert all(len(block.photos) >= 25 for block in made.blocks)
    assert len(made.notices) == 8 - len(made.blocks) and "a block needs 25" in made.notices[0]
    assert len(partition(plain(), 9, 9).blocks) == 1


def test_blocks_are_about_square() -> None:
    columns, rows = grid_for(plain(), 8)
    assert columns * rows >= 8 and columns == 4


def test_a_scene_without_points_is_divided_by_its_cameras() -> None:
    scene = plain(tracks=False)
    empty = PointCloud(xyz=np.zeros((0, 3)), rgb=np.zeros((0, 3), np.uint8))
    made = partition(replace(scene, points=empty), 2, 1, fewest_photos=5)
    assert [len(block.photos) >= 36 for block in made.blocks] == [True, True]


# ---- the plan and its parts


@pytest.fixture
def city(tiny_scene: Path, tmp_path: Path) -> Plan:
    """A plan of two blocks for the tiny scene."""
    scene = load_scene(tiny_scene, SHORT.scene)
    return make_plan(scene, SHORT, tmp_path / "city", grid=(2, 1), most_per_block=900, fewest_photos=2)


def test_a_block_is_a_scene_without_test_views(city: Plan, tiny_scene: Path) -> None:
    whole = load_scene(tiny_scene)
    for block in city.blocks:
        part = load_scene(city.folder(block))
        names = {view.name for view in part.train_views}
        assert len(names) == block.photos and not part.test_views
        assert names.isdisjoint(view.name for view in whole.test_views)
        inside = city.region(block).contains(whole.points.xyz)
        assert inside.sum() == block.points
        assert {tuple(row) for row in whole.points.xyz[inside]} <= {tuple(row) for row in part.points.xyz}
    assert len({load_scene(city.folder(block)).extent for block in city.blocks}) == 1


def test_steps_and_gaussians_are_shared_out(city: Plan, tiny_scene: Path) -> None:
    photos = len(load_scene(tiny_scene).train_views)
    assert read_plan(city.path) == city
    for block in city.blocks:
        config, _ = read_config(city.block_settings(block))
        finish, _ = read_config(city.finish_settings(block))
        assert (config.iterations, finish.iterations) == (block.iterations, block.finish_iterations)
        assert block.steps == math.ceil(12 * block.photos / photos)
        assert block.finish_iterations == round(0.3 * block.steps)
        # The rate of the positions goes on where the training leaves it.
        lr, share = config.optimizer, block.iterations / int(config.optimizer.xyz_lr_max_steps)
        end = lr.xyz_lr_init * (lr.xyz_lr_final / lr.xyz_lr_init) ** share
        assert finish.optimizer.xyz_lr_init == pytest.approx(end)
        assert finish.density.interval == 0 and finish.optimizer.xyz_lr_final == lr.xyz_lr_final
        assert config.max_gaussians == block.max_gaussians <= 900
        assert config.optimizer.scaling_lr == pytest.approx(
            SHORT.optimizer.scaling_lr / math.sqrt(block.photos / photos)
        )
        assert config.scene.test_every == 0 and config.density.until_iteration <= config.iterations
    assert sum(block.expected_gaussians for block in city.blocks) <= 1000 + len(city.blocks)
    assert city.picture.read_text().startswith("<svg")


def test_a_damaged_part_or_plan_is_one_sentence(city: Plan) -> None:
    part, plan = city.folder(city.blocks[0]) / PART, city.path / "plan.json"
    good = json.loads(part.read_text())
    for change in ({"photos": []}, {"extent": math.inf}, {"axes": [[1, 0, 0]]}, {"low": [0]}, {"scene": 3}):
        part.write_text(json.dumps(good | change))
        with pytest.raises(UserError, match="is damaged"):
            read_part(part.parent)
    part.write_text(json.dumps(good | {"photos": ["none.png"]}))
    with pytest.raises(UserError, match=r"names 1 photos that .* lacks \(none.png\)"):
        load_scene(part.parent)
    for content in ("{", "[]", json.dumps(json.loads(plan.read_text()) | {"format": 9})):
        plan.write_text(content)
        with pytest.raises(UserError, match="plan the blocks again"):
            read_plan(city.path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"background": "learned"}, "--background"),
        ({"exposure": "affine"}, "--exposure"),
        ({"refine_poses": True}, "--ref"),
    ],
)
def test_corrections_of_the_whole_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_plan(plain(), replace(SHORT, **change), tmp_path / "city", most_per_block=10)  # type: ignore[arg-type]
    assert not (tmp_path / "city").exists()


def test_a_folder_of_other_things_is_not_planned_into(city: Plan, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    city.run(city.blocks[0]).path.mkdir()
    for folder, words in ((tmp_path / "taken", "not empty"), (city.path, "holds trained blocks")):
        with pytest.raises(UserError, match=words):
            make_plan(plain(), SHORT, folder, most_per_block=10)


# ---- training


def test_blocks_are_planned_trained_and_shown_from_the_command_line(tiny_scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "city"
    flags = ("--iterations", 6, "--max-gaussians", 500, "--device", "cpu", "--preset", "tiny", "--log-every", 1)
    done = gs_train_here("blocks", "plan", tiny_scene, "--out", out, "--grid", "2x2", *flags)
    # The tiny scene has too few photos for four blocks.
    assert done.returncode == 0 and "merged with its neighbour" in done.stderr and "One block" in done.stdout
    done = gs_train_here("blocks", "train", out, "--only", 0)
    assert done.returncode == 0 and "Block 0: trained\nBlock 0: done\n" in done.stdout, done.stderr + done.stdout
    plan = read_plan(out)
    status = status_of(plan, plan.blocks[0])
    assert status.state == "done" and status.iteration == status.iterations == 6 and status.gaussians
    shown = gs_train_here("blocks", "status", out)
    assert shown.returncode == 0 and "1 of 1 blocks are done." in shown.stdout
    assert json.loads(gs_train_here("blocks", "status", out, "--json").stdout)[0]["state"] == "done"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("blocks",), "lacks a word: give gs-train blocks with one of plan"),
        (("blocks", "trian"), "did you mean train"),
        (("blocks", "train", "CITY", "--only", "7"), "the plan has the blocks 0 to 1"),
        (("blocks", "train", "CITY", "--only", "0", "--workers", "2"), "--workers does not go with --only"),
        (("blocks", "status", "NOWHERE"), "holds no plan.json"),
        (("blocks", "plan", "SCENE", "--grid", "0x2"), "--grid is 0x2"),
    ],
)
def test_wrong_arguments_are_one_sentence(city: Plan, tiny_scene: Path, arguments: tuple[str, ...], words: str) -> None:
    places = {"CITY": city.path, "SCENE": tiny_scene}
    done = gs_train_here(*(places.get(argument, argument) for argument in arguments))
    assert done.returncode == 2 and words in done.stderr, done.stderr


def test_the_plan_of_another_scene_is_not_trained(city: Plan) -> None:
    replace(city, fingerprint="other").write()
    done = gs_train_here("blocks", "train", city.path, "--only", 0)
    assert done.returncode == 2 and "is the plan of another scene" in done.stderr


def test_a_training_that_is_killed_goes_on_and_two_deaths_by_memory_are_a_failure(
    city: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []

    def start(plan: Plan, block: object, *_: object) -> tuple[int, str]:
        code = codes.pop(0)
        if code == 0:
            path = plan.run(plan.blocks[0]).point_cloud(plan.blocks[0].iterations)
            path.parent.mkdir(parents=True)
            path.touch()
        return code, "the photo cannot be read" if code == 2 else ""

    monkeypatch.setattr(block_training, "_start", start)
    for wanted, outcome, words in (
        ([-9, -9], "failed", "ran out of memory"),
        ([2], "failed", "the photo cannot be read"),
        ([143], "stopped", ""),
        ([1, -9, 0], "done", ""),
    ):
        codes[:] = wanted
        result = train_block(str(city.path), 0, {})
        assert (result.outcome, codes) == (outcome, []) and words in result.reason
        if outcome == "failed":
            assert status_of(city, city.blocks[0]).state == "failed"
    assert status_of(city, city.blocks[0]).state == "trained"


def test_a_block_in_use_is_said(city: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_lock(city.run(city.blocks[1]).path):
        assert status_of(city, city.blocks[1]).state == "training"
        with pytest.raises(UserError, match="another training"):
            block_training.wait_unlocked(city, city.blocks[1], patience_s=0.3)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_training_ends_with_its_worker(city: Plan) -> None:
    """A killed worker would otherwise leave a second writer."""
    settings = city.block_settings(city.blocks[0])
    settings.write_text(
        settings.read_text().replace(f"iterations = {city.blocks[0].iterations}", "iterations = 100000")
    )
    code = f"from gs_train.blocks.train import train_block; train_block({str(city.path)!r}, 0, {{}})"
    worker = subprocess.Popen([sys.executable, "-c", code], env=environment())
    run = city.run(city.blocks[0])
    deadline = time.monotonic() + 120
    while not list(run.checkpoints.glob("*.pt")):
        assert worker.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    trainer = int((run.path / ".lock").read_text())
    worker.kill()
    worker.wait()
    while os.path.exists(f"/proc/{trainer}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{trainer}")
    assert status_of(city, city.blocks[0]).state == "stopped"


@pytest.mark.skipif(find_spec("distributed") is None, reason="needs the extra blocks")
def test_workers_of_dask_give_the_same_bytes_as_one_block_at_a_time(
    city: Plan, tiny_scene: Path, tmp_path: Path
) -> None:
    scene = load_scene(tiny_scene, SHORT.scene)
    alone = make_plan(scene, SHORT, tmp_path / "alone", grid=(2, 1), most_per_block=900, fewest_photos=2)
    for number in (0, 1):
        assert gs_train_here("blocks", "train", alone.path, "--only", number).returncode == 0
    command = [sys.executable, "-m", "gs_train", "blocks", "train", str(city.path), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    assert done.returncode == 0 and "done (2 of 2)" in done.stdout, done.stderr + done.stdout
    for block in city.blocks:
        one, other = city.finished(block), alone.finished(block)
        assert one is not None and other is not None and one.read_bytes() == other.read_bytes()
    assert gs_train_here("blocks", "train", city.path, "--scheduler", "tcp://127.0.0.1:9").returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_stopped_command_says_how_to_go_on(city: Plan) -> None:
    settings = city.block_settings(city.blocks[0])
    settings.write_text(
        settings.read_text().replace(f"iterations = {city.blocks[0].iterations}", "iterations = 100000")
    )
    command = [sys.executable, "-m", "gs_train", "blocks", "train", str(city.path), "--only", "0"]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # The tests may run as a shell's background job, which ignores SIGINT, as its children do.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 120
    while not list(city.run(city.blocks[0]).checkpoints.glob("*.pt")):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and f"gs-train blocks train {city.path}" in out, err
    assert status_of(city, city.blocks[0]).state == "stopped"
