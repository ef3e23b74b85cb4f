"""``gs-train prepare`` without COLMAP: refusals, continuing after a stop, and the registered photos.

``fake_pycolmap`` replaces pycolmap, but the worker process, its database and its messages are real. Tests with the real
pycolmap are in ``test_prepare_colmap.py``.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import ROOT, command, environment
from numpy.typing import NDArray
from PIL import Image

from gs_train import cli
from gs_train.prepare.worker import threads_for_memory, turn_onto_y
from gs_train.scene.photos import files
from gs_train.scene.readers.colmap import read_model

PHOTOS = 6
PAIRS = PHOTOS * (PHOTOS - 1) // 2


class Prepare:
    """Runs ``gs-train prepare`` with the fake pycolmap, in this process or in a new one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.photos, self.scene, self.log = folder / "photos", folder / "scene", folder / "calls.txt"
        self.monkeypatch = monkeypatch
        self.photos.mkdir()
        for index in range(PHOTOS):
            Image.fromarray(_noise(index)).save(self.photos / f"IMG_{index}.png")
        tests = ROOT / "tests"
        self.path = os.pathsep.join(map(str, (ROOT, tests, tests / "fake_pycolmap")))
        monkeypatch.setenv("PYTHONPATH", self.path)
        monkeypatch.syspath_prepend(tests / "fake_pycolmap")
        self.behave()

    def behave(self, **settings: Any) -> None:
        """Set the behaviour of the fake from now on."""
        self.monkeypatch.setenv("FAKE_PYCOLMAP", json.dumps({"log": str(self.log), **settings}))

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, stdout, stderr; the photos and the scene if no arguments are given."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as done:
            cli.main(["prepare", *map(str, arguments or (self.photos, self.scene))])
        return int(str(done.value.code)), out.getvalue(), err.getvalue()

    def refused(self, *arguments: object) -> str:
        """The error sentence of a refused call."""
        code, out, err = self(*arguments)
        assert (code, out) == (2, ""), err
        last = err.splitlines()[-1]
        assert last.startswith("gs-train: ")
        return last.removeprefix("gs-train: ")

    def calls(self) -> list[str]:
        """The calls of the fake since the last time, as ``call count``."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.scene / "prepare.json").read_text()))


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    return Prepare(tmp_path, monkeypatch)


def _noise(seed: int, height: int = 30, width: int = 40) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


WHOLE = ["import_images 6", "extract_features 6", f"match_image_pairs {PAIRS}", "incremental_mapping 6"]


# ---- complete runs, and continuing


def test_a_complete_run(prepare: Prepare) -> None:
    code, out, err = prepare()
    assert code == 0, err
    assert prepare.calls() == WHOLE
    assert "Registered 6 of 6 photos: 9 points, mean reprojection error 0.70 px, mean track length 1.5, " in out
    assert "100% of the matches agree with the poses." in out and "look alike" not in err
    assert out.endswith(f"gs-train train {prepare.scene}\n")
    assert "Not registered" not in out
    for step, count in (("photos", PHOTOS), ("features", PHOTOS), ("matching", PAIRS), ("registering", PHOTOS)):
        assert f"{step}: {count} of {count}, " in err
    model = read_model(prepare.scene / "sparse" / "0")
    assert [image.name for image in model.images] == sorted(os.listdir(prepare.scene / "images"))
    assert {path.name for path in prepare.scene.iterdir()} == {
        "images",
        "sparse",
        "database.db",
        "pairs.txt",
        "prepare.json",
        "prepare.log",
    }


def test_a_second_call_prints_the_same_without_working(prepare: Prepare) -> None:
    _, first, _ = prepare()
    prepare.calls()
    code, second, err = prepare()
    assert (code, second) == (0, first)
    assert err == f"{prepare.scene} is prepared already.\n"
    assert prepare.calls() == []


@pytest.mark.parametrize(
    ("call", "step", "before", "left"),
    [
        ("extract_features", "features", WHOLE[:2], ["extract_features 3", *WHOLE[2:]]),
        ("match_image_pairs", "matches", WHOLE[:3], [f"match_image_pairs {PAIRS - PAIRS // 2}", WHOLE[3]]),
        ("incremental_mapping", "model", WHOLE, WHOLE[3:]),
    ],
)
def test_after_a_crash_the_same_step_continues(
    prepare: Prepare, call: str, step: str, before: list[str], left: list[str]
) -> None:
    prepare.behave(crash=call)
    message = prepare.refused()
    assert f"ended with code 77 in the step {step} (its log is {prepare.scene / 'prepare.log'})" in message
    assert prepare.calls() == before
    prepare.behave()
    assert prepare()[0] == 0
    assert prepare.calls() == left


@pytest.mark.skipif(os.name == "nt", reason="signals by number")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stop_ends_the_worker_too(prepare: Prepare, how: signal.Signals) -> None:
    prepare.behave(hang="match_image_pairs")
    process = subprocess.Popen(
        command("prepare", prepare.photos, prepare.scene),
        env={**environment(), "PYTHONPATH": prepare.path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # The tests may run as a shell's background job, which ignores SIGINT, as its children do.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    _until(lambda: prepare.log.exists() and "hanging" in prepare.log.read_text())
    worker = int(prepare.log.read_text().split()[-1])
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)
    assert ("Stopped. The same command goes on from here." in err) == (how == signal.SIGINT)
    assert "Traceback" not in err
    _until(lambda: not _alive(worker))
    prepare.calls()
    prepare.behave()
    assert prepare()[0] == 0
    assert prepare.calls() == [f"match_image_pairs {PAIRS - PAIRS // 2}", WHOLE[3]]


def _until(true: Any, timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A process that has ended but was not waited for is a zombie and still has its number.
    status = Path(f"/proc/{process}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_deleted_results_are_made_again(prepare: Prepare) -> None:
    prepare()
    shutil.rmtree(prepare.scene / "sparse")
    prepare.calls()
    assert prepare()[0] == 0
    assert prepare.calls() == WHOLE[3:]
    (prepare.scene / "database.db").unlink()
    assert prepare()[0] == 0
    assert prepare.calls() == WHOLE


def test_few_registered_photos_are_named_with_advice(prepare: Prepare) -> None:
    prepare.behave(registered=4)
    code, out, err = prepare()
    assert code == 0
    assert "Registered 4 of 6 photos" in out
    assert "Not registered: IMG_4.png, IMG_5.png\n" in out
    assert "(COLMAP found 2 disconnected models; this is the largest): take more photos" in err
    assert len(read_model(prepare.scene / "sparse" / "0").images) == 4


@pytest.mark.parametrize("repaired", [False, True])
def test_poses_that_contradict_the_matches_are_mapped_again_and_told(prepare: Prepare, repaired: bool) -> None:
    """All photos are registered, but half of the matches fit no point of incremental mapping."""
    prepare.behave(contradicting=True, **{"global": repaired})
    code, out, err = prepare()
    assert code == 0 and prepare.calls() == [*WHOLE, "global_mapping 6"]
    assert f"{100 if repaired else 50}% of the matches agree with the poses." in out
    assert ("Only 50% of the matches between photos agree with the poses" in err) == (not repaired)
    assert ("Global mapping gave the poses" in out) == repaired


def test_an_absurdly_distant_camera_counts_as_not_registered(prepare: Prepare) -> None:
    prepare.behave(stray=True)
    code, out, _ = prepare()
    assert code == 0
    assert "Registered 5 of 6 photos" in out
    assert "Not registered: IMG_0.png\n" in out
    assert len(read_model(prepare.scene / "sparse" / "0").images) == 5, "the rest of the model can be read"


# ---- refusals


def test_photos_that_give_no_model(prepare: Prepare) -> None:
    prepare.behave(matching=0)
    assert "no two of the 6 photos in" in prepare.refused()
    prepare.behave(registered=0)
    assert "no two" in prepare.refused(), "the pairs are not matched again"
    shutil.rmtree(prepare.scene)
    message = prepare.refused()
    assert "COLMAP found no camera poses for the 6 photos" in message
    prepare.behave(registered=2)
    assert prepare.refused() == message
    assert not list(prepare.scene.glob("sparse*"))


def test_other_photos_are_refused_once_they_are_copied(prepare: Prepare) -> None:
    damaged = prepare.photos / "IMG_9.png"
    damaged.write_bytes((prepare.photos / "IMG_0.png").read_bytes()[:400])
    message = prepare.refused()
    assert message.startswith(f"{damaged} cannot be decoded (")
    assert prepare.calls() == []
    damaged.unlink()
    assert prepare()[0] == 0, "works after removing the photo, as the sentence says"
    Image.fromarray(_noise(50)).save(prepare.photos / "IMG_0.png")
    assert "was prepared from other photos than" in prepare.refused()
    moved = prepare.photos.with_name("elsewhere")
    prepare.photos.rename(moved)
    assert "was prepared from other photos than" in prepare.refused(moved, prepare.scene)
    Image.fromarray(_noise(0)).save(moved / "IMG_0.png")
    assert prepare(moved, prepare.scene)[0] == 0, "the folder of the photos may change"


def test_other_folders_stay_untouched(prepare: Prepare) -> None:
    prepare.scene.mkdir()
    (prepare.scene / "note.txt").write_text("mine")
    assert prepare.refused() == f"{prepare.scene} exists, but prepare did not begin it: give a new or empty folder."
    assert [path.name for path in prepare.scene.iterdir()] == ["note.txt"]
    assert "exists, but prepare did not begin it" in prepare.refused(prepare.photos, prepare.scene / "note.txt")
    inside = prepare.photos / "scene"
    assert f"{inside} lies in the folder of the photos" in prepare.refused(prepare.photos, inside)
    assert "is not UTF-8, which COLMAP cannot open" in prepare.refused(prepare.photos, f"{prepare.scene}\udce4")
    (prepare.scene / "note.txt").unlink()
    assert prepare()[0] == 0
    intact = json.loads((prepare.scene / "prepare.json").read_text())
    for damaged in (
        *({**intact, "done": 7}, {**intact, "done": [[]]}, {**intact, "result": {}}, {**intact, "result": 1}, [], {}),
        *({**intact, "result": {**intact["result"], **change}} for change in ({"points": "x"}, {"unregistered": [1]})),
    ):
        (prepare.scene / "prepare.json").write_text(json.dumps(damaged))
        assert "prepare.json is damaged (" in prepare.refused()
    (prepare.scene / "prepare.json").write_text("{")
    assert "give the command again" in prepare.refused()
    shutil.rmtree(prepare.scene)
    assert prepare()[0] == 0


@pytest.mark.parametrize("done", [["images", "cameras"], ["images", "cameras", "features"]])
def test_a_damaged_database_is_told(prepare: Prepare, done: list[str]) -> None:
    assert prepare()[0] == 0
    record = prepare.scene / "prepare.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "done": done, "result": None}))
    (prepare.scene / "database.db").write_bytes(b"no database" * 1000)
    assert "database.db is damaged (" in prepare.refused()


def test_a_folder_without_enough_photos(prepare: Prepare) -> None:
    missing = prepare.photos / "nowhere"
    assert f"{missing} does not exist" in prepare.refused(missing, prepare.scene)
    few = prepare.photos.with_name("few")
    few.mkdir()
    assert f"{few} holds no photos: give a folder" in prepare.refused(few, prepare.scene)
    (few / "a.nef").touch()
    (few / "b.NEF").touch()
    (few / "._c.jpg").touch()
    assert "no photos of a known kind (it holds 1 .nef, 1 .NEF)" in prepare.refused(few, prepare.scene)
    shutil.copy(prepare.photos / "IMG_0.png", few)
    assert f"{few} holds 1 photo, but prepare needs at least 3" in prepare.refused(few, prepare.scene)
    assert not prepare.scene.exists()


def test_flags(prepare: Prepare) -> None:
    assert "--frames is for a video" in prepare.refused(prepare.photos, prepare.scene, "--frames", 20)
    assert "--frames is 2: give a whole number of at least 3" in prepare.refused(
        prepare.photos, prepare.scene, "--frames", 2
    )


def test_without_pycolmap_the_error_names_the_package(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gs_train.prepare.source.find_spec", lambda name: None if name == "pycolmap" else find_spec(name)
    )
    assert (
        prepare.refused()
        == f"prepare needs pycolmap, which is not installed: {sys.executable} -m pip install pycolmap."
    )
    monkeypatch.setattr("gs_train.prepare.source.find_spec", lambda name: None if name == "imageio_ffmpeg" else True)
    video = prepare.photos / "IMG_0.png"
    message = "prepare needs imageio-ffmpeg for a video, which is not installed"
    assert prepare.refused(video, prepare.scene) == f"{message}: {sys.executable} -m pip install imageio-ffmpeg."
    assert not prepare.scene.exists()


def test_too_many_pixels(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_PIXELS", 1000)
    assert "IMG_0.png is 40x30 px, more than the 0 megapixels that a photo may have" in prepare.refused()


# ---- the worker process


def test_the_number_of_threads_fits_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 4 * 2**18, "SC_PAGE_SIZE": 4096}[name])
    assert threads_for_memory() == 1
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 2**32, "SC_PAGE_SIZE": 4096}[name])
    assert threads_for_memory() == 64


def test_the_worker_does_not_import_pillow() -> None:
    heavy = ("PIL", "torch")
    program = f"import sys, gs_train.prepare.worker; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [*command()[:1], "-c", program], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("direction", [(0.0, 1.0, 0.0), (0.0, -1.0, 0.0), (0.3, 0.2, -2.0), (-1.0, -5.0, 0.1)])
def test_the_smallest_rotation_onto_y(direction: tuple[float, float, float]) -> None:
    turn = turn_onto_y(np.array(direction))
    np.testing.assert_allclose(turn @ direction / np.linalg.norm(direction), (0.0, 1.0, 0.0), atol=1e-12)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1.0)
    # The angle of the rotation is that between the direction and +y.
    cosine = (np.trace(turn) - 1.0) / 2.0
    assert cosine == pytest.approx(direction[1] / np.linalg.norm(direction), abs=1e-9)
