"""Trains short runs with one and with several processes, and compares the files bit for bit.

    python scripts/try_ranks.py [--iterations 220] [--cases classic mcmc ...] [--ranks 2:2 4:4 4:8 3:4] [--bytes]

For each case and each W:B, a small scene is trained with batches of B views by one process and by W processes. The
splat, the metrics without times and every part of the checkpoints must be equal. Then the run of W processes goes on
from its middle with 1 and with 4 processes (--resume), with the same result. Prints a Markdown table.

--bytes measures the traffic of gradients and statistics over the loopback device instead, for 100,000 Gaussians, and
compares it with the formula of docs/scaling.md.

The processes are forks of this one, which has only imported its modules, and use gloo. POSIX only; --bytes needs Linux.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first optimizer imports it
from PIL import Image
from scipy.spatial.transform import Rotation
from try_kills import content_of, in_child, run_command

from gs_train.cameras.poses import camera_centre, pose_at, rotation_to_quaternion
from gs_train.distributed.join import join
from gs_train.distributed.place import Place
from gs_train.render.cpu import rasterizer as _kernels  # noqa: F401  (imported before the forks)
from gs_train.run.checkpoint import list_checkpoints
from gs_train.sample.scene import write_sample_scene
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.training import loop as _loop  # noqa: F401

CASES: dict[str, list[str]] = {
    "classic": ["{work}/scene", "--density.kind", "classic", "--background", "white"],
    "absgrad": [
        *("{work}/scene", "--density.kind", "absgrad", "--background", "learned", "--depth-weight", "0.1"),
        *("--image-cache-gb", "1e-5"),
    ],
    "mcmc": ["{work}/masked", "--density.kind", "mcmc", "--background", "random", "--eval-every", "50"],
    "multiview": ["{work}/scene", "--density.kind", "multiview", "--exposure", "affine", "--start-downscale", "4"],
    "poses": ["{work}/turned", "--density.kind", "classic", "--refine-poses", "--exposure", "affine"],
    "batch rule": ["{work}/scene", "--density.kind", "classic", "--optimizer.batch-rule", "sqrt"],
}
"""The scene and the flags of each case. ``{work}`` is the folder of ``write_scenes``."""
_COUNT, _STEPS = 100_000, 10
"""Gaussians and steps of --bytes."""


def flags_of(iterations: int) -> list[str]:
    """Flags of all cases: rounds of density control every 50 iterations and opacity resets."""
    values = {
        "iterations": iterations,
        "save-every": iterations // 2,
        "keep": 100,
        "batch-from": 0,
        "max-gaussians": 3000,
        "device": "cpu",
        "density.from-iteration": 10,
        "density.until-iteration": 9 * iterations // 10,
        "density.refine-until-iteration": 7 * iterations // 10,
        "density.interval": min(50, iterations // 4),
        "density.grad-threshold": 1e-6,
        "density.absgrad-threshold": 1e-6,
        "density.opacity-reset-interval": 6 * iterations // 10,
        "density.score-views": 3,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def write_scenes(work: Path) -> None:
    """Write the sample scene, the scene with masks, and the scene with wrong poses."""
    write_sample_scene(work / "scene", views=13, width=64, height=48, points=400)
    shutil.copytree(work / "scene", work / "masked")
    (work / "masked" / "masks").mkdir()
    for photo in (work / "masked" / "images").iterdir():
        mask = np.full((48, 64), 255, np.uint8)
        mask[:20, :30] = 0
        Image.fromarray(mask).save(work / "masked" / "masks" / photo.name)
    shutil.copytree(work / "scene", work / "turned")
    model = work / "turned" / "sparse" / "0"
    lines, random = [], np.random.default_rng(0)
    scene = load_scene(work / "scene", SceneConfig(test_every=0))
    for number, view in enumerate(scene.train_views, 1):
        turn = Rotation.from_rotvec(random.normal(0, np.deg2rad(0.5), 3)).as_matrix()
        pose = pose_at(camera_centre(view.world_to_camera), turn @ view.world_to_camera[:3, :3])
        numbers = [*rotation_to_quaternion(pose[:3, :3]), *pose[:3, 3]]
        lines.append(f"{number} {' '.join(map(repr, map(float, numbers)))} 1 {view.name}\n\n")
    camera = scene.train_views[0].camera
    shutil.rmtree(model)
    model.mkdir()
    (model / "images.txt").write_text("".join(lines))
    size = f"{camera.width} {camera.height} {camera.fx} {camera.fy} {camera.cx} {camera.cy}"
    (model / "cameras.txt").write_text(f"1 PINHOLE {size}\n")
    points = zip(scene.points.xyz.tolist(), scene.points.rgb.tolist(), strict=True)
    rows = (f"{number} {' '.join(map(str, [*xyz, *rgb]))} 0.5\n" for number, (xyz, rgb) in enumerate(points, 1))
    (model / "points3D.txt").write_text("".join(rows))


def run_ranks(count: int, task: Callable[[], int]) -> list[int]:
    """Run a function in ``count`` forks with the variables that torchrun sets; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            numbers = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
            os.environ.update({name: str(number) for name, number in numbers.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            torch.set_num_threads(1)
            code = 1
            try:
                with open(os.devnull, "w") as null:
                    os.dup2(null.fileno(), 1)
                code = task()
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def train(arguments: list[str], out: Path, ranks: int) -> str:
    """Train with ``ranks`` processes; returns the hash of the results, or a sentence about the failure."""
    codes = run_ranks(ranks, lambda: run_command(arguments))
    if any(codes):
        return f"exit codes {codes}"
    return str(in_child(lambda: content_of(out))[1])


def go_on(run: Path, ranks: int) -> str:
    """Go on from the first checkpoint of a copy of a run, as ``train``."""
    copy = run.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "point_cloud")
    checkpoints = list_checkpoints(copy / "checkpoints")
    assert len(checkpoints) > 1, f"{run} has too few checkpoints"
    for newer in checkpoints[:-1]:
        newer.unlink()
    return train(["train", "--resume", str(copy)], copy, ranks)


def compare(name: str, ranks: int, batch: int, iterations: int, work: Path) -> bool:
    """Compare one case and print its row."""
    words = [word.replace("{work}", str(work)) for word in CASES[name]]
    arguments = ["train", *words, *flags_of(iterations), "--batch-size", str(batch), "--out"]
    results, took_s = [], []
    for count in (1, ranks):
        out = work / f"{count} of {ranks}"
        shutil.rmtree(out, ignore_errors=True)
        began_s = time.monotonic()
        results.append(train([*arguments, str(out)], out, count))
        took_s.append(time.monotonic() - began_s)
    if results[1].startswith("exit") or results[0].startswith("exit"):
        print(results, flush=True)
        return False
    resumed = [go_on(work / f"{ranks} of {ranks}", count) for count in (1, 4) if count <= batch]
    same, after = results[1] == results[0], all(each == results[0] for each in resumed)
    verdicts = ["same bytes" if good else "DIFFERS" for good in (same, after)]
    print(
        f"| {name} | {ranks} | {batch} | {verdicts[0]} | {verdicts[1]} | {took_s[0]:.0f} | {took_s[1]:.0f} |",
        flush=True,
    )
    if not (same and after):
        print(results, resumed, flush=True)
    return same and after


def measure_bytes(ranks: int, batch: int) -> None:
    """Measure the traffic of a step with ``ranks`` processes and print its row."""

    def task() -> int:
        numbers = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        rank, count, number_here, count_here = numbers
        parameters = [torch.zeros(_COUNT, 59, requires_grad=True)]
        with join(Place(rank=rank, count=count, number_here=number_here, count_here=count_here)) as processes:
            for step in range(_STEPS + 1):
                processes.any(False)
                if step == 1 and rank == 0:
                    # The first step has connected the processes.
                    print(sent_bytes(), file=sys.stderr, flush=True)
                processes.any(False)
                with processes.sum_gradients(parameters) as add_round:
                    for first in range(0, batch, count):
                        dealt = min(count, batch - first)
                        if rank < dealt:
                            parameters[0].sum().backward()
                        add_round(dealt)
                        processes.gather([torch.zeros(_COUNT)] if rank < dealt else None, dealt)
            processes.any(False)
            if rank == 0:
                print(sent_bytes(), file=sys.stderr, flush=True)
        return 0

    with tempfile.TemporaryFile("w+") as lines:
        saved = os.dup(2)
        os.dup2(lines.fileno(), 2)
        codes = run_ranks(ranks, task)
        os.dup2(saved, 2)
        lines.seek(0)
        before, after = (int(line) for line in lines.read().split())
    assert not any(codes), codes
    measured = (after - before) / _STEPS / ranks
    rounds = -(-batch // ranks)
    formula = (rounds + 1) * (ranks - 1) / ranks * 236 * _COUNT + rounds * 4 * (ranks - 1) * _COUNT
    print(
        f"| {ranks} | {batch} | {measured / 1e6:.2f} | {formula / 1e6:.2f} | {measured / formula - 1:+.1%} |",
        flush=True,
    )


def sent_bytes() -> int:
    """Bytes that the loopback device has sent."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split()[9])


def main() -> int:
    """Run the comparisons that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=220)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--ranks", nargs="+", default=["2:2", "4:4", "4:8", "3:4"])
    parser.add_argument("--bytes", action="store_true")
    options = parser.parse_args()
    pairs = [tuple(map(int, pair.split(":"))) for pair in options.ranks]
    if options.bytes:
        print("| processes | batch | MB a step and process, measured | formula | difference |\n|---|---|---|---|---|")
        for ranks, batch in pairs:
            measure_bytes(ranks, batch)
        return 0
    print("| case | processes | batch | against one process | resumed by 1 and 4 | s, one | s, several |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        in_child(lambda: write_scenes(Path(work)))
        good = [compare(name, *pair, options.iterations, Path(work)) for name in options.cases for pair in pairs]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
