"""Times one training iteration on the CPU, part by part, and compares it with the limits of the machine.

    python scripts/bench_cpu.py                            all sizes, 1 and 2 threads, memory, start-up; prints Markdown
    python scripts/bench_cpu.py --gaussians 100000 --image 640x480
    python scripts/bench_cpu.py --plot docs/scaling.png    time against the number of Gaussians; needs matplotlib
    python scripts/bench_cpu.py --compare main~3 main      two revisions in alternation, each in its own worktree
    python scripts/bench_cpu.py --scene DESK --threads 1   many small Gaussians: a scene's points 13 times

The scene is random: Gaussians fill the view, with lognormal sizes that shrink as their number grows, so that the
number of pairs of a pixel and a Gaussian changes little. Times are medians in milliseconds over the repetitions,
after three iterations that load the kernels and touch the memory. The parts are the profiler ranges ``gs_train::...``
of the rasterizer and the loss. The limits of the machine are in cpu_limits.py. --compare runs this file unchanged on
the packages of other revisions.
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cpu_limits import copy_bandwidth_gbs, fma_peak_gflops, least_megabytes, seconds, workload

SIZES, IMAGES = (10_000, 100_000, 500_000, 1_000_000), ("320x240", "640x480", "1280x720")
PLOTTED = (100_000, 200_000, 400_000, 700_000, 1_000_000)
PARTS = ("projection", "binning", "blending", "loss", "blending backward", "projection backward", "Adam", "statistics")
FIGURES = (
    *("blending, share of peak", "and backward", "other than blending and binning"),
    *("projection, GB/s", "and backward", "loss", "Adam"),
    *("pairs evaluated / blended per pixel", "pairs with tiles"),
)
RANGE = "gs_train::"
UNTIMED = 3  # iterations before the first timed iteration
FLOP_FORWARD, FLOP_BACKWARD = 30, 57  # per evaluated pair of a pixel and a Gaussian


class Iteration:
    """A model, a camera and a random target, and one training iteration on them."""

    def __init__(self, model: Any, camera: Any, pose: Any) -> None:
        import torch

        from gs_train.density.classic import ClassicDensity
        from gs_train.density.config import DensityConfig
        from gs_train.density.types import DensitySetup
        from gs_train.model.schedule import OptimizerConfig
        from gs_train.render.cpu.rasterizer import CpuRasterizer

        self.model, self.camera, self.pose = model, camera, pose
        gaussians, width, height = len(model), camera.width, camera.height
        self.model.training_setup(OptimizerConfig(xyz_lr_max_steps=1000, xyz_lr_init=1e-9, xyz_lr_final=1e-9))
        never = DensityConfig(from_iteration=10**6, until_iteration=10**6, refine_until_iteration=10**6)
        setup = DensitySetup(
            config=never,
            max_gaussians=gaussians,
            extent=5.0,
            gaussians=gaussians,
            photo_pixels=width * height,
            white_background=False,
            views=None,  # the classic controller renders no views
            generator=torch.Generator(),
            device=torch.device("cpu"),
        )
        self.density = ClassicDensity(setup)
        self.rasterizer = CpuRasterizer()
        self.target = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))
        self.background = torch.zeros(3)

    def render(self) -> Any:
        return self.rasterizer.render(self.model, self.camera, self.pose, self.background)

    def run(self) -> None:
        from torch.profiler import record_function

        from gs_train.losses import photometric_loss

        render = self.render()
        photometric_loss(render.image, self.target, 0.2).backward()
        with record_function(RANGE + "statistics"):
            self.density.observe(self.density.measure(render))
        assert self.model.optimizer is not None
        with record_function(RANGE + "Adam"):
            self.model.optimizer.step()
            self.model.optimizer.zero_grad(set_to_none=True)


def random_model(gaussians: int, tangent_x: float, tangent_y: float, g: Any) -> Any:
    """A model whose Gaussians fill a view along +z at depths from 2 to 8; the tangents are its extents at depth 1."""
    import torch

    from gs_train.model.gaussians import GaussianModel

    depth = torch.rand(gaussians, generator=g) * 6 + 2
    lateral = (torch.rand(gaussians, 2, generator=g) - 0.5) * torch.tensor([tangent_x, tangent_y])
    size = 0.03 * (100_000 / gaussians) ** 0.5
    tensors = {
        "xyz": torch.cat([lateral * depth[:, None], depth[:, None]], dim=1),
        "f_dc": torch.randn(gaussians, 1, 3, generator=g) * 0.5,
        "f_rest": torch.randn(gaussians, 15, 3, generator=g) * 0.1,
        "opacity": torch.randn(gaussians, 1, generator=g),
        "scaling": torch.randn(gaussians, 3, generator=g) * 0.5 + math.log(size),
        "rotation": torch.randn(gaussians, 4, generator=g),
    }
    return GaussianModel(tensors, active_sh_degree=3)


def make_case(gaussians: int, image: str) -> Iteration:
    """Random Gaussians that fill the view."""
    import torch

    from gs_train.cameras.camera import Camera

    width, height = (int(side) for side in image.split("x"))
    focal = 0.94 * width
    g = torch.Generator().manual_seed(0)
    model = random_model(gaussians, 1.1 * width / focal, 1.1 * height / focal, g)
    camera = Camera(width=width, height=height, fx=focal, fy=focal, cx=width / 2, cy=height / 2)
    return Iteration(model, camera, torch.eye(4))


def make_scene_case(path: Path) -> Iteration:
    """Many small Gaussians, seen from the first view: the model at the start of a training on the scene's points, 13
    times over and moved by 0.02 units (standard deviation)."""
    import numpy as np
    import torch

    from gs_train.model.initialise import initialise_model
    from gs_train.scene.load import load_scene
    from gs_train.scene.types import PointCloud

    scene = load_scene(path)
    moved = np.repeat(scene.points.xyz, 13, axis=0)
    moved += np.random.default_rng(0).normal(scale=0.02, size=moved.shape)
    model = initialise_model(
        PointCloud(xyz=moved, rgb=np.repeat(scene.points.rgb, 13, axis=0)),
        sh_degree=3,
        extent=5.0,
        lr_scale=lambda _: 5.0,
        place=lambda unit: unit,  # for a scene without points
        max_gaussians=len(moved),
        generator=torch.Generator(),
        device="cpu",
    )
    for _ in range(3):
        model.oneup_sh_degree()
    view = scene.train_views[0]
    return Iteration(model, view.camera, torch.from_numpy(view.world_to_camera).float())


# ---- times


def measure(case: Iteration, threads: int, repetitions: int) -> float:
    """Median milliseconds of a whole iteration."""
    import torch

    torch.set_num_threads(threads)
    for _ in range(UNTIMED):
        case.run()
    return 1e3 * statistics.median(seconds(case.run) for _ in range(repetitions))


def measure_parts(case: Iteration, threads: int, repetitions: int) -> dict[str, float]:
    """Median milliseconds of every part, and of the ``iteration``, which is timed without the profiler."""
    from torch.profiler import ProfilerActivity, profile

    medians = {"iteration": measure(case, threads, repetitions)}
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repetitions):
            case.run()
    events = list(profiler.events())
    for name in PARTS:
        medians[name] = 1e-3 * statistics.median(e.cpu_time_total for e in events if e.name == RANGE + name)
    return medians


# ---- output


def print_row(cells: list[object]) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def tables(cases: dict[str, list[tuple[str, Callable[[], Iteration]]]], threads: list[int], repetitions: int) -> None:
    """Print the limits of the machine, then a table per heading with a row for each image and number of threads."""
    peak, copy = {n: fma_peak_gflops(n) for n in threads}, {n: copy_bandwidth_gbs(n) for n in threads}
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}.\n")
    print_row(["threads", "float32 multiply-adds, GFLOP/s", "copy, GB/s"])
    print_row(["---"] * 3)
    for count in threads:
        print_row([count, f"{peak[count]:.0f}", f"{copy[count]:.1f}"])
    for heading, images in cases.items():
        print(f"\n### {heading}\n")
        print_row(["image", "threads", "iteration, ms", *PARTS, *FIGURES])
        print_row(["---"] * (3 + len(PARTS) + len(FIGURES)))
        for image, make in images:
            case = make()
            load = workload(case.render())
            for count in threads:
                ms = measure_parts(case, count, repetitions)
                parts = [f"{ms['iteration']:.0f}", *(f"{ms[name]:.1f}" for name in PARTS)]
                print_row([image, count, *parts, *figures(case, load, ms, peak[count])])


def figures(case: Iteration, load: dict[str, int], ms: dict[str, float], peak_gflops: float) -> list[str]:
    """The cells of the columns ``FIGURES``."""
    pixels = case.camera.width * case.camera.height
    least = least_megabytes(len(case.model), load["visible"], pixels)
    flop = {"blending": FLOP_FORWARD * load["evaluated"], "blending backward": FLOP_BACKWARD * load["evaluated"]}
    rest = 1 - sum(ms[name] for name in ("binning", "blending", "blending backward")) / ms["iteration"]
    return [
        *(f"{count / (1e6 * ms[name] * peak_gflops):.0%}" for name, count in flop.items()),
        f"{rest:.0%}",
        *(f"{least[name] / ms[name]:.1f}" for name in ("projection", "projection backward", "loss", "Adam")),
        f"{load['evaluated'] / pixels:.0f} / {load['blended'] / pixels:.0f}",
        f"{load['pairs']:,}",
    ]


def rasterizer_megabytes(case: Iteration) -> float:
    """Peak memory of a render and its backward pass, beyond parameters, gradients and moments.

    Linux only; it needs a fresh process.
    """
    import torch

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith(field))

    make_case(100, "64x64").run()
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


def print_memory(sizes: list[int], image: str) -> None:
    """Print the memory of the rasterizer at each size, measured in fresh processes."""
    print()
    for size in sizes:
        command = [sys.executable, __file__, "--memory", "--gaussians", str(size), "--image", image]
        memory = subprocess.check_output(command, text=True).strip()
        print(f"Rasterizer at {size:,} Gaussians, {image}: {memory} MB beyond parameters, gradients and moments.  ")


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
    """Plot the times against the number of Gaussians, beside the growth of visible Gaussians + pairs with tiles."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(8, 5), layout="constrained")).add_subplot()
    rows = []
    for size in PLOTTED:
        case = make_case(size, image)
        ms, load = measure_parts(case, 2, repetitions), workload(case.render())
        rows.append((size, ms, load["visible"] + load["pairs"]))
        print(f"{size:,}: {ms['iteration']:.0f} ms, {load['visible']:,} visible, {load['pairs']:,} pairs", flush=True)
    sizes = [size for size, _, _ in rows]
    grown = [rows[0][1]["iteration"] * count / rows[0][2] for _, _, count in rows]
    axes.plot(sizes, grown, "k--", label="the first iteration, grown as visible Gaussians + pairs with tiles")
    axes.plot(sizes, [ms["iteration"] for _, ms, _ in rows], "o-", label="iteration")
    for name in PARTS:
        axes.plot(sizes, [ms[name] for _, ms, _ in rows], ".-", linewidth=1, label=name)
    title = f"One training iteration at {image}, 2 threads, {processor()}"
    axes.set(xlabel="Gaussians", ylabel="ms", title=title, ylim=(0, None))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def processor() -> str:
    """The name of the processor on Linux; elsewhere the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# ---- two revisions


def compare(revisions: list[str], arguments: list[str], rounds: int) -> None:
    """Run this script on two revisions in alternation, A B A B; print the ratio of the iterations of each pair."""
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / f"tree{index}" for index in range(2)]
        for revision, tree in zip(revisions, trees, strict=True):
            subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(tree), revision], check=True)
        try:
            ratios = []
            for _ in range(rounds):
                a, b = (one_iteration(tree, arguments) for tree in trees)
                ratios.append(a / b)
                print(f"{revisions[0]}: {a:.0f} ms, {revisions[1]}: {b:.0f} ms, ratio {ratios[-1]:.2f}", flush=True)
            print(f"median ratio {statistics.median(ratios):.2f}")
        finally:
            for tree in trees:
                subprocess.run(["git", "worktree", "remove", "--force", str(tree)], check=False)


def one_iteration(tree: Path, arguments: list[str]) -> float:
    """Milliseconds of a whole iteration with the package in ``tree``."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(tree / ".numba_cache")}
    command = [sys.executable, str(Path(__file__).resolve()), "--whole", *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, cwd=tree)
    measured, took_ms = done.stdout.split()
    if not Path(measured).is_relative_to(tree.resolve()):
        raise SystemExit(f"{measured} was measured instead of {tree}")
    return float(took_ms)


