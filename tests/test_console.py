"""What the terminal gets: names of files are escaped, and a terminal or a reader that goes away costs no result."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import ROOT, command, environment, gs_train, gs_train_here

from gs_train.console import print_facts, printable

POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX signals, pipes and terminals")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 東京 x\u200d.png", "Größe 東京 x\u200d.png"),
        ("a\x1b[2Jb\x07", "a\\x1b[2Jb\\x07"),
        ("a\rb\nc\td", "a\\rb\\nc\\td"),
        ("\x9b31m", "\\x9b31m"),
        ("gpj.\u202egnp", "gpj.\\u202egnp"),
        ("\u2028\u2066", "\\u2028\\u2066"),
        (os.fsdecode(b"\xff"), "\\udcff"),
    ],
)
def test_characters_that_a_terminal_obeys_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
@pytest.mark.parametrize("action", ["info", "train", "eval", "export", "prepare"])
def test_a_hostile_name_reaches_the_terminal_escaped(action: str, tmp_path: Path) -> None:
    name = tmp_path / "a\x1b]0;title\x07\x1b[31m\u202eb\rc"
    targets = {"export": [tmp_path / "out.ply"], "prepare": [tmp_path / "scene"]}
    done = gs_train_here(action, name, *targets.get(action, []))
    assert done.returncode == 2
    assert "a\\x1b]0;title\\x07\\x1b[31m\\u202eb" in done.stderr
    assert not set("\x1b\x07\r\u202e") & set(done.stderr)


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
def test_a_hostile_name_in_results_is_escaped(tiny_run: Path, tmp_path: Path) -> None:
    done = gs_train_here("export", tiny_run, tmp_path / "a\x1b[31m\nb.ply")
    assert done.returncode == 0, done.stderr
    assert "a\\x1b[31m\\nb.ply" in done.stdout
    assert done.stdout.count("\n") == 2  # the file, and its background


def test_facts_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("versions", "1\x1b[0m")])
    assert capsys.readouterr().out == "versions  1\\x1b[0m\n"


def test_no_command_prints_past_the_escape() -> None:
    """``print`` writes raw text; ``show``, ``notify``, ``print_error`` and ``print_facts`` escape it."""
    for path in [*(ROOT / "gs_train" / "commands").glob("*.py"), ROOT / "gs_train" / "cli.py"]:
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert not [call.lineno for call in calls if ast.unparse(call.func) == "print"], path


_UNDER_A_TERMINAL = """
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
termios.tcsetwinsize(0, (24, 80))
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@POSIX
def test_a_closed_terminal_stops_the_training_and_saves(tiny_scene: Path, tiny_run: Path, tmp_path: Path) -> None:
    """The terminal's other end is closed, as when a window or a connection is: SIGHUP, and every write fails."""
    assert tiny_run.is_dir()  # so the kernels are compiled
    run, (master, terminal) = tmp_path / "run", os.openpty()
    train = command("train", tiny_scene, "--out", run, "--iterations", 1_000_000, "--log-every", 1, "--device", "cpu")
    process = subprocess.Popen(
        [sys.executable, "-c", _UNDER_A_TERMINAL, *train],
        env=environment(),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        os.read(master, 10_000)
    os.close(master)
    assert process.wait(timeout=60) in (129, 141)
    (checkpoint,) = (run / "checkpoints").iterdir()
    lines = metrics.read_text().splitlines()
    assert checkpoint.name == f"iteration_{json.loads(lines[-1])['iteration']:06d}.pt"


@POSIX
def test_a_lost_reader_of_the_progress_stops_the_training_and_saves(
    tiny_scene: Path, tiny_run: Path, tmp_path: Path
) -> None:
    assert tiny_run.is_dir()
    reading, writing = os.pipe()
    os.close(reading)
    done = gs_train(
        *("train", tiny_scene, "--out", tmp_path / "run", "--iterations", 1_000_000, "--device", "cpu"),
        capture_output=False,
        stdout=subprocess.PIPE,
        stderr=writing,
    )
    os.close(writing)
    assert done.returncode == 141
    assert "Go on with: gs-train train --resume" in done.stdout
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


@POSIX
def test_a_signal_ends_at_once_while_there_is_nothing_to_save() -> None:
    """A handler in Python would wait for the function in C, here ``ctypes``, as a compiler is."""
    code = (
        "import ctypes, sys\nfrom gs_train.console import end_at_once, stop_signals\n"
        "with (stop_signals if sys.argv[1] == 'train' else end_at_once)():\n"
        "    print('ready', flush=True)\n    ctypes.CDLL(None).sleep(60)\n"
    )
    for kind, number in (("train", signal.SIGINT), ("train", signal.SIGTERM), ("eval", signal.SIGINT)):
        process = subprocess.Popen([sys.executable, "-c", code, kind], env=environment(), stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        began_s = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=50) == -number
        assert time.monotonic() - began_s < 2.0
        process.stdout.close()


@POSIX
def test_nohup_is_respected() -> None:
    code = (
        "import os, signal\nfrom gs_train.console import stop_signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with stop_signals() as stop_signal:\n"
        "    stop_signal()\n    os.kill(os.getpid(), signal.SIGHUP)\n    assert stop_signal() is None\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), timeout=50, check=False)
    assert done.returncode == 0


def test_the_process_ends_without_pythons_clean_up(tmp_path: Path) -> None:
    """Clean-up waits for thread pools of native libraries, here a thread that never ends."""
    code = (
        "import sys, threading, time\nfrom gs_train import cli\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "sys.argv = ['gs-train', *sys.argv[1:]]\ncli.main()\n"
    )
    for arguments, exit_code in ((["--version"], 0), (["info", str(tmp_path / "none")], 2), (["info", "--help"], 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment(), capture_output=True, timeout=30, check=False
        )
        assert done.returncode == exit_code
        assert done.stdout or done.stderr
