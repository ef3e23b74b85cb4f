"""``RunRecord``: the figures, curves and settings that a run folder holds, for its report and for comparisons.

No torch here: a comparison of runs renders nothing.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError
from gs_train.evaluate.pictures import png_names
from gs_train.run.folder import RunFolder

_BEYOND = 1e30
_NOT_JSON = (OSError, ValueError, RecursionError)
CURVES = ("loss", "psnr", "test_psnr", "gaussians", "elapsed_s", "lr_xyz")
"""Names of metrics.jsonl that are plotted."""

Figures = dict[str, float | None]
"""Metric -> value; None if it is not measured."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What the files of an evaluated run say."""

    folder: RunFolder
    """The run."""
    settings: dict[str, Any]
    """config.toml, with names such as ``density.kind``; the key ``scene_path`` is the scene."""
    results: dict[str, Any]
    """results.json."""
    per_view: dict[str, Figures]
    """per_view.json: view name -> figures. At least one view."""
    curves: dict[str, NDArray[np.float64]]
    """Name of ``CURVES`` -> [P, 2] iterations and values, all finite. Names without values are left out."""
    facts: dict[str, Any]
    """run.json; empty if it is missing or damaged."""
    files: dict[str, str]
    """View name -> name of its files in the folders ``renders`` and ``error_maps``; they may be missing."""

    @property
    def iteration(self) -> int:
        """Training steps of the evaluated splat."""
        return int(self.results["iteration"])

    def picture(self, view: str) -> Path:
        """The photo of a view beside its render."""
        return self.folder.renders(self.iteration) / self.files[view]

    def error_map(self, view: str) -> Path:
        """FLIP's error map of a view."""
        return self.folder.error_maps(self.iteration) / self.files[view]


def read_record(path: Path) -> RunRecord:
    """Read the files of a run.

    Raises:
        UserError: it is not a run, it is not evaluated, or the files of its evaluation are damaged.
    """
    folder = RunFolder(path)
    folder.check_run()
    measure = f"gs-train eval {quote(str(path))}"
    results, per_view = (_evaluation_file(path / name, measure) for name in ("results.json", "per_view.json"))
    views = {name: _figures(figures) for name, figures in per_view.items() if isinstance(figures, dict)}
    if type(results.get("iteration")) is not int or len(views) != len(per_view) or not views:
        raise UserError(f"{path / 'results.json'} or per_view.json is damaged: write them again with {measure}.")
    return RunRecord(
        folder=folder,
        settings=_settings(folder.config),
        results=results,
        per_view=views,
        curves=_curves(folder.metrics),
        facts=_facts(path / "run.json"),
        files=dict(zip(views, png_names(list(views)), strict=True)),
    )


def number(value: Any) -> float | None:
    """A value of a JSON file as a number; None if it is none, is not finite or is beyond every figure of a run."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _BEYOND:
        return None
    return float(value)


def _evaluation_file(path: Path, measure: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}: measure it with {measure}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except _NOT_JSON:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: write it again with {measure}.")
    return content


def _figures(values: Mapping[str, Any]) -> Figures:
    return {name: number(value) for name, value in values.items()}


def _settings(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as TOML ({error}): correct the file or name another run.") from None
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= {f"{name}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _curves(path: Path) -> dict[str, NDArray[np.float64]]:
    """The lines of metrics.jsonl; damaged ones, as a power failure leaves them, are left out."""
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in CURVES}
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        lines = []
    for line in lines:
        try:
            values = json.loads(line)
        except _NOT_JSON:
            continue
        figures = _figures(values) if isinstance(values, dict) else {}
        iteration = figures.get("iteration")
        if iteration is None:
            continue
        for name in CURVES:
            if (value := figures.get(name)) is not None:
                points[name].append((iteration, value))
    return {name: np.array(sorted(values)) for name, values in points.items() if values}


def _facts(path: Path) -> dict[str, Any]:
    """No page depends on run.json, so a damaged one is left out."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except _NOT_JSON:
        return {}
    return content if isinstance(content, dict) else {}
