"""The rasterizer that ``--device`` selects, and its messages. A fake backend replaces gsplat's kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import pytest
import torch

from gs_train.config.settings import TrainConfig
from gs_train.errors import UserError
from gs_train.kernels import cache
from gs_train.kernels.jit import report_compilation
from gs_train.render import gsplat_cuda
from gs_train.render.select import select_rasterizer


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 2 * 10**9))


def stage_backend(monkeypatch: pytest.MonkeyPatch, compiled: object) -> None:
    """Install a loaded gsplat backend with ``_C = compiled``, so that nothing compiles."""
    import gsplat.cuda

    backend = ModuleType("gsplat.cuda._backend")
    backend._C = compiled  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", backend)
    monkeypatch.setattr(gsplat.cuda, "_backend", backend, raising=False)


def test_cpu_on_request(gpu: None, said: list[str]) -> None:
    selection = select_rasterizer("cpu", said.append)
    assert selection.rasterizer.name == "cpu"
    assert selection.device == torch.device("cpu")
    assert selection.reason == "cpu: asked for by --device cpu"


def test_auto_without_gpu_is_the_cpu(no_gpu: None, said: list[str]) -> None:
    also: list[str] = []
    selection = select_rasterizer("auto", said.append, also_compile=[lambda: also.append("compiled")])
    assert selection.rasterizer.name == "cpu"
    assert selection.reason == "cpu: torch sees no CUDA device"
    assert also == ["compiled"]


def test_compiling_the_cpu_kernels_is_announced_and_timed(said: list[str]) -> None:
    function = numba.njit(lambda x: x + 1)
    for expected in (2, 2):
        with report_compilation(said.append):
            assert function(1) == 2
        # The second call compiles nothing and prints nothing.
        assert len(said) == expected
    assert said[0].startswith("Compiling the CPU kernels")
    assert said[1].startswith("Compiled 1 kernels in ")


def test_a_cache_folder_that_cannot_be_written_to_is_named(
    said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "file" / "kernels")
    function = numba.njit(lambda x: x + 1)
    with report_compilation(said.append):
        function(1)
    assert "not kept" in said[1] and str(tmp_path / "file" / "kernels") in said[1] and "NUMBA_CACHE_DIR" in said[1]


def test_cuda_without_gpu_is_refused(no_gpu: None, said: list[str]) -> None:
    with pytest.raises(UserError, match=r"^--device cuda: torch sees no CUDA device; .* use --device cpu\.$"):
        select_rasterizer("cuda", said.append)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_gpu_with_kernels_uses_gsplat(device: Any, gpu: None, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stage_backend(monkeypatch, compiled=object())
    selection = select_rasterizer(device, said.append)
    assert selection.rasterizer.name == "gsplat"
    assert selection.device == torch.device("cuda", 0)
    assert selection.reason.startswith("cuda: NVIDIA Test, gsplat 1.")
    assert "\n" not in selection.reason


def test_a_gpu_is_chosen_by_its_number(gpu: None, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: current.__setitem__(0, number))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    stage_backend(monkeypatch, compiled=object())
    assert select_rasterizer("cuda:1", said.append).device == torch.device("cuda", 1)
    assert current == [1]
    with pytest.raises(UserError, match=r"^--device cuda:2: torch sees cuda:0 to cuda:1: choose one of these\.$"):
        select_rasterizer("cuda:2", said.append)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:one", "mps", ""])
def test_an_unknown_device_is_refused(device: str, said: list[str]) -> None:
    with pytest.raises(UserError, match=rf"^--device {device}: expected auto, cpu, cuda, or cuda:N"):
        select_rasterizer(device, said.append)
    with pytest.raises(UserError, match=rf"^--device {device}: expected auto, cpu, cuda, or cuda:N"):
        TrainConfig(device=device)


def test_a_gpu_without_toolkit_selects_the_cpu(gpu: None, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stage_backend(monkeypatch, compiled=None)
    selection = select_rasterizer("auto", said.append)
    assert selection.rasterizer.name == "cpu"
    assert (
        selection.reason
        == "cpu: there is NVIDIA Test, but gsplat found no CUDA toolkit (nvcc) to compile its kernels with"
    )
    with pytest.raises(UserError, match=r"^--device cuda: gsplat found no CUDA toolkit .*--device cpu\.$"):
        select_rasterizer("cuda", said.append)


def test_kernels_that_do_not_load_are_reported_in_one_line(
    gpu: None, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # None in sys.modules makes the import raise, like a missing dependency that gsplat does not declare.
    stage_backend(monkeypatch, compiled=object())
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", None)
    monkeypatch.delattr("gsplat.cuda._backend")
    selection = select_rasterizer("auto", said.append)
    assert selection.rasterizer.name == "cpu"
    assert "gsplat's CUDA kernels do not load (" in selection.reason
    assert "\n" not in selection.reason


@pytest.mark.parametrize(("built", "lines"), [(True, 0), (False, 1)])
def test_compiling_the_cuda_kernels_is_announced(
    built: bool, lines: int, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage_backend(monkeypatch, compiled=object())
    monkeypatch.setattr(gsplat_cuda, "kernels_built", lambda: built)
    assert gsplat_cuda.why_unusable(said.append) is None
    assert len(said) == lines
    assert all("minutes" in line for line in said)
