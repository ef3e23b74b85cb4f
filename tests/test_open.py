"""Opening a splat: a run folder, a checkpoint in it or elsewhere, and a splat file give the same Gaussians."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import rewrite
from command_line import environment
from splats import assert_same_bits

from gs_train.errors import UserError
from gs_train.evaluate.evaluate import evaluate_splat
from gs_train.formats.registry import read_splat
from gs_train.run.open import open_run, open_splat
from gs_train.sample.scene import write_sample_scene


@pytest.fixture
def lone_checkpoint(tiny_run: Path, tmp_path: Path) -> Path:
    """A checkpoint outside of any run folder."""
    return Path(shutil.copy(tiny_run / "checkpoints" / "iteration_000024.pt", tmp_path / "lone.pt"))


def splat_file(run: Path) -> Path:
    return run / "point_cloud" / "iteration_24" / "point_cloud.ply"


def test_every_source_gives_the_same_gaussians(tiny_run: Path, lone_checkpoint: Path) -> None:
    expected = read_splat(splat_file(tiny_run))
    for path in (tiny_run, tiny_run / "checkpoints" / "iteration_000024.pt", lone_checkpoint, splat_file(tiny_run)):
        opened = open_splat(path)
        assert opened.path == path
        assert_same_bits(opened.splat(), expected)
        assert_same_bits(opened.model().to_splat_data(), expected)


def test_a_run_and_its_checkpoints_know_config_scene_and_iteration(tiny_run: Path, tiny_scene: Path) -> None:
    for path, iteration in ((tiny_run, 24), (tiny_run / "checkpoints" / "iteration_000016.pt", 16)):
        opened = open_splat(path)
        assert opened.iteration == iteration
        assert opened.config is not None and opened.config.max_gaussians == 2000
        assert opened.scene_path == tiny_scene
        scene = opened.load_scene()
        assert (len(scene.train_views), len(scene.test_views)) == (7, 1)


def test_a_lone_checkpoint_and_a_splat_file_need_the_scene_named(
    tiny_run: Path, lone_checkpoint: Path, tiny_scene: Path
) -> None:
    for path, iteration in ((lone_checkpoint, 24), (splat_file(tiny_run), None)):
        opened = open_splat(path)
        assert (opened.iteration, opened.config, opened.scene_path) == (iteration, None, None)
        with pytest.raises(UserError, match=r"--scene DIR\.$"):
            opened.load_scene()
        assert len(opened.load_scene(tiny_scene).test_views) == 1


def test_another_scene_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    write_sample_scene(tmp_path / "other", views=4, width=32, height=24, points=50)
    with pytest.raises(UserError, match="belongs to another scene"):
        open_run(tiny_run).load_scene(tmp_path / "other")
    with pytest.raises(UserError, match="does not exist"):
        open_run(tiny_run).load_scene(tmp_path / "none")


def test_the_background_is_that_of_the_training(own_run: Path) -> None:
    newest = own_run / "checkpoints" / "iteration_000024.pt"
    rewrite(newest, lambda content: content["state"]["background"].update(eval_color=torch.tensor([0.25, 0.5, 1.0])))
    assert open_splat(own_run).background().tolist() == [0.25, 0.5, 1.0]
    assert open_splat(splat_file(own_run)).background().tolist() == [0.0, 0.0, 0.0]


def test_the_rasterizer_is_that_of_the_training(tiny_run: Path) -> None:
    notes: list[str] = []
    selection = open_splat(tiny_run).select_rasterizer(None, notes.append)
    assert selection.reason == "cpu: asked for by --device cpu"
    assert notes[-1] == f"Device {selection.reason}."


def test_one_call_evaluates_what_was_opened(tiny_run: Path, tiny_scene: Path, tmp_path: Path) -> None:
    means = []
    for path in (tiny_run, splat_file(tiny_run)):
        opened = open_splat(path)
        views, selection = opened.load_scene(tiny_scene).test_views, opened.select_rasterizer("cpu")
        evaluation = evaluate_splat(opened, views, selection, renders=tmp_path / path.name)
        assert list(evaluation.per_view) == [view.name for view in views]
        assert all(image.is_file() for image in evaluation.images)
        assert (evaluation.gaussians, evaluation.rasterizer) == (len(opened.splat()), "cpu")
        means.append(evaluation.mean)
    assert means[0].psnr == pytest.approx(means[1].psnr, abs=1e-3)


def test_damaged_and_missing_sources_are_named(own_run: Path, tmp_path: Path) -> None:
    newest = own_run / "checkpoints" / "iteration_000024.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    notes: list[str] = []
    assert open_splat(own_run, notes.append).iteration == 16
    assert len(notes) == 1 and str(newest) in notes[0]
    for path in (newest, tmp_path / "none.pt", tmp_path / "none.ply", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            open_splat(path)


def test_info_of_a_splat_file_loads_no_torch(tiny_run: Path) -> None:
    program = (
        "import sys\nfrom gs_train.cli import main\ntry:\n    main(['info', sys.argv[1]])\n"
        "except SystemExit as done:\n    assert done.code == 0\nassert 'torch' not in sys.modules\n"
    )
    call = [sys.executable, "-c", program, str(splat_file(tiny_run))]
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
