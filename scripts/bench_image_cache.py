"""Trains on more photos than the memory budget holds, and on photos in memory, and compares memory and times.

    python scripts/bench_image_cache.py                            200 photos of 4000x3000: 7.2 GB, 1 GB in memory
    python scripts/bench_image_cache.py --photos 40 --budget 0.2   40 photos, 0.2 GB in memory

The photos are enlarged photos of the sample scene, with grain. Each training runs in a separate process, so that its
peak memory can be measured; the compared trainings alternate. Before the first step all photos are looked up once, in
order and without reading ahead. A scene of few photos measures the memory of Gaussians and rasterizer at this size. A
system with free memory keeps written pages in its page cache, and reads come from there; so the last training of each
round drops these pages after every step.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from gs_train.scene.types import Scene
    from gs_train.training.state import TrainState

FEW = 6
"""Photos of the small scene."""
ENLARGED = 20
"""Factor by which the sample's photos are enlarged."""
UNTIMED = 5
"""Steps before the timed steps."""
COLUMNS = (
    "photos",
    "GB of pixels",
    "--image-cache-gb",
    "looking a photo up, ms",
    "step, median ms",
    "step, mean ms",
    "waiting in it, ms",
    "peak memory, MiB",
)


def write_scene(folder: Path, photos: int, width: int, height: int) -> None:
    """Write the sample scene as JPEGs of ``width`` x ``height`` px, with scaled intrinsics."""
    from gs_train.sample.scene import write_sample_scene

    write_sample_scene(folder, views=photos, width=width // ENLARGED, height=height // ENLARGED, points=1000)
    cameras = folder / "sparse" / "0" / "cameras.bin"
    layout = "<QIiQQ4d"
    count, number, model, _, _, *pinhole = struct.unpack(layout, cameras.read_bytes())
    cameras.write_bytes(
        struct.pack(layout, count, number, model, width, height, *(ENLARGED * value for value in pinhole))
    )
    images = folder / "sparse" / "0" / "images.bin"
    images.write_bytes(images.read_bytes().replace(b".png\0", b".jpg\0"))
    # One grain for all photos: drawing random numbers takes longer than JPEG encoding.
    grain = np.random.default_rng(0).integers(-12, 13, (height, width, 1), dtype=np.int16)

    def enlarge(file: Path) -> None:
        with Image.open(file) as small:
            pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) + grain
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file.with_suffix(".jpg"), quality=90)
        file.unlink()

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(enlarge, sorted((folder / "images").iterdir())))


def train_one(scene_path: Path, budget_gb: float, steps: int, cold: bool) -> dict[str, Any]:
    """Look all photos up once, then train and time the last ``steps`` steps; returns the values of ``COLUMNS``."""
    from torch.profiler import ProfilerActivity, profile

    from gs_train.config.settings import TrainConfig
    from gs_train.density.config import DensityConfig
    from gs_train.machine import peak_memory
    from gs_train.scene.load import SceneConfig, load_scene
    from gs_train.training.loop import train

    scene_config = SceneConfig(resolution=1, test_every=0)
    scene = load_scene(scene_path, scene_config)
    # A constant number of Gaussians, and no other work between the steps.
    config = TrainConfig(
        density=DensityConfig(interval=0),
        scene=scene_config,
        iterations=UNTIMED + steps,
        image_cache_gb=budget_gb,
        save_every=10**9,
        log_every=10**9,
    )
    view, photos = scene.train_views[0].camera, len(scene.train_views)
    pixels_gb = 3 * view.width * view.height * photos / 1e9
    looked_up_ms = look_up_ms(scene, budget_gb, scene_path, cold)
    ends: list[float] = []

    def after_step(_: TrainState) -> None:
        if cold:
            forget_photos(scene_path)
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory(dir=scene_path) as out, profile(activities=[ProfilerActivity.CPU]) as profiler:
        train(scene, config, Path(out) / "run", after_step=[after_step])
    step_ms = [1e3 * (end - begin) for begin, end in itertools.pairwise(ends[UNTIMED - 1 :])]
    waits_ms = [1e-3 * event.cpu_time_total for event in profiler.events() if event.name == "gs_train::photo"]
    times_ms = (statistics.median(step_ms), statistics.mean(step_ms), statistics.mean(waits_ms[UNTIMED:]))
    row = (photos, pixels_gb, budget_gb, looked_up_ms, *times_ms, (peak_memory() or 0) / 2**20)
    return dict(zip(COLUMNS, row, strict=True))


