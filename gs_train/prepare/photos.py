"""The photos of a new scene: upright copies of a user's photos, or the sharpest frames of a video.

A file under its final name is complete, readable by Pillow and by COLMAP, and stored upright.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gs_train.errors import UserError
from gs_train.scene.photos.files import HEIC_SUFFIXES, opened, read_header
from gs_train.scene.photos.threads import for_each

PHOTO_SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .mpo .png .tif .tiff .bmp .ppm .webp .avif .jp2".split())
"""Lower-case file endings of photos. ``HEIC_SUFFIXES`` count as well if pillow-heif is installed."""

_COLMAP_READS = frozenset(("JPEG", "MPO", "PNG", "TIFF", "BMP", "PPM"))
_COLMAP_CANNOT_READ = frozenset((".webp", ".avif", ".jp2"))
_STORED_AS_JPEG = frozenset(("JPEG", "MPO", "HEIF"))
_PNG_MODES = frozenset(("1", "L", "LA", "RGB", "RGBA", "P", "I;16"))
_JPEG_QUALITY = 97
_MAKE, _MODEL, _EXIF_FOLDER = 0x010F, 0x0110, 0x8769
_FOCAL_LENGTH, _FOCAL_LENGTH_35_MM = 0x920A, 0xA405
_HASHED_BYTES = 1 << 16
_IF_DAMAGED, _IF_HUGE = "copy the photo again, or remove it from the folder", "replace it by a smaller copy"
# Motion blur is visible at this size, but sensor noise, which would count as sharpness, hardly is.
_SHARPNESS_SIDE_PX = 960


def list_photos(folder: Path) -> tuple[list[Path], list[Path]]:
    """The photos in ``folder`` and its sub-folders by name, and all other files, both without hidden files."""
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    endings = PHOTO_SUFFIXES | HEIC_SUFFIXES if find_spec("pillow_heif") else PHOTO_SUFFIXES
    photos = [file for file in files if file.suffix.lower() in endings]
    return photos, [file for file in files if file.suffix.lower() not in endings]


def fingerprint(files: Sequence[Path], folder: Path) -> str:
    """A hash that identifies a set of files: names inside ``folder``, sizes, and the first and last 64 KiB of each."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            digest.update(file.read(_HASHED_BYTES))
            file.seek(max(0, size - _HASHED_BYTES))
            digest.update(file.read(_HASHED_BYTES))
    return digest.hexdigest()


def stored_names(photos: Sequence[Path], folder: Path) -> list[str]:
    """The name of each photo inside the scene.

    White space and ``#``, which COLMAP's list of pairs cannot hold, become ``_``, and so do bytes that are not UTF-8,
    which Python reads as lone surrogates. Names stay distinct.
    """
    names: list[str] = []
    taken: set[str] = set()
    for photo in photos:
        name = re.sub(r"[\s#\ud800-\udfff]+", "_", photo.relative_to(folder).as_posix())
        if photo.suffix.lower() in _COLMAP_CANNOT_READ:
            name += ".png"
        elif photo.suffix.lower() in HEIC_SUFFIXES:
            name += ".jpg"
        stem, dot, suffix = name.rpartition(".")
        number = 2
        # In lower case, because some file systems treat IMG.jpg and img.jpg as the same file.
        while name.lower() in taken:
            name, number = f"{stem}_{number}{dot}{suffix}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names


def copy_photos(photos: Sequence[Path], targets: Sequence[Path], progress: Callable[[int], None]) -> None:
    """Copy each photo to its target, upright. Existing targets stay.

    Raises:
        UserError: a photo cannot be decoded or has more than 500 megapixels; the message names the first one.
    """
    copies = for_each(lambda each: _copy_upright(*each), list(zip(photos, targets, strict=True)))
    for done, _ in enumerate(copies, start=1):
        progress(done)


