"""``gs-train prepare`` with the real pycolmap on real photos: slow, and skipped without pycolmap or the photos."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from command_line import ROOT, environment, gs_train
from PIL import Image, ImageFilter

from gs_train.cameras.poses import camera_centre
from gs_train.prepare.photos import extract_frames
from gs_train.scene.readers.colmap import read_model
from gs_train.scene.readers.reconstruction import Reconstruction

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("pycolmap") is None, reason="pycolmap is not installed: pip install pycolmap"),
]
video = pytest.mark.skipif(
    find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed: pip install imageio-ffmpeg"
)


def prepare(*arguments: object) -> CompletedProcess[str]:
    """Run the command with the same packages as these tests, even if PYTHONPATH provides them."""
    homes = {
        str(Path(spec.origin).parents[1])
        for name in ("pycolmap", "imageio_ffmpeg")
        if (spec := find_spec(name)) and spec.origin
    }
    return gs_train(
        "prepare",
        *arguments,
        env={**environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), *sorted(homes)])},
        timeout=900,
    )


def centres(model: Reconstruction) -> dict[str, np.ndarray]:
    """[3] camera centres by photo name."""
    return {image.name: camera_centre(image.world_to_camera) for image in model.images}


def misfit(found: np.ndarray, known: np.ndarray) -> float:
    """Largest distance between positions [n, 3] after a similarity fit, relative to the size of ``known``."""
    one, other = found - found.mean(axis=0), known - known.mean(axis=0)
    u, sizes, vt = np.linalg.svd(one.T @ other)
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    scale = (sizes * [1, 1, np.sign(np.linalg.det(u @ vt))]).sum() / (one**2).sum()
    return float(np.linalg.norm(scale * one @ turn - other, axis=1).max() / np.linalg.norm(other, axis=1).max())


def test_photos_give_the_poses_that_are_known(shared_scenes: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    done = prepare(shared_scenes / "llff_fern" / "images", scene)
    assert done.returncode == 0, done.stderr
    agreeing = re.search(r"(\d+)% of the matches agree", done.stdout)
    assert agreeing is not None and int(agreeing[1]) >= 90
    model = read_model(scene / "sparse" / "0")
    assert len(model.images) >= 18
    assert len(model.cameras) == 1 and model.cameras[1].model == "SIMPLE_RADIAL"
    assert len(model.points.xyz) > 1000
    known, found = centres(read_model(shared_scenes / "llff_fern" / "sparse" / "0")), centres(model)
    names = sorted(found)
    assert misfit(np.array([found[name] for name in names]), np.array([known[name] for name in names])) < 0.05
    # Upright, around the origin, with an extent of 5.
    down = np.mean([image.world_to_camera[1, :3] for image in model.images], axis=0)
    np.testing.assert_allclose(down / np.linalg.norm(down), (0.0, 1.0, 0.0), atol=1e-6)
    positions = np.array(list(found.values()))
    assert np.abs(positions.mean(axis=0)).max() < 1e-6
    assert 1.1 * np.linalg.norm(positions, axis=1).max() == pytest.approx(5.0)


def test_photos_on_their_side_become_upright_and_share_a_camera(shared_scenes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "my photos"
    photos.mkdir()
    for index, file in enumerate(sorted((shared_scenes / "llff_fern" / "images").iterdir())[:12]):
        exif = Image.Exif()
        exif[0x0112] = 6 if index % 2 else 1
        exif.get_ifd(0x8769)[0xA405] = 28
        with Image.open(file) as image:
            turned = image.transpose(Image.Transpose.ROTATE_90) if index % 2 else image
            turned.save(photos / f"photo {index}.{'webp' if index == 4 else 'jpg'}", quality=95, exif=exif)
    done = prepare(photos, tmp_path / "scene")
    assert done.returncode == 0, done.stderr
    model = read_model(tmp_path / "scene" / "sparse" / "0")
    assert len(model.cameras) == 1
    assert (model.cameras[1].width, model.cameras[1].height) == (504, 378)
    assert len(model.images) >= 11


def test_copies_of_one_photo_stop_with_a_sentence(shared_scenes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(10):
        shutil.copy(shared_scenes / "llff_fern" / "images" / "IMG_4026.JPG", photos / f"{index}.jpg")
    done = prepare(photos, tmp_path / "scene")
    assert done.returncode == 2, done.stdout
    assert "COLMAP found no camera poses for the 10 photos" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_photos_of_nothing_stop_with_a_sentence(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        Image.new("RGB", (80, 60), (90 * index, 90, 90)).save(photos / f"{index}.png")
    done = prepare(photos, tmp_path / "scene")
    assert done.returncode == 2, done.stdout
    assert "no two of the 3 photos" in done.stderr.splitlines()[-1]


@video
def test_a_video_gives_its_sharp_frames_and_a_scene(shared_scenes: Path, tmp_path: Path) -> None:
    import imageio_ffmpeg

    source, scene = tmp_path / "fox.mp4", tmp_path / "scene"
    photos = sorted((shared_scenes / "fox_colmap" / "images").iterdir())[:24]
    writer = imageio_ffmpeg.write_frames(str(source), (360, 640), fps=5, quality=9, macro_block_size=2)
    writer.send(None)
    for photo in photos:
        with Image.open(photo) as image:
            sharp = image.convert("RGB").resize((360, 640))
        blurred = sharp.filter(ImageFilter.GaussianBlur(3))
        for frame in (blurred, sharp, blurred):
            writer.send(np.ascontiguousarray(np.asarray(frame)))
    writer.close()
    done = prepare(source, scene, "--frames", len(photos))
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(scene / "images")) == [f"frame_{3 * index + 1:05d}.jpg" for index in range(len(photos))]
    model = read_model(scene / "sparse" / "0")
    assert len(model.cameras) == 1
    assert len(model.images) >= 0.9 * len(photos)


@video
def test_a_video_with_an_orientation_becomes_upright(tmp_path: Path) -> None:
    import imageio_ffmpeg

    lying, held, target = tmp_path / "lying.mp4", tmp_path / "held.mp4", tmp_path / "frames"
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32], picture[:24, 32:], picture[24:, :32] = (220, 30, 30), (30, 200, 30), (30, 30, 220)
    writer = imageio_ffmpeg.write_frames(str(lying), (64, 48), fps=5, macro_block_size=2)
    writer.send(None)
    for _ in range(6):
        writer.send(picture)
    writer.close()
    turn = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90", "-i", lying, "-c", "copy", held]
    subprocess.run(turn, check=True)
    target.mkdir()
    extract_frames(held, target, 3, lambda done, total: None)
    assert len(os.listdir(target)) == 3
    for file in target.iterdir():
        with Image.open(file) as image:
            found = np.asarray(image, int)
        # The flag asks players for a counterclockwise turn of 90 degrees.
        expected = np.rot90(picture)
        assert found.shape == expected.shape == (64, 48, 3)
        assert np.abs(found - expected).mean() < 10
        assert np.abs(found - np.rot90(picture, -1)).mean() > 50
