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


def children(parent: int) -> dict[int, str]:
    """Command lines of all descendants of a process, by process number."""
    table = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            table[int(folder.name)] = (int(fields[1]), (folder / "cmdline").read_bytes().decode().replace("\0", " "))
        except OSError:
            continue
    found, wave = {}, {parent}
    while wave:
        wave = {number for number, (above, _) in table.items() if above in wave}
        found.update({number: table[number][1] for number in wave})
    return found


def start(plan: Plan, *flags: str) -> subprocess.Popen[bytes]:
    """Start the training of a plan."""
    return subprocess.Popen([sys.executable, "-m", "gs_train", "blocks", "train", str(plan.path), *flags])


def trainers() -> list[int]:
    """Processes that train a block."""
    lines = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(line.split()[0]) for line in lines if "gs_train.blocks.child" in line]


def wait_for_checkpoint(plan: Plan, running: subprocess.Popen[bytes], beyond: int) -> None:
    """Wait until a block that has not ended has a checkpoint, and ``beyond`` blocks have ended."""
    while running.poll() is None:
        ended = [block for block in plan.blocks if plan.splat(block)]
        begun = [b for b in plan.blocks if b not in ended and list(plan.run(b).checkpoints.glob("*.pt"))]
        if len(ended) >= beyond and begun:
            return
        time.sleep(0.05)


def worker_of(command: int) -> int:
    """The worker of Dask: the process above the training."""
    while True:
        for number, line in children(command).items():
            if "gs_train.blocks.child" in line:
                return int(Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2].split()[1])
        time.sleep(0.05)


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
        command = start(plan, "--workers", "1")
        for kill in range(2):
            wait_for_checkpoint(plan, command, 2 * kill)
            worker = worker_of(command.pid)
            os.kill(worker, signal.SIGKILL)
            print(f"killed the worker {worker}", flush=True)
            while worker in children(command.pid):
                time.sleep(0.05)
        wait_for_checkpoint(plan, command, 3)
        command.kill()
        command.wait()
        print("killed the command", flush=True)
        command = start(plan, "--workers", "1")
        most = 0
        while command.poll() is None:
            most = max(most, len(trainers()))
            time.sleep(0.1)
        logs = [(plan.folder(block) / "log.txt").read_text() for block in plan.blocks]
        fresh = [len(re.findall(r"train: 1 of ", log)) for log in logs]
        resumed = sum(log.count("Resuming from") for log in logs)
        halves = [("0", "1", "2"), ("3", "4", "5")]
        for number in range(3):
            pair = [start(array, "--only", half[number]) for half in halves]
            if any(each.wait() for each in pair):
                raise SystemExit("a job of the array failed")
        same = [
            plan.splat(a).read_bytes() == array.splat(b).read_bytes()  # type: ignore[union-attr]
            for a, b in zip(plan.blocks, array.blocks, strict=True)
        ]
        print(
            f"exit code {command.returncode}; blocks ended: {sum(plan.splat(b) is not None for b in plan.blocks)} of 6"
        )
        print(f"trainings at once: at most {most}; resumed {resumed} times; first steps per block: {fresh}")
        print(f"same bytes as the job array: {sum(same)} of 6")
        sys.exit(command.returncode or not all(same) or most > 1)


if __name__ == "__main__":
    main()
