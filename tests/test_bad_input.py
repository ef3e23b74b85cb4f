"""Bad input: the user gets one sentence that names the file or flag and the remedy, exit code 2, and no traceback.

One test per kind of bad input; the tests of the readers cover the variants. The notices (no points, NaN points, a
damaged newest checkpoint) are also here: they are printed, and training continues.
"""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from colmap_files import Model
from command_line import environment, gs_train
from PIL import Image

from gs_train import cli
from gs_train.run.checkpoint import list_checkpoints, read_checkpoint
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.readers.colmap_records import CAMERA_MODELS
from gs_train.training import loop

SHORT = ("--iterations", 2, "--device", "cpu", "--max-gaussians", 300)


def refused(*arguments: object, **options: Any) -> str:
    """Run a command that must be refused as a mistake of the user; returns the sentence."""
    done = gs_train(*arguments, **options)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("gs-train: ")
    return last.removeprefix("gs-train: ")


def refused_before_training(*arguments: object, **options: Any) -> str:
    """As ``refused``, and the sentence is the only output."""
    done = gs_train(*arguments, **options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gs-train: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("gs-train: ").rstrip("\n")


def refused_here(*arguments: object) -> str:
    """As ``refused``, in this process, which is faster. A traceback would show as an exception."""
    message = io.StringIO()
    with redirect_stderr(message), pytest.raises(SystemExit) as done:
        cli.main([str(argument) for argument in arguments])
    assert done.value.code == 2, message.getvalue()
    last = message.getvalue().splitlines()[-1]
    assert last.startswith("gs-train: ")
    return last.removeprefix("gs-train: ")


def scene_of(model: Model, folder: Path, *, text: bool = True) -> Path:
    """A scene folder with photos for a model."""
    (model.write_text if text else model.write_binary)(folder / "sparse" / "0")
    model.write_photos(folder / "images")
    return folder


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A valid scene with a text model and four photos, three of them for training."""
    return scene_of(Model(), tmp_path / "scene")


# ---- faults of the scene, found before torch is imported


def test_no_such_folder(tmp_path: Path) -> None:
    sentence = refused_before_training("train", tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} does not exist" in sentence
    assert "gs-train sample" in sentence


def test_not_a_scene(tmp_path: Path) -> None:
    sentence = refused("train", tmp_path)
    assert f"{tmp_path} is not a scene" in sentence
    for looked_in in ("sparse/0", "sparse", "colmap/sparse/0", "cameras", "images"):
        assert looked_in in sentence


def test_missing_images_are_named_up_to_five(tmp_path: Path) -> None:
    model = Model()
    model.images = [(i, wxyz, t, 1, f"photo_{i}.png") for i in range(9) for _, wxyz, t, _, _ in model.images[:1]]
    folder = scene_of(model, tmp_path / "scene")
    for i in range(6):
        (folder / "images" / f"photo_{i}.png").unlink()
    sentence = refused("train", folder)
    assert "6 of 9 images" in sentence
    assert all(f"photo_{i}.png" in sentence for i in range(5))
    assert "photo_5.png" not in sentence
    assert "--skip-missing" in sentence
    done = gs_train("train", folder, "--skip-missing", "--out", tmp_path / "run", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "6 of 9 images" in done.stderr
    assert "continues without them" in done.stderr


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_truncated_binary_file_tells_the_byte(tmp_path: Path, name: str) -> None:
    folder = scene_of(Model(), tmp_path / "scene", text=False)
    file = folder / "sparse" / "0" / name
    file.write_bytes(file.read_bytes()[:-5])
    sentence = refused("train", folder)
    assert str(file) in sentence
    assert "byte" in sentence


@pytest.mark.parametrize(("name", "line"), [("cameras.txt", 4), ("images.txt", 3), ("points3D.txt", 3)])
def test_corrupt_text_file_tells_the_line(scene: Path, name: str, line: int) -> None:
    file = scene / "sparse" / "0" / name
    lines = file.read_text().splitlines()
    lines[line - 1] = "1 garbage"
    file.write_text("\n".join(lines) + "\n")
    assert f"{file} (line {line}) does not hold" in refused("train", scene)


def test_image_of_another_size_than_its_camera(scene: Path) -> None:
    Image.new("RGB", (23, 17)).save(scene / "images" / "b.png")
    sentence = refused("train", scene)
    assert str(scene / "images" / "b.png") in sentence
    assert "23x17" in sentence
    assert "40x30" in sentence


def test_zero_registered_images(tmp_path: Path) -> None:
    folder = scene_of(Model(images=[]), tmp_path / "scene")
    sentence = refused("train", folder)
    assert f"{folder / 'sparse' / '0' / 'images.txt'} registers no images" in sentence


def test_fewer_than_two_training_views(tmp_path: Path) -> None:
    folder = scene_of(Model(images=Model().images[:2]), tmp_path / "scene")
    sentence = refused("train", folder)
    assert "1 of its 2 views" in sentence
    assert "--test-every 0" in sentence


def test_distortion_that_no_lens_has(tmp_path: Path) -> None:
    model = Model()
    opencv = next(number for number, (name, _) in CAMERA_MODELS.items() if name == "OPENCV")
    model.cameras[0] = (1, opencv, 40, 30, (42.0, 43.0, 21.0, 14.0, -9.0, 0.0, 0.0, 0.0))
    folder = scene_of(model, tmp_path / "scene")
    sentence = refused("train", folder)
    assert str(folder / "sparse/0/cameras.txt") in sentence
    assert "camera 1 (OPENCV) cannot be inverted" in sentence
    assert gs_train("info", folder).stdout.count(sentence) == 1  # not once per photo


# ---- flags, presets, folders


def test_unknown_preset(scene: Path) -> None:
    sentence = refused_before_training("train", scene, "--preset", "papr")
    assert (
        sentence
        == "--preset papr: there is no such preset (did you mean paper?); presets are classic, default, fast, paper, "
        "quality, tiny."
    )


def test_unknown_flag(scene: Path) -> None:
    assert "no flag --itertions (did you mean --iterations?)" in refused_before_training(
        "train", scene, "--itertions", 5
    )


def test_unknown_toml_key(scene: Path, tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text("[density]\ngrad_treshold = 0.1\n")
    sentence = refused_before_training("train", scene, "--preset", preset)
    assert f"{preset}: unknown key density.grad_treshold (did you mean grad_threshold?)" in sentence


def test_value_that_is_no_choice_is_named_in_any_encoding(scene: Path) -> None:
    for encoding in ("utf-8", "ascii"):
        sentence = refused("train", scene, "--alpha", "half", env={**environment(), "PYTHONIOENCODING": encoding})
        assert all(word in sentence for word in ("--alpha", "'half'", "'composite', 'mask', 'ignore'"))


def test_value_of_the_wrong_kind(scene: Path) -> None:
    assert "--iterations: soon is not a whole number" in refused_before_training("train", scene, "--iterations", "soon")


def test_value_that_makes_no_sense(scene: Path) -> None:
    assert "--density.min-opacity is 2.0" in refused("train", scene, "--density.min-opacity", 2.0)


def test_no_scene_named() -> None:
    assert "needs a SCENE" in refused("train")


def test_out_that_holds_a_run(scene: Path, own_run: Path) -> None:
    before = sorted(own_run.rglob("*"))
    sentence = refused_before_training("train", scene, "--out", own_run)
    assert f"--out {own_run} already holds a run" in sentence
    assert f"--resume {own_run}" in sentence
    assert "--overwrite" in sentence
    assert sorted(own_run.rglob("*")) == before


def test_out_that_holds_something_else(scene: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for extra in ((), ("--overwrite",)):
        sentence = refused("train", scene, "--out", tmp_path / "other", *extra)
        assert "is not empty and not a run" in sentence
    assert (tmp_path / "other" / "file").exists()


@pytest.mark.parametrize("place", ["file/sub", "file/sub/deep", "x" * 300, "readonly/new", "readonly"])
def test_out_that_cannot_be_written(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "readonly").mkdir()
    before = sorted(tmp_path.rglob("*"))
    if place.startswith("readonly"):
        # Simulated, because root may write anywhere.
        real = os.open

        def open_(path: Any, *rest: Any, **named: Any) -> int:
            if "/readonly" in str(path):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
            return real(path, *rest, **named)

        monkeypatch.setattr(os, "open", open_)
    # The scene does not exist: the folder is checked first.
    sentence = refused_here("train", scene / "nowhere", "--out", tmp_path / place)
    assert sentence.startswith(f"--out {tmp_path / place} cannot be written (")
    assert sentence.endswith("): choose another folder.")
    assert sorted(tmp_path.rglob("*")) == before


def test_looking_at_out_leaves_nothing_behind(scene: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert "nowhere does not exist" in refused_here("train", scene / "nowhere", "--out", tmp_path / "deep" / "run")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_that_is_no_text(scene: Path, tmp_path: Path) -> None:
    """Byte 228 alone is not UTF-8: a folder may have this name, but config.toml cannot hold it."""
    odd = tmp_path / os.fsdecode(b"sc\xe4ne")
    try:
        scene.rename(odd)
    except OSError as error:
        pytest.skip(f"no such names on this disk ({error.strerror})")
    message = gs_train("info", odd)
    assert message.returncode == 0 and "sc\\udce4ne" in message.stdout
    out = tmp_path / os.fsdecode(b"r\xe4n")
    sentence = refused("train", odd, "--out", out, *SHORT)
    assert "sc\\udce4ne has a name that is not UTF-8" in sentence and sentence.endswith(": rename it.")
    assert not out.exists()
    odd.rename(scene)
    done = gs_train("train", scene, "--out", out, *SHORT)
    assert done.returncode == 0 and "r\\udce4n" in done.stdout, done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_full_disk_before_the_first_checkpoint(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(loop, "train", full)
    out = tmp_path / "run"
    sentence = refused_here("train", scene, "--out", out, *SHORT)
    what = f"The disk is full at {out} (" if number == errno.ENOSPC else f"A file in {out} cannot grow ("
    assert sentence.startswith(what + os.strerror(number))
    assert "the same command again with --overwrite" in sentence
    assert "--resume" not in sentence


def test_a_scene_that_has_moved(own_run: Path, tmp_path: Path) -> None:
    config = own_run / "config.toml"
    lines = [line for line in config.read_text().splitlines(keepends=True) if not line.startswith("scene_path")]
    config.write_text("".join([f"scene_path = '{tmp_path / 'gone'}'\n", *lines]))
    assert refused_here("eval", own_run) == (
        f"{tmp_path / 'gone'} does not exist: name the scene of {own_run} with --scene DIR."
    )
    sentence = refused_here("train", "--resume", own_run)
    assert sentence.startswith(f"{tmp_path / 'gone'} does not exist")
    assert sentence.endswith(f"gs-train train SCENE --resume {own_run}.")
    config.write_text("".join(lines))
    sentence = refused_here("train", "--resume", own_run)
    assert sentence.startswith(f"{config} does not name the scene")
    assert sentence.endswith(f"gs-train train SCENE --resume {own_run}.")


def test_resume_of_what_is_no_run(tmp_path: Path) -> None:
    assert f"{tmp_path} is not a run" in refused_before_training("train", "--resume", tmp_path)
    assert f"{tmp_path} is not a run" in refused("eval", tmp_path)


def test_a_flag_that_does_not_go_with_resume(own_run: Path) -> None:
    sentence = refused("train", "--resume", own_run, "--seed", 3)
    assert sentence.startswith("--seed does not go with --resume")


@pytest.mark.parametrize(
    ("line", "other", "name"),
    [
        ('kind = "multiview"', 'kind = "classic"', "density.kind"),
        ('exposure = "none"', 'exposure = "affine"', "exposure"),
        ('background = "random"', 'background = "learned"', "background"),
        ("sh_degree = 3", "sh_degree = 2", "sh_degree"),
    ],
)
def test_a_config_that_was_edited_so_that_its_checkpoints_do_not_fit(
    own_run: Path, line: str, other: str, name: str
) -> None:
    config = own_run / "config.toml"
    text = config.read_text()
    assert line in text
    config.write_text(text.replace(line, other))
    sentence = refused_here("train", "--resume", own_run, "--iterations", 30)
    assert sentence.startswith(f"{config} says {name} = ")
    assert "restore the old value" in sentence


def test_export_to_an_ending_that_is_not_written(own_run: Path, tmp_path: Path) -> None:
    assert "ends in .ply" in refused("export", own_run, tmp_path / "splat.stl")


def test_export_from_what_is_no_splat(scene: Path, tmp_path: Path) -> None:
    assert str(scene) in refused("export", scene, tmp_path / "splat.ply")
    assert str(tmp_path / "none.ply") in refused("export", tmp_path / "none.ply", tmp_path / "splat.ply")


def test_info_on_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "file.txt").touch()
    assert str(tmp_path / "file.txt") in refused("info", tmp_path / "file.txt")
    assert str(tmp_path / "none") in refused("info", tmp_path / "none")


def test_sample_into_a_folder_that_is_not_empty(scene: Path) -> None:
    assert f"{scene} exists and is not empty" in refused("sample", scene)


# ---- faults found after torch is imported, before training


@pytest.mark.parametrize("split", ["train_views", "test_views"])
def test_truncated_image(scene: Path, own_run: Path, split: str) -> None:
    photo = getattr(load_scene(scene, SceneConfig()), split)[-1].image_path
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    sentence = refused_here("train", scene, "--out", own_run, "--overwrite", *SHORT)
    assert str(photo) in sentence
    # The old run is intact, because the fault was found before it was replaced.
    assert read_checkpoint(own_run / "checkpoints" / "iteration_000024.pt").iteration == 24


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_cuda(scene: Path, tmp_path: Path) -> None:
    sentence = refused("train", scene, "--out", tmp_path / "run", "--device", "cuda")
    assert "--device cuda" in sentence
    assert "--device cpu" in sentence
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_scene(own_run: Path, scene: Path) -> None:
    sentence = refused("train", scene, "--resume", own_run)
    assert "belongs to another scene" in sentence
    assert str(scene) in sentence


def test_checkpoint_of_a_newer_version(own_run: Path) -> None:
    newest = list_checkpoints(own_run / "checkpoints")[0]
    content = torch.load(newest, weights_only=True)
    torch.save({**content, "format": content["format"] + 1}, newest)
    sentence = refused("train", "--resume", own_run)
    assert f"{newest} was written by a newer gs-train" in sentence


# ---- notices; training continues


def test_no_points_means_random_ones(tmp_path: Path) -> None:
    folder = scene_of(Model(points=[]), tmp_path / "scene")
    done = gs_train("train", folder, "--out", tmp_path / "run", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "The scene has no points: a training makes points from the photos." in done.stderr
    assert "300 Gaussians" in done.stdout


def test_nan_and_infinite_points_are_dropped_and_counted(tmp_path: Path) -> None:
    model = Model()
    bad = [((float("nan"), 0.0, 0.0), (1, 2, 3), 0), ((0.0, float("inf"), 0.0), (1, 2, 3), 0)]
    count = len(model.points)
    model.points += bad
    folder = scene_of(model, tmp_path / "scene", text=False)
    done = gs_train("train", folder, "--out", tmp_path / "run", *SHORT)
    assert done.returncode == 0, done.stderr
    assert f"2 of {count + 2} points are NaN or infinite: dropped." in done.stderr
    assert f"{count} Gaussians" in done.stdout


def test_damaged_newest_checkpoint_gives_way_to_the_one_before(own_run: Path) -> None:
    newest, before = list_checkpoints(own_run / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-100])
    done = gs_train("train", "--resume", own_run)
    assert done.returncode == 0, done.stderr
    assert f"{newest} is damaged" in done.stderr
    assert f"Resuming from {before}" in done.stderr
    assert read_checkpoint(newest).iteration == 24


# ---- a full disk


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from gs_train.cli import main
main()
"""
"""Runs gs-train with a limit on the size of files. A write beyond it fails as on a full disk, with another number."""


def refused_on_a_full_disk(limit: int, *arguments: object) -> str:
    call = [sys.executable, "-c", LIMITED, str(limit), *map(str, arguments)]
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr.splitlines()[-1]
    return done.stderr.splitlines()[-1]


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_full_disk_stops_the_run_and_leaves_earlier_files(own_run: Path) -> None:
    kept = {path: path.read_bytes() for path in own_run.rglob("*") if path.suffix in (".pt", ".ply")}
    sentence = refused_on_a_full_disk(20_000, "train", "--resume", own_run, "--iterations", 32)
    assert f"A file in {own_run} cannot grow" in sentence
    assert f"go on with gs-train train --resume {own_run}" in sentence
    assert {path: path.read_bytes() for path in own_run.rglob("*") if path.suffix in (".pt", ".ply")} == kept
    assert not list(own_run.rglob("*.tmp"))


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_full_disk_during_export_leaves_the_old_file(own_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "folder" / "splat.ply"
    target.parent.mkdir()
    target.write_text("before")
    assert f"{target} cannot be written" in refused_on_a_full_disk(20_000, "export", own_run, target)
    assert target.read_text() == "before"
    assert list(target.parent.iterdir()) == [target]


def test_rates_that_make_training_diverge(scene: Path, tmp_path: Path) -> None:
    message = refused_here("train", scene, "--out", tmp_path / "run", *SHORT, "--optimizer.scaling-lr", 1e5)
    assert message.startswith("training has diverged (")
    assert "values of scales are not finite" in message
    assert message.endswith("): lower the learning rates (--optimizer.* flags) and add --overwrite.")
