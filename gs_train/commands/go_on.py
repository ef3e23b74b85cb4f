"""``--or-resume``: whether the same command has already begun a run in the folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gs_train.config.settings import TrainConfig
from gs_train.config.toml import read_config
from gs_train.errors import UserError, first_few
from gs_train.options import flag_name, names_where
from gs_train.run.folder import RunFolder

_MAY_DIFFER = ("scene.test_list",)
"""The run has a copy of the list."""


def run_to_go_on(folder: RunFolder, given: TrainConfig) -> tuple[TrainConfig, Path | None] | None:
    """The settings to go on with and the scene of the run in ``folder``; None if it has no run with a checkpoint.

    Args:
        folder: of --out.
        given: settings of the command line. Settings that --resume may change replace the run's.

    Raises:
        UserError: the run has other settings, or cannot be read.
    """
    from gs_train.run.checkpoint import list_checkpoints

    if not folder.is_run() or not list_checkpoints(folder.checkpoints):
        return None
    saved, scene = read_config(folder.config)
    changed = {name: getattr(given, name) for name in names_where(TrainConfig, "on_resume")}
    first_numbers = _possible_iterations(saved, given)
    differing = min((_differing(saved, replace(given, iterations=number)) for number in first_numbers), key=len)
    if differing:
        flags = first_few([flag_name(name) for name in differing])
        raise UserError(
            f"--out {folder.path} holds a run with another {flags}: repeat the command line of that run, or name "
            "another --out."
        )
    return replace(saved, **changed), scene


def _possible_iterations(saved: TrainConfig, given: TrainConfig) -> set[int]:
    """Numbers of iterations that the run may have begun with: a run that goes on past its end keeps its schedule."""
    points = dict(_leaves(asdict(saved)))
    quotients = {
        round(points[name] / value)
        for name, value in _leaves(asdict(given))
        if isinstance(value, float) and value > 0 and type(points[name]) is int
    }
    return {given.iterations, saved.iterations} | {number for number in quotients if number > 0}


def _differing(saved: TrainConfig, given: TrainConfig) -> list[str]:
    """Dotted names of the settings that differ, apart from settings that --resume may change."""
    free = (*names_where(TrainConfig, "on_resume"), *_MAY_DIFFER)
    now, before = dict(_leaves(asdict(given.resolved()))), dict(_leaves(asdict(saved.resolved())))
    return [name for name, value in now.items() if name not in free and before[name] != value]


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
