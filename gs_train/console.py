"""The terminal: notes, tables of facts, progress bars and stop signals.

Results go to stdout; notes, errors and progress bars go to stderr. Exit codes are in ``cli.py``.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

SIGPIPE = 13
"""Number of SIGPIPE on every POSIX system; Windows lacks the name."""
_HIDDEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that a terminal obeys or cannot show: control characters, surrogates, line separators."""
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that change the direction of text, so that a name reads as another one."""


def printable(text: str) -> str:
    """``text`` with an escape such as ``\\x1b`` for each character that a terminal would obey instead of showing it.

    Names of files, photos and columns may hold any character. Every text that the program prints goes through here.
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _HIDDEN or character in _DIRECTIONS
        else character
        for character in text
    )


def show(line: str) -> None:
    """Print one line of results.

    Raises:
        BrokenPipeError: the terminal or the reader of the pipe is gone.
    """
    try:
        print(printable(line))
    except OSError as error:
        if error.errno == errno.EIO:
            raise BrokenPipeError(error.errno, error.strerror) from error
        raise


def notify(sentence: str) -> None:
    """Print a note for the user."""
    print(printable(sentence), file=sys.stderr, flush=True)


def print_error(sentence: str) -> None:
    """Print an error as one line that starts with the name of the program."""
    print(f"gs-train: {printable(' '.join(sentence.split()))}", file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print one JSON object, for programs that read stdout."""
    print(json.dumps(value, default=str), flush=True)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        show(f"{name:<{width}}  {value}")


class _Stderr(io.TextIOWrapper):
    """stderr that drops text once its reader is gone: a closed terminal must not end a training before it is saved."""

    lost = False
    """Whether a write has failed."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:
            self._lose()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._lose()

    def _lose(self) -> None:
        self.lost = True
        _discard(2)


def prepare_streams() -> None:
    """Prepare stdout and stderr of this process for file names of any kind and for readers that go away."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does: a character that the terminal's encoding lacks is escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    if type(sys.stderr) is io.TextIOWrapper:
        file = open(2, "wb", closefd=False)
        sys.stderr = _Stderr(file, sys.stderr.encoding, errors="backslashreplace", line_buffering=True)


def flush_stdout() -> None:
    """Flush stdout while an error can still be reported; at interpreter exit it is too late.

    Raises:
        OSError: the disk is full or the reader of the pipe is gone. Unwritten output is dropped.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _discard(sys.stdout.fileno())
        raise


def _discard(descriptor: int) -> None:
    """Send all further output of a file descriptor nowhere."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


@contextmanager
def step_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of a task of several steps.

    Yields a function of the step's name, its progress and its total. The first call for a step ends the step before.
    """
    from gs_train.progress import Progress

    current: tuple[str, Progress, int] | None = None

    def show(step: str, done: int, total: int) -> None:
        nonlocal current
        if current is None or current[0] != step:
            end()
            current = (step, Progress(step, total, unit="photo"), 0)
        _, progress, before = current
        progress.update(done - before)
        current = (step, progress, done)

    def end() -> None:
        if current is not None:
            current[1].__exit__(None, None, None)

    try:
        yield show
    finally:
        end()


@contextmanager
def stop_signals(*, announce: bool = True) -> Iterator[Callable[[], int | None]]:
    """Let stop signals (Ctrl-C, SIGTERM, a closed terminal) end a training after its step instead of at once.

    Yields a function that returns the number of the signal to stop for, or None. Until its first call, signals end the
    process at once: there is nothing to save yet, and a compiler in C would delay a Python handler by seconds. After
    that call, the first signal is noted, and a second one ends the process. ``announce`` tells the
    user about the first.
    """
    caught: list[int] = []
    begun = False
    previous = {number: signal.getsignal(number) for number in _stop_numbers()}

    def note(number: int, _frame: Any) -> None:
        caught.append(number)
        for each in previous:
            signal.signal(each, signal.SIG_DFL)
        # os.write bypasses Python's buffers: the progress bar may be in the middle of a print.
        if not announce:
            return
        with suppress(OSError):
            os.write(2, b"\nFinishing this step, then saving. Press again to end at once.\n")

    def requested() -> int | None:
        nonlocal begun
        if not begun:
            begun = True
            for number in previous:
                signal.signal(number, note)
        if not caught and isinstance(sys.stderr, _Stderr) and sys.stderr.lost:
            caught.append(SIGPIPE)
        return caught[0] if caught else None

    try:
        for number in previous:
            signal.signal(number, signal.SIG_DFL)
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def end_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once, without a Python handler that would wait for a compiler in C."""
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _stop_numbers() -> list[int]:
    """SIGINT and SIGTERM, and SIGHUP unless it is ignored, as under nohup. Windows has no SIGHUP."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers
