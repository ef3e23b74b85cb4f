"""Pages of evaluations: the parts that the report of a run and the comparison of several share.

A page needs no other file and no network. Its HTML, CSS and JavaScript are in ``page/``; this module fills in text,
plots (``plots.py``), tables and pictures.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from gs_train.atomic_write import atomic_write
from gs_train.evaluate.plots import Series, plot
from gs_train.evaluate.record import RunRecord, number

MOST_VIEWS = 60
"""With more views, a page has the pictures of ``WORST_VIEWS`` only."""
WORST_VIEWS = 20
_PICTURE_BYTES, _LARGEST_PICTURE_BYTES, _FULL_PAGE_VIEWS = 1_000_000, 150_000, 30
"""The renders of up to 30 views have 1 MB together."""

_LABELS = {
    "psnr": "PSNR",
    "psnr_colour_matched": "PSNR, colours matched",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "flip": "FLIP",
    "counted": "pixels counted",
}
LOWER_IS_BETTER = ("lpips", "flip")


@dataclass(frozen=True, kw_only=True)
class PageView:
    """The pictures of a view, as data: URIs."""

    name: str
    """Of the view."""
    pictures: tuple[str | None, ...]
    """The photo, then the render of each run; None for a picture that is not in the page."""
    error_map: str | None = None
    """FLIP's map of the render, if there is a single run."""


def picture_bytes(views: int) -> float:
    """The most bytes of one picture, in a page that shows a number of views."""
    return min(_PICTURE_BYTES / min(max(views, 1), _FULL_PAGE_VIEWS), _LARGEST_PICTURE_BYTES)


def write_page(path: Path, *, title: str, body: str, views: Sequence[PageView], labels: Sequence[str]) -> None:
    """Create or replace a page.

    Args:
        path: the file.
        title: of the page.
        body: HTML, every text in it escaped.
        views: in the order of the rows of the table.
        labels: names of the ``pictures`` of each view.

    Raises:
        OSError: the file cannot be written.
    """
    data = json.dumps({"labels": labels, "views": [asdict(view) for view in views]}, separators=(",", ":"))
    folder = files("gs_train.evaluate") / "page"
    parts = {
        "title": html.escape(title),
        "style": (folder / "style.css").read_text(encoding="utf-8"),
        "body": body,
        # "<" as an escape, so that no name can end the script element.
        "views": data.replace("<", "\\u003c"),
        "script": (folder / "views.js").read_text(encoding="utf-8"),
    }
    pieces = (folder / "page.html").read_text(encoding="utf-8").split("@")
    # Every second piece is a name, because the page itself has no other "@".
    text = "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))
    # Names of photos need not be text.
    atomic_write(path, lambda file: file.write(text.encode("utf-8", errors="replace")))


def label_of(metric: str) -> str:
    """The heading of a metric, for people."""
    base = metric.removesuffix("_refined_poses")
    return _LABELS.get(base, base) + ("" if base == metric else ", refined poses")


def metrics_of(figures: Sequence[Mapping[str, float | None]]) -> list[str]:
    """The metrics that some of the figures have, in the order of ``_LABELS``; masks are named only if there are any."""
    found = dict.fromkeys(name for each in figures for name, value in each.items() if value is not None)
    if all(each.get("counted") in (None, 1.0) for each in figures):
        found.pop("counted", None)
    order = list(_LABELS)
    return sorted(found, key=lambda name: order.index(name) if name in order else len(order))


def figure_text(metric: str, value: float | None) -> str:
    """A figure with the digits that mean something."""
    if value is None:
        return "-"
    return f"{value:.2f}" if metric.startswith("psnr") else f"{value:.4f}"


def facts_of(record: RunRecord) -> dict[str, str]:
    """Costs and circumstances of a training and its evaluation; unknown ones are left out."""
    facts, results = record.facts, record.results
    versions = facts.get("versions")
    rows = {
        "Gaussians": _whole(results.get("gaussians")),
        "iterations": f"{record.iteration:,}",
        "training time": _duration(facts.get("loop_s")),
        "peak memory": _gibibytes(facts.get("peak_memory_bytes")),
        "peak GPU memory": _gibibytes(facts.get("peak_gpu_memory_bytes")),
        "trained on": _text(facts.get("device")),
        "CPUs": _whole(facts.get("cpu_count")),
        "rasterizer of the evaluation": _text(results.get("rasterizer")),
        "platform": _text(facts.get("platform")),
    }
    if isinstance(versions, dict):
        rows |= {str(name): _text(version) for name, version in versions.items()}
    return {name: text for name, text in rows.items() if text}


def plots_of(records: Mapping[str, RunRecord]) -> str:
    """The curves of runs; a sentence if there are none.

    Args:
        records: name -> run.
    """
    plots = [
        plot("Loss", _series(records, "loss"), logarithmic=True, smooth=True),
        plot("PSNR of the training views, dB", _series(records, "psnr"), smooth=True),
        plot("PSNR of the test views, dB", _series(records, "test_psnr")),
        plot("Gaussians", _series(records, "gaussians")),
        plot("Training time, s", _series(records, "elapsed_s")),
        plot("Learning rate of the positions", _series(records, "lr_xyz"), logarithmic=True),
    ]
    if not any(plots):
        return '<p class="note">There are no curves: metrics.jsonl is missing or damaged.</p>'
    return f'<div class="plots">{"".join(plots)}</div>'


def _series(records: Mapping[str, RunRecord], curve: str) -> list[Series]:
    return [
        Series(name=name, x=points[:, 0], y=points[:, 1], colour=index)
        for index, (name, record) in enumerate(records.items())
        if (points := record.curves.get(curve)) is not None
    ]


Cell = tuple[str, float | None]
"""A metric and its value."""


def views_section(title: str, note: str, headings: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    """The section with the pictures and the table that chooses the view.

    Args:
        title: of the section.
        note: a sentence below it; may be empty.
        headings: of the columns after the name of the view.
        rows: names of the views with their figures, in the order of the views of the page.
    """
    head = "".join(f'<th scope="col"><button type="button">{html.escape(text)}</button></th>' for text in headings)
    body = "".join(
        f'<tr data-view="{index}"><th scope="row">{html.escape(name)}</th>'
        + "".join(_cell(metric, value) for metric, value in cells)
        + "</tr>"
        for index, (name, cells) in enumerate(rows)
    )
    parts = (files("gs_train.evaluate") / "page" / "views.html").read_text(encoding="utf-8").split("@")
    texts = {
        "title": html.escape(title),
        "note": f'<p class="note">{html.escape(note)}</p>' if note else "",
        "head": head,
        "rows": body,
    }
    return "".join(texts[part] if index % 2 else part for index, part in enumerate(parts))


def _cell(metric: str, value: float | None) -> str:
    sorted_by = "" if value is None else f' data-v="{value:.6g}"'
    return f"<td{sorted_by}>{figure_text(metric, value)}</td>"


def settings_text(value: Any) -> str:
    """A setting as config.toml has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> str:
    count = number(value)
    return "" if count is None else f"{count:,.0f}"


def _duration(value: Any) -> str:
    seconds = number(value)
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _gibibytes(value: Any) -> str:
    size = number(value)
    return "" if size is None else f"{size / 2**30:.2f} GiB"
