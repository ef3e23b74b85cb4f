"""``scripts/gpu_check.sh``: its refusal without a GPU, and its pieces on a pretended GPU and on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pretended_device
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(os.name == "nt" or torch.cuda.is_available(), reason="needs bash, and no GPU")
@pytest.mark.parametrize("python", [sys.executable, "no_such_python"])
def test_without_a_gpu_it_says_so_and_installs_nothing(python: str, tmp_path: Path) -> None:
    if python == "no_such_python" and Path("/usr/bin/nvidia-smi").exists():
        pytest.skip("nvidia-smi is installed")
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu_check.sh"), "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHON": python},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: gpu_check.sh needs an NVIDIA GPU, and ")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def with_gpu(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", lambda: {"gpu": "pretended"})
    monkeypatch.setattr(gpu_check, "compile_kernels", lambda: {"fault": None, "gsplat_s": 1.0})
    monkeypatch.setattr(gpu_check, "run_tests", lambda: {"summary": "2 failed", "failed": True})
    return gpu_check


def test_pieces_add_their_figures_to_one_file(
    with_gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def train(*arguments: Any) -> dict[str, Any]:
        given.extend(arguments)
        return {"runs": [], "failed": False}

    monkeypatch.setattr(with_gpu, "train_presets", train)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bonsai").mkdir()
    for arguments, status in ((["bonsai", "--only", "runs"], 0), (["--only", "tests"], 1)):
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", "out", *arguments])
        assert with_gpu.main() == status
    # The trainings run in another folder, so they need whole paths.
    assert given[:2] == [tmp_path.resolve() / "bonsai", tmp_path.resolve() / "out"]
    figures = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert list(figures) == ["machine", "runs", "tests"]
    assert figures["tests"]["summary"] == "2 failed" and "failed" not in figures["tests"]

    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "garden"])
    with pytest.raises(SystemExit):
        with_gpu.main()


def test_without_kernels_nothing_else_runs(
    with_gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(with_gpu, "compile_kernels", lambda: {"fault": "gsplat found no CUDA toolkit"})
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path / "out"), "--only", "tests"])
    assert with_gpu.main() == 1
    assert capsys.readouterr().err == "error: gsplat found no CUDA toolkit: run gs-train doctor for the remedy.\n"
    assert not (tmp_path / "out" / "gpu_check.json").exists()


def test_a_profile_on_a_pretended_gpu(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretended_device.install(monkeypatch)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", device.living_bytes)
    monkeypatch.setattr(torch.cuda, "memory_allocated", device.living_bytes)
    monkeypatch.setattr(gpu_check, "WARM_UP", 1)
    monkeypatch.setattr(gpu_check, "TIMED", 2)
    monkeypatch.setattr(gpu_check, "GROWTH_STEPS", (3, 6))
    with device:
        figures = gpu_check.profile(pretended_device.DEVICE, (20, 40), ((16, 12),))
        device.waits.clear()
        gpu_check.synthetic_step(pretended_device.DEVICE, 20, 16, 12).whole()
        # The setup copies tensors; the step itself does not wait.
        assert not [wait for wait in device.waits if "gsplat_cuda" in wait or "losses" in wait]
    assert [row["gaussians"] for row in figures["steps"]] == [20, 40]
    for row in figures["steps"]:
        assert row["size"] == [16, 12] and row["step_ms"] > 0 and row["gsplat_ms"] > 0
        assert row["ratio"] == pytest.approx(row["step_ms"] / row["gsplat_ms"], rel=0.05)
    assert figures["memory_after_3_bytes"] == figures["memory_after_6_bytes"] > 0
    assert figures["waits"] == [] and figures["launches"] == 0.0 and len(figures["cpu_ms"]) == 20
    json.dumps(figures)


def test_trainings_on_the_cpu(
    gpu_check: ModuleType, tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = gpu_check.run_gs_train

    def on_cpu(*arguments: Any) -> bool:
        succeeded: bool = run(*("cpu" if argument == "cuda" else argument for argument in arguments))
        return succeeded

    monkeypatch.setattr(gpu_check, "run_gs_train", on_cpu)
    figures = gpu_check.train_presets(tiny_scene, tmp_path, ["tiny"], [12])
    assert figures["scene"] == "scene" and not figures["failed"]
    assert [row["iteration"] for row in figures["runs"]] == [12]
    for row in figures["runs"]:
        assert row["psnr"] > 10 and row["whole_s"] > row["loop_s"] > 0 and row["device"] == "cpu"
        assert row["peak_memory_bytes"] > 0 and row["peak_gpu_memory_bytes"] is None
    monkeypatch.setattr(gpu_check, "run_gs_train", lambda *arguments: False)
    assert gpu_check.train_presets(tiny_scene, tmp_path, ["tiny"], [12])["failed"]


def test_the_tests_on_a_gpu_are_found(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    popen = subprocess.Popen

    def collecting(command: list[str], **kwargs: Any) -> Any:
        return popen([*command, "--collect-only"], **kwargs)

    monkeypatch.setattr(subprocess, "Popen", collecting)
    figures = gpu_check.run_tests()
    told = capfd.readouterr().out
    for name in ("test_cuda.py", "test_cuda_training.py", "test_gsplat_rasterizer.py", "test_triton_loss.py"):
        assert f"tests/{name}::" in told, name
    assert not figures["failed"] and "tests collected" in figures["summary"]