def look_up_ms(scene: Scene, budget_gb: float, folder: Path, cold: bool) -> float:
    """Mean milliseconds to get a photo from the cache, in order and without reading ahead."""
    from gs_train.scene.photos.cache import ImageCache

    images = ImageCache(scene.train_views, round(budget_gb * 1e9), folder)
    pixels = sum(3 * view.camera.width * view.camera.height for view in scene.train_views)
    assert (images.stored_byte_count() > 0) == (pixels > budget_gb * 1e9)
    spent_s = 0.0
    for index in range(len(images)):
        begin_s = time.perf_counter()
        images.get(index)
        spent_s += time.perf_counter() - begin_s
        if cold:
            forget_photos(folder)
    return 1e3 * spent_s / len(images)


def forget_photos(folder: Path) -> None:
    """Drop the cached pages of the open, deleted files in ``folder``: the next reads come from the disk. Linux only."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(entry)
            if target.startswith(f"{folder.resolve()}{os.sep}") and target.endswith(" (deleted)"):
                # The system keeps pages that are not on the disk yet.
                os.fdatasync(int(entry.name))
                os.posix_fadvise(int(entry.name), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(scene: Path, budget_gb: float, steps: int, cold: bool = False) -> dict[str, Any]:
    """Train once in a separate process; prints and returns the values of ``COLUMNS``."""
    options = ["--budget", str(budget_gb), "--steps", str(steps), *["--cold"] * cold]
    child = [sys.executable, __file__, "--one", str(scene), *options]
    done = subprocess.run(child, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit("training failed; see above")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    cells = [format(figures[column], ",.4g" if figures[column] < 1000 else ",.0f") for column in COLUMNS]
    print("| " + " | ".join(cells) + " |", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=200, help="number of photos")
    parser.add_argument("--size", default="4000x3000", help="of a photo, px; multiples of 20")
    parser.add_argument("--budget", type=float, default=1.0, help="memory for photos, GB")
    parser.add_argument("--steps", type=int, default=60, help="timed steps")
    parser.add_argument("--rounds", type=int, default=2, help="alternations of the compared trainings")
    parser.add_argument("--folder", type=Path, help="for the scene and the decoded photos, if not the system's own")
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(train_one(arguments.one, arguments.budget, arguments.steps, arguments.cold)))
        return
    compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run all trainings, print their table, then the differences in memory and time."""
    width, height = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        write_scene(few, FEW, width, height)
        write_scene(many, arguments.photos, width, height)
        everything_gb = 3 * width * height * arguments.photos / 1e9 + 1
        print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
        tiny = measure(few, everything_gb, arguments.steps)
        whole, part, cold = [], [], []
        for _ in range(arguments.rounds):
            whole.append(measure(many, everything_gb, arguments.steps))
            part.append(measure(many, arguments.budget, arguments.steps))
            cold.append(measure(many, arguments.budget, arguments.steps, cold=True))
    peak = "peak memory, MiB"
    without_photos = tiny[peak] - tiny["GB of pixels"] * 1e9 / 2**20
    for name, runs in (("", part), (", without the system's page cache", cold)):
        beyond = max(run[peak] for run in runs) - without_photos
        print(f"\nWith a budget of {arguments.budget} GB{name}: {beyond:,.0f} MiB more than a training without photos.")
        for column in ("step, median ms", "step, mean ms"):
            slower = statistics.mean(run[column] for run in runs) / statistics.mean(run[column] for run in whole) - 1
            print(f"Relative to all photos in memory, {column}: {100 * slower:+.1f} %.")


if __name__ == "__main__":
    main()
