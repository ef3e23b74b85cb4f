"""Samples of scripts/try_kills.py, which kills trainings before every file operation, and of scripts/try_pipes.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, environment


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the script forks")
def test_a_killed_training_goes_on_to_the_same_result(tiny_run: Path) -> None:
    assert tiny_run.is_dir()  # so the kernels are compiled
    command = [sys.executable, str(ROOT / "scripts" / "try_kills.py"), "--variants", "classic", "mcmc"]
    done = subprocess.run(
        [*command, "--every", "20", "--random", "2"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(("| classic", "| mcmc"))]
    assert len(lines) == 2
    for line in lines:
        assert int(line[1]) >= 4
        assert line[-3:] == ["0", "0", "0 |"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_command_ends_soon_after_its_reader_has_gone(tiny_run: Path) -> None:
    assert tiny_run.is_dir()  # so the kernels are compiled
    # Thread pools that hang take 90 s. A busy machine may take some seconds.
    command = [sys.executable, str(ROOT / "scripts" / "try_pipes.py"), "--number", "4", "--most", "15"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 ended" in done.stdout
