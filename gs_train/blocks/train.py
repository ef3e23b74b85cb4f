"""Trains one block: an ordinary ``gs-train train`` in a process of its own, started again where it ended.

All state is on the disk, so that any process on any machine that sees the folder can go on: the run of the block with
its lock and checkpoints, ``log.txt``, and ``failure.json`` for a block that cannot be trained.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gs_train.atomic_write import atomic_write_text
from gs_train.blocks.plan import Plan, PlannedBlock, read_plan
from gs_train.errors import UserError
from gs_train.machine import cpu_threads
from gs_train.run.lock import check_unlocked

Outcome = Literal["done", "failed", "stopped"]
_MOST_STARTS = 3
_MOST_MEMORY_DEATHS = 2
_LOCK_PATIENCE_S = 60.0
_USER_ERROR = 2
_OUT_OF_MEMORY = ("out of memory", "needs more memory", "no memory", "not enough memory")
_GPUS = "GS_TRAIN_BLOCK_GPUS"


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """The end of the training of a block."""

    number: int
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


def train_block(city: str, number: int, environment: Mapping[str, str], flags: tuple[str, ...] = ()) -> BlockResult:
    """Train a block to its end, or go on with it. A block that has ended is left as it is.

    Args:
        city: folder of the plan.
        number: of the block.
        environment: variables of the training, added to those of this process.
        flags: further flags of ``gs-train train`` that change no result.

    Raises:
        UserError: another process keeps writing to the block.
    """
    plan = read_plan(Path(city))
    block, deaths, reason = plan.blocks[number], 0, ""
    for _ in range(_MOST_STARTS):
        if plan.splat(block) is not None:
            failure_path(plan, block).unlink(missing_ok=True)
            return BlockResult(number=number, outcome="done")
        wait_unlocked(plan, block)
        code, reason = _start(plan, block, environment, flags)
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return BlockResult(number=number, outcome="stopped")
        if code == -signal.SIGKILL or any(words in reason.lower() for words in _OUT_OF_MEMORY):
            deaths += 1
            reason = "its training ran out of memory, or was killed: plan smaller blocks, or train fewer at a time"
        elif code == _USER_ERROR:
            break
        if deaths == _MOST_MEMORY_DEATHS:
            break
    if plan.splat(block) is not None:
        return BlockResult(number=number, outcome="done")
    with suppress(OSError):
        atomic_write_text(failure_path(plan, block), json.dumps({"reason": reason}) + "\n")
    return BlockResult(number=number, outcome="failed", reason=reason)


def wait_unlocked(plan: Plan, block: PlannedBlock, patience_s: float = _LOCK_PATIENCE_S) -> None:
    """Wait until no process trains a block: after a kill, the last one may still be saving.

    Raises:
        UserError: one still does after ``patience_s`` seconds.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            check_unlocked(plan.run(block).path)
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _start(plan: Plan, block: PlannedBlock, environment: Mapping[str, str], flags: tuple[str, ...]) -> tuple[int, str]:
    """Run the training; returns its exit code and its last line."""
    scene, settings, out = plan.folder(block), plan.block_settings(block), plan.run(block).path
    arguments = ["train", str(scene), "--preset", str(settings), "--out", str(out), "--or-resume", *flags]
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


def train_here(plan: Plan, numbers: tuple[int, ...], on_end: Callable[[BlockResult], None]) -> None:
    """Train blocks one after the other in this process's children, without Dask."""
    for number in numbers:
        result = train_block(str(plan.path), number, {})
        on_end(result)
        if result.outcome == "stopped":
            return
