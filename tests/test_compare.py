"""``gs-train compare``: the page of several runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from command_line import exit_code, gs_train_here
from evaluated_runs import page_data, write_run

from gs_train.evaluate.compare import run_names

VIEWS = {"a.jpg": {"psnr": 30.0, "ssim": 0.9}, "b.jpg": {"psnr": 20.0, "ssim": 0.8}}
OTHERS = {"a.jpg": {"psnr": 31.0, "ssim": 0.9}, "b.jpg": {"psnr": 25.0, "ssim": 0.7}}


def compared(tmp_path: Path, *runs: Path, flags: tuple[object, ...] = ()) -> str:
    done = gs_train_here("compare", *runs, "--out", tmp_path / "page.html", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Comparison: {tmp_path / 'page.html'}\n" and done.stderr == ""
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def row_of(page: str, name: str) -> str:
    found = re.search(rf'<tr[^>]*><th scope="row">{re.escape(name)}</th>.*?</tr>', page)
    assert found is not None, name
    return found[0]


def test_a_comparison_has_curves_differences_and_views(tmp_path: Path) -> None:
    page = compared(
        tmp_path,
        write_run(tmp_path / "one", VIEWS),
        write_run(tmp_path / "two", OTHERS, iterations=50),
        write_run(tmp_path / "three", VIEWS),
    )
    assert not re.search(r"https?://|url\(|@import|<link", page) and "default-src 'none'" in page
    cells = '<td>25.00</td><td><b class="best">28.00</b></td><td>25.00</td>'
    assert row_of(page, "PSNR") == f'<tr class="differs"><th scope="row">PSNR</th>{cells}</tr>'
    assert '<b class="best">0.8500</b></td><td>0.8000</td>' in row_of(page, "SSIM")
    assert row_of(page, "rasterizer of the evaluation").count("cpu") == 3
    assert "differs" not in row_of(page, "rasterizer of the evaluation")
    different, _, same = page.partition("<summary>Equal settings")
    assert "<td>100</td><td>50</td><td>100</td>" in row_of(different.partition("<h2>Settings")[2], "iterations")
    assert ">max_gaussians<" not in different and "differs" not in row_of(same, "max_gaussians")
    # Curves together, with one colour for each run.
    (loss,) = re.findall(r"<figcaption>Loss</figcaption>.*?</svg>", page)
    assert [f'class="line{index}"' in loss for index in range(4)] == [True, True, True, False]
    # The largest difference first, and the photo once.
    data = page_data(page)
    assert data["labels"] == ["photo", "one", "two", "three"]
    assert [view["name"] for view in data["views"]] == ["b.jpg", "a.jpg"]
    assert all(len(view["pictures"]) == 4 and all(view["pictures"]) for view in data["views"])


def test_lower_is_better_for_perceptual_metrics(tmp_path: Path) -> None:
    runs = (
        write_run(tmp_path / name, {"a.jpg": {"psnr": 30.0, "flip": flip, **more}})
        for name, flip, more in (("one", 0.1, {"lpips": 0.2}), ("two", 0.2, {}))
    )
    page = compared(tmp_path, *runs)
    assert '<td><b class="best">0.1000</b></td><td>0.2000</td>' in row_of(page, "FLIP")
    assert "<td>0.2000</td><td>-</td>" in row_of(page, "LPIPS"), "one run alone cannot be the best"


def test_runs_on_different_views_are_compared_by_common_ones(tmp_path: Path) -> None:
    more = {**VIEWS, "c.jpg": {"psnr": 99.0, "ssim": 0.99}}
    one = write_run(tmp_path / "one", more, results={"split": "train"})
    page = compared(tmp_path, one, write_run(tmp_path / "two", OTHERS))
    assert "means over the 2 views in common" in page and "one has no held-out views" in page
    assert "<td>25.00</td>" in row_of(page, "PSNR") and "c.jpg" not in page


def test_a_run_that_has_trained_on_is_told(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one", VIEWS), write_run(tmp_path / "two", OTHERS)
    (two / "point_cloud" / "iteration_200").mkdir(parents=True)
    (two / "point_cloud" / "iteration_200" / "point_cloud.ply").touch()
    assert f"two has trained on since its evaluation at iteration 100: run gs-train eval {two}." in compared(
        tmp_path, one, two
    )


def test_many_views_have_the_pictures_of_the_largest_differences(tmp_path: Path) -> None:
    views = {f"{number:03d}.jpg": {"psnr": 20.0} for number in range(61)}
    others = {name: {"psnr": 20.0 + number} for number, name in enumerate(views)}
    runs = (write_run(tmp_path / "one", views), write_run(tmp_path / "two", others))
    page = compared(tmp_path, *runs)
    shown = [view["name"] for view in page_data(page)["views"] if all(view["pictures"])]
    assert shown == [f"{number:03d}.jpg" for number in range(60, 40, -1)] and "--all-views" in page
    page = compared(tmp_path, *runs, flags=("--all-views",))
    assert all(all(view["pictures"]) for view in page_data(page)["views"]) and "--all-views" not in page


def test_deleted_pictures_leave_the_figures(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one", VIEWS), write_run(tmp_path / "two", OTHERS)
    shutil.rmtree(two / "renders")
    page = compared(tmp_path, one, two)
    assert "Some pictures are missing or damaged" in page and "28.00" in page
    assert [[picture is None for picture in view["pictures"]] for view in page_data(page)["views"]] == [
        [False, False, True]
    ] * 2


def test_a_scene_that_has_moved_is_the_same_scene(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", VIEWS)
    assert "28.00" in compared(tmp_path, one, write_run(tmp_path / "two", OTHERS, scene=Path("/elsewhere")))


def test_names_in_html(tmp_path: Path) -> None:
    page = compared(tmp_path, write_run(tmp_path / "<b>", VIEWS), write_run(tmp_path / "</script><i>", OTHERS))
    assert page.count("</script>") == 2 and "<i>" not in page and "<b>a" not in page
    assert page_data(page)["labels"] == ["photo", "<b>", "</script><i>".rpartition("/")[2]]


def test_folders_of_one_name_are_told_apart() -> None:
    assert run_names([Path("/r/a"), Path("/r/b")]) == ["a", "b"]
    assert run_names([Path("/r/x/a"), Path("/r/y/a"), Path("/r/y/b")]) == ["x/a", "y/a", "y/b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "RUN"),
        (("one",), "compare needs two runs or more"),
        (("one", "one"), "one is named twice"),
        (("one", "two/../one"), "is named twice"),
        (("one", "none"), "none is not a run"),
        (("one", "page.txt"), "page.txt is not a run"),
        (("one", "raw"), "raw has no results.json: measure it with gs-train eval raw."),
        (("one", "damaged"), "damaged/results.json is damaged: write it again with gs-train eval damaged."),
        (("one", "toml"), "toml/config.toml cannot be read as TOML"),
        (("one", "stranger"), "one (/scenes/desk) and stranger (/scenes/lego) have no photo in common"),
        (("one", "namesake"), "one (/scenes/desk) and namesake (/scenes/lego) have no photo in common"),
        (("one", "two", "--out", "page.txt"), "--out page.txt is no page"),
        (("one", "two", "--out", "one"), "--out one is no page"),
    ],
)
def test_wrong_runs_are_one_sentence(
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "raw", "damaged", "toml"):
        write_run(Path(name), VIEWS)
    write_run(Path("stranger"), {"z.jpg": VIEWS["a.jpg"]}, scene=Path("/scenes/lego"))
    write_run(Path("namesake"), VIEWS, scene=Path("/scenes/lego"), photo=1)
    Path("page.txt").touch()
    Path("raw/results.json").unlink()
    Path("damaged/results.json").write_text("{")
    Path("toml/config.toml").write_text("=")
    assert exit_code("compare", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("compare.html").exists()


def test_real_runs(own_run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(own_run, tmp_path / "other"))
    for run in (own_run, other):
        assert gs_train_here("eval", run, "--metrics", "none").returncode == 0
    page = compared(tmp_path, own_run, other)
    assert "All settings are equal." in page
    psnr = json.loads((own_run / "results.json").read_text())["psnr"]
    assert row_of(page, "PSNR").count(f"<td>{psnr:.2f}</td>") == 2
