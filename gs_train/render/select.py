"""Chooses the rasterizer and the device. Every other module uses the device that it is given.

``auto`` always returns a working rasterizer; ``cuda`` returns CUDA or raises ``UserError``. A fallback to the CPU is
not silent: the selection carries its reason as one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from gs_train.errors import UserError
from gs_train.machine import free_memory
from gs_train.options import check_device
from gs_train.render.types import Rasterizer

_PHOTO_SHARE = 0.2
"""Of a GPU's free memory; the rest is for the Gaussians, their moments, and the buffers of a step."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A rasterizer, the device its tensors live on, and why it was chosen."""

    rasterizer: Rasterizer
    device: torch.device
    reason: str
    """One line for the user, for example ``cpu: torch sees no CUDA device``."""
    photo_memory: int = 0
    """Bytes of the device's memory that photos may take; 0 for a CPU, which shares its memory with the photos."""


def select_rasterizer(
    device: str,
    notify: Callable[[str], None],
    *,
    antialiased: bool = False,
    absgrad: bool = False,
    depth: bool = False,
    also_compile: Sequence[Callable[[], None]] = (),
) -> Selection:
    """Choose the rasterizer for ``--device``.

    Args:
        device: ``auto`` selects CUDA if torch sees a GPU and gsplat's kernels load, else the CPU. ``cuda:N`` makes GPU
            number N the current one.
        notify: receives one line before kernels compile, and for our CPU kernels one line with the time afterwards.
            Kernels compile once per machine: minutes for gsplat's, half a minute for ours.
        antialiased: render a Gaussian smaller than a pixel fainter instead of larger (Mip-Splatting's 2D filter; Yu et
            al. 2024). Use the value that the splat was trained with.
        absgrad, depth: the caller will request absolute gradients or depth, so their CPU kernels are compiled now.
        also_compile: functions that compile the caller's other CPU kernels; called only if the CPU is selected.

    Raises:
        UserError: ``device`` is ``cuda`` or ``cuda:N``, and torch sees no such GPU or gsplat's kernels do not load; or
            it is no device.
    """
    check_device(device)
    on_cpu = partial(
        _select_cpu, notify, antialiased=antialiased, absgrad=absgrad, depth=depth, also_compile=also_compile
    )
    if device == "cpu":
        return on_cpu("asked for by --device cpu")
    if not torch.cuda.is_available():
        if device != "auto":
            raise UserError(
                f"--device {device}: torch sees no CUDA device; install the driver and CUDA torch, or use --device cpu."
            )
        return on_cpu("torch sees no CUDA device")

    from gs_train.render import gsplat_cuda

    if ":" in device:
        _use_gpu(int(device.partition(":")[2]))
    gpu = torch.cuda.get_device_name()
    fault = gsplat_cuda.why_unusable(notify)
    if fault is None:
        from gsplat import __version__

        chosen = torch.device("cuda", torch.cuda.current_device())
        rasterizer = gsplat_cuda.GsplatRasterizer(antialiased=antialiased)
        triton = "" if gsplat_cuda.triton_colours() is not None else ", colours without Triton"
        return Selection(
            rasterizer=rasterizer,
            device=chosen,
            reason=f"cuda: {gpu}, gsplat {__version__}{triton}",
            photo_memory=int(_PHOTO_SHARE * torch.cuda.mem_get_info(chosen)[0]),
        )
    if device != "auto":
        raise UserError(f"--device {device}: {fault}; run gs-train doctor for the remedy, or use --device cpu.")
    return on_cpu(f"there is {gpu}, but {fault}")


def free_device_memory(device: torch.device) -> int:
    """Bytes of free memory on a device; those of the machine for a CPU."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


def _use_gpu(number: int) -> None:
    """Make GPU ``number`` the current one: gsplat's and Triton's kernels run there.

    Raises:
        UserError: there are fewer GPUs.
    """
    count = torch.cuda.device_count()
    if number >= count:
        seen = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise UserError(f"--device cuda:{number}: torch sees {seen}: choose one of these.")
    torch.cuda.set_device(number)


def _select_cpu(
    notify: Callable[[str], None],
    why: str,
    *,
    antialiased: bool,
    absgrad: bool,
    depth: bool,
    also_compile: Sequence[Callable[[], None]],
) -> Selection:
    """Our CPU rasterizer, with its kernels compiled. Arguments as in ``select_rasterizer``."""
    # Imported here, because Numba takes a second to load and a run on CUDA does not need it.
    from gs_train.kernels.jit import report_compilation
    from gs_train.render.cpu.rasterizer import CpuRasterizer

    rasterizer = CpuRasterizer(antialiased=antialiased)
    with report_compilation(notify):
        rasterizer.warm_up(absgrad=absgrad, depth=depth)
        for warm_up in also_compile:
            warm_up()
    return Selection(rasterizer=rasterizer, device=torch.device("cpu"), reason=f"cpu: {why}")
