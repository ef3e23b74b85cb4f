"""TrainLog: the progress bar on stderr and metrics.jsonl.

It never asks the device for a number by itself: the loop hands numbers in on logging steps. The invariant: metrics.jsonl holds one line
per logging step of the run as it now stands, so a resume cuts what was logged after its checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from gs_train.atomic_write import atomic_write


class TrainLog:
    """Context manager around the loop."""

    def __init__(self, metrics: Path, *, first: int, last: int) -> None:
        """Open metrics.jsonl for appending and show the bar.

        Args:
            metrics: path of metrics.jsonl; lines past iteration ``first`` are cut.
            first: steps already taken.
            last: the step at which training ends.
        """
        cut_metrics(metrics, first)
        metrics.parent.mkdir(parents=True, exist_ok=True)
        self._file = metrics.open("a", encoding="utf-8")
        # A log file gets a line every ten seconds instead of ten a second.
        interval_s = 0.1 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(
            initial=first,
            total=last,
            unit="it",
            mininterval=interval_s,
            dynamic_ncols=True,
            smoothing=0.05,
            desc="train",
        )

    def step(self) -> None:
        """One step is done."""
        self._bar.update()

    def record(self, line: dict[str, Any], *, loss: float, psnr: float) -> None:
        """A logging step: ``line`` goes to metrics.jsonl, the smoothed ``loss`` and ``psnr`` to the bar."""
        self._file.write(json.dumps(line) + "\n")
        # Flushed at once, so that a run that is killed has logged what it did.
        self._file.flush()
        self._bar.set_postfix_str(f"loss {loss:.4f}, PSNR {psnr:.2f} dB, {line['gaussians']} Gaussians", refresh=False)

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        try:
            self._file.close()
        except OSError:
            # A full disk was reported by the write that met it; closing tries the same bytes once more.
            if error is None:
                raise


def cut_metrics(path: Path, iteration: int) -> None:
    """Drop from metrics.jsonl the lines after ``iteration``, a last line that was cut off and what is no JSON; no file is fine."""
    if not path.is_file():
        return
    # Bytes, because a lost power line leaves anything at the end of a file.
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _iteration_of(line) <= iteration]
    if kept != lines:
        atomic_write(path, lambda file: file.write(b"".join(kept)))


def _iteration_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")
