"""``gs-train doctor``: checks this machine, one finding per part, and names the remedy of each fault.

It changes nothing and compiles nothing for CUDA. A check that fails is a finding, never an exception.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tyro

from gs_train import __version__
from gs_train.console import end_at_once, print_facts, print_json, show

_OLDEST_PYTHON = (3, 11)


_EXTRAS = (
    ("pycolmap", "sfm", "gs-train prepare"),
    ("imageio-ffmpeg", "video", "gs-train prepare with a video"),
    ("pillow-heif", "heic", "reading HEIC photos"),
    ("zstandard", "zstd", "version 4 of .spz files"),
    ("flip-evaluator", "metrics", "the metric FLIP of gs-train eval"),
)
"""Package, extra that installs it, and the task that needs it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    name: str
    """The part of the machine."""
    message: str
    """Its state."""
    remedy: str | None = None
    """The command that repairs it; None if it works."""


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Check this machine: torch, CUDA, gsplat and the CPU kernels; name the one command that repairs a fault."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the result as one JSON object on stdout, and all other text on stderr. Use it in scripts."""

    def run(self) -> int:
        """Print the findings; returns 1 if one of them is a fault."""
        with end_at_once():
            findings = list(examine())
        remedies = [finding.remedy for finding in findings if finding.remedy is not None]
        if self.json:
            print_json({finding.name: asdict(finding) for finding in findings})
            return 1 if remedies else 0
        print_facts([(finding.name, finding.message) for finding in findings])
        if not remedies:
            show("All is well: try gs-train sample scene, then gs-train train scene.")
            return 0
        # Only the first remedy: later faults are often its consequences.
        show(f"To repair it: {remedies[0]}")
        return 1


def examine() -> Iterator[Finding]:
    """All findings; each part comes after the parts that it needs."""
    yield Finding(name="gs-train", message=f"{__version__} in {Path(__file__).parents[1]}")
    python = ".".join(str(part) for part in sys.version_info[:3])
    old = sys.version_info[:2] < _OLDEST_PYTHON
    yield Finding(
        name="Python",
        message=f"{python}, {platform.platform()}, {os.cpu_count()} CPUs",
        remedy="install Python 3.11 or newer" if old else None,
    )
    yield _guarded("torch", _torch, "torch")
    yield _guarded("nvcc", _nvcc, "torch")
    yield _guarded("gsplat", _gsplat, "gsplat")
    yield _guarded("Numba", _numba, "numba")
    yield _guarded("kernel cache", _kernel_cache, "numba llvmlite")
    yield _guarded("CPU kernels", _cpu_kernels, "numba llvmlite")
    for package, extra, task in _EXTRAS:
        yield _extra(package, extra, task)


def _guarded(name: str, check: Callable[[], Finding], packages: str) -> Finding:
    """The finding of ``check``; if it raises, a finding whose remedy is a fresh installation of ``packages``."""
    try:
        return check()
    except Exception as error:
        # A broken installation can raise anything; the user needs a line, not a traceback.
        reason = " ".join(str(error).split()) or type(error).__name__
        return Finding(name=name, message=f"fails: {reason}", remedy=f"{_pip()} --force-reinstall {packages}")


def _torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding(
            name="torch",
            message=f"{torch.__version__}, sees {torch.cuda.get_device_name()} (CUDA {torch.version.cuda})",
        )
    message = f"{torch.__version__}, sees no CUDA device: training runs on the CPU"
    if shutil.which("nvidia-smi") is None:
        return Finding(name="torch", message=message)
    if torch.version.cuda is None:
        release = str(torch.__version__).partition("+")[0]
        remedy = f"{_pip()} --force-reinstall torch=={release}"
        return Finding(
            name="torch",
            message=f"{message}, though there is an NVIDIA driver, because this build of torch has no CUDA",
            remedy=remedy,
        )
    return Finding(
        name="torch",
        message=f"{message}, though there is an NVIDIA driver",
        remedy="nvidia-smi (it names the fault of the driver)",
    )


