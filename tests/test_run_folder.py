"""The folder of a run: one writer at a time, a killed start costs nothing, leftovers go, and other viewers open it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import environment, gs_train_here

from gs_train.atomic_write import atomic_write_text
from gs_train.config.settings import TrainConfig
from gs_train.errors import UserError
from gs_train.formats.ply import read_ply
from gs_train.run import folder
from gs_train.run.folder import RunFolder
from gs_train.run.lock import LOCK_NAME, check_unlocked, hold_lock
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.training.loop import train

SMALL = TrainConfig(iterations=3, save_every=1, log_every=1, sh_degree=1, device="cpu").resolved()
DEAD_PROCESS = 2**22 + 7
"""Above the largest process number of Linux."""


# ---- one writer

HOLD = """
import sys, time
from pathlib import Path
from gs_train.run.lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_training_ends_at_once_and_others_may_look_on(own_run: Path, tiny_scene: Path, tmp_path: Path) -> None:
    process = holder(own_run)
    try:
        before = files(own_run)
        for flags in (
            ("--resume", own_run, "--iterations", 30),
            (tiny_scene, "--out", own_run),
            (tiny_scene, "--out", own_run, "--overwrite"),
        ):
            done = gs_train_here("train", *flags)
            assert done.returncode == 2
            assert done.stderr == (
                f"gs-train: another training (process {process.pid}) is writing to {own_run}: wait until it has ended, "
                "or stop it.\n"
            )
        assert files(own_run) == before
        for look in (("info", own_run), ("export", own_run, tmp_path / "out.ply"), ("eval", own_run)):
            assert gs_train_here(*look).returncode == 0
    finally:
        process.kill()
        process.communicate()
    # The remedy works, and the lock that the killed process left goes.
    assert (own_run / LOCK_NAME).exists()
    done = gs_train_here("train", "--resume", own_run, "--iterations", 25)
    assert done.returncode == 0, done.stderr
    assert not (own_run / LOCK_NAME).exists()


def test_the_lock_is_held_while_a_training_writes(tiny_scene: Path, tmp_path: Path) -> None:
    refusals = []

    def look(_: object) -> None:
        with pytest.raises(UserError, match=f"process {os.getpid()}") as caught:
            check_unlocked(tmp_path / "run")
        refusals.append(caught)

    train(load_scene(tiny_scene, SceneConfig()), SMALL, tmp_path / "run", after_step=[look])
    assert len(refusals) == 3
    check_unlocked(tmp_path / "run")
    assert not (tmp_path / "run" / LOCK_NAME).exists()


def test_a_checkpoint_that_another_training_wrote_in_between_is_not_lost(
    tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another training ends between the reading of the checkpoint and the lock."""
    out = tmp_path / "run"
    scene = load_scene(tiny_scene, SceneConfig())
    train(scene, SMALL, out)
    newer = out / "checkpoints" / "iteration_000004.pt"
    monkeypatch.setattr("gs_train.training.loop.check_images", lambda _: newer.write_bytes(b"newer"))
    with pytest.raises(UserError, match="another training has just written"):
        train(scene, replace(SMALL, iterations=9), out, resume=True)
    assert newer.read_bytes() == b"newer"


def test_an_instant_of_the_lock_elsewhere_is_waited_for(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.communicate()
    with hold_lock(tmp_path), pytest.raises(UserError), hold_lock(tmp_path):
        pass
    with hold_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


# ---- a start that was killed


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_rests_of_a_killed_start_do_not_take_the_folder(tiny_scene: Path, tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / LOCK_NAME).write_text("12\n")
    (out / f".config.toml.{DEAD_PROCESS}.tmp").write_text("sh_deg")
    train(load_scene(tiny_scene, SceneConfig()), SMALL, out, overwrite=overwrite)
    assert {path.name for path in out.iterdir()} == {
        *("config.toml", "cfg_args", "run.json", "metrics.jsonl", "cameras.json", "checkpoints", "point_cloud")
    }


def test_config_toml_is_the_first_file_of_a_run(
    tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill, a folder with other files alone would take neither --resume nor --overwrite."""
    (tmp_path / "list.txt").write_text("view_000\n")
    config = TrainConfig(scene=SceneConfig(test_list=str(tmp_path / "list.txt")))
    scene = load_scene(tiny_scene, config.scene)
    written: list[str] = []
    monkeypatch.setattr(folder, "atomic_write_text", lambda path, text: written.append(path.name))
    RunFolder(tmp_path / "run").write_config(config, scene)
    assert written == ["config.toml", "test_list.txt", "cfg_args"]


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "point_cloud/mine.ply"])
def test_files_of_the_user_take_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty and not a run"):
            RunFolder(tmp_path).check_free(overwrite=overwrite)


