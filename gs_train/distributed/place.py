"""The place of this process among the processes that torchrun has started. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gs_train.errors import UserError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of this process."""

    rank: int
    """Number of this process among all, from 0."""
    count: int
    """Number of processes."""
    number_here: int
    """Number of this process on its machine, from 0."""
    count_here: int
    """Number of processes on its machine."""


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Read the variables that torchrun sets; None for a process that trains alone.

    Raises:
        UserError: a variable is missing or is no number.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return None
    numbers = {}
    for name in _NAMES:
        text = environment.get(name, "")
        if name == "MASTER_ADDR" and text:
            continue
        if not text.isdecimal():
            fault = f"is {text!r}, which is no number" if text else "is missing"
            raise UserError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']} but {name} {fault}: start the processes with torchrun, "
                "or unset WORLD_SIZE to train with one process."
            )
        numbers[name] = int(text)
    return Place(
        rank=numbers["RANK"],
        count=numbers["WORLD_SIZE"],
        number_here=numbers["LOCAL_RANK"],
        count_here=numbers["LOCAL_WORLD_SIZE"],
    )
