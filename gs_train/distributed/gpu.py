"""The GPU of this process."""

from __future__ import annotations

import socket

import torch

from gs_train.distributed.place import Place
from gs_train.errors import UserError


def choose_gpu(device: str, place: Place) -> None:
    """Make a GPU of this machine the current GPU of this process: the GPU with the number of the process.

    Args:
        device: of ``--device``.
        place: of this process.

    Raises:
        UserError: ``device`` names one GPU for all processes, or there are fewer GPUs than processes.
    """
    if ":" in device:
        raise UserError(
            f"--device {device} gives one GPU to {place.count} processes: give --device cuda, which gives each process "
            "a GPU of its own."
        )
    if device == "cpu" or not torch.cuda.is_available():
        return
    seen = torch.cuda.device_count()
    # A scheduler may show each process its own GPU alone. ``ProcessGroup.use_device`` compares the names of the GPUs.
    number = 0 if seen == 1 else place.number_here
    if number >= seen:
        raise UserError(
            f"{place.count_here} processes run on this machine but torch sees {seen} GPUs: start {seen} processes "
            f"(--nproc-per-node {seen}), or train with --device cpu."
        )
    torch.cuda.set_device(number)


def gpu_name(device: torch.device) -> str:
    """The machine and the identity of a GPU."""
    return f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"
