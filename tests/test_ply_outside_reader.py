"""Our .ply in a reader that is not ours: the npm package @playcanvas/splat-transform turns it into a table of numbers.

Optional: it skips where Node or the package is missing. ``GS_TRAIN_SPLAT_TRANSFORM`` names the package's bin/cli.mjs;
otherwise node_modules in the project's root is looked in (``npm install @playcanvas/splat-transform@2.7.1``).
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gs_train.formats.ply import write_ply
from gs_train.formats.splat_data import SplatData


@pytest.fixture
def splat_transform() -> list[str]:
    """The command line of the outside reader."""
    root = Path(__file__).parent.parent
    named = os.environ.get("GS_TRAIN_SPLAT_TRANSFORM")
    script = Path(named) if named else root / "node_modules" / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    if not script.is_file():
        pytest.skip(f"@playcanvas/splat-transform is not installed ({script} is missing)")
    return [node, str(script)]


@pytest.mark.parametrize("degree", [0, 3])
def test_an_outside_reader_sees_the_same_numbers(tmp_path: Path, splat_transform: list[str], degree: int) -> None:
    rng = np.random.default_rng(5)
    rest = (degree + 1) ** 2 - 1
    shapes = {"xyz": (3,), "f_dc": (1, 3), "f_rest": (rest, 3), "opacity": (1,), "scaling": (3,), "rotation": (4,)}
    splat = SplatData(**{name: rng.normal(size=(25, *shape)).astype(np.float32) for name, shape in shapes.items()})
    write_ply(tmp_path / "s.ply", splat)
    command = [*splat_transform, "-w", str(tmp_path / "s.ply"), str(tmp_path / "s.csv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 25

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows]

    expected = {f"f_rest_{c * rest + k}": splat.f_rest[:, k, c] for c in range(3) for k in range(rest)}
    expected |= {name: splat.xyz[:, i] for i, name in enumerate("xyz")}
    expected |= {f"f_dc_{i}": splat.f_dc[:, 0, i] for i in range(3)}
    expected |= {f"scale_{i}": splat.scaling[:, i] for i in range(3)}
    expected |= {f"rot_{i}": splat.rotation[:, i] for i in range(4)}
    expected["opacity"] = splat.opacity[:, 0]
    for name, values in expected.items():
        assert np.allclose(column(name), values, rtol=1e-5, atol=1e-6), name
