"""The finish of blocks: the splat that it starts from, its order after the trainings, and its resume."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cities import write_city
from command_line import gs_train_here
from splats import trained_splat

from gs_train.blocks import train as block_training
from gs_train.blocks.finish import neighbourhoods, ready, write_start
from gs_train.blocks.make_plan import make_plan
from gs_train.blocks.merge import merge
from gs_train.blocks.plan import Plan, PlannedBlock, read_plan
from gs_train.blocks.status import status_of
from gs_train.blocks.train import train_block
from gs_train.config.settings import TrainConfig
from gs_train.errors import UserError
from gs_train.formats.ply import read_ply, write_ply
from gs_train.formats.splat_data import SplatData
from gs_train.run.folder import RunFolder
from gs_train.run.lock import hold_lock
from gs_train.run.splat_frame import read_offset
from gs_train.scene.load import load_scene

BLOCKS_X = ([-5.0, -0.5, 0.5, 3.0], [-2.0, -0.4, 0.5, 5.0, 9.9, 10.6, 12.0], [9.0, 10.5, 11.5])
"""Positions along the first axis of the Gaussians of three blocks with borders at 0 and 10 and a margin of 1."""
CONFIG = TrainConfig(iterations=60, max_gaussians=1000, device="cpu", log_every=1, save_every=2)


def at(x: list[float], shift: float = 0.0) -> SplatData:
    splat = trained_splat(len(x), 1)
    return replace(
        splat, xyz=np.stack([np.array(x) - shift, 0 * splat.xyz[:, 1], splat.xyz[:, 2]], 1, dtype=np.float32)
    )


def start_x(plan: Plan, number: int) -> list[float]:
    """Positions along the first axis of the start of a finish, scene coordinates."""
    path = plan.start(plan.blocks[number])
    write_start(plan, plan.blocks[number])
    return sorted(np.round(read_ply(path).xyz[:, 0].astype(float) + read_offset(path).offset[0], 3).tolist())


@pytest.mark.parametrize("shifts", [(0.0, 0.0, 0.0), (64.0, -32.0, 0.0)])
def test_a_finish_starts_from_the_merged_city_near_the_box_and_from_its_own_beyond(
    tmp_path: Path, shifts: tuple[float, ...]
) -> None:
    splats = [at(x, shift) for x, shift in zip(BLOCKS_X, shifts, strict=True)]
    plan = write_city(tmp_path / "city", list(splats), [0.0, 10.0], offsets=[(shift, 0.0, 0.0) for shift in shifts])
    assert [[other.number for other in near] for near in neighbourhoods(plan)] == [[1], [0, 2], [1]]
    assert start_x(plan, 1) == [-2.0, -0.5, 0.5, 5.0, 9.9, 10.5, 12.0]
    assert start_x(plan, 0) == [-5.0, -0.5, 0.5, 3.0]
    # All values move with their Gaussian.
    start, own = read_ply(plan.start(plan.blocks[1])), splats[1]
    row = np.flatnonzero(start.xyz[:, 0] == own.xyz[3, 0])
    assert len(row) == 1 and all(
        np.array_equal(getattr(start, name)[row[0]], getattr(own, name)[3]) for name in ("f_rest", "rotation")
    )


def test_a_finish_has_no_more_gaussians_than_the_training_may_have(tmp_path: Path) -> None:
    plan = write_city(tmp_path / "city", [at(x) for x in BLOCKS_X], [0.0, 10.0], max_gaussians=5)
    assert start_x(plan, 1) == [-0.5, 0.5, 5.0, 9.9, 10.5]


def test_a_finish_waits_for_its_neighbours(tmp_path: Path) -> None:
    plan = write_city(tmp_path / "city", [at(BLOCKS_X[0]), at(BLOCKS_X[1]), None], [0.0, 10.0])
    assert ready(plan) == {0}
    with pytest.raises(UserError, match=r"block 2 of .* is not trained yet"):
        write_start(plan, plan.blocks[1])


# ---- the order


@pytest.fixture
def city(tiny_scene: Path, tmp_path: Path) -> Plan:
    """A plan of two blocks for the tiny scene."""
    scene = load_scene(tiny_scene, CONFIG.scene)
    return make_plan(scene, CONFIG, tmp_path / "city", grid=(2, 1), most_per_block=900, fewest_photos=2)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that write a splat at once."""

    def start(plan: Plan, block: PlannedBlock, _: object, arguments: tuple[str, ...]) -> tuple[int, str]:
        out, finish = Path(arguments[arguments.index("--out") + 1]), "--init-from" in arguments
        steps = block.finish_iterations if finish else block.iterations
        write_ply(RunFolder(out).point_cloud(steps), trained_splat(50, 1))
        return 0, ""

    monkeypatch.setattr(block_training, "_start", start)


