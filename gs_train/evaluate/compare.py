"""The comparison of several runs of one scene: one offline page with their curves together, their results and settings
with the differences marked, and the same views side by side."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from shlex import quote
from typing import Any

from PIL import Image, ImageChops, ImageStat

from gs_train.errors import UserError
from gs_train.evaluate.page import (
    LOWER_IS_BETTER,
    MOST_VIEWS,
    WORST_VIEWS,
    Cell,
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
from gs_train.evaluate.pictures import data_uri, read_pair
from gs_train.evaluate.plots import COLOURS
from gs_train.evaluate.record import Figures, RunRecord, read_record

_PHOTO_SIDE_PX = 16
_SAME_PHOTO = 20.0
"""Mean difference, of 255, below which two photos that are reduced to 16x16 px are the same; their sizes may differ."""

Records = Mapping[str, RunRecord]
"""Name of a run on the page -> the run."""


def write_comparison(runs: Sequence[Path], target: Path, *, all_views: bool = False) -> None:
    """Write a page that compares runs of one scene.

    Args:
        runs: folders of evaluated runs.
        target: the .html file.
        all_views: whether the page has the pictures of all common views, even of more than ``MOST_VIEWS``.

    Raises:
        UserError: there are fewer than two runs, one is named twice, is not a run or is not evaluated, the files of an
            evaluation are damaged, or the runs have no common view.
        OSError: the page cannot be written.
    """
    _check_different(runs)
    records = dict(zip(run_names(runs), map(read_record, runs), strict=True))
    common = _common_views(records)
    metrics = metrics_of([record.per_view[view] for record in records.values() for view in common])
    views = sorted(common, key=lambda view: -_spread(records, view))
    pictured = views if all_views or len(views) <= MOST_VIEWS else views[:WORST_VIEWS]
    page_views = [_page_view(records, view, picture_bytes(len(pictured))) for view in pictured]
    absent = (None,) * (1 + len(records))
    page_views += [PageView(name=view, pictures=absent) for view in views[len(pictured) :]]
    title = f"Comparison of {len(records)} runs"
    body = (
        f"<h1>{title}</h1>",
        f'<p class="soft">Scene: {html.escape(_scene(next(iter(records.values()))))}</p>',
        _legend(records),
        f"<section><h2>Results</h2>{_notes(records, common)}{_results(records, common, metrics)}</section>",
        f"<section><h2>Training</h2>{plots_of(records)}</section>",
        f"<section><h2>Settings</h2>{_settings(records)}</section>",
        _views(records, page_views, metrics, len(pictured)),
    )
    labels = ("photo", *records)
    write_page(target, title=title, body="\n".join(body), views=page_views, labels=labels)


def run_names(runs: Sequence[Path]) -> list[str]:
    """The names of folders, with as many parents as tell them apart."""
    parts = [PurePath(run.absolute()).parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = [str(PurePath(*each[-count:])) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def _check_different(runs: Sequence[Path]) -> None:
    if len(runs) < 2:
        raise UserError("compare needs two runs or more: gs-train compare RUN RUN.")
    seen: set[Path] = set()
    for run in runs:
        if run.resolve() in seen:
            raise UserError(f"{run} is named twice: name different runs.")
        seen.add(run.resolve())


def _scene(record: RunRecord) -> str:
    return str(record.settings.get("scene_path", "unknown"))


# ---- the common views


def _common_views(records: Records) -> list[str]:
    """The views that all runs are evaluated on, in the order of the first run.

    Raises:
        UserError: there is none, or the runs are of different scenes.
    """
    (first_name, first), *others = records.items()
    common = [view for view in first.per_view if all(view in other.per_view for _, other in others)]
    for name, other in others:
        strangers = _scene(first) != _scene(other) and not _same_photo(first, other, common)
        if strangers or not any(view in other.per_view for view in first.per_view):
            raise UserError(
                f"{first_name} ({_scene(first)}) and {name} ({_scene(other)}) have no photo in common: compare runs of "
                "one scene."
            )
    if not common:
        raise UserError("the runs are evaluated on different views: train them with the same --test-every.")
    return common


def _same_photo(one: RunRecord, other: RunRecord, views: Sequence[str]) -> bool:
    """Whether a view has the same photo in two runs of scenes at different places. True if the photos are gone."""
    for view in views:
        photos = [None if pair is None else pair[0] for pair in _pairs([one, other], view)]
        if photos[0] is not None and photos[1] is not None:
            reduced = [
                photo.resize((_PHOTO_SIDE_PX, _PHOTO_SIDE_PX), Image.Resampling.BOX) for photo in photos if photo
            ]
            return max(ImageStat.Stat(ImageChops.difference(*reduced)).mean) < _SAME_PHOTO
    return bool(views)


def _pairs(records: Sequence[RunRecord], view: str) -> list[tuple[Image.Image, Image.Image] | None]:
    return [read_pair(record.picture(view)) for record in records]


def _spread(records: Records, view: str) -> float:
    """By how much the PSNR of a view differs between the runs, dB."""
    values = [value for record in records.values() if (value := record.per_view[view].get("psnr")) is not None]
    return max(values, default=0.0) - min(values, default=0.0)


def _page_view(records: Records, view: str, most_bytes: float) -> PageView:
    pairs = _pairs([*records.values()], view)
    photo = next((pair[0] for pair in pairs if pair is not None), None)
    renders = [None if pair is None else pair[1] for pair in pairs]
    pictures = (None if picture is None else data_uri(picture, most_bytes) for picture in (photo, *renders))
    return PageView(name=view, pictures=tuple(pictures))


def _views(records: Records, views: Sequence[PageView], metrics: Sequence[str], pictured: int) -> str:
    shown = [metric for metric in metrics if metric in ("psnr", "ssim", "lpips", "flip")]
    headings = [f"{label_of(metric)}, {name}" for metric in shown for name in records]
    rows: list[tuple[str, list[Cell]]] = [
        (
            view.name,
            [(metric, record.per_view[view.name].get(metric)) for metric in shown for record in records.values()],
        )
        for view in views
    ]
    note = ""
    if pictured < len(views):
        note = f"The page has the pictures of {pictured} of {len(views)} views: --all-views puts all into it."
    elif any(None in view.pictures for view in views):
        note = "Some pictures are missing or damaged: run gs-train eval again."
    return views_section("Views, largest difference first", note, headings, rows)


# ---- tables


def _notes(records: Records, common: Sequence[str]) -> str:
    """Sentences about figures that are not comparable."""
    notes = []
    if any(len(record.per_view) > len(common) for record in records.values()):
        count = "the one view" if len(common) == 1 else f"the {len(common)} views"
        notes.append(f"The runs are evaluated on different views: all figures are means over {count} in common.")
    for name, record in records.items():
        if record.results.get("split") == "train":
            notes.append(f"{name} has no held-out views: its figures are of photos that it is trained on.")
        newest = record.folder.newest_splat()
        if newest is not None and newest[0] > record.iteration:
            again = f"gs-train eval {quote(str(record.folder.path))}"
            notes.append(f"{name} has trained on since its evaluation at iteration {record.iteration}: run {again}.")
    return "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)


def _results(records: Records, common: Sequence[str], metrics: Sequence[str]) -> str:
    """The means over the common views, and the costs. The best mean is bold."""
    rows = []
    for metric in metrics:
        means = [_mean([record.per_view[view] for view in common], metric) for record in records.values()]
        known = [mean for mean in means if mean is not None]
        best = None if metric == "counted" else (min if metric in LOWER_IS_BETTER else max)(known, default=None)
        texts = [figure_text(metric, mean) for mean in means]
        cells = [
            f'<b class="best">{text}</b>' if mean == best and len(known) > 1 and len(set(texts)) > 1 else text
            for mean, text in zip(means, texts, strict=True)
        ]
        rows.append(_row(label_of(metric), cells, differs=len(set(texts)) > 1))
    facts = [facts_of(record) for record in records.values()]
    for name in dict.fromkeys(name for each in facts for name in each):
        texts = [each.get(name, "-") for each in facts]
        rows.append(_row(name, [*map(html.escape, texts)], differs=len(set(texts)) > 1))
    return _table(records, rows)


def _mean(figures: Sequence[Figures], metric: str) -> float | None:
    values = [each.get(metric) for each in figures]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _settings(records: Records) -> str:
    """The settings that differ, and all others in a part that opens."""
    tables = [record.settings for record in records.values()]
    different: list[str] = []
    same: list[str] = []
    for name in dict.fromkeys(name for table in tables for name in table):
        texts = [_setting(table, name) for table in tables]
        differs = len(set(texts)) > 1
        (different if differs else same).append(_row(name, [*map(html.escape, texts)], differs=differs))
    first = _table(records, different) if different else '<p class="note">All settings are equal.</p>'
    return f"{first}<details><summary>Equal settings</summary>{_table(records, same)}</details>"


def _setting(table: Mapping[str, Any], name: str) -> str:
    return settings_text(table[name]) if name in table else "-"


def _row(name: str, cells: Sequence[str], *, differs: bool) -> str:
    """A row of a table; ``cells`` are HTML."""
    mark = ' class="differs"' if differs else ""
    return (
        f'<tr{mark}><th scope="row">{html.escape(name)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    )


def _table(records: Records, rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in records)
    return (
        '<div class="scroll"><table class="facts"><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _legend(records: Records) -> str:
    line = '<svg viewBox="0 0 22 10" aria-hidden="true"><polyline class="line{}" points="0,5 22,5"/></svg>'
    items = "".join(f"<li>{line.format(index % COLOURS)}{html.escape(name)}</li>" for index, name in enumerate(records))
    return f'<ul class="legend">{items}</ul>'
