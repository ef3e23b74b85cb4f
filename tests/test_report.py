"""The report of a run, and the parts that it shares with comparisons of runs (``test_compare.py``)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import gs_train_here
from evaluated_runs import page_data, write_run
from PIL import Image

from gs_train.errors import UserError
from gs_train.evaluate.page import picture_bytes
from gs_train.evaluate.pictures import data_uri
from gs_train.evaluate.plots import Series, plot
from gs_train.evaluate.report import write_report

VIEWS = {"good.jpg": {"psnr": 31.0, "ssim": 0.95}, "bad.jpg": {"psnr": 21.0, "ssim": 0.75}}


def report_of(run: Path, **options: bool) -> str:
    return write_report(run, **options).read_text(encoding="utf-8")


# ---- content ----


def test_eval_writes_a_report_and_prints_its_path(own_run: Path) -> None:
    done = gs_train_here("eval", own_run, "--metrics", "none")
    assert done.returncode == 0, done.stderr
    assert f"Report: {own_run / 'report.html'}" in done.stdout
    page = (own_run / "report.html").read_text(encoding="utf-8")
    results = json.loads((own_run / "results.json").read_text())
    assert f"<b>{results['psnr']:.2f} dB</b>" in page and "<h2>Views, worst first</h2>" in page
    (view,) = page_data(page)["views"]
    assert len(view["pictures"]) == 2 and all(each.startswith("data:image/") for each in view["pictures"])
    assert view["error_map"] is None
    printed = json.loads(gs_train_here("eval", own_run, "--json").stdout)
    assert printed["report"] == str(own_run / "report.html")


def test_a_report_has_everything_and_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = report_of(write_run(tmp_path / "run", VIEWS))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page
    assert not re.search(r"https?://|url\(|@import|<link", page) and page.count("<script") == page.count("</script>")
    # In this order.
    parts = ("<h1>run</h1>", "/scenes/desk", "<b>26.00 dB</b>", "<b>1,234</b>", "<b>12.5 s</b>", "Loss", "PSNR of the")
    parts += ("Gaussians</fig", "Training time, s", "Learning rate", "Views, worst first", "<summary>Settings")
    parts += ("density.kind", "Time, memory, device, versions", "2.13.0")
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert page.count('<svg viewBox="') == 5 and page.count('role="img" aria-label="') == 5
    assert [view["name"] for view in page_data(page)["views"]] == ["bad.jpg", "good.jpg"]
    assert page.index(">bad.jpg</th>") < page.index(">good.jpg</th>") and 'data-v="21"' in page
    assert len(re.sub(r"data:[^\"]*", "", page)) < 24_000


def test_names_cannot_leave_their_place(tmp_path: Path) -> None:
    name = "</script><img src=x onerror=alert(1)>&amp;\udc80.jpg"
    run = write_run(tmp_path / "<b>run", {name: VIEWS["bad.jpg"]}, scene=tmp_path / "<i>scene")
    page = report_of(run)
    assert page.count("</script>") == 2 and not re.search(r"<img src=x|<b>run|<i>scene", page)
    assert "&lt;b&gt;run" in page and "&lt;i&gt;scene" in page and "&amp;amp;?.jpg</th>" in page
    assert page_data(page)["views"][0]["name"] == name


def test_many_views_have_the_pictures_of_the_worst_only(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {f"{number:03d}.jpg": {"psnr": 20.0 + number} for number in range(61)})
    page = report_of(run)
    views = page_data(page)["views"]
    assert [all(view["pictures"]) for view in views] == [True] * 20 + [False] * 41
    assert "of the 20 worst of 61 views: --all-views" in page and page.count("<tr data-view") == 61
    page = report_of(run, all_views=True)
    assert all(all(view["pictures"]) for view in page_data(page)["views"]) and "--all-views" not in page


def test_a_report_of_30_views_stays_below_3_megabytes() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (320, 480, 3), np.uint8))
    most = picture_bytes(30)
    assert 30 * most * 2.7 + 30_000 < 3e6  # photo, render, and a smaller error map
    assert most / 4 < len(data_uri(noise, most)) <= most
    assert len(data_uri(noise, 1000)) < 24_000
    large = Image.new("RGB", (1500, 100))
    assert len(data_uri(large, most)) < 3000
    assert picture_bytes(1) == picture_bytes(2) and picture_bytes(60) == most


def test_a_run_without_held_out_views_says_so(tmp_path: Path) -> None:
    page = report_of(write_run(tmp_path / "run", VIEWS, results={"split": "train"}))
    assert page.count("has no held-out views") == 1
    assert "<h2>Training views, worst first</h2>" in page and "training PSNR" in page and "test PSNR" not in page


def test_masks_are_told_only_if_there_are_any(tmp_path: Path) -> None:
    whole = {name: {**figures, "counted": 1.0} for name, figures in VIEWS.items()}
    assert "pixels counted" not in report_of(write_run(tmp_path / "whole", whole))
    masked = {**whole, "bad.jpg": {**whole["bad.jpg"], "counted": 0.5}}
    assert "pixels counted" in report_of(write_run(tmp_path / "masked", masked))


def test_perceptual_metrics_are_shown_where_they_are_measured(tmp_path: Path) -> None:
    plain = report_of(write_run(tmp_path / "plain", VIEWS))
    assert "LPIPS" not in re.sub(r"<script.*", "", plain, flags=re.DOTALL) and ">test FLIP<" not in plain
    missing = {"not_measured": {"lpips": "LPIPS is not measured because of <x>."}}
    measured = {name: {**figures, "flip": 0.1, "mae": 0.25} for name, figures in VIEWS.items()}
    run = write_run(tmp_path / "run", measured, results=missing)
    for name in ("good.png", "bad.png"):
        (run / "error_maps" / "iteration_100").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), "red").save(run / "error_maps" / "iteration_100" / name)
    page = report_of(run)
    assert "because of &lt;x&gt;." in page and "<b>0.1000</b><span>test FLIP" in page and ">mae<" in page
    assert all(view["error_map"].startswith("data:") for view in page_data(page)["views"])
    # The maps of an earlier evaluation do not belong to figures without FLIP.
    (run / "per_view.json").write_text(json.dumps(VIEWS))
    assert [view["error_map"] for view in page_data(report_of(run))["views"]] == [None, None]


# ---- damaged files ----


@pytest.mark.parametrize("damage", ["missing", "truncated", "no picture", "bomb"])
def test_pictures_that_cannot_be_read_are_told(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", VIEWS)
    picture = run / "renders" / "iteration_100" / "bad.png"
    if damage == "missing":
        picture.unlink()
    elif damage == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
        Image.new("RGB", (60, 60)).save(picture)
    else:
        picture.write_bytes(picture.read_bytes()[:300] if damage == "truncated" else b"text")
    page = report_of(run)
    assert "1 of 2 pictures in" in page and "run gs-train eval again" in page and 'data-v="21"' in page
    assert [all(view["pictures"]) for view in page_data(page)["views"]] == [False, True]


def test_damaged_lines_of_metrics_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", VIEWS)
    expected = report_of(run)
    lines = [b"\xff\x00", b"[]", b'{"iteration": NaN, "loss": 1}', b'{"iteration": "x"}', b'{"loss": 3}', b"[" * 99999]
    lines += [b'{"iteration": 5, "loss": Infinity, "psnr": null, "gaussians": true, "lr_xyz": 1' + b"0" * 400 + b"}"]
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"\n".join(lines))
    assert report_of(run) == expected
    for content in (b"", b"\x00" * 100):
        (run / "metrics.jsonl").write_bytes(content)
        assert "There are no curves" in report_of(run)
    (run / "metrics.jsonl").unlink()
    assert "There are no curves" in report_of(run)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"loop_s": "x", "versions": [], "device": 5}', "[" * 99999])
def test_a_damaged_run_json_costs_its_own_facts_only(tmp_path: Path, content: str) -> None:
    run = write_run(tmp_path / "run", VIEWS)
    (run / "run.json").write_text(content)
    page = report_of(run)
    assert "12.5 s" not in page and "<b>26.00 dB</b>" in page


@pytest.mark.parametrize("name", ["results.json", "per_view.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"iteration": "../../x", "a": 1}', "\x00", "[" * 99999])
def test_damaged_figures_are_one_sentence(tmp_path: Path, name: str, content: str) -> None:
    run = write_run(tmp_path / "run", VIEWS)
    (run / name).write_text(content)
    with pytest.raises(UserError, match=r"damaged: write (it|them) again with gs-train eval") as caught:
        write_report(run)
    assert name in str(caught.value) and not (run / "report.html").exists()


def test_figures_that_are_no_numbers_are_not_measured(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", VIEWS)
    views = '{"a": {"psnr": NaN, "ssim": "<b>"}, "b": {"psnr": 20, "ssim": 1e999}, "<i>": {"<u>": 3}}'
    (run / "per_view.json").write_text(views)
    page = report_of(run)
    assert not re.search('<b>"|<i>|<u>|nan|inf', page.split("<h2>Views")[1].split("<details>")[0])
    assert page.count("<tr data-view") == 3


# ---- plots ----


def test_plots_keep_spikes_and_have_round_ticks() -> None:
    x, y = np.arange(10_000.0), np.ones(10_000)
    y[5_678] = 50.0
    drawn = plot("Loss", [Series(name="run", x=x, y=y)])
    (points,) = re.findall(r'points="([^"]*)"', drawn)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert len(heights) <= 400 and min(heights) == 8.0 and heights.count(8.0) == 1
    assert re.findall(r'text-anchor="middle">([^<]*)', drawn) == ["0", "2k", "4k", "6k", "8k"]
    assert re.findall(r'text-anchor="end">([^<]*)', drawn) == ["10", "20", "30", "40", "50"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.009, 0.11, ["0.01", "0.02", "0.05", "0.1"]),
        (1.6e-6, 4e-4, ["1e-5", "1e-4"]),
        (3.0, 3.5, ["3", "3.1", "3.2", "3.3", "3.4", "3.5"]),
        (7.0, 7.0, ["5", "10"]),
    ],
)
def test_ticks_of_logarithmic_axes(low: float, high: float, expected: list[str]) -> None:
    series = Series(name="run", x=np.array([0.0, 1.0, 2.0]), y=np.array([low, high, -1.0]))
    drawn = plot("Loss", [series], logarithmic=True)
    assert re.findall(r'text-anchor="end">([^<]*)', drawn) == expected


@pytest.mark.parametrize("values", [[5.0], [0.0], [1e29, -1e29], [1e-300, 2e-300], [1e16, 1e16 + 2], [0.0, 1e-300]])
def test_odd_values_can_be_drawn(values: list[float]) -> None:
    x = np.arange(float(len(values)))
    for logarithmic in (False, True):
        drawn = plot("<Loss>", [Series(name="<run>", x=x, y=np.array(values))], logarithmic=logarithmic, smooth=True)
        assert "nan" not in drawn and "inf" not in drawn and "<Loss>" not in drawn and "<run>" not in drawn
    assert plot("Loss", []) == ""


# ---- in a browser ----


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    chromium, node = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("node")
    modules = os.environ.get("GS_TRAIN_NODE_MODULES")
    if chromium is None or node is None or modules is None:
        pytest.skip("needs Chromium, Node.js, and the folder of playwright-core in GS_TRAIN_NODE_MODULES")
    views = {**VIEWS, "<i>" + 30 * "long_name_" + ".jpg": {"psnr": 25.0, "ssim": 0.5}}
    page = write_report(write_run(tmp_path / "run", views))
    script = Path(__file__).with_name("use_report.cjs")
    command = [node, script, chromium, page, tmp_path]
    environment = os.environ | {"NODE_PATH": modules}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=True)
    seen = json.loads(done.stdout)
    assert seen["requests"] == [] and seen["faults"] == []
    assert seen["overflow"] == [0, 0], "no part is wider than a window of 390 and 1100 px"
    assert seen["first"] == "bad.jpg" and seen["afterArrows"] == ["<i>" + 30 * "long_name_" + ".jpg", "good.jpg"]
    assert seen["bySsim"] == ["25.00", "21.00", "31.00"] and seen["byName"][0].startswith("<i>")
    # The photo on the left of the divider, the render on its right; the difference is that of both, four times.
    record = Image.open(tmp_path / "run" / "renders" / "iteration_100" / "bad.png").convert("RGB")
    photo, render = (record.crop((left, 0, left + 24, 16)) for left in (0, 24))
    slider, difference = (Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("slider", "difference"))
    middle = slider.width // 2
    half = (0, 0, middle - 4, slider.height), (middle + 4, 0, slider.width, slider.height)
    for region, source in zip(half, (photo, render), strict=True):
        shown = np.asarray(slider.crop(region), dtype=float)
        other = np.asarray(source.resize(slider.size, Image.Resampling.BILINEAR).crop(region), dtype=float)
        assert np.corrcoef(shown.ravel(), other.ravel())[0, 1] > 0.9
    apart = np.abs(np.asarray(photo, dtype=float) - np.asarray(render, dtype=float)).mean()
    assert np.asarray(difference).mean() > min(1.5 * apart, 150)
