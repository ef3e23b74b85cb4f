"""Kills trainings, goes on with each as a user would, and compares the result with a training that ran through.

    python scripts/try_kills.py [--random 200] [--every 1] [--variants classic mcmc ...] [--seed 0]

For each variant, a short training on a small sample scene is killed before every file operation (with --every N, before
every Nth one), and --random more are killed after random times, spread over the variants. A killed run goes on with
--resume; if that is refused, with the same command; if that is refused, with --overwrite. It is lost if all three
fail. Its result differs if the splat, the metrics or a checkpoint has another bit. Its leftovers are files that the
run without a kill does not have. Prints the counts as a Markdown table, and one line per fault.

Each training is a fork of this process, which has only imported its modules: a start takes no seconds. POSIX only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
import torch._dynamo  # the first optimizer imports it

from gs_train import cli, flags
from gs_train.cameras.poses import camera_to_world
from gs_train.formats.ply import write_ply
from gs_train.formats.splat_data import SplatData
from gs_train.render.cpu import rasterizer as _kernels  # noqa: F401  (imported before the forks)
from gs_train.run.checkpoint import list_checkpoints, read_checkpoint
from gs_train.sample.scene import write_sample_scene
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.training import loop as _loop  # noqa: F401

ITERATIONS = 30
COMMON = [
    *("--iterations", str(ITERATIONS), "--save-every", "7", "--keep", "2", "--log-every", "2", "--device", "cpu"),
    *("--max-gaussians", "450", "--density.from-iteration", "2", "--density.until-iteration", "22"),
    *("--density.refine-until-iteration", "24", "--density.interval", "5", "--density.grad-threshold", "1e-6"),
    *("--density.opacity-reset-interval", "11"),
]
VARIANTS: dict[str, list[str]] = {
    "classic": [
        *("--density.kind", "classic", "--background", "learned", "--antialiased"),
        *("--batch-size", "3", "--batch-from", "20"),
    ],
    "absgrad": [
        *("--density.kind", "absgrad", "--density.absgrad-threshold", "1e-6", "--image-cache-gb", "1e-5"),
        *("--model", "transforms.json"),
    ],
    "mcmc": ["--density.kind", "mcmc", "--background", "random", "--depth-weight", "0.1", "--exposure", "affine"],
    "multiview": [
        *("--density.kind", "multiview", "--density.score-views", "3", "--init-from", "{work}/start.ply"),
        *("--start-downscale", "4", "--full-size-from", "20", "--eval-every", "4", "--test-list", "{work}/list.txt"),
    ],
    "poses": ["--density.kind", "multiview", "--density.score-views", "3", "--refine-poses", "--exposure", "affine"],
}
"""Flags of each kind of density control, with other options beside it. ``{work}`` is the folder of ``write_inputs``."""


@dataclass(frozen=True)
class Outcome:
    """The files of a run folder after its training."""

    content: str
    """Hash of the parts that must not depend on a kill."""
    files: frozenset[str]
    """Names of all files."""


def write_inputs(work: Path) -> None:
    """Write a scene whose transforms.json is the same scene far from the origin, a list of test views, and a splat."""
    folder = work / "scene"
    write_sample_scene(folder, views=8, width=64, height=48, points=400)
    scene = load_scene(folder, SceneConfig(test_every=0))
    camera, frames = scene.train_views[0].camera, []
    for view in scene.train_views:
        pose = camera_to_world(view.world_to_camera) @ np.diag([1.0, -1.0, -1.0, 1.0])
        pose[:3, 3] += (500_000.0, 4_000_000.0, 100.0)
        frames.append({"file_path": f"images/{view.name}", "transform_matrix": pose.tolist()})
    size = {"w": camera.width, "h": camera.height, "fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx}
    (folder / "transforms.json").write_text(json.dumps({**size, "cy": camera.cy, "frames": frames}))
    (work / "list.txt").write_text("".join(f"{view.name}\n" for view in scene.train_views[:2]))
    count = len(scene.points.xyz)
    write_ply(
        work / "start.ply",
        SplatData(
            xyz=scene.points.xyz.astype(np.float32),
            f_dc=np.zeros((count, 1, 3), np.float32),
            f_rest=np.zeros((count, 0, 3), np.float32),
            opacity=np.zeros((count, 1), np.float32),
            scaling=np.full((count, 3), -3.0, np.float32),
            rotation=np.tile(np.float32([1, 0, 0, 0]), (count, 1)),
        ),
    )


# ---- child processes


def in_child(task: Callable[[], Any], *, kill_after_s: float | None = None) -> tuple[int, Any]:
    """Run a function in a fork, silently; returns the wait status and the function's result, None after a kill."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        try:
            os.write(writing, json.dumps(task()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(process, signal.SIGKILL)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(process, 0)
    return status, json.loads(data) if data else None


def run_command(arguments: list[str]) -> int:
    """Exit code of ``gs-train`` with arguments."""
    try:
        cli.main(arguments)
    except SystemExit as done:
        return int(done.code or 0)
    raise AssertionError("main always exits")


@contextmanager
def file_operations(folder: Path, call: Callable[[], None]) -> Iterator[None]:
    """Call a function before each operation on a file below ``folder``, and before each fsync."""
    prefix, fsync = str(folder), os.fsync
    active = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            names = [os.fspath(argument) for argument in arguments[:2] if isinstance(argument, str | os.PathLike)]
            if any(str(name).startswith(prefix) for name in names):
                call()

    def watched(descriptor: Any) -> None:
        call()
        fsync(descriptor)

    sys.addaudithook(hook)
    os.fsync = watched  # type: ignore[assignment]
    try:
        yield
    finally:
        active, os.fsync = False, fsync


def train_until(arguments: list[str], folder: Path, last: int | None) -> int:
    """Train, and kill this process before the file operation of that number; returns the number of operations."""
    count = 0

    def operation() -> None:
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    with file_operations(folder, operation):
        assert run_command(arguments) == 0
    return count


# ---- results


def content_of(folder: Path) -> str:
    """Hash of the splats, the metrics, the cameras and the checkpoints of a run, without times."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("point_cloud/*/*"), *folder.glob("cameras*.json")]):
        digest.update(path.name.encode() + path.read_bytes())
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        digest.update(repr(sorted((key, entry[key]) for key in entry if key != "elapsed_s")).encode())
    for path in list_checkpoints(folder / "checkpoints"):
        digest.update(path.name.encode())
        add_value(digest, read_checkpoint(path).state)
    return digest.hexdigest()


def add_value(digest: Any, value: Any) -> None:
    """Add a state, tensors bit for bit, to a hash."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            if key != "elapsed_s":
                digest.update(str(key).encode())
                add_value(digest, value[key])
    elif isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype} {list(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    else:
        digest.update(repr(value).encode())


def outcome_of(folder: Path) -> Outcome | None:
    """The outcome of an ended training; None if a part is missing or damaged."""
    _, content = in_child(lambda: content_of(folder))
    names = frozenset(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    return None if content is None else Outcome(content, names)


class Trial:
    """Kills of one variant."""

    def __init__(self, name: str, scene: Path, work: Path) -> None:
        """Train once without a kill."""
        self.name, self.counts = name, Counter[str]()
        self._folder = work / "run"
        own = [flag.replace("{work}", str(work)) for flag in VARIANTS[name]]
        self._train = ["train", str(scene), "--out", str(self._folder), *COMMON, *own]
        flags.parse(self._train)  # fills caches, which every fork then has
        self._clear()
        began_s = time.monotonic()
        _, self.operations = in_child(lambda: train_until(self._train, self._folder, None))
        self.took_s = time.monotonic() - began_s
        expected = outcome_of(self._folder)
        assert self.operations and expected is not None, f"{name} does not train"
        self._expected = expected

    def kill_before(self, operation: int) -> None:
        """Kill a new training before its file operation of that number, and go on."""
        self._clear()
        in_child(lambda: train_until(self._train, self._folder, operation))
        self._go_on(f"before file operation {operation} of {self.operations}")

    def kill_after(self, seconds: float) -> None:
        """Kill a new training after a time, and go on."""
        self._clear()
        in_child(lambda: run_command(self._train), kill_after_s=seconds)
        self._go_on(f"after {seconds:.3f} s of {self.took_s:.1f} s")

    def _clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _go_on(self, when: str) -> None:
        self.counts["kills"] += 1
        resume = ["train", "--resume", str(self._folder)]
        for way, arguments in (("resumed", resume), ("repeated", self._train), ("", [*self._train, "--overwrite"])):
            status, code = in_child(lambda arguments=arguments: run_command(arguments))  # type: ignore[misc]
            if (status, code) == (0, 0):
                self.counts[way or "overwritten"] += 1
                break
        else:
            self._fault("lost", when)
            return
        outcome = outcome_of(self._folder)
        if outcome is None or outcome.content != self._expected.content:
            self._fault("different", when)
        elif outcome.files != self._expected.files:
            self._fault("leftovers", f"{when}: {', '.join(sorted(outcome.files ^ self._expected.files))}")

    def _fault(self, kind: str, when: str) -> None:
        self.counts[kind] += 1
        print(f"{kind}: {self.name}, killed {when}", flush=True)


def main() -> int:
    """Run the trials; returns 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=200, help="number of kills after random times")
    parser.add_argument("--every", type=int, default=1, help="kill before every Nth file operation; 0 for none")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0, help="of the random times")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    torch.set_num_threads(1)  # on images this small, threads cost more time than they save
    numba.njit(lambda: 0)()  # loads Numba's compiler before the forks, and starts no thread
    columns = ("kills", "resumed", "repeated", "overwritten", "lost", "different", "leftovers")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_inputs(work)
        for number, name in enumerate(options.variants):
            trial = Trial(name, work / "scene", work)
            if options.every:
                for operation in range(1 + rng.randrange(options.every), trial.operations + 1, options.every):
                    trial.kill_before(operation)
            share = range(number, options.random, len(options.variants))
            for _ in share:
                trial.kill_after(rng.uniform(0.0, 1.1 * trial.took_s))
            rows.append(trial)
    print(f"| variant | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for trial in rows:
        print(f"| {trial.name} | {' | '.join(str(trial.counts[column]) for column in columns)} |")
    return int(any(trial.counts[kind] for trial in rows for kind in ("lost", "different", "leftovers")))


if __name__ == "__main__":
    sys.exit(main())
