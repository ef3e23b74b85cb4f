"""Trains a city of six blocks on one worker while the worker is killed twice and the command once.

    python scripts/try_blocks.py [--iterations 900]

Checks that all blocks end, that none starts afresh after its first checkpoint, that no second process writes to a
block, and that a job array without Dask (``--only`` in two processes) gives the same splats. Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gs_train.blocks.make_plan import make_plan
from gs_train.blocks.plan import Plan
from gs_train.config.settings import TrainConfig
from gs_train.scene.load import load_scene

SCRIPTS = Path(__file__).resolve().parent


def start(plan: Plan, *flags: str) -> subprocess.Popen[bytes]:
    """Start the training of a plan."""
    return subprocess.Popen([sys.executable, "-m", "gs_train", "blocks", "train", str(plan.path), *flags])


def trainers(plan: Plan) -> list[tuple[int, int, int]]:
    """Process, parent and block of the trainings of a plan."""
    lines = subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = re.compile(rf"\s*(\d+)\s+(\d+) .*gs_train.blocks.child .* {re.escape(str(plan.path))}/blocks/(\d+) ")
    return [(int(match[1]), int(match[2]), int(match[3])) for line in lines if (match := found.match(line))]


def worker_in_training(plan: Plan, running: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Wait for a training with a checkpoint; returns its worker and its block."""
    while running.poll() is None:
        for _, worker, number in trainers(plan):
            block = plan.blocks[number]
            if plan.trained(block) is None and list(plan.run(block).checkpoints.glob("*.pt")):
                return worker, number
        time.sleep(0.05)
    raise SystemExit("the command ended before there was a training to kill")


def main() -> None:
    """Train, kill and check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=900)
    options = parser.parse_args()
    config = TrainConfig(iterations=options.iterations, max_gaussians=6000, device="cpu", save_every=20, log_every=5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = folder / "scene"
        flags = ("--photos", "96", "--width", "80", "--height", "60", "--points", "3000")
        subprocess.run([sys.executable, SCRIPTS / "city.py", scene, *flags], check=True)
        loaded = load_scene(scene)
        plans = [
            make_plan(loaded, config, folder / each, grid=(3, 2), most_per_block=6000, fewest_photos=4)
            for each in ("killed", "array")
        ]
        plan, array = plans
        command, killed = start(plan, "--workers", "1"), []
        for _ in range(2):
            worker, number = worker_in_training(plan, command)
            os.kill(worker, signal.SIGKILL)
            print(f"killed the worker of block {number}", flush=True)
            killed.append(number)
            while Path(f"/proc/{worker}").exists() or any(number == each for *_, each in trainers(plan)):
                time.sleep(0.02)
        _, number = worker_in_training(plan, command)
        command.kill()
        command.wait()
        print(f"killed the command during block {number}", flush=True)
        killed.append(number)
        command, most = start(plan, "--workers", "1"), 0
        while command.poll() is None:
            most = max(most, len(trainers(plan)))
            time.sleep(0.1)
        logs = [(plan.folder(block) / "log.txt").read_text() for block in plan.blocks]
        resumed = [log.count("Resuming from") for log in logs]
        halves = [("0", "1", "2"), ("3", "4", "5")]
        for number in range(3):
            pair = [start(array, "--only", half[number]) for half in halves]
            if any(each.wait() for each in pair):
                raise SystemExit("a job of the array failed")
        same = [
            plan.finished(a).read_bytes() == array.finished(b).read_bytes()  # type: ignore[union-attr]
            for a, b in zip(plan.blocks, array.blocks, strict=True)
        ]
        ended = sum(plan.finished(block) is not None for block in plan.blocks)
        print(f"exit code {command.returncode}; blocks ended: {ended} of 6")
        print(f"trainings at once: at most {most}; kills in blocks {killed}; resumed, by block: {resumed}")
        print(f"same bytes as the job array: {sum(same)} of 6")
        went_on = all(resumed[number] >= killed.count(number) for number in killed)
        sys.exit(command.returncode or not all(same) or most > 1 or not went_on)


if __name__ == "__main__":
    main()
