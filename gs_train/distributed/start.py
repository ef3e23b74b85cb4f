"""Finds out whether this process trains alone or with others. Imports no torch: a process that trains with others sets
its number of threads first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from gs_train.distributed.place import find_place
from gs_train.distributed.processes import OneProcess, Processes
from gs_train.machine import share_threads


@contextmanager
def start_processes(device: str) -> Iterator[Processes]:
    """The processes of this training; more than one if torchrun has started this process.

    If one of several processes fails in the block, all of them end, and the first one to notice raises the error.

    Args:
        device: of ``--device``. Each process of a machine takes a GPU of its own.

    Raises:
        UserError: the variables of torchrun are incomplete, the others cannot be reached, another process has ended, or
            there are fewer GPUs than processes.
        SystemExit: another process has told its error.
    """
    place = find_place(os.environ)
    if place is None:
        yield OneProcess()
        return
    share_threads(place.count_here)

    from gs_train.distributed.gpu import choose_gpu
    from gs_train.distributed.join import join

    with join(place) as processes:
        choose_gpu(device, place)
        yield processes
