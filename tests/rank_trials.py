"""Trials with several processes, for test_distributed.py: runs those named on the command line and prints a JSON object
of their outcomes. Each process is a fork of this one, so a trial takes about a second."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import torch  # noqa: E402
from try_kills import content_of, in_child, run_command  # noqa: E402
from try_ranks import run_ranks, write_scenes  # noqa: E402

from gs_train.distributed.group import ProcessGroup  # noqa: E402
from gs_train.distributed.join import join  # noqa: E402
from gs_train.distributed.place import find_place  # noqa: E402
from gs_train.training import loop, replicas  # noqa: E402

_ITERATIONS = 24
_FLAGS = [
    *("--iterations", _ITERATIONS, "--save-every", 8, "--keep", 9, "--log-every", 4, "--max-gaussians", 900),
    *("--device", "cpu", "--batch-size", 2, "--batch-from", 0, "--density.interval", 5, "--density.from-iteration", 4),
    *("--sh-palette", 50),
    *("--density.until-iteration", 20, "--density.kind", "classic", "--density.grad-threshold", 1e-6),
]


def rank() -> int:
    """Number of this process."""
    return int(os.environ.get("RANK", "0"))


def train(work: Path, out: str, *more: object, scene: str = "scene") -> int:
    """Exit code of a short training."""
    return run_command(list(map(str, ["train", work / scene, "--out", work / out, *_FLAGS, *more])))


def outcome(count: int, task: Callable[[], int]) -> dict[str, Any]:
    """Exit codes, messages and seconds of a task in ``count`` processes."""
    with tempfile.TemporaryFile("w+") as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        began_s = time.monotonic()
        codes = run_ranks(count, task)
        os.dup2(kept, 2)
        os.close(kept)
        file.seek(0)
        text = file.read()
    errors = [line for line in text.splitlines() if line.startswith("gs-train: ")]
    return {"codes": codes, "errors": errors, "text": text, "took_s": time.monotonic() - began_s}


def at_step(number: int, action: Callable[..., object], only: int) -> None:
    """Call ``action`` with the state before the backward passes of a step, in one process."""
    run_batch, count = loop.run_batch, 0

    def hooked(state: Any, *rest: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == number and rank() == only:
            action(state)
        return run_batch(state, *rest, **named)

    loop.run_batch = hooked


def raise_memory_error(_: Any) -> None:
    """Fail as a process without memory does."""
    raise MemoryError


def spoil(state: Any) -> None:
    """Change the Gaussians of one process alone."""
    with torch.no_grad():
        state.model.xyz[3, 1] += 1e-3


def full_disk() -> None:
    """Let the second checkpoint find a full disk."""
    save, count = loop.save_checkpoint, 0

    def full(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(*arguments, **named)

    loop.save_checkpoint = full


def interrupted(work: Path, name: str, prepare: Callable[[], object]) -> dict[str, Any]:
    """A training of two processes that ends early, and whether one process brings it to the right end."""

    def task() -> int:
        prepare()
        return train(work, name)

    result = outcome(2, task)
    iterations = [int(path.stem[-6:]) for path in (work / name / "checkpoints").glob("*.pt")]
    result["resumed"] = outcome(1, lambda: train(work, name, "--or-resume"))["codes"]
    for iteration in iterations:
        if iteration % 8:  # saved because of a signal
            (work / name / "checkpoints" / f"iteration_{iteration:06d}.pt").unlink()
    result["same"] = in_child(lambda: content_of(work / name))[1] == in_child(lambda: content_of(work / "whole"))[1]
    return result


def against_one(work: Path, name: str, count: int, *more: object, scene: str = "scene") -> dict[str, Any]:
    """A training with several processes, and whether one process gives the same files."""
    result = outcome(count, lambda: train(work, name, *more, scene=scene))
    alone = f"{name} alone"
    outcome(1, lambda: train(work, alone, *more, scene=scene))
    result["same"] = in_child(lambda: content_of(work / name))[1] == in_child(lambda: content_of(work / alone))[1]
    return result


def other_files(work: Path) -> dict[str, Any]:
    """Process 1 sees a photo with another byte at its end."""
    shutil.copytree(work / "scene", work / "other")
    with next((work / "other" / "images").iterdir()).open("ab") as file:
        file.write(b"\0")
    return outcome(2, lambda: train(work, "files", scene="other" if rank() else "scene"))


def other_version() -> None:
    """Give process 1 another version."""
    if rank() == 1:
        replicas.__version__ = "0.0.9"


def exchanges() -> dict[str, Any]:
    """Three processes with five views: sums, statistics and dealt work against one process."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 1001, generator=generator) * 10.0 ** torch.randint(-6, 6, (5, 1), generator=generator)

    def task() -> int:
        place = find_place(os.environ)
        assert place is not None
        with join(place) as group:
            return 0 if exchanges_agree(group, values) else 3

    return outcome(3, task)


