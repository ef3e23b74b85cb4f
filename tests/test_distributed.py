"""Several processes that train one scene: the same bytes as one process, and one sentence when one of them fails.

The trials of rank_trials.py run once, in a process of their own, because a fork of this one could hang in OpenMP.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ROOT, environment, exit_code

from gs_train.distributed.gpu import choose_gpu
from gs_train.distributed.place import Place, find_place
from gs_train.errors import UserError
from gs_train.machine import share_threads
from gs_train.run.folder import RunFolder

_TRIALS = (
    *("whole", "killed", "stopped", "full disk", "no memory", "drift", "small batch", "other files", "other version"),
    *("no scene", "idle", "exchanges", "poses", "masks"),
)
_MOST_S = 60.0
"""Within this time all processes end after one of them."""

Trials = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def trials(tiny_run: Path) -> Trials:
    """Outcomes by name; ``tiny_run`` has compiled the kernels."""
    words = [sys.executable, str(Path(__file__).with_name("rank_trials.py")), *_TRIALS]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["poses", "masks"])
def test_several_processes_write_the_same_bytes_as_one(trials: Trials, name: str) -> None:
    assert set(trials[name]["codes"]) == {0}, trials[name]["text"]
    assert trials[name]["same"]


def test_sums_and_statistics_have_the_order_of_the_views(trials: Trials) -> None:
    assert trials["exchanges"]["codes"] == [0, 0, 0], trials["exchanges"]["text"]


@pytest.mark.parametrize(
    ("name", "codes", "sentence"),
    [
        ("killed", [2, -9], "process 1 has ended (2 were training; its last lines are above"),
        ("full disk", [2, 2], "The disk is full at "),
        ("no memory", [2, 2], "out of memory"),
        ("drift", [2, 2], "processes 0 and 1 hold different Gaussians after iteration 5 (xyz)"),
    ],
)
def test_a_fault_of_one_process_ends_all_with_one_sentence(
    trials: Trials, name: str, codes: list[int], sentence: str
) -> None:
    trial = trials[name]
    assert trial["codes"] == codes, trial["text"]
    (error,) = trial["errors"]
    assert sentence in error
    assert "Traceback" not in trial["text"]
    assert trial["took_s"] < _MOST_S
    assert trial["resumed"] == [0] and trial["same"]


def test_a_signal_to_one_process_stops_all(trials: Trials) -> None:
    trial = trials["stopped"]
    assert trial["codes"] == [143, 130] and trial["errors"] == []
    assert trial["resumed"] == [0] and trial["same"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("small batch", "--batch-size is 2 but 4 processes train: give --batch-size 4 or a multiple of it"),
        ("other files", "process 1 has other photos than process 0"),
        ("other version", "process 1 has other versions than process 0 (gs-train 0.0.9, "),
        ("no scene", "none does not exist"),
    ],
)
def test_bad_input_gets_one_sentence(trials: Trials, name: str, sentence: str) -> None:
    assert set(trials[name]["codes"]) == {2}
    (error,) = trials[name]["errors"]
    assert error.startswith("gs-train: ") and sentence in error
    assert "Traceback" not in trials[name]["text"]


def test_idle_processes_are_told_once(trials: Trials) -> None:
    assert trials["idle"]["codes"] == [0, 0]
    assert trials["idle"]["text"].count("1 of 2 processes idle until iteration 20") == 1
    assert trials["idle"]["text"].count("Device cpu") == 1


def test_torchrun(tiny_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gs_train"]
    flags = ["--iterations", "6", "--batch-size", "2", "--batch-from", "0", "--device", "cpu", "--save-every", "3"]
    words = ["train", str(tiny_scene), "--out", str(tmp_path / "run"), *flags, "--or-resume"]
    own = {name: value for name, value in environment().items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([*launch, *words], capture_output=True, text=True, env=own, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Trained 6 iterations") == done.stdout.count("Splat: ") == 1
    assert RunFolder(tmp_path / "run").point_cloud(6).is_file()
    # One process goes on with the command line of the two.
    assert exit_code(*words) == 0
    assert "Already at iteration 6" in capsys.readouterr().out


# ---- one process


def test_one_process_imports_nothing_of_several() -> None:
    program = "\n".join((
        "import sys",
        "from gs_train.distributed.start import start_processes",
        "with start_processes('auto') as processes:",
        "    assert processes.count == 1 and not processes.any(False)",
        "assert not {'torch', 'gs_train.distributed.group', 'gs_train.distributed.join'} & set(sys.modules)",
    ))  # fmt: skip
    own = {name: value for name, value in environment().items() if name != "WORLD_SIZE"}
    subprocess.run([sys.executable, "-c", program], env=own, check=True)


def test_only_two_modules_import_torch_distributed() -> None:
    users = set()
    for path in (ROOT / "gs_train").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            if any(name.startswith("torch.distributed") for name in names):
                users.add(path.name)
    assert users == {"group.py", "join.py"}


# ---- the place of a process

_TORCHRUN = {
    **{"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
}
PLACE = Place(rank=3, count=4, number_here=1, count_here=2)


def test_the_place_comes_from_the_variables_of_torchrun() -> None:
    assert find_place(_TORCHRUN) == PLACE
    assert find_place({}) is None
    assert find_place({**_TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}) is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"RANK": ""}, "RANK is missing"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x', which is no number"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is missing"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', which is no number"),
        ({"RANK": "4"}, "WORLD_SIZE is 4 but RANK is 4"),
    ],
)
def test_incomplete_variables(change: dict[str, str], fault: str) -> None:
    with pytest.raises(UserError, match=rf"{fault}.*start the processes with torchrun, or unset WORLD_SIZE"):
        find_place({**_TORCHRUN, **change})


def test_incomplete_variables_on_the_command_line(
    tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert exit_code("train", tiny_scene, "--out", tmp_path / "run") == 2
    assert "gs-train: WORLD_SIZE is 2 but RANK is missing: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("given", "expected"), [(None, "3"), ("1", "3"), ("2", "2")])
def test_processes_share_the_threads(monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str) -> None:
    monkeypatch.setattr("gs_train.machine._usable_cpus", lambda: 13)
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    share_threads(4)
    assert os.environ["OMP_NUM_THREADS"] == expected


@pytest.mark.parametrize(("seen", "chosen"), [(1, 0), (2, 1), (8, 1)])
def test_each_process_takes_a_gpu(monkeypatch: pytest.MonkeyPatch, seen: int, chosen: int) -> None:
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    choose_gpu("auto", PLACE)
    assert current == [chosen]
    choose_gpu("cpu", PLACE)
    assert current == [chosen]


def test_a_gpu_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"--device cuda:1 gives one GPU to 4 processes: give --device cuda"):
        choose_gpu("cuda:1", PLACE)
    crowded = Place(rank=3, count=4, number_here=3, count_here=4)
    with pytest.raises(UserError, match=r"4 processes run on this machine but torch sees 2 GPUs: start 2 processes"):
        choose_gpu("cuda", crowded)


# ---- --or-resume


def test_or_resume_starts_goes_on_and_ends(own_run: Path, tiny_scene: Path) -> None:
    flags = ("--iterations", 24, "--save-every", 8, "--log-every", 4, "--device", "cpu", "--max-gaussians", 2000)
    again = ("train", tiny_scene, "--out", own_run, "--or-resume")
    before = RunFolder(own_run).point_cloud(24).read_bytes()
    (own_run / "checkpoints" / "iteration_000024.pt").unlink()
    RunFolder(own_run).point_cloud(24).unlink()
    assert exit_code(*again, *flags) == 0
    assert RunFolder(own_run).point_cloud(24).read_bytes() == before
    # Without a checkpoint there is nothing to go on from.
    for checkpoint in (own_run / "checkpoints").iterdir():
        checkpoint.unlink()
    assert exit_code(*again, *flags) == 0
    assert RunFolder(own_run).point_cloud(24).read_bytes() == before


def test_or_resume_refuses_other_settings(own_run: Path, tiny_scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--iterations", 24, "--device", "cpu", "--max-gaussians", 1999, "--sh-degree", 2)
    assert exit_code("train", tiny_scene, "--out", own_run, "--or-resume", *flags) == 2
    error = capsys.readouterr().err
    assert f"--out {own_run} holds a run with another --max-gaussians, --sh-degree: repeat" in error
    assert exit_code("train", tiny_scene, "--out", own_run, "--or-resume", "--overwrite") == 2
    assert "--or-resume goes on with a run that --overwrite replaces: leave one of them out." in capsys.readouterr().err


def test_or_resume_goes_on_past_the_old_end_and_back(own_run: Path, tiny_scene: Path) -> None:
    flags = ("--device", "cpu", "--max-gaussians", 2000, "--log-every", 4)
    again = ("train", tiny_scene, "--out", own_run, "--or-resume", *flags, "--iterations")
    assert exit_code(*again, 30) == 0
    assert RunFolder(own_run).point_cloud(30).is_file()
    assert exit_code(*again, 30) == 0
