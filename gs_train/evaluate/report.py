"""The report of a run: one offline page with its figures, curves, views and settings. ``compare.py`` has the page of
several runs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gs_train.evaluate.page import (
    MOST_VIEWS,
    WORST_VIEWS,
    PageView,
    facts_of,
    figure_text,
    label_of,
    metrics_of,
    picture_bytes,
    plots_of,
    settings_text,
    views_section,
    write_page,
)
from gs_train.evaluate.pictures import data_uri, read_pair, read_picture
from gs_train.evaluate.record import RunRecord, number, read_record

_MAP_SHARE = 0.7
"""Bytes of an error map, as a share of the bytes of a render."""
_NO_TEST_VIEWS = (
    "The run has no held-out views: the figures are of its training views and say little about new views. Train with "
    "--test-every 8 for held-out views."
)
_CARDS = ("Gaussians", "iterations", "training time", "peak memory")
"""Facts that everyone wants to see, shown beside the figures."""


def write_report(run: Path, *, all_views: bool = False) -> Path:
    """Write ``report.html`` of an evaluated run, and return its path.

    Args:
        run: the run folder.
        all_views: whether the page has the pictures of all views, even of more than ``MOST_VIEWS``.

    Raises:
        UserError: it is not a run, it is not evaluated, or the files of its evaluation are damaged.
        OSError: the report cannot be written.
    """
    record = read_record(run)
    name = run.absolute().name
    views = sorted(record.per_view, key=lambda view: _quality(record, view))
    pictured = views if all_views or len(views) <= MOST_VIEWS else views[:WORST_VIEWS]
    page_views = [_page_view(record, view, picture_bytes(len(pictured))) for view in pictured]
    page_views += [PageView(name=view, pictures=(None, None)) for view in views[len(pictured) :]]
    body = (
        f"<h1>{html.escape(name)}</h1>",
        f'<p class="soft">Scene: {html.escape(str(record.settings.get("scene_path", "unknown")))}</p>',
        "" if _has_test_views(record) else f'<p class="note">{_NO_TEST_VIEWS}</p>',
        _cards(record),
        f"<section><h2>Training</h2>{plots_of({name: record})}</section>",
        _views(record, page_views, len(pictured)),
        f"<details><summary>Settings</summary>{_table(_settings(record.settings))}</details>",
        f"<section><h2>Time, memory, device, versions</h2>{_table(facts_of(record))}</section>",
    )
    labels = ("photo", "render")
    write_page(record.folder.report, title=f"{name}: report", body="\n".join(body), views=page_views, labels=labels)
    return record.folder.report


def _quality(record: RunRecord, view: str) -> float:
    """The PSNR of a view, dB, below which no other is worse."""
    psnr = record.per_view[view].get("psnr")
    return float("-inf") if psnr is None else psnr


def _has_test_views(record: RunRecord) -> bool:
    return record.results.get("split") != "train"


def _cards(record: RunRecord) -> str:
    results = {name: number(value) for name, value in record.results.items()}
    facts = facts_of(record)
    prefix = "test" if _has_test_views(record) else "training"
    cards = [
        (f"{prefix} {label_of(metric)}", figure_text(metric, results.get(metric)) + _unit(metric))
        for metric in metrics_of([*record.per_view.values()])
    ]
    cards += [(name, facts[name]) for name in _CARDS if name in facts]
    items = "".join(f"<li><b>{html.escape(text)}</b><span>{html.escape(label)}</span></li>" for label, text in cards)
    return f'<ul class="cards">{items}</ul>{_not_measured(record)}'


def _unit(metric: str) -> str:
    return " dB" if metric.startswith("psnr") else ""


def _not_measured(record: RunRecord) -> str:
    reasons = record.results.get("not_measured")
    sentences = reasons.values() if isinstance(reasons, dict) else ()
    return "".join(f'<p class="soft">{html.escape(str(sentence))}</p>' for sentence in sentences)


def _page_view(record: RunRecord, view: str, most_bytes: float) -> PageView:
    pair = read_pair(record.picture(view))
    if pair is None:
        return PageView(name=view, pictures=(None, None))
    # A map that an earlier evaluation left does not belong to these figures.
    error_map = read_picture(record.error_map(view)) if record.per_view[view].get("flip") is not None else None
    return PageView(
        name=view,
        pictures=tuple(data_uri(each, most_bytes) for each in pair),
        error_map=None if error_map is None else data_uri(error_map, _MAP_SHARE * most_bytes),
    )


def _views(record: RunRecord, views: Sequence[PageView], pictured: int) -> str:
    metrics = metrics_of([*record.per_view.values()])
    rows = [(view.name, [(metric, record.per_view[view.name].get(metric)) for metric in metrics]) for view in views]
    kind = "Views" if _has_test_views(record) else "Training views"
    return views_section(f"{kind}, worst first", _note(record, views, pictured), [*map(label_of, metrics)], rows)


def _note(record: RunRecord, views: Sequence[PageView], pictured: int) -> str:
    """A sentence about pictures that are not in the page; empty if all are."""
    if pictured < len(views):
        return f"The page has the pictures of the {pictured} worst of {len(views)} views: --all-views puts all into it."
    absent = sum(not all(view.pictures) for view in views)
    if absent == 0:
        return ""
    folder = record.folder.renders(record.iteration)
    return f"{absent} of {len(views)} pictures in {folder} are missing or damaged: run gs-train eval again."


def _settings(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: settings_text(value) for name, value in settings.items()}


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(text)}</td></tr>' for name, text in rows.items()
    )
    return f'<div class="scroll"><table class="facts"><tbody>{cells}</tbody></table></div>'
