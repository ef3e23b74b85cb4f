"""``gs-train render``: camera paths, PNG frames and .mp4 files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import command, environment, gs_train_here
from numpy.typing import NDArray
from PIL import Image
from splats import trained_splat

from gs_train.cameras.camera import Camera
from gs_train.cameras.poses import camera_centre, look_at
from gs_train.errors import UserError
from gs_train.formats.registry import write_splat
from gs_train.run.open import open_splat
from gs_train.viewer import paths
from gs_train.viewer.film import read_track, sized
from gs_train.viewer.shots import Shot, shots_of_run
from gs_train.viewer.video import find_ffmpeg, write_mp4

Array = NDArray[np.float64]
SMALL = ("--width", 32, "--height", 24, "--device", "cpu")
UP = np.array([0.3, -0.9, 0.2]) / np.linalg.norm([0.3, -0.9, 0.2])
FOCUS = np.array([1.0, 2.0, 3.0])


def ffmpeg() -> str:
    try:
        return find_ffmpeg()
    except UserError:
        pytest.skip("there is no ffmpeg, neither of imageio-ffmpeg nor on the PATH")


def around(degrees: Array, radius: float = 2.0, height: float = 0.5) -> tuple[Array, Array]:
    """Centres and rotations of cameras that look at FOCUS, at these azimuths about an axis of no coordinate."""
    first = np.cross(UP, (0.0, 0.0, 1.0))
    first /= np.linalg.norm(first)
    angles = np.radians(degrees)[:, None]
    eyes = FOCUS + height * UP + radius * (np.cos(angles) * first + np.sin(angles) * np.cross(UP, first))
    return eyes, paths.facing(eyes, FOCUS, UP)[:, :3, :3]


def check_upright(poses: Array, target: Array, up: Array) -> None:
    """Every camera sees the target in the middle, and ``up`` points up in its image."""
    seen = np.einsum("fij,j->fi", poses[:, :3, :3], target) + poses[:, :3, 3]
    np.testing.assert_allclose(seen[:, :2], 0, atol=1e-5)
    assert (seen[:, 2] > 0).all()
    directions = poses[:, :3, :3] @ up
    np.testing.assert_allclose(directions[:, 0], 0, atol=1e-6)
    assert (directions[:, 1] < 0).all()


# ---- paths ----


def test_the_path_follows_the_sides_that_photos_show() -> None:
    assert paths.choose_path(*around(np.arange(0.0, 360, 30))) == "orbit"
    assert paths.choose_path(*around(np.arange(0.0, 181, 30))) == "arc"
    assert paths.choose_path(*around(np.arange(-15.0, 16, 5))) == "spiral"
    eyes, turns = around(np.arange(0.0, 360, 30))
    assert paths.choose_path(0 * eyes + FOCUS, turns) == "interpolate"


def test_orbit_is_level_even_and_centred() -> None:
    poses = paths.orbit(*around(np.arange(0.0, 360, 20)), 48)
    check_upright(poses, FOCUS, UP)
    eyes = np.stack([camera_centre(pose) for pose in poses])
    np.testing.assert_allclose((eyes - FOCUS) @ UP, 0.5, atol=1e-6)
    steps = np.linalg.norm(eyes - np.roll(eyes, 1, axis=0), axis=1)
    assert steps.max() < 1.01 * steps.min()
    assert 1.5 < np.linalg.norm(eyes - FOCUS, axis=1).mean() < 2.3


def test_cameras_that_look_away_do_not_move_the_focus() -> None:
    eyes, turns = around(np.arange(0.0, 360, 30))
    outside = np.array([[9.0, 2.0, 3.0]])
    away = paths.facing(outside, outside[0] + (5.0, 3.0, 1.0), UP)[:, :3, :3]
    focus = paths.focus_of(np.concatenate((eyes, outside)), np.concatenate((turns, away)))
    np.testing.assert_allclose(focus, FOCUS, atol=1e-4)


def test_arc_stays_between_the_cameras() -> None:
    eyes, turns = around(np.arange(0.0, 121, 20))
    poses = paths.arc(eyes, turns, 40)
    check_upright(poses, FOCUS, paths.up_axis(turns))
    path = np.stack([camera_centre(pose) for pose in poses])
    middle = eyes[3] - FOCUS
    angles = np.degrees(
        np.arccos((path - FOCUS) @ middle / np.linalg.norm(path - FOCUS, axis=1) / (middle @ middle) ** 0.5)
    )
    assert 55 < angles.max() < 61


def test_spiral_looks_at_one_point_ahead() -> None:
    eyes, turns = around(np.arange(-10.0, 11, 5))
    poses = paths.spiral(eyes, turns, 1.0, 4.0, 20)
    centre, forward = eyes.mean(axis=0), turns[:, 2].mean(axis=0)
    target = centre + forward / np.linalg.norm(forward) / (0.25 + 0.75 / 4)
    check_upright(poses, target, paths.up_axis(turns))
    path = np.stack([camera_centre(pose) for pose in poses])
    assert 0.1 < np.ptp(path, axis=0).max() < 2 * np.ptp(eyes, axis=0).max()


def test_interpolation_meets_the_cameras_at_equal_speed() -> None:
    eyes, turns = around(np.arange(0.0, 91, 10))
    poses, focals = paths.interpolate(eyes, turns, np.linspace(1.0, 2.0, len(eyes)), 60)
    for end, index in ((0, 0), (-1, -1)):
        np.testing.assert_allclose(camera_centre(poses[end]), eyes[index], atol=1e-9)
        np.testing.assert_allclose(poses[end, :3, :3], turns[index], atol=1e-9)
    path = np.stack([camera_centre(pose) for pose in poses])
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert steps.max() < 1.1 * steps.min()
    assert np.linalg.norm(path[:, None] - eyes, axis=2).min(axis=0).max() < steps.max()
    assert focals[0] == 1 and focals[-1] == 2 and (np.diff(focals) > 0).all()


def test_interpolation_of_photos_in_no_order_takes_the_nearest_next() -> None:
    eyes, turns = around(np.arange(0.0, 91, 10))
    # A far photo shows that the order is no walk.
    eyes[-1] += 20.0
    shuffled = np.array([0, 5, 9, 2, 7, 1, 8, 4, 6, 3])
    expected, _ = paths.interpolate(eyes, turns, np.ones(10), 30)
    poses, _ = paths.interpolate(eyes[shuffled], turns[shuffled], np.ones(10), 30)
    np.testing.assert_allclose(poses, expected, atol=1e-9)


def test_interpolation_from_one_place_only_turns() -> None:
    _, turns = around(np.arange(0.0, 91, 10))
    poses, _ = paths.interpolate(np.tile(FOCUS, (10, 1)), turns, np.ones(10), 20)
    assert np.isfinite(poses).all()
    np.testing.assert_allclose(poses[-1, :3, :3], turns[-1], atol=1e-9)


def test_another_size_shows_at_least_the_same_view() -> None:
    camera = Camera(width=40, height=30, fx=20.0, fy=20.0, cx=22.0, cy=15.0)
    shot = Shot(camera=camera, world_to_camera=look_at(np.zeros(3), FOCUS))
    (wide,) = sized([shot], 200, 60, one_size=True)
    assert (wide.camera.fx, wide.camera.cx, wide.camera.cy) == (40.0, 104.0, 30.0)
    (even,) = sized([shot], 61, one_size=True)
    assert (even.camera.width, even.camera.height) == (62, 46)
    assert sized([shot], one_size=False)[0].camera == camera


# ---- the command ----


@pytest.mark.parametrize("path", ["auto", "orbit", "spiral", "interpolate"])
def test_frames_of_a_run(tiny_run: Path, tmp_path: Path, path: str) -> None:
    flags = ("--path", path, "--fps", 4, "--seconds", 1, "--width", 32, "--device", "cpu")
    done = gs_train_here("render", tiny_run, tmp_path / "out", *flags)
    assert done.returncode == 0, done.stderr
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == [f"frame_0000{number}.png" for number in range(1, 5)]
    pictures = [np.asarray(Image.open(tmp_path / "out" / name), dtype=float) for name in names]
    assert {picture.shape for picture in pictures} == {(24, 32, 3)}
    assert all(picture.std() > 5 for picture in pictures) and abs(pictures[0] - pictures[1]).mean() > 1


def test_views_of_the_scene_are_rendered_as_they_are(tiny_run: Path, tmp_path: Path) -> None:
    assert gs_train_here("render", tiny_run, tmp_path / "out", "--path", "train", "--device", "cpu").returncode == 0
    opened = open_splat(tiny_run)
    views, selection = opened.load_scene().train_views, opened.select_rasterizer("cpu")
    assert len(list((tmp_path / "out").iterdir())) == len(views)
    pose = torch.from_numpy(views[0].world_to_camera).float()
    image = selection.rasterizer.render(opened.model(), views[0].camera, pose, opened.background()).image.detach()
    frame = np.asarray(Image.open(tmp_path / "out" / "frame_00001.png"), dtype=float)
    assert abs(frame - 255 * image.clamp(0, 1).numpy()).max() <= 0.51


def test_one_held_out_view_is_no_film(tiny_run: Path, tmp_path: Path) -> None:
    done = gs_train_here("render", tiny_run, tmp_path / "out", "--path", "test", "--device", "cpu")
    assert done.returncode == 2 and "--path test has 1 camera and a film needs 2" in done.stderr


@pytest.mark.parametrize("what", ["depth", "alpha"])
def test_depth_and_alpha_are_grey(tiny_run: Path, tmp_path: Path, what: str) -> None:
    done = gs_train_here("render", tiny_run, tmp_path / "out", "--what", what, "--fps", 2, "--seconds", 1, *SMALL)
    assert done.returncode == 0, done.stderr
    frame = np.asarray(Image.open(tmp_path / "out" / "frame_00001.png"), dtype=int)
    assert (frame == frame[..., :1]).all() and np.ptp(frame) > 50


def test_frames_and_depth_go_to_folders_of_their_own(tiny_run: Path, tmp_path: Path) -> None:
    film, folders = tmp_path / "a.mp4", ("--frames", tmp_path / "frames", "--depth", tmp_path / "depth")
    ffmpeg()
    flags = ("--path", "train", "--device", "cpu")
    done = gs_train_here("render", tiny_run, film, *flags, *folders)
    assert done.returncode == 0, done.stderr
    frames, depths = sorted((tmp_path / "frames").iterdir()), sorted((tmp_path / "depth").iterdir())
    assert film.is_file() and len(frames) == len(depths) > 1
    assert [path.name for path in depths[:2]] == ["depth_00001.tif", "depth_00002.tif"]
    depth = np.asarray(Image.open(depths[0]))
    assert depth.dtype == np.float32 and depth.shape == Image.open(frames[0]).size[::-1]
    # The cameras of the sample scene look at its still life.
    shot = shots_of_run(open_splat(tiny_run))[0]
    apart = np.linalg.norm(camera_centre(shot.world_to_camera) - (0.0, 0.0, 0.28))
    assert np.median(depth[depth > 0]) == pytest.approx(apart, rel=0.4)
    again = gs_train_here("render", tiny_run, film, *flags, "--depth", tmp_path / "depth")
    assert again.returncode == 2 and "already holds depth_*.tif" in again.stderr
    twice = gs_train_here("render", tiny_run, tmp_path / "out", *flags, "--frames", tmp_path / "more")
    assert twice.returncode == 2 and "--frames goes with OUT.mp4" in twice.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_film_that_is_stopped_or_killed_leaves_no_file(tiny_run: Path, tmp_path: Path) -> None:
    ffmpeg()
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        running = subprocess.Popen(
            command("render", tiny_run, tmp_path / "a.mp4", "--seconds", 200, "--device", "cpu"),
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        deadline = time.monotonic() + 100
        while not any(tmp_path.iterdir()):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(number)
        assert running.wait(60) == code
        assert (number == signal.SIGKILL) == any(tmp_path.iterdir())
    done = gs_train_here("render", tiny_run, tmp_path / "a.mp4", "--fps", 2, "--seconds", 1, "--device", "cpu")
    assert done.returncode == 0 and [path.name for path in tmp_path.iterdir()] == ["a.mp4"], done.stderr


def test_a_splat_without_cameras_turns_about_its_middle(tmp_path: Path) -> None:
    write_splat(tmp_path / "a.ply", trained_splat(60))
    flags = ("--fps", 2, "--seconds", 1, *SMALL)
    done = gs_train_here("render", tmp_path / "a.ply", tmp_path / "out", *flags)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 2
    refused = gs_train_here("render", tmp_path / "a.ply", tmp_path / "other", "--path", "spiral", *flags)
    assert refused.returncode == 2 and "needs the cameras of a run" in refused.stderr


def test_a_camera_track_is_in_the_axes_of_the_splat_file(tiny_run: Path, tmp_path: Path) -> None:
    cameras = json.loads((tiny_run / "cameras.json").read_text(encoding="utf-8"))[:2]
    frames = []
    for camera in cameras:
        position, turn = np.array(camera["position"]), np.array(camera["rotation"])
        fov = np.degrees(2 * np.arctan(camera["height"] / 2 / camera["fy"]))
        target, up = position + turn[:, 2], -turn[:, 1]
        frames.append({"position": position.tolist(), "target": target.tolist(), "up": up.tolist(), "fov": fov})
    track = tmp_path / "track.json"
    track.write_text(json.dumps({"frameRate": 12, "frames": frames}), encoding="utf-8")
    shots, rate = read_track(track, 64, 48)
    assert rate == 12
    np.testing.assert_allclose(camera_centre(shots[1].world_to_camera), cameras[1]["position"], atol=1e-9)
    np.testing.assert_allclose(shots[1].world_to_camera[:3, :3].T, cameras[1]["rotation"], atol=1e-9)
    assert shots[0].camera.fy == pytest.approx(cameras[0]["fy"])
    done = gs_train_here("render", tiny_run, tmp_path / "out", "--path", track, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out" / "frame_00002.png").size == (64, 48)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no camera track"),
        ("[]", "is no camera track"),
        ('{"frames": 3}', "is no camera track"),
        ('{"frames": []}', "has no cameras"),
        ('{"frames": [{"position": [0, 0, 0], "target": [0, 0, 1]}]}', "has 1 camera "),
        ('{"frames": [{"position": [0, 0, 0], "target": [0, 0, 0]}]}', "are the same"),
        ('{"frames": [{"position": [0, 0], "target": [0, 0, 1]}]}', "position is not three numbers"),
        ('{"frames": [{"position": [0, 0, NaN], "target": [0, 0, 1]}]}', "position is not three numbers"),
        ('{"frames": [{"position": [0, 0, 0], "target": [0, 0, 1], "fov": 190}]}', "fov is 190"),
        ('{"frameRate": -1, "frames": []}', "frameRate is -1"),
    ],
)
def test_a_damaged_camera_track_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "track.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_track(tmp_path / "track.json", 32, 24)


def test_a_view_along_the_upward_axis_has_a_pose(tmp_path: Path) -> None:
    frame = {"position": [0, 0, 0], "target": [0, 5, 0]}
    (tmp_path / "track.json").write_text(json.dumps({"frames": [frame, frame]}), encoding="utf-8")
    assert all(np.isfinite(shot.world_to_camera).all() for shot in read_track(tmp_path / "track.json", 32, 24)[0])


def test_a_run_of_one_camera_has_no_path(own_run: Path, tmp_path: Path) -> None:
    cameras = json.loads((own_run / "cameras.json").read_text(encoding="utf-8"))
    (own_run / "cameras.json").write_text(json.dumps(cameras[:1]), encoding="utf-8")
    for path in ("auto", "orbit", "spiral", "interpolate"):
        done = gs_train_here("render", own_run, tmp_path / "out", "--path", path, *SMALL)
        assert done.returncode == 2 and "has 1 camera and a film needs 2" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--path", "circle"), "--path is circle: give one of auto, test"),
        (("--path", "none.json"), "none.json cannot be read"),
        (("--path", "test", "--seconds", "3"), "--seconds does not apply to --path test"),
        (("--seconds", "1e9"), "--seconds is 1e+09"),
        (("--fps", "0"), "--fps is 0"),
        (("--width", "4"), "--width is 4"),
    ],
)
def test_wrong_flags_end_in_one_sentence(tiny_run: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    done = gs_train_here("render", tiny_run, tmp_path / "out", *flags)
    assert done.returncode == 2 and message in done.stderr and not (tmp_path / "out").exists()


def test_targets_that_cannot_be_written_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "frame_00001.png").write_text("", encoding="utf-8")
    for name, message in (("a.avi", "neither .mp4"), ("file", "is a file"), ("frames", "already holds frame_")):
        done = gs_train_here("render", tiny_run, tmp_path / name)
        assert done.returncode == 2 and message in done.stderr


# ---- .mp4 ----


def coloured(count: int, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    for _ in range(count):
        yield np.full((height, width, 3), (200, 60, 30), np.uint8)


def test_a_film_has_its_frames_and_colours(tmp_path: Path) -> None:
    program, film = ffmpeg(), tmp_path / "a:b.mp4"
    write_mp4(film, coloured(6, 34, 24), ffmpeg=program, width=34, height=24, fps=12)
    described = subprocess.run([program, "-i", f"file:{film}"], capture_output=True, text=True, check=False).stderr
    assert "h264" in described and "34x24" in described and "12 fps" in described
    # ffmpeg names three tags only if they differ: matrix, primaries, transfer.
    assert "tv, bt709/bt709/iec61966-2-1" in described
    decoding = [program, "-loglevel", "error", "-i", f"file:{film}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(decoding, capture_output=True, check=True).stdout
    frames = np.frombuffer(decoded, np.uint8).reshape(6, 24, 34, 3)
    assert abs(frames.astype(int) - (200, 60, 30)).mean() < 3
    assert [file.name for file in tmp_path.iterdir()] == ["a:b.mp4"]


def test_the_command_writes_a_film(tiny_run: Path, tmp_path: Path) -> None:
    ffmpeg()
    done = gs_train_here("render", tiny_run, tmp_path / "film.mp4", "--fps", 4, "--seconds", 1, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "4 frames (1 s, 32x24)" in done.stdout and (tmp_path / "film.mp4").stat().st_size > 500


def test_a_failing_ffmpeg_is_quoted_and_leaves_nothing(tmp_path: Path) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('Unknown encoder libx264')\n", encoding="utf-8")
    program.chmod(0o755)
    with pytest.raises(UserError, match=r"ffmpeg failed \(Unknown encoder libx264\)"):
        write_mp4(tmp_path / "a.mp4", coloured(50, 640, 480), ffmpeg=str(program), width=640, height=480, fps=30)
    with pytest.raises(UserError, match="ffmpeg failed"):
        missing = str(tmp_path / "missing")
        write_mp4(tmp_path / "a.mp4", coloured(1, 32, 24), ffmpeg=missing, width=32, height=24, fps=30)
    assert [file.name for file in tmp_path.iterdir()] == ["ffmpeg"]


def test_a_missing_ffmpeg_is_named_with_the_remedy(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    done = gs_train_here("render", tiny_run, tmp_path / "film.mp4")
    assert done.returncode == 2
    assert "pip install imageio-ffmpeg" in done.stderr and "folder of PNG frames" in done.stderr
    monkeypatch.setattr(shutil, "which", lambda name: f"/somewhere/{name}")
    assert find_ffmpeg() == "/somewhere/ffmpeg"
