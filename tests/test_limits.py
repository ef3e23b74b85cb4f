"""Limits of the system on threads and files end in one sentence, not in a crash of a native library."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import command, environment, gs_train_here

from gs_train import machine


@pytest.mark.parametrize(("possible", "code"), [(0, 2), (3, 2), (1000, 0)])
def test_a_low_limit_on_threads_is_told_before_the_pools_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, possible: int, code: int
) -> None:
    """Native thread pools hang or end the process if a thread cannot start."""
    start, count = threading.Thread.start, [0]

    def limited(thread: threading.Thread) -> None:
        count[0] += 1
        if count[0] > possible:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    done = gs_train_here("sample", tmp_path / "scene", "--views", 4, "--width", 16, "--height", 16, "--points", 5)
    assert done.returncode == code, done.stderr
    if code == 2:
        assert done.stderr.startswith(f"gs-train: only {possible} more threads can be started, and ")
        assert "(ulimit -u, or --pids-limit of the container), or set OMP_NUM_THREADS=1" in done.stderr
        assert not (tmp_path / "scene").exists()


def test_fewer_threads_are_needed_with_the_variables_of_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []

    def start(count: int) -> int:
        wanted.append(count)
        return count

    monkeypatch.setattr(machine, "_start_threads", start)
    monkeypatch.setattr(machine, "_usable_cpus", lambda: 16)
    for value in ("", "many", "0", "1"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        monkeypatch.setenv("NUMBA_NUM_THREADS", value)
        machine.check_threads()
    assert wanted == [50, 50, 50, 5]


def test_the_threads_of_the_check_end() -> None:
    before = threading.active_count()
    assert machine._start_threads(20) == 20
    assert threading.active_count() == before


WITH_FILES_OF_SIZE_0 = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
@pytest.mark.parametrize("action", ["train", "resume", "eval", "export", "sample"])
def test_no_room_in_any_file_is_one_sentence(own_run: Path, tiny_scene: Path, tmp_path: Path, action: str) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "train": ("train", tiny_scene, "--out", tmp_path / "new", "--iterations", 2),
        "resume": ("train", "--resume", own_run, "--iterations", 30),
        "eval": ("eval", own_run),
        "export": ("export", own_run, tmp_path / "out.ply"),
        "sample": ("sample", tmp_path / "sample"),
    }
    done = subprocess.run(
        [sys.executable, "-c", WITH_FILES_OF_SIZE_0, *command(*arguments[action])],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("gs-train: ")
    assert "Traceback" not in done.stderr
    # Nothing is lost.
    again = {"train": arguments["train"], "resume": arguments["resume"]}.get(action)
    assert again is None or gs_train_here(*again).returncode == 0
