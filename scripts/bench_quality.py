"""Trains several presets, measures the test views during training, and plots quality against seconds.

    python scripts/bench_quality.py SCENE --presets fast,default
    python scripts/bench_quality.py SCENE --presets "fast,default --density.kind mcmc" --minutes 10 --seeds 0 1 2
    python scripts/bench_quality.py SCENE --presets paper,fast --plot docs/quality.png -- --iterations 6000

Each entry of --presets is a preset, optionally followed by flags of `gs-train train`; the flags after -- apply to all
entries, before their own flags. Each training runs in a separate process, so that its peak memory can be measured.
The clock stops during evaluation, so seconds cover the training loop only. --minutes ends each training at that time.
Rows with more than one seed show the mean and, in brackets, the lowest and highest value.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gs_train.model.gaussians import GaussianModel
    from gs_train.training.state import TrainState

MARKS = 10
"""Evaluations per training, the last one at its end."""
COLUMNS = (
    "PSNR, dB",
    "colour matched, dB",
    "SSIM",
    "Gaussians",
    "file, MiB",
    "iterations",
    "seconds",
    "peak memory, MiB",
)


def train_one(scene_path: str, flags: list[str], minutes: float | None, result: Path) -> None:
    """Train once. Write the measurements at the marks as JSON: a list of dicts with the keys of ``COLUMNS``."""
    from gs_train.commands.train import TrainCommand
    from gs_train.evaluate.evaluate import evaluate
    from gs_train.flags import parse
    from gs_train.machine import peak_memory
    from gs_train.render.select import select_rasterizer
    from gs_train.scene.load import load_scene
    from gs_train.training.loop import train

    command = parse(["train", scene_path, *flags])
    assert isinstance(command, TrainCommand)
    config = command.config
    scene = load_scene(Path(scene_path), config.scene)
    views = scene.test_views or scene.train_views
    rasterizer = select_rasterizer(config.device, lambda _: None, antialiased=config.antialiased).rasterizer
    measured: list[dict[str, Any]] = []
    evaluating_s, limit_s = 0.0, None if minutes is None else 60.0 * minutes
    ended = False

    def progress(state: TrainState) -> float:
        by_iterations = state.iteration / config.iterations
        seconds = state.elapsed_s - evaluating_s
        return by_iterations if limit_s is None else max(seconds / limit_s, float(by_iterations == 1.0))

    def measure_at_mark(state: TrainState) -> None:
        nonlocal evaluating_s, ended
        if ended or progress(state) < (len(measured) + 1) / MARKS:
            return
        seconds, began_s = state.elapsed_s - evaluating_s, time.perf_counter()
        ended = progress(state) >= 1.0
        with tempfile.TemporaryDirectory() as folder:
            background = state.background.eval_color()
            mean = evaluate(state.model, views, rasterizer, background=background, renders=Path(folder)).mean
        size_mib = splat_mib(state.model)
        quality = (mean.psnr, mean.psnr_colour_matched, mean.ssim)
        row = (*quality, len(state.model), size_mib, state.iteration, seconds, (peak_memory() or 0) / 2**20)
        measured.append(dict(zip(COLUMNS, row, strict=True)))
        result.write_text(json.dumps(measured))
        evaluating_s += time.perf_counter() - began_s

    with tempfile.TemporaryDirectory() as out:
        train(scene, config, Path(out) / "run", after_step=[measure_at_mark], should_stop=lambda: ended)


def splat_mib(model: GaussianModel) -> float:
    """Size of the model as a .ply file, MiB."""
    from gs_train.formats.registry import write_splat

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "splat.ply"
        write_splat(file, model.to_splat_data())
        return file.stat().st_size / 2**20


def measure(scene: str, entry: str, shared: list[str], seed: int, minutes: float | None) -> list[dict[str, Any]]:
    """Train and measure once, in a separate process."""
    preset, *own = entry.split()
    flags = ["--preset", preset, *shared, *own, "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "measured.json"
        child = [sys.executable, __file__, "--one", scene, json.dumps(flags), json.dumps(minutes), str(result)]
        if subprocess.run(child, check=False).returncode != 0:
            raise SystemExit(f"training {scene} with {' '.join(flags)} failed; see above")
        measured: list[dict[str, Any]] = json.loads(result.read_text())
    last = measured[-1]
    print(
        f"{entry}, seed {seed}: {last['PSNR, dB']:.2f} dB, {last['Gaussians']:,} Gaussians, {last['seconds']:.0f} s",
        file=sys.stderr,
    )
    return measured


def table(results: dict[str, list[list[dict[str, Any]]]]) -> str:
    """Markdown table of the last mark of each entry."""
    lines = ["| preset | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for entry, runs in results.items():
        cells = []
        for column in COLUMNS:
            values = [run[-1][column] for run in runs]
            digits = {"PSNR, dB": ".2f", "colour matched, dB": ".2f", "SSIM": ".4f", "file, MiB": ".1f"}.get(
                column, ",.0f"
            )
            mean, low, high = (format(value, digits) for value in (sum(values) / len(values), min(values), max(values)))
            cells.append(mean if low == high else f"{mean} ({low} to {high})")
        lines.append(f"| {entry} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(results: dict[str, list[list[dict[str, Any]]]]) -> str:
    """Markdown table of the PSNR at every mark, mean over the seeds."""
    lines = [
        "| preset | " + " | ".join(f"{number}/{MARKS}" for number in range(1, MARKS + 1)) + " |",
        "|---" * (MARKS + 1) + "|",
    ]
    for entry, runs in results.items():
        cells = []
        for marks in zip(*runs, strict=False):
            psnr, at_s = (sum(mark[name] for mark in marks) / len(marks) for name in ("PSNR, dB", "seconds"))
            cells.append(f"{psnr:.2f} ({at_s:.0f} s)")
        lines.append(f"| {entry} | {' | '.join(cells + [''] * (MARKS - len(cells)))} |")
    return "\n".join(lines)


def draw(results: dict[str, list[list[dict[str, Any]]]], scene: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from gs_train.machine import cpu_threads

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for number, (entry, runs) in enumerate(results.items()):
        for run in runs:
            at_s, psnr = ([mark[name] for mark in run] for name in ("seconds", "PSNR, dB"))
            axes.plot(at_s, psnr, marker="o", markersize=3, color=f"C{number}", label=entry if run is runs[0] else None)
    axes.set(
        xlabel="seconds of training", ylabel="test PSNR, dB", title=f"{Path(scene).name}, CPU threads: {cpu_threads()}"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        scene, flags, minutes, result = sys.argv[2:]
        return train_one(scene, json.loads(flags), json.loads(minutes), Path(result))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", metavar="SCENE", help="scene folder")
    parser.add_argument(
        "--presets", required=True, help="presets, separated by commas; flags of gs-train train may follow each"
    )
    parser.add_argument("--minutes", type=float, help="end each training at this time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds to train with")
    parser.add_argument("--plot", type=Path, help="plot test PSNR against seconds into this file; needs matplotlib")
    shared = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    arguments = parser.parse_args(sys.argv[1 : len(sys.argv) - len(shared) - ("--" in sys.argv)])
    entries = [entry.strip() for entry in arguments.presets.split(",")]
    results: dict[str, list[list[dict[str, Any]]]] = {entry: [] for entry in entries}
    for seed in arguments.seeds:
        for entry in entries:
            results[entry].append(measure(arguments.scene, entry, shared, seed, arguments.minutes))
    seeds, flags_for_all = ", ".join(map(str, arguments.seeds)), " ".join(shared) or "none"
    print(f"{Path(arguments.scene).name}, seeds {seeds}; flags for all: {flags_for_all}.")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.\n")
    print(f"{table(results)}\n\nTest PSNR during training, dB:\n\n{curves(results)}")
    if arguments.plot is not None:
        draw(results, arguments.scene, arguments.plot)


if __name__ == "__main__":
    main()
