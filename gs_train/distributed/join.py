"""Connects the processes that torchrun has started, and ends them together: one sentence tells the fault of one
process.

torchrun holds a store of named values that outlives the processes. The first process with an error takes the word in
this store and the others end without a message.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from gs_train.distributed.group import ConnectionLost, ProcessGroup
from gs_train.distributed.place import Place
from gs_train.errors import UserError

_PATIENCE_S = 1.0
"""How long a process waits for the others to report: whether they live, or that process 0 has the same error."""
_FAILED = 2
"""Exit code of a process that ends because of another."""


@contextmanager
def join(place: Place) -> Iterator[ProcessGroup]:
    """Connect to the other processes; see ``start_processes``."""
    try:
        store, _, _ = next(dist.rendezvous("env://"))
        # torchrun starts the processes again with the store of the attempt before.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.count)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"process {place.rank} cannot reach the other {place.count - 1} ({error}): check that torchrun runs "
            "everywhere and that its --rdzv-endpoint is reachable."
        ) from error
    group, logs = ProcessGroup(place), [""] * place.count
    try:
        logs = group.gather_texts(_log_file())
        yield group
    except ConnectionLost as error:
        # torchrun sends this signal to all processes once one of them has ended.
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ended = _ended(store, place)
        if not _takes_word(store, place):
            raise SystemExit(_FAILED) from None
        raise UserError(_describe(ended, place.count, logs, str(error))) from error
    except Exception as error:
        if place.rank > 0:
            # Process 0 has the first word about a fault that all processes have.
            time.sleep(_PATIENCE_S)
        if not _takes_word(store, place):
            raise SystemExit(_FAILED) from None
        if isinstance(error, UserError) and place.rank > 0:
            raise UserError(f"process {place.rank} of {place.count}, counted from 0: {error}") from error
        raise
    dist.destroy_process_group()


def _takes_word(store: dist.Store, place: Place) -> bool:
    """Whether this process is the first to report an error. All connections of this process end."""
    try:
        first = store.add("errors", 1) == 1
        # The others notice it, and ask the store before it ends with process 0.
        dist.destroy_process_group()
        store.set(f"left {place.rank}", "")
        if place.rank == 0:
            with suppress(RuntimeError):
                store.wait([f"left {rank}" for rank in range(place.count)], timedelta(seconds=2 * _PATIENCE_S))
        return first
    except RuntimeError:
        # The store has ended with process 0, because torchrun has not started the processes.
        return place.rank == 1


def _ended(store: dist.Store, place: Place) -> list[int]:
    """The processes that have ended without a report."""
    try:
        store.set(f"lives {place.rank}", "")
        time.sleep(_PATIENCE_S)
        return [rank for rank in range(place.count) if not store.check([f"lives {rank}"])]
    except RuntimeError:
        return [0]


def _describe(ended: list[int], count: int, logs: list[str], reason: str) -> str:
    """A sentence about the processes that have ended."""
    go_on = "start the same command again with --or-resume to go on"
    if not ended:
        return f"the processes have lost their connection ({reason.splitlines()[0]}): {go_on}."
    which = f"process {ended[0]} has" if len(ended) == 1 else f"processes {', '.join(map(str, ended))} have"
    known = [logs[rank] for rank in ended if logs[rank]]
    where = f"its log is {known[0]}" if known else "its last lines are above, or in the --log-dir of torchrun"
    return f"{which} ended ({count} were training; {where}): {go_on}."


def _log_file() -> str:
    """The file that torchrun writes the messages of this process to; empty if it writes to the terminal."""
    log = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parent / "stderr.log"
    return str(log) if log.is_file() and log.is_absolute() else ""
