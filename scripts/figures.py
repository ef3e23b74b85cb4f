"""Trains and evaluates scenes, and prints the table of figures in the README.

    python scripts/figures.py SCENE [SCENE ...] [-- FLAGS OF gs-train train]

`gs-train train` trains each scene into runs/figures/NAME, with the default preset and 2000 iterations unless the
flags change that; `gs-train eval` evaluates it. Seconds and peak memory (the largest resident size) cover the whole
training process.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

RUNS = Path("runs/figures")
HEAD = (
    "| scene | photos | iterations | seconds | test PSNR, dB | test SSIM | Gaussians | peak memory, MiB |\n"
    + "|---" * 8
    + "|"
)


def train(scene: Path, run: Path, flags: list[str]) -> tuple[float, float]:
    """Train in a separate process; returns its seconds and its peak memory in MiB."""
    fixed = ["--out", str(run), "--overwrite", "--iterations", "2000"]
    command = [sys.executable, "-m", "gs_train", "train", str(scene), *fixed, *flags]
    began_s = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"training {scene} failed; see its output above")
    return time.perf_counter() - began_s, usage.ru_maxrss / 1024


def row(scene: Path, flags: list[str]) -> str:
    run = RUNS / scene.name
    seconds, memory_mib = train(scene, run, flags)
    subprocess.run([sys.executable, "-m", "gs_train", "eval", str(run)], check=True)
    results = json.loads((run / "results.json").read_text())
    cameras = json.loads((run / "cameras.json").read_text())
    size = f"{len(cameras)} at {cameras[0]['width']}x{cameras[0]['height']}"
    quality = f"{results['psnr']:.2f} | {results['ssim']:.4f} | {results['gaussians']:,}"
    return f"| {scene.name} | {size} | {results['iteration']} | {seconds:.0f} | {quality} | {memory_mib:.0f} |"


def main() -> None:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    scenes, flags = [Path(argument) for argument in arguments[:split]], arguments[split + 1 :]
    if not scenes or arguments[0] in ("-h", "--help"):
        raise SystemExit(__doc__)
    RUNS.mkdir(parents=True, exist_ok=True)
    rows = [row(scene, flags) for scene in scenes]
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n\n{HEAD}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
