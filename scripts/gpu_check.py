"""Checks and measures training on an NVIDIA GPU, piece by piece; ``gpu_check.sh`` starts it.

Pieces: ``compile`` loads gsplat's kernels and compiles them if necessary; ``tests`` runs the tests marked cuda;
``profile`` times training steps on synthetic Gaussians, beside gsplat's own forward and backward pass; ``runs`` trains
a scene with some presets and evaluates it. Every piece adds its figures to one JSON file, whose older figures stay. The
kernels are loaded before every other piece, too: without them, nothing else is worth its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gs_train import losses
from gs_train.atomic_write import atomic_write_text
from gs_train.cameras.camera import Camera
from gs_train.model.gaussians import GaussianModel
from gs_train.model.schedule import OptimizerConfig
from gs_train.render import gsplat_cuda

ROOT = Path(__file__).resolve().parents[1]
PIECES = ("compile", "tests", "profile", "runs")
COUNTS = (100_000, 500_000, 2_000_000)
SIZES = ((1280, 720), (1600, 1060))
WARM_UP, TIMED = 5, 30
"""Steps before the timed steps, and timed steps."""
GROWTH_STEPS = (50, 2000)
"""Steps between which the allocated memory must not change."""
_SCALE_PX = 3.0
"""Standard deviation of 100,000 synthetic Gaussians in the image; more Gaussians are smaller."""


def main() -> int:
    """Run the pieces; 0 if they succeed, 1 if the kernels, a test or a run fails, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("scene", nargs="?", type=Path, help="scene folder to train; the sample scene if not given")
    parser.add_argument("--only", action="append", choices=PIECES, help="run this piece only; may be repeated")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu_check", help="folder for runs and figures")
    parser.add_argument("--preset", action="append", help="preset to train; fast, default and quality if not given")
    parser.add_argument(
        "--iterations", type=int, action="append", help="iterations, in place of the presets' own; may be repeated"
    )
    parser.add_argument("--count", type=int, action="append", help="number of Gaussians to profile")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "error: gpu_check.sh needs an NVIDIA GPU, and torch sees none: run it on a machine with one.",
            file=sys.stderr,
        )
        return 2
    # The trainings run in another folder.
    out, scene = arguments.out.resolve(), arguments.scene and arguments.scene.resolve()
    if scene is not None and not scene.exists():
        parser.error(f"{scene} does not exist: give the folder of a scene.")
    out.mkdir(parents=True, exist_ok=True)
    file, pieces = out / "gpu_check.json", arguments.only or PIECES
    figures = json.loads(file.read_text()) if file.exists() else {}
    figures["machine"] = machine()
    failed, whole_s = False, time.perf_counter()
    for piece in PIECES:
        if piece not in pieces and piece != "compile":
            continue
        print(f"== {piece}", flush=True)
        began_s = time.perf_counter()
        if piece == "compile":
            result = compile_kernels()
            if result["fault"] is not None:
                print(f"error: {result['fault']}: run gs-train doctor for the remedy.", file=sys.stderr)
                return 1
        elif piece == "tests":
            result = run_tests()
        elif piece == "profile":
            result = profile(torch.device("cuda"), tuple(arguments.count or COUNTS), SIZES)
        else:
            result = train_presets(scene, out, arguments.preset, arguments.iterations)
        failed |= bool(result.pop("failed", False))
        if piece in pieces:
            figures[piece] = {**result, "seconds": round(time.perf_counter() - began_s, 1)}
            atomic_write_text(file, json.dumps(figures, indent=2) + "\n")
            print(json.dumps(figures[piece], indent=2), flush=True)
    print(f"Figures: {file}, after {time.perf_counter() - whole_s:.0f} s.")
    return int(failed)


