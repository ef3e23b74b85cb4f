"""Writes the frames of a film, one at a time: as .mp4 through a process of ffmpeg, or as PNG files."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gs_train.atomic_write import atomic_write
from gs_train.errors import UserError

# setparams, because ffmpeg takes the tags of the frames before the options of the encoder.
_FILTERS = ",".join((
    "pad=ceil(iw/2)*2:ceil(ih/2)*2",
    "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int",
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=iec61966-2-1:range=tv",
))  # fmt: skip
_ENCODER = "-c:v libx264 -preset medium -crf 18 -pix_fmt yuv420p -movflags +faststart".split()
# Without these tags, players guess the conversion to RGB.
_COLOURS = "-colorspace bt709 -color_primaries bt709 -color_trc iec61966-2-1 -color_range tv".split()
_AS_FRAMES = "or give a name without an ending, for a folder of PNG frames"


def find_ffmpeg() -> str:
    """The program ffmpeg: that of imageio-ffmpeg, or else the one on the PATH.

    Raises:
        UserError: there is none.
    """
    try:
        return str(import_module("imageio_ffmpeg").get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
    if found is None:
        raise UserError(f"an .mp4 file needs ffmpeg: install it with pip install imageio-ffmpeg, {_AS_FRAMES}.")
    return found


def write_mp4(
    path: Path, frames: Iterable[NDArray[np.uint8]], *, ffmpeg: str, width: int, height: int, fps: float
) -> None:
    """Create or replace an .mp4 file: H.264, BT.709.

    Args:
        path: the file. A missing folder is created.
        frames: [height, width, 3] RGB each.
        ffmpeg: the program, from ``find_ffmpeg``.
        width: px.
        height: px.
        fps: frames per second.

    Raises:
        UserError: ffmpeg fails, or the file cannot be written.
    """
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    start = [ffmpeg, "-y", "-nostats", "-loglevel", "error", *source, "-vf", _FILTERS, *_ENCODER, *_COLOURS]

    def write(file: BinaryIO) -> None:
        # A name with a colon would be a protocol to ffmpeg.
        fault = _encode([*start, "-f", "mp4", f"file:{os.path.abspath(file.name)}"], frames)
        if fault is not None:
            raise UserError(f"{path} cannot be written, because ffmpeg failed ({fault}): repair it, {_AS_FRAMES}.")

    try:
        atomic_write(path, write)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_frames(folder: Path, frames: Iterable[NDArray[np.uint8]]) -> None:
    """Write frames as frame_00001.png and so on.

    Args:
        folder: created if it is missing.
        frames: [height, width, 3] RGB each.

    Raises:
        UserError: a file cannot be written.
    """
    for _ in also_written(folder, frames):
        pass


def also_written(folder: Path, frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Pass frames on, each after it is written as by ``write_frames``."""
    for number, frame in enumerate(frames, start=1):
        _write_image(folder / f"frame_{number:05d}.png", Image.fromarray(frame), "png")
        yield frame


def depth_writer(folder: Path) -> Callable[[NDArray[np.float32]], None]:
    """A function that writes depth maps [height, width] as depth_00001.tif and so on: 32-bit floats of one channel.

    Args:
        folder: created if it is missing.

    Returns:
        The function; it raises UserError if a file cannot be written.
    """
    numbers = count(1)

    def write(depth: NDArray[np.float32]) -> None:
        _write_image(folder / f"depth_{next(numbers):05d}.tif", Image.fromarray(depth), "tiff")

    return write


def check_folder(folder: Path, pattern: str) -> None:
    """Raise UserError if a folder for frames is a file, or holds files of that pattern already."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a new folder.")
    if any(folder.glob(pattern)):
        raise UserError(f"{folder} already holds {pattern}: remove them or name another folder.")


def _write_image(path: Path, image: Image.Image, form: str) -> None:
    try:
        atomic_write(path, partial(image.save, format=form))
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _encode(command: list[str], frames: Iterable[NDArray[np.uint8]]) -> str | None:
    """Run ffmpeg on the frames; returns the reason if it fails."""
    broken = False
    with tempfile.TemporaryFile() as messages:
        # A file, because ffmpeg would wait for a reader of a full pipe.
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages)
        except OSError as error:
            return error.strerror or str(error)
        assert process.stdin is not None
        try:
            for frame in frames:
                try:
                    process.stdin.write(np.ascontiguousarray(frame).data)
                except OSError:
                    broken = True
                    break
            with suppress(OSError):
                process.stdin.close()
            code = process.wait()
        except BaseException:
            process.kill()
            with suppress(OSError):
                process.stdin.close()
            process.wait()
            raise
        messages.seek(0)
        lines = messages.read().decode("utf-8", "replace").strip().splitlines()
    if code == 0 and not broken:
        return None
    return lines[-1].strip().rstrip(".") if lines else f"exit code {code}"


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written ({error.strerror or error}): free space or choose another place.")
