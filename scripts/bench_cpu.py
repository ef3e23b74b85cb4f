"""Time one training iteration on the CPU, part by part, and say how near it comes to what the machine can do.

    python scripts/bench_cpu.py                            all sizes, 1 and 2 threads, memory, start-up; prints Markdown
    python scripts/bench_cpu.py --gaussians 100000 --image 640x480
    python scripts/bench_cpu.py --plot docs/scaling.png    how time grows with the number of Gaussians; needs matplotlib
    python scripts/bench_cpu.py --compare main~3 main      two revisions in alternation, in worktrees of their own

The scene is random: Gaussians spread through the view with lognormal sizes that shrink as their number grows, so that the number of pairs
of a pixel and a Gaussian stays of the same order. Times are medians over the repetitions, in milliseconds, without the first iterations of
a process, which load the kernels and fault in memory. All in one file, which --compare runs unchanged on the packages of other revisions.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
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
PLOTTED = (100_000, 200_000, 400_000, 700_000, 1_000_000)
PARTS = ("projection", "binning", "blending", "loss", "blending backward", "projection backward", "Adam", "statistics")
FIGURES = ("blending, share of peak", "and backward", "other than blending and binning", "projection, GB/s", "and backward", "loss", "Adam",
           "pairs evaluated / blended per pixel", "pairs with tiles")  # fmt: skip
FLOP_FORWARD, FLOP_BACKWARD = 30, 57  # per evaluated pair of a pixel and a Gaussian
FLOATS = 59  # per Gaussian at degree 3


class Iteration:
    """A model, a camera and a target, and one training iteration on them."""

    def __init__(self, gaussians: int, width: int, height: int) -> None:
        import torch

        from gs_train.cameras.camera import Camera
        from gs_train.density.classic import ClassicDensity
        from gs_train.density.config import DensityConfig
        from gs_train.model.gaussians import GaussianModel
        from gs_train.model.schedule import OptimizerConfig
        from gs_train.render.cpu.rasterizer import CpuRasterizer

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

    def render(self) -> Any:
        return self.rasterizer.render(self.model, self.camera, self.pose, self.background)

    def run(self) -> None:
        from gs_train.losses import photometric_loss

        render = self.render()
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


def watch_all() -> None:
    """Replace the steps of rasterizer and loss by ones that are timed."""
    from gs_train.kernels import ssim
    from gs_train.render.cpu import autograd

    def watch(module: Any, function: str, name: str) -> None:
        inner = getattr(module, function)

        def timed(*arguments: Any) -> Any:
            with part(name):
                return inner(*arguments)

        setattr(module, function, timed)

    watch(autograd, "project_forward", "projection")
    watch(autograd, "bin_gaussians", "binning")
    watch(autograd, "blend_forward", "blending")
    watch(ssim, "photometric_loss_and_gradient", "loss")
    watch(autograd, "blend_backward", "blending backward")
    watch(autograd, "project_backward", "projection backward")


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# ---- what the machine can do, and how much is asked of it


def fma_peak_gflops(threads: int) -> float:
    """Measured peak of float32 multiply-adds: twelve independent vectors, all in registers."""
    import numba
    import numpy as np

    from gs_train.kernels.jit import parallel_kernel
    from gs_train.kernels.simd import LANES, store, zero_floats

    rounds, vectors = 2_000_000, 12

    def burn(out: Any) -> None:
        for item in numba.prange(out.shape[0] // LANES):
            x, y, a = np.float32(0.999), np.float32(0.001), zero_floats()
            # Unequal, or they would be computed once.
            b, c, d, e, f, g = a + 1.0, a + 2.0, a + 3.0, a + 4.0, a + 5.0, a + 6.0
            h, i, j, k, m = a + 7.0, a + 8.0, a + 9.0, a + 10.0, a + 11.0
            for _ in range(rounds):
                a, b, c, d, e, f = a * x + y, b * x + y, c * x + y, d * x + y, e * x + y, f * x + y
                g, h, i, j, k, m = g * x + y, h * x + y, i * x + y, j * x + y, k * x + y, m * x + y
            store(out, np.uint64(item * LANES), a + b + c + d + e + f + g + h + i + j + k + m)

    kernel = parallel_kernel(burn)
    numba.set_num_threads(threads)
    out = np.empty(LANES * threads, np.float32)
    kernel(out)
    return max(2e-9 * LANES * vectors * rounds * threads / seconds(lambda: kernel(out)) for _ in range(5))


def copy_bandwidth_gbs(threads: int) -> float:
    """Measured bytes read and written per second by a large copy."""
    import torch

    torch.set_num_threads(threads)
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source).copy_(source)
    return max(2e-9 * 4 * source.numel() / seconds(lambda: target.copy_(source)) for _ in range(5))


def least_megabytes(gaussians: int, visible: int, pixels: int) -> dict[str, float]:
    """What the parts that are bound by memory have to read and write at least."""
    floats = {
        "projection": 11 * gaussians + visible * (48 + 16) + 5 * gaussians,
        "projection backward": visible * (FLOATS + 16 + 16) + gaussians * (FLOATS + 2),
        "Adam": 7 * FLOATS * gaussians,
        "loss": (3 + 3 + 9 + 9 + 3 + 3 + 3) * pixels,
    }
    return {name: 4e-6 * count for name, count in floats.items()}


def workload(case: Iteration) -> dict[str, int]:
    """Visible Gaussians, pairs of a Gaussian and a tile, and pairs of a Gaussian and a pixel that are evaluated and that are blended."""
    from gs_train.render.cpu import autograd

    kept: list[Any] = []
    inner = autograd.blend_forward
    autograd.blend_forward = lambda *arguments: (kept.append(arguments), inner(*arguments))[1]
    radii = case.render().radii
    autograd.blend_forward = inner
    records, tile_start, pairs, _, image, _, spans, tile_stop = kept[0]
    evaluated, blended = pair_counter()(records, tile_start, tile_stop, pairs, spans, *image.shape[:2])
    return {"visible": int((radii[:, 0] > 0).sum()), "pairs": len(pairs), "evaluated": evaluated, "blended": blended}


def pair_counter() -> Any:
    import numba
    import numpy as np

    from gs_train.render.cpu import projection as p
    from gs_train.render.cpu.tiles import TILE_HEIGHT, TILE_WIDTH, gaussian_of

    def count(
        records: Any, tile_start: Any, tile_stop: Any, pairs: Any, spans: Any, height: int, width: int
    ) -> tuple[int, int]:
        evaluated, blended = 0, 0
        tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
        for tile in range(tile_stop.shape[0]):
            x0, y0 = (tile % tiles_x) * TILE_WIDTH, (tile // tiles_x) * TILE_HEIGHT
            light = np.ones((TILE_HEIGHT, TILE_WIDTH))
            for at in range(tile_start[tile], tile_stop[tile]):
                r = records[gaussian_of(pairs[at])]
                for row in range(spans[at] & 255, spans[at] >> 8):
                    evaluated += TILE_WIDTH
                    dy = r[p.MEAN_Y] + r[p.MEAN_Y_FRACTION] - (y0 + row + 0.5)
                    for x in range(TILE_WIDTH):
                        u = r[p.MEAN_X] + r[p.MEAN_X_FRACTION] - (x0 + x + 0.5) + r[p.SHEAR] * dy
                        alpha = min(2.0 ** (r[p.LOG2_OPACITY] - r[p.HALF_C] * dy * dy - r[p.HALF_A] * u * u), 0.999)
                        if alpha >= 1 / 255 and x0 + x < width and y0 + row < height:
                            light[row, x] *= 1.0 - alpha
                            blended += light[row, x] > 1e-4
        return evaluated, blended

    return numba.njit(count)


# ---- tables


def make_case(gaussians: int, image: str) -> Iteration:
    width, height = (int(side) for side in image.split("x"))
    return Iteration(gaussians, width, height)


def measure(case: Iteration, threads: int, repetitions: int) -> dict[str, float]:
    """Median milliseconds of every part and of the whole iteration."""
    import torch

    torch.set_num_threads(threads)
    for _ in range(3):
        case.run()
    times_ms.clear()
    for _ in range(repetitions):
        with part("iteration"):
            case.run()
    return {name: statistics.median(values) for name, values in times_ms.items()}


def print_row(cells: list[object]) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def tables(sizes: list[int], images: list[str], threads: list[int], repetitions: int) -> None:
    peak, copy = {n: fma_peak_gflops(n) for n in threads}, {n: copy_bandwidth_gbs(n) for n in threads}
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}.\n")
    print_row(["threads", "float32 multiply-adds, GFLOP/s", "copy, GB/s"])
    print_row(["---"] * 3)
    for count in threads:
        print_row([count, f"{peak[count]:.0f}", f"{copy[count]:.1f}"])
    for size in sizes:
        print(f"\n### {size:,} Gaussians\n")
        print_row(["image", "threads", "iteration, ms", *PARTS, *FIGURES])
        print_row(["---"] * (3 + len(PARTS) + len(FIGURES)))
        for image in images:
            case = make_case(size, image)
            load = workload(case)
            pixels = case.camera.width * case.camera.height
            least = least_megabytes(size, load["visible"], pixels)
            for count in threads:
                ms = measure(case, count, repetitions)
                done = {
                    "blending": FLOP_FORWARD * load["evaluated"],
                    "blending backward": FLOP_BACKWARD * load["evaluated"],
                }
                cells = [image, count, f"{ms['iteration']:.0f}", *(f"{ms[name]:.1f}" for name in PARTS)]
                cells += [f"{flop / (1e6 * ms[name] * peak[count]):.0%}" for name, flop in done.items()]
                cells.append(
                    f"{1 - sum(ms[name] for name in ('binning', 'blending', 'blending backward')) / ms['iteration']:.0%}"
                )
                cells += [
                    f"{least[name] / ms[name]:.1f}" for name in ("projection", "projection backward", "loss", "Adam")
                ]
                cells += [f"{load['evaluated'] / pixels:.0f} / {load['blended'] / pixels:.0f}", f"{load['pairs']:,}"]
                print_row(cells)


def rasterizer_megabytes(case: Iteration) -> float:
    """Peak memory of rendering and going back, beyond parameters, gradients and moments. Linux only; wants a fresh process."""
    import torch

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith(field))

    small = Iteration(100, 64, 64)
    small.run()
    gradient_mb = 0.0
    for parameter in case.model.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
        gradient_mb += 1e-6 * parameter.nbytes
    assert case.model.optimizer is not None
    case.model.optimizer.step()
    case.model.optimizer.zero_grad(set_to_none=True)
    gradient = torch.full((case.camera.height, case.camera.width, 3), 1e-6)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    case.render().image.backward(gradient)
    return status("VmHWM") - before - gradient_mb


def start_up() -> tuple[float, ...]:
    """Seconds to compile all kernels, and to load them in another process."""
    code = (
        "import time, gs_train, torch, numba; from gs_train import losses; began = time.perf_counter();"
        "from gs_train.render.select import select_rasterizer;"
        "select_rasterizer('cpu', lambda line: None, also_compile=[losses.warm_up]); print(time.perf_counter() - began)"
    )
    with tempfile.TemporaryDirectory() as folder:
        command, environment = [sys.executable, "-c", code], {**os.environ, "NUMBA_CACHE_DIR": folder}
        return tuple(float(subprocess.check_output(command, env=environment, text=True)) for _ in range(2))


def plot(path: Path, image: str, repetitions: int) -> None:
    """Draw the time of an iteration over the number of Gaussians, beside what would grow as Gaussians that are seen and pairs do."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(8, 5), layout="constrained")).add_subplot()
    rows = []
    for size in PLOTTED:
        case = make_case(size, image)
        ms, load = measure(case, 2, repetitions), workload(case)
        rows.append((size, ms, load["visible"] + load["pairs"]))
        print(f"{size:,}: {ms['iteration']:.0f} ms, {load['visible']:,} visible, {load['pairs']:,} pairs", flush=True)
    sizes = [size for size, _, _ in rows]
    grown = [rows[0][1]["iteration"] * count / rows[0][2] for _, _, count in rows]
    axes.plot(sizes, grown, "k--", label="the first iteration, grown as visible Gaussians + pairs with tiles")
    axes.plot(sizes, [ms["iteration"] for _, ms, _ in rows], "o-", label="iteration")
    for name in PARTS:
        axes.plot(sizes, [ms[name] for _, ms, _ in rows], ".-", linewidth=1, label=name)
    axes.set(
        xlabel="Gaussians",
        ylabel="ms",
        title=f"One training iteration at {image}, 2 threads, {processor()}",
        ylim=(0, None),
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def processor() -> str:
    """The processor's name where Linux says it, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# ---- two revisions


def compare(revisions: list[str], arguments: list[str], rounds: int) -> None:
    """Run this script on two revisions in turn, A B A B, and print the ratio of whole iterations, pair by pair."""
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / f"tree{index}" for index in range(2)]
        for revision, tree in zip(revisions, trees, strict=True):
            subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(tree), revision], check=True)
        try:
            ratios = []
            for _ in range(rounds):
                pair = [one_iteration(tree, arguments) for tree in trees]
                ratios.append(pair[0] / pair[1])
                print(
                    f"{revisions[0]}: {pair[0]:.0f} ms, {revisions[1]}: {pair[1]:.0f} ms, ratio {ratios[-1]:.2f}",
                    flush=True,
                )
            print(f"median ratio {statistics.median(ratios):.2f}")
        finally:
            for tree in trees:
                subprocess.run(["git", "worktree", "remove", "--force", str(tree)], check=False)


def one_iteration(tree: Path, arguments: list[str]) -> float:
    environment = {**os.environ, "PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(tree / ".numba_cache")}
    command = [sys.executable, str(Path(__file__).resolve()), "--whole", *arguments]
    message = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, cwd=tree
    ).stdout.split()
    if not Path(message[0]).is_relative_to(tree.resolve()):
        raise SystemExit(f"{message[0]} was measured instead of {tree}")
    return float(message[1])


def package() -> Path:
    """Where the package that is measured lies. To be called before torch is imported, which then finds how its idle threads are to wait."""
    import gs_train

    return Path(gs_train.__file__).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, nargs="+", default=list(SIZES), help="numbers of Gaussians")
    parser.add_argument("--image", nargs="+", default=list(IMAGES), help="image sizes, WIDTHxHEIGHT")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    parser.add_argument("--repetitions", type=int, default=15, help="iterations to take the median of")
    parser.add_argument(
        "--plot", type=Path, help="draw the growth with the number of Gaussians at 640x480 into this file instead"
    )
    parser.add_argument(
        "--compare", nargs=2, metavar="REVISION", help="two git revisions, in alternation, at the first of each size"
    )
    parser.add_argument("--rounds", type=int, default=5, help="alternations of --compare")
    parser.add_argument(
        "--whole", action="store_true", help="print the milliseconds of a whole iteration, nothing else"
    )
    parser.add_argument("--memory", action="store_true", help="print the rasterizer's peak memory in MB, nothing else")
    given = parser.parse_args()
    first = ["--gaussians", str(given.gaussians[0]), "--image", given.image[0], "--threads", str(given.threads[-1])]
    if given.compare:
        # Without importing the package here: what it sets would be handed on to both.
        compare(given.compare, [*first, "--repetitions", str(given.repetitions)], given.rounds)
        return
    measured = package()
    if given.whole:
        took_ms = measure(make_case(given.gaussians[0], given.image[0]), given.threads[-1], given.repetitions)
        print(measured, took_ms["iteration"])
    elif given.memory:
        print(f"{rasterizer_megabytes(make_case(given.gaussians[0], given.image[0])):.0f}")
    elif given.plot:
        watch_all()
        plot(given.plot, "640x480", given.repetitions)
    else:
        watch_all()
        tables(given.gaussians, given.image, given.threads, given.repetitions)
        print()
        for size in given.gaussians:
            command = [sys.executable, __file__, "--memory", "--gaussians", str(size), "--image", given.image[-1]]
            memory = subprocess.check_output(command, text=True).strip()
            print(
                f"Rasterizer at {size:,} Gaussians, {given.image[-1]}: {memory} MB beyond parameters, gradients and moments.  "
            )
        print("\nAll kernels: {:.0f} s to compile, {:.1f} s to load in another process.".format(*start_up()))


if __name__ == "__main__":
    main()
