"""Progress: a bar on a terminal, lines with times in a log file, nothing when switched off."""

from __future__ import annotations

import re
import time

import pytest

from gs_train.progress import Progress


def line(done: int, end: str) -> str:
    """Pattern of a line of a log file."""
    return rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d train: {done} of 40, 1 it/s, \d:\d\d:\d\d {end}, loss 0.5\n"


def test_a_log_file_gets_a_line_every_ten_seconds_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with Progress("train", 40, first=10) as progress:
        for _ in range(25):
            progress.describe("loss 0.5")
            now_s += 1.0
            progress.update()
    expected = line(20, "left") + line(30, "left") + line(35, "left")
    assert re.fullmatch(expected, capsys.readouterr().err)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("eval", 2, unit="view") as progress:
        progress.update(2)
    told = capsys.readouterr().err
    assert "\r" in told and "eval: 100%" in told and "2/2" in told


def test_progress_that_is_switched_off_or_never_began_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", 40, shown=False) as progress:
        progress.update(40)
        progress.describe("loss 0.5")
    with Progress("train", 40):
        pass
    assert capsys.readouterr().err == ""
