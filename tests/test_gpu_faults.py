"""Faults of a GPU and of gsplat's compilation, and the sentences that tell them. No GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gs_train.cli import main
from gs_train.errors import describe_gpu_memory
from gs_train.render import gsplat_cuda
from gs_train.training import loop

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.10 GiB is free."
)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(FULL), RuntimeError(f"Triton: {FULL}")])
def test_a_full_gpu_is_told_in_one_sentence(
    error: RuntimeError, tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def train(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(SystemExit) as done:
        main(["train", str(tiny_scene), "--out", str(tmp_path / "run"), "--preset", "tiny"])
    assert done.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "The GPU has no memory left (2.00 GiB asked for, 1.10 GiB of 79.11 GiB free)" in told
    assert "--max-gaussians (now " in told
    assert "--resolution" in told and "Traceback" not in told


def test_a_full_gpu_leaves_the_checkpoints_and_names_the_newest(
    own_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def train(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(SystemExit) as done:
        main(["train", "--resume", str(own_run), "--iterations", "30"])
    assert done.value.code == 2
    told = capsys.readouterr().err
    assert "go on from iteration_000024.pt with gs-train train --resume" in told
    assert (own_run / "checkpoints" / "iteration_000024.pt").exists()


def test_other_runtime_errors_keep_their_traceback(tiny_scene: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def train(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        main(["train", str(tiny_scene), "--out", str(tmp_path / "run"), "--preset", "tiny"])
    assert describe_gpu_memory(RuntimeError("DefaultCPUAllocator: out of memory")) is None


NVCC = "/usr/local/cuda/bin/nvcc -MD -MF Adam.cuda.o.d -DTORCH_EXTENSION_NAME=gsplat_cuda -c Adam.cu -o Adam.cuda.o"


@pytest.mark.parametrize(
    "line",
    [
        "host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later than 13 are not supported!",
        "Adam.cu:12:10: fatal error: torch/extension.h: No such file or directory",
        "c++: fatal error: Killed signal terminated program cc1plus",
        "/usr/bin/ld: cannot find -lcudart: No such file or directory",
        "nvcc fatal   : Unsupported gpu architecture 'compute_120'",
    ],
)
def test_the_compilers_error_is_told(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backend(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(
                f"Error building extension 'gsplat_cuda': [1/30] {NVCC}\nFAILED: [code=1] Adam.cuda.o\n{NVCC}\n"
                f"{line}\n1 error detected in the compilation.\nninja: build stopped: subcommand failed."
            )

    import gsplat

    monkeypatch.setitem(sys.modules, "gsplat.cuda", Backend("gsplat.cuda"))
    monkeypatch.setattr(gsplat, "cuda", sys.modules["gsplat.cuda"], raising=False)
    monkeypatch.setattr(gsplat_cuda, "kernels_built", lambda: True)
    assert gsplat_cuda.why_unusable(print) == f"gsplat's CUDA kernels do not load ({line})"


def test_a_long_reason_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(gsplat_cuda._reason(RuntimeError("error: " + 1000 * "x"))) < 310
    assert gsplat_cuda._reason(ValueError()) == "ValueError"
    assert gsplat_cuda._reason(ImportError("libcudart.so.13: cannot open shared object file")).startswith("libcudart")


def test_gsplat_compiles_as_many_sources_at_a_time_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(gsplat_cuda, "cpu_threads", lambda: 16)
    for free_gb, jobs in ((64, "16"), (10, "3"), (1, "1")):
        monkeypatch.setattr(gsplat_cuda, "free_memory", lambda free_gb=free_gb: free_gb * 10**9)
        with gsplat_cuda._as_many_jobs_as_memory_allows():
            assert os.environ["MAX_JOBS"] == jobs
        assert "MAX_JOBS" not in os.environ
    monkeypatch.setenv("MAX_JOBS", "5")
    with gsplat_cuda._as_many_jobs_as_memory_allows():
        assert os.environ["MAX_JOBS"] == "5"
    assert os.environ["MAX_JOBS"] == "5"


@pytest.mark.skipif(os.name == "nt", reason="the plan uses cp")
def test_kernels_that_would_be_compiled_again_do_not_count_as_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gsplat
    from torch.utils.cpp_extension import include_paths

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = tmp_path / "gsplat_cuda"
    assert not gsplat_cuda.kernels_built()
    (folder / "source.cu").write_text("1")
    paths = f"# {Path(gsplat.__file__).parent} {include_paths()[0]}\n"
    plan = "rule cp\n  command = cp $in $out\nbuild gsplat_cuda.so: cp source.cu\n"
    (folder / "build.ninja").write_text(paths + plan)
    with gsplat_cuda._scripts_on_path():
        subprocess.run(["ninja"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    assert gsplat_cuda.kernels_built()

    newer = (folder / "gsplat_cuda.so").stat().st_mtime + 10
    os.utime(folder / "source.cu", (newer, newer))
    assert not gsplat_cuda.kernels_built(), "a source is newer"
    with gsplat_cuda._scripts_on_path():
        subprocess.run(["ninja"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (folder / "build.ninja").write_text(plan)
    assert not gsplat_cuda.kernels_built(), "another torch"
    (folder / "build.ninja").unlink()
    assert not gsplat_cuda.kernels_built(), "no plan"
