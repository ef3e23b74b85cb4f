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
    faults = [f"{name} is missing" for name in _NAMES if not environment.get(name)]
    numbers = {name: environment.get(name, "") for name in _NAMES if name != "MASTER_ADDR"}
    faults += [f"{name} is {text!r}, which is no number" for name, text in numbers.items() if not text.isdecimal()]
    if not faults and int(numbers["RANK"]) >= int(numbers["WORLD_SIZE"]):
        faults = [f"RANK is {numbers['RANK']}"]
    if faults:
        raise UserError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']} but {faults[0]}: start the processes with torchrun, or unset "
            "WORLD_SIZE to train with one process."
        )
    return Place(
        rank=int(numbers["RANK"]),
        count=int(numbers["WORLD_SIZE"]),
        number_here=int(numbers["LOCAL_RANK"]),
        count_here=int(numbers["LOCAL_WORLD_SIZE"]),
    )
