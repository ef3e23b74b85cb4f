"""Chooses the rasterizer and the device: the only place in the project that asks whether there is a GPU.

It does not fall back silently: what was chosen comes with the reason in one line. The invariant: ``auto`` always yields something that
works, and ``cuda`` yields CUDA or a ``UserError``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from gs_train.errors import UserError
from gs_train.render.types import Rasterizer


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A rasterizer, the device its tensors live on, and why it was chosen."""

    rasterizer: Rasterizer
    device: torch.device
    reason: str
    """One line for the user, such as ``cpu: torch sees no CUDA device``."""


def select_rasterizer(
    device: Literal["auto", "cuda", "cpu"],
    notify: Callable[[str], None],
    *,
    antialiased: bool = False,
    absgrad: bool = False,
    depth: bool = False,
    also_compile: Sequence[Callable[[], None]] = (),
) -> Selection:
    """Choose the rasterizer for ``--device``.

    Args:
        device: ``auto`` takes CUDA when torch sees a GPU and gsplat's kernels load, else the CPU.
        say: takes a line before kernels are compiled, which happens once per machine: minutes for gsplat's, half a minute for ours; and
            one with the time it took.
        antialiased: make a Gaussian that is smaller than a pixel fainter instead of larger (Mip-Splatting's 2D filter; Yu et al. 2024), as
            it was trained.
        absgrad: the caller will ask renders for absolute gradients: their kernels are compiled here, too.
        depth: the same for depth.
        also_compile: what else the caller will run on a CPU; called where the CPU is chosen.

    Raises:
        UserError: ``cuda`` was asked for and cannot be had.
    """

    def on_cpu(why: str) -> Selection:
        # Imported here because Numba takes a second to load, which a run on CUDA need not wait for.
        from gs_train.kernels.jit import report_compilation
        from gs_train.render.cpu.rasterizer import CpuRasterizer

        rasterizer = CpuRasterizer(antialiased=antialiased)
        with report_compilation(notify):
            rasterizer.warm_up(absgrad=absgrad, depth=depth)
            for warm_up in also_compile:
                warm_up()
        return Selection(rasterizer=rasterizer, device=torch.device("cpu"), reason=f"cpu: {why}")

    if device == "cpu":
        return on_cpu("asked for by --device cpu")
    if not torch.cuda.is_available():
        if device == "cuda":
            raise UserError(
                "--device cuda: torch sees no CUDA device; install the NVIDIA driver and a CUDA build of torch, or use --device cpu."
            )
        return on_cpu("torch sees no CUDA device")

    from gs_train.render import gsplat_cuda

    gpu = torch.cuda.get_device_name()
    fault = gsplat_cuda.why_unusable(notify)
    if fault is None:
        from gsplat import __version__

        chosen = torch.device("cuda", torch.cuda.current_device())
        rasterizer = gsplat_cuda.GsplatRasterizer(antialiased=antialiased)
        return Selection(rasterizer=rasterizer, device=chosen, reason=f"cuda: {gpu}, gsplat {__version__}")
    if device == "cuda":
        raise UserError(
            f"--device cuda: {fault}; gs-train doctor says what to install for torch {torch.__version__}, or use --device cpu."
        )
    return on_cpu(f"there is {gpu}, but {fault}")
