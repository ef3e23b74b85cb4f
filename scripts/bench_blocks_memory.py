"""Measures the peak memory of a large city: merge, export and info, each in a process of its own.

    python scripts/bench_blocks_memory.py FOLDER [--millions 20] [--degree 3]

It writes a synthetic city of four blocks to FOLDER, about 5 GB for 20 million Gaussians of degree 3, and needs three
times that space. It removes everything at the end. Linux and macOS only.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gs_train.blocks.plan import Plan, PlannedBlock
from gs_train.formats.ply import write_ply_stream
from gs_train.formats.splat_data import ROWS_PER_PIECE, SplatData, SplatStream
from gs_train.scene.part import Part, Region

BLOCKS = 4
MERGE = (
    "import sys; from pathlib import Path; from gs_train.blocks.merge import merge; from gs_train.blocks.plan import "
)
MERGE += "read_plan; print(merge(read_plan(Path(sys.argv[1])), notify=print).gaussians)"


def synthetic(count: int, degree: int, left: float) -> SplatStream:
    """Gaussians in the strip from ``left`` to ``left + 1``. All pieces repeat the same values."""
    rng, rest = np.random.default_rng(0), (degree + 1) ** 2 - 1
    shapes = {"f_dc": (1, 3), "f_rest": (rest, 3), "opacity": (1,), "scaling": (3,), "rotation": (4,)}
    rows = min(count, ROWS_PER_PIECE)
    values: dict[str, Any] = {
        name: rng.normal(0, 0.1, (rows, *shape)).astype(np.float32) for name, shape in shapes.items()
    }
    piece = SplatData(xyz=rng.uniform((left, 0, 0), (left + 1, 1, 1), (rows, 3)).astype(np.float32), **values)

    def pieces() -> Iterator[SplatData]:
        for start in range(0, count, rows):
            yield piece.keep(slice(0, min(rows, count - start)))

    return SplatStream(count=count, sh_degree=degree, antialiased=False, pieces=pieces)


def write_city(folder: Path, count: int, degree: int) -> None:
    """A planned city whose blocks are strips, each with its share of ``count`` Gaussians."""
    numbers = {
        "photos": 1,
        "points": 1,
        "iterations": 1,
        "finish_iterations": 1,
        "max_gaussians": 1,
        "expected_gaussians": 1,
        "memory_bytes": 1,
    }
    blocks = tuple(PlannedBlock(number=number, **numbers) for number in range(BLOCKS))
    plan = Plan(path=folder, scene=folder, fingerprint="", offset=(0.0, 0.0, 0.0), test_views=0, blocks=blocks)
    limits = [-math.inf, *map(float, range(1, BLOCKS)), math.inf]
    for block in blocks:
        low, high = limits[block.number : block.number + 2]
        axes = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
        region = Region(axes=axes, low=(low, -math.inf), high=(high, math.inf))
        plan.folder(block).mkdir(parents=True)
        Part(scene=folder, photos=("a",), region=region, margin=1.0, extent=5.0).write(plan.folder(block))
        write_ply_stream(plan.run(block).point_cloud(1), synthetic(count // BLOCKS, degree, block.number + 1e-3))
    plan.write()


def measure(name: str, *command: object) -> None:
    """Run a Python command and print its peak memory and its time."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{name:<24} {peak / 1e6:6.0f} MB  {time.monotonic() - began:6.1f} s  exit code {status >> 8}", flush=True)


def main() -> None:
    """Write the city, measure, remove it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--millions", type=float, default=20)
    parser.add_argument("--degree", type=int, default=3)
    arguments = parser.parse_args()
    count = round(arguments.millions * 1e6)
    arguments.folder.mkdir()
    try:
        city = arguments.folder / "city"
        write_city(city, count, arguments.degree)
        measure("merge", "-c", MERGE, city)
        measure("info city.json", "-m", "gs_train", "info", city / "city.json")
        measure("info city.ply", "-m", "gs_train", "info", city / "city.ply")
        for source in ("city.json", "city.ply"):
            out = arguments.folder / "out.ply"
            measure(f"export {source}", "-m", "gs_train", "export", city / source, out)
            out.unlink(missing_ok=True)
    finally:
        shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
