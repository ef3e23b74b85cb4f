"""The training log: progress on stderr, and metrics.jsonl.

The loop passes numbers to the log on logging steps only, so the log itself never waits for the device. metrics.jsonl
has one line per logging step of the run in its current state: a resume removes the lines after its checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from gs_train.atomic_write import atomic_write
from gs_train.progress import Progress


class TrainLog:
    """Context manager around the training loop."""

    def __init__(self, metrics: Path | None, *, first: int, last: int, progress: bool) -> None:
        """Open metrics.jsonl for appending and begin to show progress.

        Args:
            metrics: path of metrics.jsonl. Lines after iteration ``first`` are removed. None for a process whose
                numbers another process writes.
            first: number of steps already taken.
            last: step at which training ends.
            progress: whether to show the progress.
        """
        self._file: TextIO | None = None
        if metrics is not None:
            cut_metrics(metrics, first)
            metrics.parent.mkdir(parents=True, exist_ok=True)
            self._file = metrics.open("a", encoding="utf-8")
        self._progress = Progress("train", last, first=first, shown=progress and metrics is not None)

    def step(self) -> None:
        """Advance the progress bar by one step."""
        self._progress.update()

    def record(self, line: dict[str, Any], *, loss: float, psnr: float) -> None:
        """Write ``line`` to metrics.jsonl, and the smoothed ``loss`` and ``psnr`` (dB) to the progress."""
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            # The immediate flush keeps every logged step of a run that is killed.
            self._file.flush()
        self._progress.describe(f"loss {loss:.4f}, PSNR {psnr:.2f} dB, {line['gaussians']} Gaussians")

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError:
            # Closing writes the buffered bytes again. On a full disk an earlier write already raised ``error``.
            if error is None:
                raise


def cut_metrics(path: Path, iteration: int) -> None:
    """Remove the lines of metrics.jsonl after ``iteration``, an incomplete last line, and invalid lines.

    A missing file is not an error.
    """
    if not path.is_file():
        return
    # The file is read as bytes, because a power failure may leave arbitrary data at its end.
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _iteration_of(line) <= iteration]
    if kept != lines:
        atomic_write(path, lambda file: file.write(b"".join(kept)))


def _iteration_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")