def machine() -> dict[str, Any]:
    """The GPU and the versions."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gsplat": metadata.version("gsplat"),
    }


def compile_kernels() -> dict[str, Any]:
    """Load the kernels of gsplat and of the loss, and compile them if necessary."""
    built, began_s = gsplat_cuda.kernels_built(), time.perf_counter()
    fault = gsplat_cuda.why_unusable(lambda line: print(line, flush=True))
    gsplat_s, began_s = time.perf_counter() - began_s, time.perf_counter()
    notes: list[str] = []
    losses.prepare(torch.device("cuda"), notes.append)
    colours = fault is None and gsplat_cuda.triton_colours() is not None
    figures = {"built_before": built, "gsplat_s": round(gsplat_s, 1), "fault": fault, "notes": notes}
    return figures | {"triton_s": round(time.perf_counter() - began_s, 1), "triton_colours": colours}


def run_tests() -> dict[str, Any]:
    """The tests marked cuda, from the files that have some."""
    files = [str(file) for file in sorted((ROOT / "tests").glob("test_*.py")) if "mark.cuda" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "--durations=5", "-p", "no:cacheprovider", *files]
    lines = []
    # pytest may be missing, and Python says so on stderr.
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    return {"summary": lines[-1] if lines else "", "failed": process.returncode != 0}


# ---- steps on synthetic Gaussians ----


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training step of the synthetic scene, and its parts."""

    whole: Callable[[], object]
    """Photo, render, loss, backward pass and Adam step, as in the training loop."""
    gsplat: Callable[[], object]
    """``gsplat.rasterization`` and its backward pass with a constant gradient of the image."""


def synthetic_step(device: torch.device, count: int, width: int, height: int) -> Step:
    """A step on ``count`` random Gaussians in the view of one camera, and a photo of noise."""
    import gsplat

    generator = torch.Generator().manual_seed(0)
    camera = Camera(width=width, height=height, fx=width, fy=width, cx=width / 2, cy=height / 2)
    depth = 2.0 + 4.0 * torch.rand(count, 1, generator=generator)
    across = (torch.rand(count, 2, generator=generator) - 0.5) * torch.tensor([1.0, height / width])
    scale = _SCALE_PX / camera.fx * (100_000 / count) ** 0.5 * depth
    shape = 0.5 * torch.randn(count, 3, generator=generator)
    tensors = {
        "xyz": torch.cat([across * depth, depth], dim=1),
        "f_dc": torch.randn(count, 1, 3, generator=generator),
        "f_rest": 0.1 * torch.randn(count, 15, 3, generator=generator),
        "opacity": torch.randn(count, 1, generator=generator),
        "scaling": scale.log() + shape,
        "rotation": torch.randn(count, 4, generator=generator),
    }
    model = GaussianModel({name: each.to(device) for name, each in tensors.items()}, active_sh_degree=3)
    # Rates so small that the scene stays the same from step to step.
    rates = {f"{name}_lr": 1e-9 for name in ("f_dc", "f_rest", "opacity", "scaling", "rotation")}
    model.training_setup(OptimizerConfig(xyz_lr_init=1e-9, xyz_lr_final=1e-9, xyz_lr_max_steps=1, **rates))
    photo = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8).to(device)
    view, background = torch.eye(4).to(device), torch.zeros(3).to(device)
    intrinsics = torch.tensor([[camera.fx, 0.0, camera.cx], [0.0, camera.fy, camera.cy], [0.0, 0.0, 1.0]]).to(device)
    upstream = torch.randn(1, height, width, 3, generator=generator).to(device)
    rasterizer = gsplat_cuda.GsplatRasterizer()

    def whole() -> None:
        render = rasterizer.render(model, camera, view, background)
        losses.photometric_loss(render.image, photo / 255.0, 0.2).backward()
        model.step()

    features = torch.cat([model.f_dc, model.f_rest], dim=1).detach().requires_grad_()
    inputs = [each.detach().requires_grad_() for each in (model.xyz, model.rotation, model.scales(), model.opacities())]

    def own() -> None:
        image, _, _ = gsplat.rasterization(
            *inputs, features, view[None], intrinsics[None], width, height, sh_degree=3, packed=False
        )
        image.backward(upstream)
        for each in (*inputs, features):
            each.grad = None

    return Step(whole=whole, gsplat=own)


