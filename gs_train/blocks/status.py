"""The state of all blocks of a plan, read from the disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from gs_train.blocks.plan import Plan, PlannedBlock
from gs_train.blocks.train import failure_of
from gs_train.errors import UserError
from gs_train.run.folder import RunFolder
from gs_train.run.lock import check_unlocked

State = Literal["waiting", "training", "stopped", "trained", "done", "failed"]
"""trained: the finish follows when all neighbours are trained."""


@dataclass(frozen=True, kw_only=True)
class BlockStatus:
    """The state of a block. Numbers are None before the first step."""

    number: int
    state: State
    photos: int
    iteration: int | None
    iterations: int
    """Of the training and the finish."""
    gaussians: int | None
    psnr: float | None
    """Of the training photo of the last logged step, dB."""
    seconds: float | None
    """In the training loop."""
    reason: str
    """Why it failed; empty otherwise."""


def status_of(plan: Plan, block: PlannedBlock) -> BlockStatus:
    """The state of a block."""
    runs, reason = (plan.run(block), plan.finish(block)), failure_of(plan, block)
    training, finish = map(_last_line, runs)
    state: State = "waiting" if training is None else "stopped"
    if plan.finished(block) is not None:
        state, reason = "done", None
    elif any(map(_is_locked, runs)):
        state, reason = "training", None
    elif reason is not None:
        state = "failed"
    elif plan.trained(block) is not None:
        state = "trained"
    line = training or {}
    if finish is not None:
        seconds = line.get("elapsed_s", 0.0) + finish["elapsed_s"]
        line = finish | {"iteration": block.iterations + finish["iteration"], "elapsed_s": seconds}
    return BlockStatus(
        number=block.number,
        state=state,
        photos=block.photos,
        iteration=line.get("iteration"),
        iterations=block.steps,
        gaussians=line.get("gaussians"),
        psnr=line.get("psnr"),
        seconds=line.get("elapsed_s"),
        reason=reason or "",
    )


def table(statuses: list[BlockStatus]) -> list[str]:
    """The lines of a table with one row for each block."""
    rows = [("block", "state", "iteration", "photos", "Gaussians", "PSNR, dB", "time, s", "")]
    for each in statuses:
        rows.append(
            (
                str(each.number),
                each.state,
                f"{each.iteration or 0:,} of {each.iterations:,}",
                f"{each.photos:,}",
                "" if each.gaussians is None else f"{each.gaussians:,}",
                "" if each.psnr is None else f"{each.psnr:.2f}",
                "" if each.seconds is None else f"{each.seconds:.0f}",
                each.reason,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = (1, 7)
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    done = sum(each.state == "done" for each in statuses)
    return [*lines, f"{done} of {len(statuses)} blocks are done."]


def _is_locked(run: RunFolder) -> bool:
    try:
        check_unlocked(run.path)
    except UserError:
        return True
    return False


def _last_line(run: RunFolder) -> dict[str, Any] | None:
    """The last whole line of a training step in the run's metrics; None without one."""
    try:
        lines = run.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "gaussians" in entry:
            return entry
    return None