def ends(plan: Plan, number: int) -> list[str]:
    """The lines about blocks that a job of an array prints."""
    done = gs_train_here("blocks", "train", plan.path, "--only", number)
    assert done.returncode == 0, done.stderr
    waits = f"Block {number} is finished together with the last of its neighbours." in done.stdout
    assert waits == (plan.finished(plan.blocks[number]) is None)
    return [line for line in done.stdout.splitlines() if re.match(r"Block \d: ", line)]


@pytest.mark.usefixtures("quick")
def test_the_last_process_of_a_job_array_finishes_its_neighbours(city: Plan) -> None:
    first, second = city.blocks
    assert ends(city, 0) == ["Block 0: trained"]
    assert status_of(city, first).state == "trained" and city.splat(first) == city.trained(first)
    assert ends(city, 1) == ["Block 1: trained", "Block 0: done", "Block 1: done"]
    assert status_of(city, second).state == "done" and not city.start(second).exists()
    assert ends(city, 1) == ["Block 1: trained", "Block 1: done"]
    notes: list[str] = []
    merge(city, notify=notes.append)
    assert not notes and "0/finish/point_cloud" in (city.path / "city.json").read_text()
    # A block that is trained again does not fit to the finish of its neighbour.
    shutil.rmtree(city.run(first).path)
    assert ends(city, 0) == ["Block 0: trained", "Block 0: done", "Block 1: done"]
    shutil.rmtree(city.finish(first).path)
    merge(city, notify=notes.append)
    assert len(notes) == 1 and notes[0].startswith("1 of 2 blocks are not finished")


@pytest.mark.usefixtures("quick")
def test_a_block_that_another_process_finishes_is_left_to_it(city: Plan) -> None:
    assert ends(city, 0) == ["Block 0: trained"]
    with hold_lock(city.folder(city.blocks[0])):
        assert ends(city, 1) == ["Block 1: trained", "Block 1: done"]
    assert ends(city, 1) == ["Block 1: trained", "Block 0: done", "Block 1: done"]


@pytest.mark.usefixtures("quick")
def test_a_finish_without_its_neighbours_is_a_failure_with_its_reason(city: Plan) -> None:
    assert train_block(str(city.path), 0, {}).outcome == "done"
    result = train_block(str(city.path), 0, {}, finish=True)
    assert result.outcome == "failed" and "block 1 of" in result.reason
    assert status_of(city, city.blocks[0]).state == "failed"


def test_a_finish_that_is_stopped_goes_on_to_the_same_bytes(city: Plan) -> None:
    """It starts three processes."""
    block, other = city.blocks
    assert train_block(str(city.path), 0, {}).outcome == "done"
    trained = city.trained(block)
    assert trained is not None
    write_ply(city.run(other).point_cloud(other.iterations), read_ply(trained))
    assert train_block(str(city.path), 0, {}, finish=True).outcome == "done"
    splat, run = city.finished(block), city.finish(block)
    assert splat is not None and block.finish_iterations >= 3
    assert status_of(city, block).iteration == block.steps
    before = splat.read_bytes()
    assert before != trained.read_bytes()
    # As after a kill between the checkpoint of step 2 and the end. The folder is moved, too.
    splat.unlink()
    for checkpoint in sorted(run.checkpoints.glob("*.pt"))[1:]:
        checkpoint.unlink()
    city = read_plan(city.path.rename(city.path.with_name("moved")))
    result, splat = train_block(str(city.path), 0, {}, finish=True), city.finished(block)
    assert result.outcome == "done" and splat is not None and splat.read_bytes() == before, result.reason
    assert (city.folder(block) / "log.txt").read_text().count("Resuming from") == 1
