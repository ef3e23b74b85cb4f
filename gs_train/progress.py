"""Shows on stderr how far a long task is: a bar on a terminal, elsewhere lines with the time for a log file."""

from __future__ import annotations

import sys
import time
from datetime import datetime, timedelta
from types import TracebackType

from tqdm import tqdm

_LINE_EVERY_S = 10.0
"""Seconds between two lines of a log file."""


class Progress:
    """Progress of one task, as a context manager."""

    def __init__(self, task: str, total: int, *, first: int = 0, unit: str = "it", shown: bool = True) -> None:
        """Begin.

        Args:
            task: name of the task, a verb or a noun.
            total: number of units at the end.
            first: number of units that an earlier process has done.
            unit: name of a unit.
            shown: False shows nothing.
        """
        self._task, self._total, self._unit, self._details = task, total, unit, ""
        self._first = self._done = first
        self._shown, self._began_s = shown, time.monotonic()
        self._line_s, self._line_done = self._began_s, first
        self._bar: tqdm[None] | None = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(
                initial=first, total=total, unit=unit, mininterval=0.1, dynamic_ncols=True, smoothing=0.05, desc=task
            )

    def update(self, units: int = 1) -> None:
        """Count ``units`` more as done."""
        self._done += units
        if self._bar is not None:
            self._bar.update(units)
        elif self._shown and time.monotonic() - self._line_s >= _LINE_EVERY_S:
            self._print_line()

    def describe(self, details: str) -> None:
        """Show ``details`` beside the counts from now on."""
        self._details = details
        if self._bar is not None:
            self._bar.set_postfix_str(details, refresh=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the bar, or print the last line."""
        if self._bar is not None:
            self._bar.close()
        elif self._shown and self._done > self._line_done:
            self._print_line()

    def _print_line(self) -> None:
        self._line_s, self._line_done = time.monotonic(), self._done
        passed_s = max(self._line_s - self._began_s, 1e-9)
        rate = (self._done - self._first) / passed_s
        parts = [f"{self._task}: {self._done} of {self._total}", f"{rate:.3g} {self._unit}/s"]
        if self._done < self._total:
            parts.append(f"{timedelta(seconds=round((self._total - self._done) / rate))} left")
        else:
            parts.append(f"{timedelta(seconds=round(passed_s))} in all")
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        print(now, ", ".join([*parts, *([self._details] if self._details else [])]), file=sys.stderr, flush=True)
