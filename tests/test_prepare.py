"""``gs-train prepare`` without COLMAP: what it refuses, how it goes on after a stop, what it does to photos, which frames it takes.

pycolmap is stood in for by ``fake_pycolmap``, so that the process beside, its database and its messages are the real ones. What only the
real one can show is in ``test_prepare_colmap.py``.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sqlite3
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
from PIL import Image, ImageFilter

from gs_train import cli
from gs_train.errors import UserError
from gs_train.prepare import photos as prepare_photos
from gs_train.prepare.pairs import MOST_FOR_ALL_PAIRS, choose_pairs, nearest_by_appearance, vlad
from gs_train.prepare.photos import camera_groups, choose_sharpest, copy_photos, list_photos, sharpness, stored_names
from gs_train.prepare.worker import threads_for_memory
from gs_train.scene.photos import decode
from gs_train.scene.readers.colmap import read_model

PHOTOS = 6
PAIRS = PHOTOS * (PHOTOS - 1) // 2


class Prepare:
    """``gs-train prepare`` with the fake pycolmap on its path, in this process or in one of its own."""

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

    def behave(self, **message: Any) -> None:
        """Say what the fake does from now on."""
        self.monkeypatch.setenv("FAKE_PYCOLMAP", json.dumps({"log": str(self.log), **message}))

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, stdout, stderr; the photos and the scene if no arguments are given."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as done:
            cli.main(["prepare", *map(str, arguments or (self.photos, self.scene))])
        return int(str(done.value.code)), out.getvalue(), err.getvalue()

    def refused(self, *arguments: object) -> str:
        """The sentence that it is refused with."""
        code, out, err = self(*arguments)
        assert (code, out) == (2, ""), err
        last = err.splitlines()[-1]
        assert last.startswith("gs-train: ")
        return last.removeprefix("gs-train: ")

    def calls(self) -> list[str]:
        """What the fake was asked to do since the last time, as ``call count``."""
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


# ---- the whole way, and going on


def test_the_whole_way(prepare: Prepare) -> None:
    code, out, err = prepare()
    assert code == 0, err
    assert prepare.calls() == WHOLE
    assert "Registered 6 of 6 photos: 9 points, mean reprojection error 0.70 px, mean track length 1.5." in out
    assert out.endswith(f"gs-train train {prepare.scene}\n")
    assert "Not registered" not in out
    assert all(step in err for step in ("photos: 100%", "features: 100%", "matching: 100%", "registering: 100%"))
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


def test_a_second_time_says_the_same_without_doing_it(prepare: Prepare) -> None:
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
def test_after_a_crash_it_goes_on_with_the_step_it_was_in(
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
def test_a_stop_ends_the_process_beside_too(prepare: Prepare, how: signal.Signals) -> None:
    prepare.behave(hang="match_image_pairs")
    process = subprocess.Popen(
        command("prepare", prepare.photos, prepare.scene),
        env={**environment(), "PYTHONPATH": prepare.path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, which the tests may be, ignores SIGINT, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    _until(lambda: prepare.log.exists() and "hanging" in prepare.log.read_text())
    worker = int(prepare.log.read_text().split()[-1])
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
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
    # One that has ended and that nobody has asked for yet still has its number.
    status = Path(f"/proc/{process}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_what_somebody_deleted_is_made_again(prepare: Prepare) -> None:
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


def test_a_camera_beyond_all_bounds_counts_as_not_registered(prepare: Prepare) -> None:
    prepare.behave(stray=True)
    code, out, _ = prepare()
    assert code == 0
    assert "Registered 5 of 6 photos" in out
    assert "Not registered: IMG_0.png\n" in out
    assert len(read_model(prepare.scene / "sparse" / "0").images) == 5, "and what is left can be read"


# ---- refusals


def test_photos_that_give_no_model(prepare: Prepare) -> None:
    prepare.behave(matching=0)
    assert "no two of the 6 photos in" in prepare.refused()
    prepare.behave(registered=0)
    assert "no two" in prepare.refused(), "what matched and what did not is not asked again"
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
    assert prepare()[0] == 0, "taken out, as the sentence says"
    Image.fromarray(_noise(50)).save(prepare.photos / "IMG_0.png")
    assert "was prepared from other photos than" in prepare.refused()
    moved = prepare.photos.with_name("elsewhere")
    prepare.photos.rename(moved)
    assert "was prepared from other photos than" in prepare.refused(moved, prepare.scene)
    Image.fromarray(_noise(0)).save(moved / "IMG_0.png")
    assert prepare(moved, prepare.scene)[0] == 0, "where they lie does not matter"


def test_what_is_there_already_is_left_alone(prepare: Prepare) -> None:
    prepare.scene.mkdir()
    (prepare.scene / "note.txt").write_text("mine")
    assert (
        prepare.refused()
        == f"{prepare.scene} exists, but prepare did not begin it: give a new or empty folder."
    )
    assert [path.name for path in prepare.scene.iterdir()] == ["note.txt"]
    assert "exists, but prepare did not begin it" in prepare.refused(prepare.photos, prepare.scene / "note.txt")
    inside = prepare.photos / "scene"
    assert f"{inside} lies in the folder of the photos" in prepare.refused(prepare.photos, inside)
    assert "is not UTF-8, which COLMAP cannot open" in prepare.refused(prepare.photos, f"{prepare.scene}\udce4")
    (prepare.scene / "note.txt").unlink()
    assert prepare()[0] == 0
    (prepare.scene / "prepare.json").write_text("{")
    assert "prepare.json is damaged: delete" in prepare.refused()


def test_a_folder_without_enough_photos(prepare: Prepare) -> None:
    missing = prepare.photos / "nowhere"
    assert f"{missing} does not exist" in prepare.refused(missing, prepare.scene)
    few = prepare.photos.with_name("few")
    few.mkdir()
    assert f"{few} holds no photos: give a folder" in prepare.refused(few, prepare.scene)
    (few / "a.heic").touch()
    (few / "b.HEIC").touch()
    (few / "._c.jpg").touch()
    assert "no photos of a known kind (it holds 1 .heic, 1 .HEIC)" in prepare.refused(few, prepare.scene)
    shutil.copy(prepare.photos / "IMG_0.png", few)
    assert f"{few} holds 1 photo, but prepare needs at least 3" in prepare.refused(few, prepare.scene)
    assert not prepare.scene.exists()


def test_flags(prepare: Prepare) -> None:
    assert "--frames is for a video" in prepare.refused(prepare.photos, prepare.scene, "--frames", 20)
    assert "--frames is 2: it must be at least 3" in prepare.refused(prepare.photos, prepare.scene, "--frames", 2)


def test_without_pycolmap_it_says_what_to_install(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(decode, "_MOST_PIXELS", 1000)
    assert "IMG_0.png is 40x30 px, more than the 0 megapixels that a photo may have" in prepare.refused()


# ---- photos


def test_photos_become_upright_and_keep_what_exif_says_of_the_lens(tmp_path: Path) -> None:
    seen = np.zeros((40, 60, 3), np.uint8)
    seen[:20, :30] = (250, 10, 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: turned by 90 degrees clockwise to be seen
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0xA405] = 28
    stored = Image.fromarray(seen).transpose(Image.Transpose.ROTATE_90)
    plain = tmp_path / "plain.jpg"
    Image.fromarray(seen).save(plain, quality=60)
    sources = [tmp_path / name for name in ("turned.jpg", "turned.png", "turned.webp")]
    for source in sources:
        stored.save(source, exif=exif, quality=95)
    targets = [tmp_path / "out" / name for name in stored_names([plain, *sources], tmp_path)]
    done: list[int] = []
    copy_photos([plain, *sources], targets, done.append)
    assert done == [1, 2, 3, 4]
    assert targets[0].read_bytes() == plain.read_bytes(), "nothing to turn: the very bytes"
    assert [target.name for target in targets[1:]] == ["turned.jpg", "turned.png", "turned.webp.png"]
    for target in targets[1:]:
        with Image.open(target) as image:
            assert image.format == ("JPEG" if target.suffix == ".jpg" else "PNG")
            assert image.size == (60, 40)
            # The mean, because JPEG and WebP blur colours across the edges.
            assert np.abs(np.asarray(image.convert("RGB"), int) - seen).mean() < 2
            assert 0x0112 not in image.getexif()
            assert image.getexif().get_ifd(0x8769)[0xA405] == 28
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(target.name for target in targets)


def test_one_camera_for_all_photos_of_one_size_and_lens(tmp_path: Path) -> None:
    def photo(name: str, focal_length: int | None, size: tuple[int, int] = (40, 30)) -> str:
        exif = Image.Exif()
        if focal_length is not None:
            exif.get_ifd(0x8769)[0xA405] = focal_length
        Image.new("RGB", size).save(tmp_path / name, exif=exif)
        return name

    same, zoomed, upright = [photo("a.jpg", 28), photo("d.jpg", 28)], photo("b.jpg", 50), photo("c.jpg", 28, (30, 40))
    bare = [photo("e.png", None), photo("f.png", None)]
    assert camera_groups(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.png", "f.png"]) == [
        same,
        [zoomed],
        [upright],
        bare,
    ]


def test_names_have_no_white_space_and_do_not_collide(tmp_path: Path) -> None:
    names = ["a b.jpg", "a_b.JPG", "a#b.jpg", "sub dir/a b.jpg", "x.webp", "日本 é.png", "latin \udce4.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    photos, others = list_photos(tmp_path)
    assert others == []
    stored = dict(
        zip((photo.relative_to(tmp_path).as_posix() for photo in photos), stored_names(photos, tmp_path), strict=True)
    )
    assert stored == {
        "a b.jpg": "a_b.jpg",
        "a#b.jpg": "a_b_2.jpg",
        "a_b.JPG": "a_b_3.JPG",
        "sub dir/a b.jpg": "sub_dir/a_b.jpg",
        "x.webp": "x.webp.png",
        "日本 é.png": "日本_é.png",
        "latin \udce4.png": "latin_.png",
    }


def test_the_copies_that_were_made_stay(tmp_path: Path) -> None:
    photo, target = tmp_path / "a.png", tmp_path / "out.png"
    Image.fromarray(_noise(0)).save(photo)
    target.write_bytes(b"made before")
    copy_photos([photo], [target], lambda done: None)
    assert target.read_bytes() == b"made before"


# ---- frames


def test_the_sharpest_frame_of_each_part_is_chosen() -> None:
    sharp = {1, 5, 8, 10}
    frames = [_noise(i, 48, 64) if i in sharp else _blurred(_noise(i, 48, 64)) for i in range(12)]
    chosen = list(choose_sharpest(iter(frames), 12, 4))
    assert [index for index, _ in chosen] == sorted(sharp)
    assert all(frame is frames[index] for index, frame in chosen)


def test_a_wrong_count_of_frames_costs_no_frame_beyond() -> None:
    frames = [_noise(i) for i in range(10)]
    assert len(list(choose_sharpest(iter(frames), 6, 3))) == 3, "more frames than announced go to the last part"
    assert len(list(choose_sharpest(iter(frames), 20, 4))) == 2
    assert [index for index, _ in choose_sharpest(iter(frames[:3]), 3, 50)] == [0, 1, 2], "no more parts than frames"
    assert list(choose_sharpest(iter(()), 0, 5)) == []


def test_sharpness_sees_blur_at_any_size() -> None:
    for height, width in ((30, 40), (1500, 2001)):
        # At 2001 px the score is taken from half of that, so the texture has to be coarser.
        coarse = np.repeat(np.repeat(_noise(1, height // 10, width // 10), 10, axis=0), 10, axis=1)
        scores = [
            sharpness(np.asarray(Image.fromarray(coarse).filter(ImageFilter.GaussianBlur(radius))))
            for radius in (0, 2, 5)
        ]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > 2 * scores[1] > 4 * scores[2]


def _blurred(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)))


# ---- pairs


def test_few_photos_are_all_compared_without_a_database(tmp_path: Path) -> None:
    names = [f"{i:03d}" for i in range(MOST_FOR_ALL_PAIRS)]
    pairs = choose_pairs(names, tmp_path / "none.db", video=False)
    assert len(set(pairs)) == len(pairs) == MOST_FOR_ALL_PAIRS * (MOST_FOR_ALL_PAIRS - 1) // 2


def test_many_are_compared_with_neighbours_and_with_those_that_look_alike(tmp_path: Path) -> None:
    """100 places in a row, photographed there and on the way back: a photo has to meet its neighbours and the other one of its place."""
    places, database = 100, tmp_path / "database.db"
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (places, 60, 128))
    route = [*range(places), *range(places)]
    names = [f"{i:03d}.jpg" for i in range(len(route))]
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE images (image_id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute(
            "CREATE TABLE descriptors (image_id INTEGER PRIMARY KEY, rows INTEGER, cols INTEGER, data BLOB)"
        )
        for index, place in enumerate(route):
            noisy = np.clip(seen[place] + rng.integers(-9, 10, seen[place].shape), 0, 255).astype(np.uint8)
            connection.execute("INSERT INTO images VALUES (?, ?)", (index + 1, names[index]))
            # One photo without a feature, and one without a row: both go without a comparison by looks.
            if index not in (7, 9):
                connection.execute("INSERT INTO descriptors VALUES (?, 60, 128, ?)", (index + 1, noisy.tobytes()))
        connection.execute("INSERT INTO descriptors VALUES (8, 0, 128, NULL)")
    pairs = choose_pairs(names, database, video=False)
    assert pairs == choose_pairs(names, database, video=True) == sorted(set(pairs))
    met = {(names.index(one), names.index(other)) for one, other in pairs}
    assert all((i, i + step) in met for step in range(1, 11) for i in range(len(route) - step))
    again = [(place, place + places) for place in range(places) if place not in (7, 9)]
    assert all(pair in met for pair in again)
    assert len(met) < 0.3 * len(route) ** 2 / 2


def test_vlad_of_hardly_any_features_is_zero() -> None:
    vectors = vlad([np.zeros((0, 128), np.uint8), np.ones((3, 128), np.uint8)])
    assert not vectors.any()
    assert nearest_by_appearance(vectors, 20).tolist() == [[1], [0]]


def test_at_least_one_thread_and_no_more_than_memory_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 4 * 2**18, "SC_PAGE_SIZE": 4096}[name])
    assert threads_for_memory() == 1
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 2**32, "SC_PAGE_SIZE": 4096}[name])
    assert threads_for_memory() == 64


def test_the_process_beside_does_not_import_pillow() -> None:
    program = "import sys, gs_train.prepare.worker; print([name for name in ('PIL', 'numpy', 'torch') if name in sys.modules])"
    done = subprocess.run(
        [*command()[:1], "-c", program], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout.strip() == "[]"


def test_a_video_that_ffmpeg_cannot_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra video (imageio-ffmpeg)")
    video = tmp_path / "video.mp4"
    video.write_text("no video")
    with pytest.raises(UserError, match=r"video\.mp4 cannot be read as a video \(.+\): give a file that ffmpeg plays"):
        prepare_photos.extract_frames(video, tmp_path, 5, lambda done, total: None)