def camera_groups(folder: Path, names: Sequence[str]) -> list[list[str]]:
    """Group ``names`` by camera: equal image size and, from EXIF, equal make, model and focal length."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name in names:
        with opened(folder / name) as image:
            exif = image.getexif()
            inner = exif.get_ifd(_EXIF_FOLDER)
            lens = (exif.get(_MAKE), exif.get(_MODEL), inner.get(_FOCAL_LENGTH), inner.get(_FOCAL_LENGTH_35_MM))
            groups.setdefault((image.size, *map(str, lens)), []).append(name)
    return list(groups.values())


def _copy_upright(photo: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    image = _decoded(photo)
    # The header has the orientation of the stored pixels, also of a TIFF file, which Pillow turns when it decodes it.
    if image.format in _COLMAP_READS and read_header(photo).orientation == 1:
        shutil.copyfile(photo, partial)
    else:
        _save(ImageOps.exif_transpose(image), partial, "JPEG" if image.format in _STORED_AS_JPEG else "PNG")
    partial.replace(target)


def _decoded(photo: Path) -> Image.Image:
    with opened(photo, if_damaged=_IF_DAMAGED, if_huge=_IF_HUGE) as image:
        image.load()
        return image


def _save(image: Image.Image, path: Path, file_format: str) -> None:
    """Write an image with its EXIF data, which holds the focal length. The image is upright already."""
    extra = {"icc_profile": image.info.get("icc_profile"), "exif": image.getexif()}
    if file_format == "JPEG":
        image.save(path, file_format, quality=_JPEG_QUALITY, subsampling=0, **extra)
    else:
        (image if image.mode in _PNG_MODES else image.convert("RGB")).save(path, file_format, **extra)


# ---- video


def extract_frames(video: Path, folder: Path, wanted: int, progress: Callable[[int, int], None]) -> None:
    """Write the sharpest frame of each of ``wanted`` equal parts of the video as ``frame_NNNNN.jpg``.

    N is the number of the frame in the video, from 0.

    Args:
        video: a file that ffmpeg reads. Its first video stream is used, turned upright if the file gives an
            orientation.
        folder: an existing folder for the frames.
        wanted: number of frames; a shorter video gives all of its frames.
        progress: called with the number of frames read and their total.

    Raises:
        UserError: ffmpeg cannot read the file, or reads no frame.
    """
    ffmpeg: Any = import_module("imageio_ffmpeg")
    # It warns about a video that it turns upright, which is intended.
    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
    try:
        total = int(ffmpeg.count_frames_and_secs(str(video))[0] or 0)
        chosen = choose_sharpest(_frames(ffmpeg, video, lambda read: progress(min(read, total), total)), total, wanted)
        found = False
        for index, frame in chosen:
            found = True
            Image.fromarray(frame).save(folder / f"frame_{index:05d}.jpg", quality=_JPEG_QUALITY, subsampling=0)
    except (RuntimeError, IndexError) as error:
        raise _unreadable(video, error) from error
    except OSError as error:
        # An error from ffmpeg has no error number, an error from the disk has one.
        if error.errno is not None:
            raise
        raise _unreadable(video, error) from error
    if not found:
        raise UserError(
            f"{video} has no frames that ffmpeg can decode: give an intact video file, or a folder of photos."
        )


def choose_sharpest(
    frames: Iterable[NDArray[np.uint8]], total: int, wanted: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(index, frame) of the sharpest frame in each of ``wanted`` equal parts of ``frames``. Holds two frames at a time.

    Args:
        frames: [H, W, 3] uint8 each.
        total: approximate number of frames. Frames beyond it belong to the last part.
        wanted: number of parts, limited to ``total``.
    """
    parts = max(1, min(wanted, total))
    current, best = 0, -1.0
    kept: tuple[int, NDArray[np.uint8]] | None = None
    for index, frame in enumerate(frames):
        part = min(index * parts // max(1, total), parts - 1)
        if part != current:
            if kept is not None:
                yield kept
            current, best, kept = part, -1.0, None
        score = sharpness(frame)
        if score > best:
            best, kept = score, (index, frame)
    if kept is not None:
        yield kept


def sharpness(frame: NDArray[np.uint8]) -> float:
    """Sharpness of an image [H, W, 3]: variance of the Laplacian of its green channel, reduced to about 960 px.

    Scores are comparable only between frames of one video.
    """
    green = frame[..., 1]
    step = max(1, max(green.shape) // _SHARPNESS_SIDE_PX)
    height, width = (side // step for side in green.shape)
    blocks = green[: height * step, : width * step].reshape(height, step, width, step)
    grey = blocks.mean(axis=(1, 3), dtype=np.float32)
    inner = grey[1:-1, 1:-1]
    return float((grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner).var())


def _frames(ffmpeg: Any, video: Path, after_frame: Callable[[int], None]) -> Iterator[NDArray[np.uint8]]:
    stream = ffmpeg.read_frames(str(video))
    # Closing the stream ends ffmpeg's process, also after an exception.
    try:
        width, height = next(stream)["size"]
        for read, data in enumerate(stream, start=1):
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
            after_frame(read)
    finally:
        stream.close()


def _unreadable(video: Path, error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1].removeprefix(f"{video}: ").rstrip(".") if lines else type(error).__name__
    return UserError(
        f"{video} cannot be read as a video ({reason}): give a file that ffmpeg plays, or a folder of photos."
    )
