"""Compiled kernels are kept by content: another installation compiles nothing, and a bad cache is no error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import ROOT, environment, gs_train

from gs_train.commands import doctor
from gs_train.kernels import cache


def test_another_installation_of_the_same_sources_compiles_nothing(tiny_run: Path, tmp_path: Path) -> None:
    assert tiny_run.is_dir()  # so the kernels are compiled and kept
    shutil.copytree(ROOT / "gs_train", tmp_path / "gs_train", ignore=shutil.ignore_patterns("__pycache__"))
    for source in tmp_path.rglob("*.py"):
        os.utime(source, (1e9, 1e9))
    done = gs_train("eval", tiny_run, cwd=tmp_path, env={**environment(), "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "Compil" not in done.stderr


PROGRAM = """
import numpy as np
from numba import prange
from numba.core import event
from gs_train.kernels.jit import _Compilations, parallel_kernel

@parallel_kernel
def double(values):
    for i in prange(len(values)):
        values[i] *= 2

values = np.ones(3)
listener = _Compilations(lambda _: None)
with event.install_listener("numba:compile", listener):
    double(values)
assert values.tolist() == [2.0, 2.0, 2.0]
print(listener.kernels)
"""


def test_a_damaged_or_unwritable_cache_only_costs_the_compilation(tmp_path: Path) -> None:
    program, folder = tmp_path / "program.py", tmp_path / "cache"
    program.write_text(PROGRAM)

    def compiled(cache_dir: Path) -> int:
        done = subprocess.run(
            [sys.executable, str(program)],
            env={**environment(), "NUMBA_CACHE_DIR": str(cache_dir)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return int(done.stdout)

    assert [compiled(folder) for _ in range(2)] == [1, 0]
    for ending in ("nbi", "nbc"):
        (entry,) = folder.rglob(f"*.{ending}")
        entry.write_bytes(entry.read_bytes()[:20])
        assert [compiled(folder) for _ in range(2)] == [1, 0]
    (tmp_path / "file").touch()
    assert compiled(tmp_path / "file") == 1


@pytest.fixture
def fresh_cache_folder() -> Iterator[None]:
    cache.cache_folder.cache_clear()
    yield
    cache.cache_folder.cache_clear()


@pytest.mark.usefixtures("fresh_cache_folder")
def test_without_a_home_folder_there_is_a_remedy_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(cache.numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert cache.cache_folder() is None
    finding = doctor._kernel_cache()
    assert "no home folder: set NUMBA_CACHE_DIR" in finding.message
    assert finding.remedy is not None and "export NUMBA_CACHE_DIR=" in finding.remedy


@pytest.mark.usefixtures("fresh_cache_folder")
def test_doctor_names_the_remedy_of_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(cache.numba.config, "CACHE_DIR", str(tmp_path / "file"))
    finding = doctor._kernel_cache()
    assert f"{tmp_path / 'file' / 'gs_train'}" in finding.message
    assert "in a container to one that is mounted from outside" in finding.message
    assert finding.remedy is not None and "export NUMBA_CACHE_DIR=" in finding.remedy
    # The remedy works.
    cache.cache_folder.cache_clear()
    monkeypatch.setattr(cache.numba.config, "CACHE_DIR", str(tmp_path / "other"))
    assert doctor._kernel_cache().remedy is None


@pytest.mark.usefixtures("fresh_cache_folder")
def test_a_read_only_cache_with_kernels_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image of a container that was made with its kernels compiled."""
    monkeypatch.setattr(cache.numba.config, "CACHE_DIR", str(tmp_path))
    folder = cache.cache_folder()
    assert folder is not None
    folder.mkdir(parents=True)

    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache.tempfile, "TemporaryFile", refuse)
    assert doctor._kernel_cache().remedy is not None
    (folder / "a.nbi").touch()
    assert doctor._kernel_cache().remedy is None


def test_a_folder_for_gsplat_that_cannot_be_written_does_not_blame_the_installation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> bool:
        raise PermissionError(13, "Permission denied", "/home/x/torch_extensions")

    monkeypatch.setattr(doctor, "_gsplat_built", refuse)
    monkeypatch.setattr(doctor, "version", lambda _: "1.5.3")
    for available in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        finding = doctor._gsplat()
        assert "/home/x/torch_extensions for its compiled kernels cannot be written to" in finding.message
        assert (finding.remedy is not None and "TORCH_EXTENSIONS_DIR" in finding.remedy) == available
