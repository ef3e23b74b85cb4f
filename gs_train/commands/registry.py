"""The subcommands of ``gs-train``.

A new subcommand is one new module with a command class, and one line in ``COMMANDS``. A command class is a frozen
dataclass: its docstring and its fields become the help and the flags, and ``run`` does the work. Its module imports
torch, Numba and SciPy inside ``run`` only, because ``gs-train --help`` imports all command modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

COMMANDS: dict[str, str] = {
    "train": "gs_train.commands.train:TrainCommand",
    "eval": "gs_train.commands.evaluate:EvalCommand",
    "compare": "gs_train.commands.compare:CompareCommand",
    "view": "gs_train.commands.view:ViewCommand",
    "render": "gs_train.commands.render:RenderCommand",
    "export": "gs_train.commands.export:ExportCommand",
    "prepare": "gs_train.commands.prepare:PrepareCommand",
    "sample": "gs_train.commands.sample:SampleCommand",
    "info": "gs_train.commands.info:InfoCommand",
    "doctor": "gs_train.commands.doctor:DoctorCommand",
    "blocks plan": "gs_train.commands.blocks:PlanCommand",
    "blocks train": "gs_train.commands.blocks:TrainBlocksCommand",
    "blocks status": "gs_train.commands.blocks:StatusCommand",
    "blocks merge": "gs_train.commands.blocks:MergeCommand",
    "blocks eval": "gs_train.commands.blocks:EvalBlocksCommand",
}
"""Subcommand -> module and class, in the order of the help. A subcommand has one word or two."""


class Command(Protocol):
    """A parsed subcommand.

    A command class may also have a classmethod ``defaults(given) -> Self``. ``flags.py`` calls it before it parses the
    flags and takes the fields of the result as defaults; ``given`` maps each flag on the command line to its value, or
    to None. ``defaults`` raises UserError for flags that exclude each other.
    """

    def run(self) -> int:
        """Do the work and return the exit code.

        Raises:
            UserError: the input is wrong; the process exits with code 2.
        """
        ...


GivenFlags = Mapping[str, str | None]


def load_commands() -> dict[str, type[Any]]:
    """Import the classes of all subcommands."""
    places = {name: place.split(":") for name, place in COMMANDS.items()}
    return {name: getattr(import_module(module), kind) for name, (module, kind) in places.items()}