def exchanges_agree(group: ProcessGroup, values: torch.Tensor) -> bool:
    """Compare each exchange with the loop of one process."""
    one, two = torch.zeros(7, 100, requires_grad=True), torch.zeros(301, requires_grad=True)
    gathered = []
    with group.sum_gradients([one, two]) as add_round:
        for first in range(0, 5, 3):
            place, dealt = first + group.rank, min(3, 5 - first)
            own = None
            if group.rank < dealt:
                row = values[place]
                ((one.flatten() * row[:700]).sum() + (two * row[700:]).sum()).backward()
                own = [row[:4].view(2, 2), torch.zeros(0)]
            add_round(dealt)
            gathered += group.gather(own, dealt)
    expected = values[0].clone()
    for row in values[1:]:
        expected += row
    assert one.grad is not None and two.grad is not None
    summed = torch.cat([one.grad.flatten(), two.grad])
    mapped = torch.stack(list(group.map(lambda index: values[index], [4, 0, 2, 1])))
    shares = [part for part, empty in gathered if len(empty) == 0]
    return (
        torch.equal(summed.view(torch.int32), expected.view(torch.int32))
        and torch.equal(torch.stack(shares), values[:, :4].view(5, 2, 2))
        and torch.equal(mapped, values[[4, 0, 2, 1]])
        and group.any(group.rank == 2)
        and not group.any(False)
    )


def main(names: list[str]) -> dict[str, Any]:
    """The outcomes of the named trials."""
    work = Path(tempfile.mkdtemp())
    in_child(lambda: write_scenes(work))
    kill = signal.SIGKILL
    trials: dict[str, Callable[[], dict[str, Any]]] = {
        "whole": lambda: outcome(1, lambda: train(work, "whole")),
        "poses": lambda: against_one(
            *(work, "poses", 2, "--density.kind", "absgrad", "--density.absgrad-threshold", 1e-6, "--batch-size", 3),
            *("--refine-poses", "--exposure", "affine"),
            scene="turned",
        ),
        "masks": lambda: against_one(
            *(work, "masks", 4, "--density.kind", "mcmc", "--background", "learned", "--batch-size", 8),
            *("--iterations", 12, "--density.refine-until-iteration", 9, "--depth-weight", 0.1),
            scene="masked",
        ),
        "killed": lambda: interrupted(work, "killed", lambda: at_step(12, lambda _: os.kill(os.getpid(), kill), 1)),
        "stopped": lambda: interrupted(
            work, "stopped", lambda: at_step(12, lambda _: os.kill(os.getpid(), signal.SIGINT), 1)
        ),
        "full disk": lambda: interrupted(work, "full", full_disk),
        "no memory": lambda: interrupted(work, "memory", lambda: at_step(12, raise_memory_error, 1)),
        "drift": lambda: interrupted(work, "drift", lambda: at_step(2, spoil, 1)),
        "small batch": lambda: outcome(4, lambda: train(work, "small")),
        "other files": lambda: other_files(work),
        "other version": lambda: outcome(2, lambda: (other_version(), train(work, "version"))[1]),
        "no scene": lambda: outcome(2, lambda: train(work, "none", scene="none")),
        "idle": lambda: outcome(2, lambda: train(work, "idle", "--batch-from", 20)),
        "exchanges": exchanges,
    }
    try:
        return {name: trials[name]() for name in names}
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
