"""Closes the reader of a command's output at several moments, and measures the seconds until the command has ended.

    python scripts/try_pipes.py [--number 20] [--layer tbb] [--most 3.0]

train and eval run on a small sample scene. The reader goes before the first line, after the first line, or in the
middle, of stdout alone or of stdout and stderr. Seconds count from the later of two moments: the reader goes, or the
command writes its last file. Prints one line per run; returns 1 if one takes longer than --most or has a traceback.
The layer tbb needs the package tbb, and its folder in LD_LIBRARY_PATH. POSIX only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gs_train.sample.scene import write_sample_scene

_MOST_S = 300.0


@dataclass(frozen=True)
class Case:
    """A command and the moment at which its reader goes."""

    command: tuple[str, ...]
    lines: int
    """Number of lines that are read before the reader goes."""
    both: bool
    """Whether the reader reads stdout and stderr, as after ``2>&1``."""
    codes: tuple[int, ...]
    """Exit codes that are right."""


def cases(scene: Path, run: Path) -> list[Case]:
    """The commands with their moments."""
    few = ("train", str(scene), "--out", str(run), "--overwrite", "--device", "cpu", "--log-every", "1")
    short, long = (*few, "--iterations", "60"), (*few, "--iterations", "100000")
    evaluate = ("eval", str(run), "--device", "cpu")
    return [
        Case(short, 0, False, (141,)),
        Case(evaluate, 0, False, (141,)),
        Case(long, 0, True, (141,)),
        Case(long, 1, True, (141,)),
        Case(long, 3, True, (141,)),
        Case((*short, "--json"), 0, False, (141,)),
        Case(evaluate, 1, True, (141,)),
        Case(("info", str(run)), 1, False, (0, 141)),
    ]


def measure(case: Case, folder: Path, environment: dict[str, str]) -> tuple[float, int, str]:
    """Run a command; returns the seconds, its exit code, and what stderr got, if it was read apart."""
    errors = folder / "stderr.txt"
    with errors.open("w+") as apart:
        process = subprocess.Popen(
            [sys.executable, "-m", "gs_train", *case.command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if case.both else apart,
        )
        assert process.stdout is not None
        for _ in range(case.lines):
            process.stdout.readline()
        process.stdout.close()
        gone = time.time()
        code = process.wait(_MOST_S)
        ended = time.time()
        apart.seek(0)
        text = apart.read()
    written = [path.stat().st_mtime for path in folder.rglob("*") if path.is_file() and path != errors]
    return ended - max([gone, *written]), code, text


def main() -> int:
    """Run the commands; returns 1 if one is slow or fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=20, help="number of runs")
    parser.add_argument("--layer", default="", help="Numba's threading layer: tbb, workqueue or omp")
    parser.add_argument("--most", type=float, default=3.0, help="seconds that a run may take to end")
    options = parser.parse_args()
    environment = dict(os.environ)
    if options.layer:
        environment["NUMBA_THREADING_LAYER"] = options.layer
    faults, slowest = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_sample_scene(work / "scene", views=8, width=64, height=48, points=400)
        kinds = cases(work / "scene", work / "run")
        for number in range(options.number):
            case = kinds[number % len(kinds)]
            seconds, code, text = measure(case, work, environment)
            right = seconds <= options.most and code in case.codes and "Traceback" not in text
            faults, slowest = faults + (not right), max(slowest, seconds)
            streams = "stdout and stderr" if case.both else "stdout"
            told = f"{case.command[0]}, {streams} gone after {case.lines} lines: {seconds:.2f} s, code {code}"
            print(told if right else f"FAULT {told}\n{text}", flush=True)
    right_ends = options.number - faults
    print(f"{right_ends} of {options.number} ended within {options.most:g} s; the slowest took {slowest:.2f} s")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
