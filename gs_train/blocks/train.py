"""Trains or finishes one block: an ordinary ``gs-train train`` in a process of its own, started again where it ended.

All state is on the disk, so that any process on any machine that sees the folder can go on: the two runs of the block
with their locks and checkpoints, ``log.txt``, and ``failure.json`` for a block that cannot be trained.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gs_train.atomic_write import atomic_write_text
from gs_train.blocks.finish import neighbourhoods, ready, write_start
from gs_train.blocks.plan import Plan, PlannedBlock, read_plan
from gs_train.config.toml import read_config
from gs_train.errors import UserError
from gs_train.machine import cpu_threads
from gs_train.run.lock import check_unlocked, hold_lock
from gs_train.run.splat_frame import offset_path

Outcome = Literal["done", "failed", "stopped"]
_MOST_STARTS = 3
_MOST_MEMORY_DEATHS = 2
_LOCK_PATIENCE_S = 60.0
_USER_ERROR = 2
_OUT_OF_MEMORY = ("out of memory", "needs more memory", "no memory", "not enough memory")
_GPUS = "GS_TRAIN_BLOCK_GPUS"


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """The end of the training or the finish of a block."""

    number: int
    finish: bool
    """Whether it is the finish."""
    outcome: Outcome
    reason: str = ""
    """For a block that failed: one sentence."""


def failure_path(plan: Plan, block: PlannedBlock) -> Path:
    """The file that holds the reason of a failed block."""
    return plan.folder(block) / "failure.json"


def failure_of(plan: Plan, block: PlannedBlock) -> str | None:
    """The reason why a block failed; None if it has not."""
    try:
        return str(json.loads(failure_path(plan, block).read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def train_block(
    city: str, number: int, environment: Mapping[str, str], flags: tuple[str, ...] = (), *, finish: bool = False
) -> BlockResult:
    """Train or finish a block to the end, or go on with it. A block that has ended is left as it is.

    Args:
        city: folder of the plan.
        number: of the block.
        environment: variables of the training, added to those of this process.
        flags: further flags of ``gs-train train`` that change no result.
        finish: finish the block, which is in ``ready``, in place of its training.

    Raises:
        UserError: another process keeps writing to the block.
    """
    plan = read_plan(Path(city))
    block, deaths, reason = plan.blocks[number], 0, ""
    end = plan.finished if finish else plan.trained
    for _ in range(_MOST_STARTS):
        if end(block) is not None:
            return _done(plan, block, finish)
        wait_unlocked(plan, block)
        try:
            arguments = _finish_arguments(plan, block) if finish else _training_arguments(plan, block)
        except UserError as error:
            reason = str(error)
            break
        code, reason = _start(plan, block, environment, (*arguments, *flags))
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return BlockResult(number=number, finish=finish, outcome="stopped")
        if code == -signal.SIGKILL or any(words in reason.lower() for words in _OUT_OF_MEMORY):
            deaths += 1
            reason = "its training ran out of memory, or was killed: plan smaller blocks, or train fewer at a time"
        elif code == _USER_ERROR:
            break
        if deaths == _MOST_MEMORY_DEATHS:
            break
    if end(block) is not None:
        return _done(plan, block, finish)
    with suppress(OSError):
        atomic_write_text(failure_path(plan, block), json.dumps({"reason": reason}) + "\n")
    return BlockResult(number=number, finish=finish, outcome="failed", reason=reason)


def _done(plan: Plan, block: PlannedBlock, finish: bool) -> BlockResult:
    """The result of a block that has ended, without its leftovers."""
    failure_path(plan, block).unlink(missing_ok=True)
    if finish:
        plan.start(block).unlink(missing_ok=True)
        offset_path(plan.start(block)).unlink(missing_ok=True)
    return BlockResult(number=block.number, finish=finish, outcome="done")


def _training_arguments(plan: Plan, block: PlannedBlock) -> tuple[str, ...]:
    """Arguments of ``gs-train train`` for a training. Earlier finishes that would not fit to its splat are removed."""
    for each in (block, *neighbourhoods(plan)[block.number]):
        if plan.finish(each).path.exists():
            shutil.rmtree(plan.finish(each).path)
    return "--preset", str(plan.block_settings(block)), "--out", str(plan.run(block).path)


def _finish_arguments(plan: Plan, block: PlannedBlock) -> tuple[str, ...]:
    """Arguments of ``gs-train train`` for a finish, and the splat that it starts from; raises UserError."""
    run = plan.finish(block)
    if run.is_run() and any(run.checkpoints.glob("*.pt")):
        # It goes on from a checkpoint, and needs the same setting, also if the folder has moved.
        start = read_config(run.config)[0].init_from
    else:
        write_start(plan, block)
        start = str(plan.start(block).resolve())
    return "--preset", str(plan.finish_settings(block)), "--out", str(run.path), "--init-from", start


def wait_unlocked(plan: Plan, block: PlannedBlock, patience_s: float = _LOCK_PATIENCE_S) -> None:
    """Wait until no process trains a block: after a kill, the last one may still be saving.

    Raises:
        UserError: one still does after ``patience_s`` seconds.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            check_unlocked(plan.run(block).path)
            check_unlocked(plan.finish(block).path)
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _start(plan: Plan, block: PlannedBlock, environment: Mapping[str, str], flags: tuple[str, ...]) -> tuple[int, str]:
    """Run the training; returns its exit code and its last line."""
    arguments = ["train", str(plan.folder(block)), "--or-resume", *flags]
    with (plan.folder(block) / "log.txt").open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "gs_train.blocks.child", str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment, **_gpu_of_worker(environment)},
            # Ctrl-C is for the command that started the training, which then stops it.
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    with (plan.folder(block) / "log.txt").open("rb") as log:
        log.seek(start)
        lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return code, lines[-1].removeprefix("gs-train: ").strip() if lines else f"exit code {code}"


def _gpu_of_worker(environment: Mapping[str, str]) -> dict[str, str]:
    """The GPU of this worker of Dask, if the command has named several."""
    gpus = environment.get(_GPUS, "").split(",")
    if gpus == [""]:
        return {}
    from distributed import get_worker

    return {"CUDA_VISIBLE_DEVICES": gpus[int(get_worker().name) % len(gpus)]}


def environment_of(workers: int, gpus: int) -> dict[str, str]:
    """Variables for trainings side by side: their share of the processors, and the GPUs to deal out."""
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        return {_GPUS: visible}
    if workers == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, cpu_threads() // workers))}


def train_here(plan: Plan, number: int, on_end: Callable[[BlockResult], None]) -> None:
    """Train a block in this process's children, without Dask; then finish it and its neighbours as far as they are
    ready.

    Of processes that train one block each, the last of a neighbourhood finishes it, so none waits for another.
    """
    result = train_block(str(plan.path), number, {})
    on_end(result)
    near = (number, *(block.number for block in neighbourhoods(plan)[number]))
    for each in sorted(ready(plan).intersection(near)):
        if result.outcome == "stopped":
            return
        if each != number and plan.finished(plan.blocks[each]) is not None:
            continue
        with ExitStack() as claim:
            try:
                claim.enter_context(hold_lock(plan.folder(plan.blocks[each])))
            except UserError:
                continue  # another of these processes finishes it
            result = train_block(str(plan.path), each, {}, finish=True)
            on_end(result)
