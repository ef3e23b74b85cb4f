"""Train on more photos than memory is to hold, and tell memory and seconds a step beside the same with all in memory.

    python scripts/bench_image_cache.py                          # 200 photos of 4000x3000: 7.2 GB of pixels, 1 GB of them in memory
    python scripts/bench_image_cache.py --photos 40 --budget 0.2
    python scripts/bench_image_cache.py --cold                   # the file's pages are dropped after every read, so the disk is read

The photos are those of the sample scene, enlarged, with grain. Every training is a process of its own, so that its memory can be told.
Steps are timed after the first pass over all views. A scene of few photos says what the Gaussians and the rasterizer take at that size. Where the
machine has memory to spare, the system keeps what was written to the disk in it, and reads come from there; --cold forbids that.
"""

from __future__ import annotations

import argparse
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
    from gs_train.train.state import TrainState

FEW = 6
"""Photos of the small scene."""
ENLARGED = 20
"""The sample's photos are drawn at 1/20 of the size."""
COLUMNS = (
    "photos",
    "GB of pixels",
    "--image-cache-gb",
    "seconds to decode",
    "step, median ms",
    "mean ms",
    "longest ms",
    "peak memory, MiB",
)


def write_scene(folder: Path, photos: int, width: int, height: int) -> None:
    """The sample scene as JPEGs of ``width`` x ``height``: the camera scaled, the photos enlarged, with grain."""
    from gs_train.scene.sample import write_sample_scene

    write_sample_scene(folder, views=photos, width=width // ENLARGED, height=height // ENLARGED, points=1000)
    cameras = folder / "sparse" / "0" / "cameras.bin"
    layout = "<QIiQQ4d"
    count, number, model, _, _, *pinhole = struct.unpack(layout, cameras.read_bytes())
    cameras.write_bytes(struct.pack(layout, count, number, model, width, height, *(ENLARGED * value for value in pinhole)))
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
    """Train through all views once, then time ``steps`` more steps."""
    from gs_train.config import TrainConfig
    from gs_train.density.config import DensityConfig
    from gs_train.scene import cache
    from gs_train.scene.load import SceneConfig, load_scene
    from gs_train.train.loop import train

    if cold:
        plain_read = cache._Store.read

        def read(store: Any, index: int, shape: tuple[int, ...]) -> Any:
            pixels = plain_read(store, index, shape)
            os.fdatasync(store._file.fileno())
            os.posix_fadvise(store._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return pixels

        cache._Store.read = read  # type: ignore[method-assign]
    scene = load_scene(scene_path, SceneConfig(resolution=1, test_every=0))
    first_pass = len(scene.train_views)
    # Gaussians of a fixed number, and nothing in between that takes time.
    config = replace(
        TrainConfig(density=DensityConfig(interval=0), scene=SceneConfig(resolution=1, test_every=0)),
        iterations=first_pass + steps + 1,
        image_cache_gb=budget_gb,
        save_every=10**9,
        log_every=10**9,
    )
    began: list[float] = [time.perf_counter()]

    def look(_: TrainState) -> None:
        began.append(time.perf_counter())

    with tempfile.TemporaryDirectory(dir=scene_path) as out:
        said: list[str] = []
        train(scene, config, Path(out) / "run", after_step=[look], notify=said.append)
    step_ms = [1e3 * (end - begin) for begin, end in zip(began[1 + first_pass :], began[2 + first_pass :], strict=False)][:steps]
    view = scene.train_views[0].camera
    pixels_gb = 3 * view.width * view.height * first_pass / 1e9
    assert any("nameless file" in line for line in said) == (pixels_gb > budget_gb)
    figures = (first_pass, pixels_gb, budget_gb, began[1] - began[0])
    return dict(zip(COLUMNS, (*figures, statistics.median(step_ms), statistics.mean(step_ms), max(step_ms), peak_mib()), strict=True))


def measure(scene: Path, budget_gb: float, steps: int, cold: bool = False) -> dict[str, Any]:
    """One training in a process of its own."""
    child = [sys.executable, __file__, "--one", str(scene), "--budget", str(budget_gb), "--steps", str(steps), *["--cold"] * cold]
    done = subprocess.run(child, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit("training failed; see above")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        "| " + " | ".join(f"{figures[column]:,.4g}" if figures[column] < 1000 else f"{figures[column]:,.0f}" for column in COLUMNS) + " |"
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--size", default="4000x3000", help="of a photo, px; multiples of 20")
    parser.add_argument("--budget", type=float, default=1.0, help="GB")
    parser.add_argument("--steps", type=int, default=60, help="to time, after the first pass")
    parser.add_argument("--folder", type=Path, help="where scene and decoded photos go, if not the system's folder")
    parser.add_argument("--cold", action="store_true", help="drop the file's pages after every read")
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
        whole = measure(many, everything_gb, arguments.steps)
        part = measure(many, arguments.budget, arguments.steps, arguments.cold)
    pixels_mib = tiny["GB of pixels"] * 1e9 / 2**20
    beyond = part["peak memory, MiB"] - (tiny["peak memory, MiB"] - pixels_mib)
    slower = part["step, median ms"] / whole["step, median ms"] - 1
    print(f"\nPeak memory beyond what {FEW} photos take without their pixels: {beyond:,.0f} MiB.")
    print(f"A step after the first pass, against all in memory: {100 * slower:+.1f} % (median).")


if __name__ == "__main__":
    main()