def profile(device: torch.device, counts: tuple[int, ...], sizes: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Times of a step for every number of Gaussians and image size; waits, launches, and growth of memory."""
    rows = [time_step(device, count, width, height) for count in counts for width, height in sizes]
    step = synthetic_step(device, counts[0], *sizes[0])
    figures = {"steps": rows, "waits": waits_of(step.whole), **launches_of(step.whole), **growth_of(step.whole)}
    del step
    # The trainings run in other processes, which need the memory.
    torch.cuda.empty_cache()
    return figures


def time_step(device: torch.device, count: int, width: int, height: int) -> dict[str, Any]:
    """Times of a step on synthetic Gaussians and its peak memory. No tensor outlives the call."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = synthetic_step(device, count, width, height)
    own_ms, whole_ms = median_ms(step.gsplat), median_ms(step.whole)
    row = {
        "gaussians": count,
        "size": [width, height],
        "step_ms": round(whole_ms, 3),
        "gsplat_ms": round(own_ms, 3),
        "ratio": round(whole_ms / own_ms, 3),
        "share_outside_gsplat": round(1.0 - own_ms / whole_ms, 3),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(),
    }
    print(row, flush=True)
    return row


def median_ms(run: Callable[[], object]) -> float:
    """Median time of a call, which ends when the GPU has finished, ms."""
    times = []
    for index in range(WARM_UP + TIMED):
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if index >= WARM_UP:
            times.append(time.perf_counter() - began_s)
    return 1000.0 * statistics.median(times)


def waits_of(run: Callable[[], object]) -> list[str]:
    """The lines of a call at which torch waits for the GPU. gsplat's own wait, for the number of tiles, is not seen."""
    run()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [
        f"{Path(each.filename).name}:{each.lineno}" for each in caught if "called a synchronizing" in str(each.message)
    ]


def launches_of(run: Callable[[], object]) -> dict[str, Any]:
    """The number of kernels of a call, their time on the GPU, and the operators that take most of it."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(TIMED):
            run()
        torch.cuda.synchronize()
    averages = recorded.key_averages()
    launches = sum(event.count for event in averages if event.key.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    on_gpu = sorted(averages, key=lambda event: -event.self_device_time_total)
    on_cpu = sorted(averages, key=lambda event: -event.self_cpu_time_total)
    per_step = 1000.0 * TIMED
    return {
        "launches": round(launches / TIMED, 1),
        "gpu_ms": {event.key[:60]: round(event.self_device_time_total / per_step, 3) for event in on_gpu[:15]},
        "cpu_ms": {event.key[:60]: round(event.self_cpu_time_total / per_step, 3) for event in on_cpu[:20]},
    }


def growth_of(run: Callable[[], object]) -> dict[str, int]:
    """Allocated memory after some and after many calls, bytes."""
    allocated = {}
    for step in range(1, GROWTH_STEPS[-1] + 1):
        run()
        if step in GROWTH_STEPS:
            torch.cuda.synchronize()
            allocated[f"memory_after_{step}_bytes"] = torch.cuda.memory_allocated()
    return allocated


# ---- trainings ----


def train_presets(
    scene: Path | None, out: Path, presets: list[str] | None, iterations: list[int] | None
) -> dict[str, Any]:
    """Train and evaluate in processes of their own, so that the time covers the start and the end, too."""
    if scene is None:
        scene = out / "sample"
        if not scene.exists():
            run_gs_train("sample", scene)
    rows: list[dict[str, Any]] = []
    for preset in presets or ["fast", "default", "quality"]:
        for steps in iterations or [None]:
            run = out / (preset if steps is None else f"{preset}_{steps}")
            length = [] if steps is None else ["--iterations", steps]
            began_s = time.perf_counter()
            flags = ["--preset", preset, *length, "--out", run, "--overwrite", "--device", "cuda"]
            trained = run_gs_train("train", scene, *flags)
            row: dict[str, Any] = {"preset": preset, "whole_s": round(time.perf_counter() - began_s, 1)}
            if trained and run_gs_train("eval", run):
                facts, results = (json.loads((run / name).read_text()) for name in ("run.json", "results.json"))
                kept = ("iteration", "gaussians", "loop_s", "peak_memory_bytes", "peak_gpu_memory_bytes", "device")
                row |= {name: facts.get(name) for name in kept}
                row |= {name: results.get(name) for name in ("psnr", "ssim", "views")}
            rows.append(row)
    return {"scene": scene.name, "runs": rows, "failed": any("psnr" not in row for row in rows)}


def run_gs_train(*arguments: object) -> bool:
    """Run the command line; returns whether it succeeded."""
    command = [sys.executable, "-m", "gs_train", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