def test_a_run_that_is_replaced_stays_a_run_at_every_moment(own_run: Path) -> None:
    (own_run / "notes.txt").write_text("mine")
    RunFolder(own_run).clear(overwrite=True)
    assert {path.name for path in own_run.iterdir()} == {"config.toml", "notes.txt"}
    RunFolder(own_run).check_free(overwrite=True)


# ---- temporary files


def test_temporary_files_of_dead_processes_go_from_all_folders_of_a_run(own_run: Path) -> None:
    living = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        folders = (".", "checkpoints", "point_cloud/iteration_24", "renders/iteration_24")
        for folder in folders:
            (own_run / folder).mkdir(parents=True, exist_ok=True)
            for process in (DEAD_PROCESS, living.pid, 10**30):
                (own_run / folder / f".a.png.{process}.tmp").write_text("half")
            (own_run / folder / ".mine.tmp").write_text("mine")
        before = set(files(own_run))
        assert gs_train_here("train", "--resume", own_run).returncode == 0
        for folder in folders:
            kept = {name for name in os.listdir(own_run / folder) if name.endswith(".tmp")}
            assert kept == {f".a.png.{living.pid}.tmp", ".mine.tmp"}
        assert len(before - set(files(own_run))) == 2 * len(folders)
    finally:
        living.kill()
        living.wait()


def test_a_temporary_file_of_this_process_is_a_leftover_only_if_it_is_older(tmp_path: Path) -> None:
    """In a container, the process before had the same number."""
    old, new = tmp_path / f".old.{os.getpid()}.tmp", tmp_path / f".new.{os.getpid()}.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (1e9, 1e9))
    RunFolder(tmp_path).clear_leftovers()
    assert list(tmp_path.iterdir()) == [new]
    atomic_write_text(tmp_path / "new", "done")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


# ---- other programs


def test_sibr_opens_the_folder(tiny_run: Path, tiny_scene: Path) -> None:
    """SIBR finds arguments in cfg_args by their names, and the number of Gaussians in the third line of the splat."""
    line = (tiny_run / "cfg_args").read_text()
    splat = tiny_run / "point_cloud" / "iteration_24" / "point_cloud.ply"
    assert "\n" not in line
    assert f"source_path='{tiny_scene}'" in line
    assert f"sh_degree={read_ply(splat).sh_degree}," in line
    assert "white_background=False" in line
    third = splat.read_bytes().split(b"\n")[2].decode()
    assert third == f"element vertex {len(read_ply(splat))}"


def test_cfg_args_names_a_white_background(tiny_scene: Path, tmp_path: Path) -> None:
    config = replace(SMALL, background="white", sh_degree=2)
    train(load_scene(tiny_scene, SceneConfig()), config, tmp_path / "run")
    line = (tmp_path / "run" / "cfg_args").read_text()
    assert re.fullmatch(r"Namespace\(sh_degree=2, .*white_background=True, .*\)", line)


# ---- fewer checkpoints


def test_a_smaller_keep_says_which_checkpoints_go(own_run: Path) -> None:
    done = gs_train_here("train", "--resume", own_run, "--iterations", 25, "--keep", 1)
    assert done.returncode == 0, done.stderr
    assert f"{own_run / 'checkpoints'} holds 2 checkpoints: with --keep 1 the next save removes all but" in done.stderr
    assert len(os.listdir(own_run / "checkpoints")) == 1
    assert "the next save removes" not in gs_train_here("train", "--resume", own_run, "--iterations", 26).stderr


def test_a_run_without_checkpoints_is_evaluated_and_exported_from_its_splat(own_run: Path, tmp_path: Path) -> None:
    whole = gs_train_here("eval", own_run)
    for path in (own_run / "checkpoints").iterdir():
        path.unlink()
    splat = own_run / "point_cloud" / "iteration_24" / "point_cloud.ply"
    done = gs_train_here("eval", own_run)
    assert done.returncode == 0, done.stderr
    assert f"{own_run} has no checkpoint: using {splat}." in done.stderr
    assert done.stdout == whole.stdout
    assert gs_train_here("export", own_run, tmp_path / "out.ply").returncode == 0
    assert (tmp_path / "out.ply").read_bytes() == splat.read_bytes()
    assert str(splat) in gs_train_here("info", own_run).stdout
    done = gs_train_here("train", "--resume", own_run)
    assert done.returncode == 2
    assert "has no checkpoint: start again" in done.stderr


def test_a_learned_background_is_gone_with_the_checkpoints(own_run: Path, tmp_path: Path) -> None:
    config = own_run / "config.toml"
    config.write_text(re.sub(r'^background = ".*"$', 'background = "learned"', config.read_text(), flags=re.M))
    for path in (own_run / "checkpoints").iterdir():
        path.unlink()
    done = gs_train_here("eval", own_run)
    assert done.returncode == 2
    assert "has a learned background, which only its checkpoints hold" in done.stderr
    assert gs_train_here("export", own_run, tmp_path / "out.ply").returncode == 0