def package() -> Path:
    """Path of the measured package. Call this before torch is imported: the package sets how idle threads wait."""
    import gs_train

    return Path(gs_train.__file__).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, nargs="+", default=list(SIZES), help="numbers of Gaussians")
    parser.add_argument("--scene", type=Path, help="only many small Gaussians at the points of this scene")
    parser.add_argument("--image", nargs="+", default=list(IMAGES), help="image sizes, WIDTHxHEIGHT")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    parser.add_argument("--repetitions", type=int, default=15, help="iterations to take the median of")
    parser.add_argument(
        "--plot", type=Path, help="only plot time against the number of Gaussians at 640x480 into this file"
    )
    parser.add_argument(
        "--compare", nargs=2, metavar="REVISION", help="only compare two git revisions, at the first sizes"
    )
    parser.add_argument("--rounds", type=int, default=5, help="alternations of --compare")
    parser.add_argument("--whole", action="store_true", help="only print the package's path and the ms of an iteration")
    parser.add_argument("--memory", action="store_true", help="only print the rasterizer's peak memory in MB")
    given = parser.parse_args()
    size, image, threads, repetitions = given.gaussians[0], given.image[0], given.threads[-1], given.repetitions
    if given.compare:
        # The package is not imported in this process: its settings of the environment would reach both children.
        first = ["--gaussians", str(size), "--image", image, "--threads", str(threads)]
        if given.scene:
            first += ["--scene", str(given.scene.resolve())]
        compare(given.compare, [*first, "--repetitions", str(repetitions)], given.rounds)
        return
    measured = package()
    if given.whole:
        case = make_scene_case(given.scene) if given.scene else make_case(size, image)
        print(measured, measure(case, threads, repetitions))
    elif given.memory:
        print(f"{rasterizer_megabytes(make_case(size, image)):.0f}")
    elif given.plot:
        plot(given.plot, "640x480", repetitions)
    elif given.scene:
        row = "first view", partial(make_scene_case, given.scene)
        tables({"Many small Gaussians": [row]}, given.threads, repetitions)
    else:
        cases = {
            f"{n:,} Gaussians": [(size, partial(make_case, n, size)) for size in given.image] for n in given.gaussians
        }
        tables(cases, given.threads, repetitions)
        print_memory(given.gaussians, given.image[-1])
        print("\nAll kernels: {:.0f} s to compile, {:.1f} s to load in another process.".format(*start_up()))


if __name__ == "__main__":
    main()
