"""A killed training is never lost: a sample of scripts/try_kills.py, which kills before every file operation."""

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
    command = [sys.executable, str(ROOT / "scripts" / "try_kills.py"), "--variants", "classic", "exposure"]
    done = subprocess.run(
        [*command, "--every", "20", "--random", "2"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(("| classic", "| exposure"))]
    assert len(lines) == 2
    for line in lines:
        assert int(line[1]) >= 4
        assert line[-3:] == ["0", "0", "0 |"]
