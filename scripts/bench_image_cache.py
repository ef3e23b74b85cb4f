"""Train on more photos than memory is to hold, and tell memory and seconds a step beside the same with all in memory.

    python scripts/bench_image_cache.py                          # 200 photos of 4000x3000: 7.2 GB of pixels, 1 GB of them in memory
    python scripts/bench_image_cache.py --photos 40 --budget 0.2

The photos are those of the sample scene, enlarged, with grain. Every training is a process of its own, so that its memory can be told;
those compared take turns. All photos are looked up once before the first step, one after the other and without reading ahead, and steps
are timed after a few others. A scene of few photos says what the Gaussians and the rasterizer take at that size. Where the machine has
memory to spare, the system keeps in it what was written to the disk, and reads come from there; so the last training of each round makes
the system forget it after every read.
"""

from __future__ import annotations

import argparse
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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench_quality import peak_mib
from PIL import Image

if TYPE_CHECKING:
    from gs_train.training.state import TrainState

FEW = 6
"""Photos of the small scene."""
ENLARGED = 20
"""The sample's photos are drawn at 1/20 of the size."""
UNTIMED = 5
"""Steps before those that are timed."""
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
    """The sample scene as JPEGs of ``width`` x ``height``: the camera scaled, the photos enlarged, with grain."""
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
    # The same for all, because random numbers take longer than JPEG does.
    grain = np.random.default_rng(0).integers(-12, 13, (height, width, 1), dtype=np.int16)

    def enlarge(file: Path) -> None:
        with Image.open(file) as small:
            pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) + grain
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file.with_suffix(".jpg"), quality=90)
        file.unlink()

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(enlarge, sorted((folder / "images").iterdir())))


def train_one(scene_path: Path, budget_gb: float, steps: int, cold: bool) -> dict[str, Any]:
    """Look at all photos once, train a little, then time ``steps`` more steps."""
    from gs_train.config.toml import TrainConfig
    from gs_train.density.config import DensityConfig
    from gs_train.scene.load import SceneConfig, load_scene
    from gs_train.scene.photos import cache
    from gs_train.training import loop

    waited_s = looked_up_s = 0.0
    cache_images, get = loop.cache_images, cache.ImageCache.get

    def timed_get(images: Any, index: int, downscale: int = 1) -> Any:
        nonlocal waited_s
        begin = time.perf_counter()
        pixels = get(images, index, downscale)
        waited_s += time.perf_counter() - begin
        return pixels

    def looked_through(*arguments: Any) -> Any:
        nonlocal looked_up_s
        images = cache_images(*arguments)
        for index in range(len(images)):
            images.get(index)
        looked_up_s = waited_s
        return images

    cache.ImageCache.get, loop.cache_images = timed_get, looked_through  # type: ignore[method-assign, assignment]
    if cold:
        forget_after_reading(cache._Store)
    scene_config = SceneConfig(resolution=1, test_every=0)
    scene = load_scene(scene_path, scene_config)
    # Gaussians of a fixed number, and nothing in between that takes time.
    config = replace(
        TrainConfig(density=DensityConfig(interval=0), scene=scene_config),
        iterations=UNTIMED + steps,
        image_cache_gb=budget_gb,
        save_every=10**9,
        log_every=10**9,
    )
    ends, waited, said = [], [], []

    def look(_: TrainState) -> None:
        ends.append(time.perf_counter())
        waited.append(waited_s)

    with tempfile.TemporaryDirectory(dir=scene_path) as out:
        loop.train(scene, config, Path(out) / "run", after_step=[look], notify=said.append)
    step_ms = [1e3 * (end - begin) for begin, end in itertools.pairwise(ends[UNTIMED - 1 :])]
    waited_ms = 1e3 * (waited[-1] - waited[UNTIMED - 1]) / steps
    view, photos = scene.train_views[0].camera, len(scene.train_views)
    pixels_gb = 3 * view.width * view.height * photos / 1e9
    assert any("nameless file" in line for line in said) == (pixels_gb > budget_gb)
    figures = (
        photos,
        pixels_gb,
        budget_gb,
        1e3 * looked_up_s / photos,
        statistics.median(step_ms),
        statistics.mean(step_ms),
        waited_ms,
    )
    return dict(zip(COLUMNS, (*figures, peak_mib()), strict=True))


def forget_after_reading(store: Any) -> None:
    """Make the system drop the file's pages after every read."""
    read = store.read

    def read_and_forget(self: Any, index: int, shape: tuple[int, ...]) -> Any:
        pixels = read(self, index, shape)
        # Pages that are not on the disk yet cannot be dropped.
        os.fdatasync(self._file.fileno())
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return pixels

    store.read = read_and_forget


def measure(scene: Path, budget_gb: float, steps: int, cold: bool = False) -> dict[str, Any]:
    """One training in a process of its own."""
    child = [
        sys.executable,
        __file__,
        "--one",
        str(scene),
        "--budget",
        str(budget_gb),
        "--steps",
        str(steps),
        *["--cold"] * cold,
    ]
    done = subprocess.run(child, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit("training failed; see above")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        "| "
        + " | ".join(
            f"{figures[column]:,.4g}" if figures[column] < 1000 else f"{figures[column]:,.0f}" for column in COLUMNS
        )
        + " |"
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--size", default="4000x3000", help="of a photo, px; multiples of 20")
    parser.add_argument("--budget", type=float, default=1.0, help="GB")
    parser.add_argument("--steps", type=int, default=60, help="to time")
    parser.add_argument("--rounds", type=int, default=2, help="of both in turn")
    parser.add_argument("--folder", type=Path, help="where scene and decoded photos go, if not the system's folder")
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(train_one(arguments.one, arguments.budget, arguments.steps, arguments.cold)))
        return
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
    for message, runs in (("", part), (" and the file not in the system's memory", cold)):
        beyond = max(run[peak] for run in runs) - (tiny[peak] - tiny["GB of pixels"] * 1e9 / 2**20)
        print(
            f"\nWith a budget of {arguments.budget} GB{message}: {beyond:,.0f} MiB beyond what {FEW} photos take without their pixels."
        )
        for column in ("step, median ms", "step, mean ms"):
            slower = statistics.mean(run[column] for run in runs) / statistics.mean(run[column] for run in whole) - 1
            print(f"Against all in memory, {column}: {100 * slower:+.1f} %.")


if __name__ == "__main__":
    main()
