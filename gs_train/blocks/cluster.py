"""Trains blocks side by side on the workers of Dask: of a cluster in this process, or of one that runs elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gs_train.blocks.finish import ready
from gs_train.blocks.plan import Plan
from gs_train.blocks.train import BlockResult, environment_of, train_block, wait_unlocked
from gs_train.errors import UserError

if TYPE_CHECKING:
    from distributed import Client, Future

_CONNECT_S = 15
_CHECK_S, _WITHOUT_WORKERS_S = 5, 60
_WORKER_DEATHS = 10
"""Of one block's workers before Dask gives the block up. The number of starts is limited in ``train_block``."""


def check_dask() -> None:
    """Raise UserError if dask.distributed is missing."""
    if find_spec("distributed") is None:
        raise UserError(
            "training blocks side by side needs Dask: install it with pip install 'gs_train[blocks]', or train one "
            "block at a time with --only N."
        )


def train_on_cluster(
    plan: Plan,
    numbers: tuple[int, ...],
    *,
    workers: int,
    gpus: int,
    scheduler: str | None,
    flags: tuple[str, ...],
    on_end: Callable[[BlockResult], None],
) -> None:
    """Train blocks until all have ended or failed; then finish the blocks whose neighbours are trained, too.

    Args:
        plan: its folder must be visible to all workers under the same path.
        numbers: of the blocks.
        workers: trainings side by side, on a cluster of this process.
        gpus: number of GPUs to deal out to these workers.
        scheduler: address (tcp://HOST:PORT) or scheduler file of a running cluster; None for one of this process.
        flags: further flags of ``gs-train train`` that change no result.
        on_end: takes each result as it comes.

    Raises:
        UserError: the scheduler cannot be reached, or another process writes to a block.
    """
    import dask
    from distributed.scheduler import KilledWorker

    city = str(plan.path.resolve())
    environment = environment_of(workers, gpus) if scheduler is None else {}
    dask.config.set({"distributed.scheduler.allowed-failures": _WORKER_DEATHS})
    with ExitStack() as stack:
        client = stack.enter_context(_client(workers, scheduler, stack))
        try:
            for finish in (False, True):
                futures = {
                    client.submit(
                        train_block, city, number, environment, flags, finish=finish, key=f"{city}-{number}-{finish}"
                    ): number
                    for number in (sorted(ready(plan).intersection(numbers)) if finish else numbers)
                }
                for future in _as_they_end(client, set(futures)):
                    number = futures[future]
                    try:
                        result: BlockResult = future.result()
                    except KilledWorker:
                        reason = "its workers ended again and again: see log.txt in the folder of the block"
                        result = BlockResult(number=number, finish=finish, outcome="failed", reason=reason)
                    # Dask would compute a result again that a killed worker held.
                    future.release()
                    on_end(result)
        finally:
            if scheduler is None:
                stack.close()
                # The workers are gone now; their trainings save and end.
                for number in numbers:
                    wait_unlocked(plan, plan.blocks[number])


def _as_they_end(client: Client, pending: set[Future]) -> Iterator[Future]:
    """The futures as they end; raises UserError if no worker is left for ``_WITHOUT_WORKERS_S`` seconds."""
    from distributed import wait

    since = time.monotonic()
    while pending:
        try:
            ended = wait(pending, timeout=_CHECK_S, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            ended = set()
        if client.scheduler_info()["workers"]:
            since = time.monotonic()
        elif time.monotonic() - since > _WITHOUT_WORKERS_S:
            raise UserError("no worker of Dask is left: start workers, or run the same command again to go on.")
        yield from ended
        pending -= ended


def _client(workers: int, scheduler: str | None, stack: ExitStack) -> Client:
    """A client of the scheduler, or of a new cluster on this machine that ends with ``stack``."""
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if scheduler is None:
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            # Dask serves HTTP in any case; this keeps it on this machine, at any free port.
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        )
        return Client(stack.enter_context(cluster))
    place = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        return Client(**place, timeout=_CONNECT_S)
    except (TimeoutError, OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {scheduler} cannot be reached ({' '.join(str(error).split()) or 'no answer'}): start it with "
            "dask scheduler, or leave the flag out to use this machine."
        ) from None
