"""Time one training iteration on the CPU, part by part, and say how near it comes to what the machine can do.

    python scripts/bench_cpu.py                            all sizes, 1 and 2 threads; prints Markdown
    python scripts/bench_cpu.py --gaussians 100000 --image 640x480
    python scripts/bench_cpu.py --compare main~3 main      two revisions in alternation, in worktrees of their own

The scene is random: Gaussians spread through the view with lognormal sizes that shrink as their number grows, so that the number of pairs
of a pixel and a Gaussian stays of the same order. Times are medians over the repetitions, in milliseconds, without the first iterations of
a process, which compile or load the kernels. Memory is the process's largest resident size up to that row.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZES, IMAGES = (10_000, 100_000, 500_000, 1_000_000), ("320x240", "640x480", "1280x720")
FLOP_FORWARD, FLOP_BACKWARD = 30, 57  # per evaluated pair of a pixel and a Gaussian


class Iteration:
    """A model, a camera and a target, and one training iteration on them."""

    def __init__(self, gaussians: int, width: int, height: int) -> None:
        import torch

        from gs_train.density.classic import ClassicDensity
        from gs_train.density.config import DensityConfig
        from gs_train.model.gaussians import GaussianModel
        from gs_train.model.schedule import OptimizerConfig
        from gs_train.render.cpu.rasterizer import CpuRasterizer
        from gs_train.scene.types import Camera

        g = torch.Generator().manual_seed(0)
        depth = torch.rand(gaussians, generator=g) * 6 + 2
        focal = 0.94 * width
        lateral = (torch.rand(gaussians, 2, generator=g) - 0.5) * torch.tensor([1.1 * width, 1.1 * height]) / focal
        size = 0.03 * (100_000 / gaussians) ** 0.5
        tensors = {
            "xyz": torch.cat([lateral * depth[:, None], depth[:, None]], dim=1),
            "f_dc": torch.randn(gaussians, 1, 3, generator=g) * 0.5,
            "f_rest": torch.randn(gaussians, 15, 3, generator=g) * 0.1,
            "opacity": torch.randn(gaussians, 1, generator=g),
            "scaling": torch.randn(gaussians, 3, generator=g) * 0.5 + math.log(size),
            "rotation": torch.randn(gaussians, 4, generator=g),
        }
        self.model = GaussianModel(tensors, active_sh_degree=3)
        self.model.training_setup(OptimizerConfig(xyz_lr_max_steps=1000, xyz_lr_init=1e-9, xyz_lr_final=1e-9))
        whole = DensityConfig(from_iteration=10**6, until_iteration=10**6)
        self.density = ClassicDensity(whole, extent=5.0, max_gaussians=gaussians, count=gaussians, device="cpu")
        self.rasterizer = CpuRasterizer()
        self.camera = Camera(width=width, height=height, fx=focal, fy=focal, cx=width / 2, cy=height / 2)
        self.target = torch.rand(height, width, 3, generator=g)
        self.pose, self.background = torch.eye(4), torch.zeros(3)

    def run(self) -> None:
        from gs_train.losses import photometric_loss

        render = self.rasterizer.render(self.model, self.camera, self.pose, self.background)
        photometric_loss(render.image, self.target, 0.2).backward()
        with part("statistics"):
            self.density.observe(render, self.camera)
        assert self.model.optimizer is not None
        with part("Adam"):
            self.model.optimizer.step()
            self.model.optimizer.zero_grad(set_to_none=True)


# ---- timing of parts

times_ms: dict[str, list[float]] = {}


@contextmanager
def part(name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times_ms.setdefault(name, []).append(1e3 * (time.perf_counter() - start))


def watch(module: Any, function: str, name: str) -> None:
    """Replace a kernel by one that is timed."""
    inner = getattr(module, function)

    def timed(*arguments: Any) -> Any:
        with part(name):
            return inner(*arguments)

    setattr(module, function, timed)


def watch_all() -> None:
    from gs_train import losses_cpu
    from gs_train.render.cpu import autograd

    watch(autograd, "project_forward", "projection")
    watch(autograd, "bin_gaussians", "binning")
    watch(autograd, "blend_forward", "blending")
    watch(losses_cpu, "photometric_loss_and_gradient", "loss")
    watch(autograd, "blend_backward", "blending backward")
    watch(autograd, "project_backward", "projection backward")


# ---- what the machine can do, and how much is asked of it


def fma_peak_gflops(threads: int) -> float:
    """Measured peak of float32 multiply-adds: sixteen independent vectors, all in registers."""
    import numba
    import numpy as np

    from gs_train.jit import parallel_kernel

    lanes, rounds = 16 * 16, 100_000

    @parallel_kernel
    def burn(out: Any) -> None:
        for item in numba.prange(out.shape[0]):
            s = np.full(lanes, np.float32(item))
            for _ in range(rounds):
                for lane in range(np.uint64(lanes)):
                    s[lane] = s[lane] * np.float32(0.999) + np.float32(0.001)
            out[item] = s.sum()

    numba.set_num_threads(threads)
    out = np.empty(4 * threads, np.float32)
    burn(out)
    return max(2e-9 * lanes * rounds * len(out) / seconds(lambda: burn(out)) for _ in range(3))


def copy_bandwidth_gbs() -> float:
    """Measured bytes read and written per second by a large copy, one thread."""
    import numpy as np

    source = np.ones(64 * 2**20, np.float32)
    target = np.empty_like(source)
    np.copyto(target, source)
    return max(2e-9 * source.nbytes / seconds(lambda: np.copyto(target, source)) for _ in range(3))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def pairs_per_pixel(case: Iteration) -> tuple[float, float]:
    """Pairs of a pixel and a Gaussian evaluated (all pixels of the rows visited) and blended (alpha counted), per pixel."""
    import torch

    from gs_train.render.cpu import autograd

    kept: list[Any] = []
    inner = autograd.blend_forward
    autograd.blend_forward = lambda *arguments: (kept.append(arguments), inner(*arguments))[1]
    with torch.no_grad():
        case.rasterizer.render(case.model, case.camera, case.pose, case.background)
    autograd.blend_forward = inner
    records, tile_start, pairs, *_, transmittance = kept[0]
    evaluated, blended = _pair_counter()(records, tile_start, pairs, *transmittance.shape)
    return evaluated / transmittance.size, blended / transmittance.size


def _pair_counter() -> Any:
    import numpy as np

    from gs_train.jit import kernel
    from gs_train.render.cpu import blending as b

    tile, batch, size = int(b._TILE), int(b._BATCH), b._SIZE
    gather, blend, pixels, all_done, set_up = b._gather, b._forward_rgb, b._pixels, b._all_done, b._set_up_planes

    def count(records: Any, tile_start: Any, pairs: Any, height: int, width: int) -> tuple[int, int]:
        evaluated, blended = 0, 0
        tiles_x = (width + tile - 1) // tile
        for index in range(tile_start.shape[0] - 1):
            s = np.zeros(size, np.float32)
            set_up(s)
            s[: tile * tile] = 1.0
            for begin in range(tile_start[index], tile_start[index + 1], batch):
                if all_done(s):
                    break
                entries = np.uint64(min(tile_start[index + 1] - begin, batch))
                gather(s, records, pairs, begin, entries, (index % tiles_x) * tile, (index // tiles_x) * tile)
                for e in range(entries):
                    before = s[: tile * tile].copy()
                    evaluated += pixels(s, e)[1]
                    blend(s, e)
                    for p in range(tile * tile):
                        blended += s[p] != before[p] and s[p] > 0
        return evaluated, blended

    return kernel(count)


# ---- tables


def measure(gaussians: int, image: str, threads: int, repetitions: int) -> tuple[dict[str, float], Iteration]:
    """Median milliseconds of every part and of the whole iteration."""
    import torch

    torch.set_num_threads(threads)
    width, height = (int(side) for side in image.split("x"))
    case = Iteration(gaussians, width, height)
    case.run()
    case.run()
    times_ms.clear()
    for _ in range(repetitions):
        with part("iteration"):
            case.run()
    return {name: statistics.median(values) for name, values in times_ms.items()}, case


def table(sizes: list[int], images: list[str], threads: list[int], repetitions: int) -> None:
    parts = ("projection", "binning", "blending", "loss", "blending backward", "projection backward", "Adam", "statistics")
    peak = {count: fma_peak_gflops(count) for count in threads}
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}.")
    print(f"Measured: {', '.join(f'{value:.0f} GFLOP/s with {count} threads' for count, value in peak.items())}; ", end="")
    print(f"copy {copy_bandwidth_gbs():.1f} GB/s.\n")
    columns = ["Gaussians", "image", "threads", "iteration", *parts]
    columns += ["pairs evaluated / blended per pixel", "share of peak forward / backward", "memory, MiB"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for size in sizes:
        for image in images:
            for count in threads:
                ms, case = measure(size, image, count, repetitions)
                evaluated, blended = pairs_per_pixel(case)
                pixels = case.camera.width * case.camera.height
                shares = (
                    flop * evaluated * pixels / (1e6 * ms[name] * peak[count])
                    for flop, name in ((FLOP_FORWARD, "blending"), (FLOP_BACKWARD, "blending backward"))
                )
                cells = [f"{size:,}", image, str(count), f"{ms['iteration']:.0f}", *(f"{ms[name]:.1f}" for name in parts)]
                cells += [f"{evaluated:.0f} / {blended:.0f}", " / ".join(f"{share:.0%}" for share in shares)]
                cells.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")
                print("| " + " | ".join(cells) + " |", flush=True)


def processor() -> str:
    """The processor's name where Linux says it, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def compare(revisions: list[str], arguments: list[str], rounds: int) -> None:
    """Run this script on two revisions in turn, A B A B, and print the ratio of whole iterations, pair by pair."""
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / f"tree{index}" for index in range(2)]
        for revision, tree in zip(revisions, trees, strict=True):
            subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(tree), revision], check=True)
        try:
            ratios = []
            for _ in range(rounds):
                pair = [_one_iteration(tree, arguments) for tree in trees]
                ratios.append(pair[0] / pair[1])
                print(f"{revisions[0]}: {pair[0]:.0f} ms, {revisions[1]}: {pair[1]:.0f} ms, ratio {ratios[-1]:.2f}", flush=True)
            print(f"median ratio {statistics.median(ratios):.2f}")
        finally:
            for tree in trees:
                subprocess.run(["git", "worktree", "remove", "--force", str(tree)], check=False)