def _nvcc() -> Finding:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    found = shutil.which("nvcc") or (
        None if CUDA_HOME is None else shutil.which("nvcc", path=str(Path(CUDA_HOME) / "bin"))
    )
    if found is not None:
        return Finding(name="nvcc", message=found)
    if not torch.cuda.is_available() or _gsplat_built():
        return Finding(name="nvcc", message="not found, and not needed")
    toolkit = "cuda-toolkit-" + str(torch.version.cuda).replace(".", "-")
    return Finding(
        name="nvcc", message="not found: gsplat cannot compile its kernels", remedy=f"sudo apt-get install {toolkit}"
    )


def _gsplat() -> Finding:
    import torch

    try:
        release = version("gsplat")
    except PackageNotFoundError:
        remedy = f"{_pip()} gsplat" if torch.cuda.is_available() else None
        return Finding(
            name="gsplat", message="not installed" + ("" if remedy else ", and not needed without CUDA"), remedy=remedy
        )
    try:
        built = _gsplat_built()
    except OSError as error:
        return Finding(
            name="gsplat",
            message=f"{release}, but {error.filename} for its compiled kernels cannot be written to",
            remedy="export TORCH_EXTENSIONS_DIR=FOLDER with a folder that can" if torch.cuda.is_available() else None,
        )
    if built:
        return Finding(name="gsplat", message=f"{release}, compiled")
    return Finding(
        name="gsplat",
        message=f"{release}, not compiled"
        + (": the first training on CUDA does it" if torch.cuda.is_available() else ""),
    )


def _gsplat_built() -> bool:
    from gs_train.render.gsplat_cuda import kernels_built

    return kernels_built()


def _numba() -> Finding:
    import numba

    return Finding(name="Numba", message=f"{numba.__version__}, {numba.config.NUMBA_NUM_THREADS} threads")


def _kernel_cache() -> Finding:
    """Whether compiled CPU kernels are kept. A folder that is read-only is no fault if it holds kernels."""
    from gs_train.kernels.cache import cache_folder, why_not_kept

    folder, fault = cache_folder(), why_not_kept()
    if fault is None or (folder is not None and any(folder.glob("*.nbi"))):
        return Finding(name="kernel cache", message=str(folder) if fault is None else f"{folder}, read-only")
    return Finding(
        name="kernel cache",
        message=f"none, as {fault}",
        remedy="export NUMBA_CACHE_DIR=FOLDER with a folder that can be written to and that stays",
    )


def _cpu_kernels() -> Finding:
    """Render a few Gaussians, forward and backward, and report Numba's threading layer."""
    import numba
    import torch

    from gs_train.cameras.camera import Camera
    from gs_train.model.gaussians import GaussianModel
    from gs_train.render.cpu.rasterizer import CpuRasterizer

    count, size = 16, 32
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(count, 3, generator=generator) - 0.5
    rotation = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1)
    tensors = {
        "xyz": xyz + torch.tensor([0.0, 0.0, 3.0]),
        "f_dc": torch.ones(count, 1, 3),
        "f_rest": torch.zeros(count, 15, 3),
        "opacity": torch.zeros(count, 1),
        "scaling": torch.full((count, 3), -2.0),
        "rotation": rotation,
    }
    model = GaussianModel(tensors)
    camera = Camera(width=size, height=size, fx=size, fy=size, cx=size / 2, cy=size / 2)
    render = CpuRasterizer().render(model, camera, torch.eye(4), torch.zeros(3))
    render.image.sum().backward()  # type: ignore[no-untyped-call]
    gradient = model.xyz.grad
    works = gradient is not None and bool(gradient.isfinite().all()) and float(render.image.detach().max()) > 0.0
    if not works:
        return Finding(
            name="CPU kernels", message="render nothing", remedy=f"{_pip()} --force-reinstall numba llvmlite"
        )
    return Finding(name="CPU kernels", message=f"work forward and backward; threading layer {numba.threading_layer()}")


def _extra(package: str, extra: str, task: str) -> Finding:
    """Whether the package of an extra is installed. A missing one is no fault: training does not need it."""
    try:
        return Finding(name=package, message=version(package))
    except PackageNotFoundError:
        install = f'{_pip()} -c constraints.txt -e ".[{extra}]"'
        return Finding(name=package, message=f"not installed; {task} needs it: {install}")


def _pip() -> str:
    return f"{sys.executable} -m pip install"
