"""The terminal: notes, tables of facts, progress bars and stop signals.

Results go to stdout; notes, errors and progress bars go to stderr. Exit codes are in ``cli.py``.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def notify(sentence: str) -> None:
    """Print a note for the user."""
    print(sentence, file=sys.stderr, flush=True)


def print_error(sentence: str) -> None:
    """Print an error as one line that starts with the name of the program."""
    print(f"gs-train: {' '.join(sentence.split())}", file=sys.stderr, flush=True)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {value}")


def escape_unprintable() -> None:
    """Let stdout escape characters that the terminal's encoding lacks, as stderr does: file names may hold any byte."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def flush_stdout() -> None:
    """Flush stdout while an error can still be reported; at interpreter exit it is too late.

    Raises:
        OSError: the disk is full or the reader of the pipe is gone. Unwritten output is dropped.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextmanager
def step_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each step of a long task.

    Yields a function of the step's name, its progress and its total. The first call for a step closes the bars of
    earlier steps.
    """
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def show(step: str, done: int, total: int) -> None:
        if step not in bars:
            for bar in bars.values():
                bar.close()
            bars[step] = tqdm(total=total, desc=step)
        bars[step].update(done - bars[step].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the numbers of SIGINT and SIGTERM in a list instead of ending the process; a second signal ends it."""
    caught: list[int] = []

    def note(number: int, _frame: Any) -> None:
        caught.append(number)
        for each in previous:
            signal.signal(each, signal.SIG_DFL)
        # os.write bypasses Python's buffers: the progress bar may be in the middle of a print.
        os.write(2, b"\nFinishing this step, then saving. Press again to end at once.\n")

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