def _one_iteration(tree: Path, arguments: list[str]) -> float:
    environment = {**os.environ, "PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(tree / ".numba_cache")}
    command = [sys.executable, str(Path(__file__).resolve()), "--whole", *arguments]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True, cwd=tree).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, nargs="+", default=list(SIZES), help="numbers of Gaussians")
    parser.add_argument("--image", nargs="+", default=list(IMAGES), help="image sizes, WIDTHxHEIGHT")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    parser.add_argument("--repetitions", type=int, default=7, help="iterations to take the median of")
    parser.add_argument("--compare", nargs=2, metavar="REVISION", help="two git revisions, in alternation, at the first of each size")
    parser.add_argument("--rounds", type=int, default=5, help="alternations of --compare")
    parser.add_argument("--whole", action="store_true", help="print the milliseconds of a whole iteration, nothing else")
    given = parser.parse_args()
    first = ["--gaussians", str(given.gaussians[0]), "--image", given.image[0], "--threads", str(given.threads[-1])]
    if given.compare:
        compare(given.compare, [*first, "--repetitions", str(given.repetitions)], given.rounds)
    elif given.whole:
        print(measure(given.gaussians[0], given.image[0], given.threads[-1], given.repetitions)[0]["iteration"])
    else:
        watch_all()
        table(given.gaussians, given.image, given.threads, given.repetitions)


if __name__ == "__main__":
    main()
