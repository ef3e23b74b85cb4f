"""``Reconstruction``: cameras, poses and points as a scene file holds them, the result of every reader.

``load.py`` turns it into a ``Scene``: it finds the photos on disk, sets the training size and splits the views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import Camera
from gs_train.errors import UserError
from gs_train.scene.types import PointCloud

LARGEST_SIDE_PX = 1_000_000
"""Readers refuse larger images."""

LARGEST_IN_POSE = 1e18
"""Readers refuse larger numbers in a pose. The square of this one fits float32. NaN fails the comparison too."""

NO_POINTS = PointCloud(xyz=np.empty((0, 3)), rgb=np.empty((0, 3), np.uint8))
"""The points of a scene without points."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RegisteredImage:
    """One image with a known pose."""

    name: str
    """Path with ``/`` between folders, inside the images folder, or the scene folder with ``names_from_scene``. Bytes
    that are not UTF-8 are surrogates (``surrogateescape``)."""
    camera_id: int
    """A key of ``Reconstruction.cameras``."""
    world_to_camera: NDArray[np.float64]
    """[4, 4] rigid, OpenCV axes."""
    point_ids: NDArray[np.int64] | None = None
    """[K] ids of the points matched in this image, also -1 and ids of no point; None if the format lists none."""
    file: Path | None = None
    """With ``names_from_scene``, the photo; None if it is missing."""
    mask: Path | None = None
    """The mask, which may be missing; None if the scene file names none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """All that a reader found, checked, except that points may still hold NaN or infinity."""

    cameras_path: Path
    """The file that lists the cameras, for messages."""
    images_path: Path
    """The file that lists the images, for messages."""
    cameras: dict[int, Camera]
    """Cameras of the photos, with distortion, by camera id."""
    images: tuple[RegisteredImage, ...]
    """In the file's order."""
    points: PointCloud
    """Empty if there is no file of points."""
    names_from_scene: bool = False
    """Image names are paths inside the scene folder, so the scene has no images folder."""
    test_names: frozenset[str] | None = None
    """Names of the images to hold out; None if the scene has no split."""
    notices: tuple[str, ...] = ()
    """Sentences for the user."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundModel:
    """Cameras and poses that a reader has found in a scene folder, before it reads them.

    A scene may hold several models. ``choose.py`` takes the one that registers the most photos.
    """

    path: Path
    """The file, or the folder of the files."""
    read: Callable[[], Reconstruction]
    """Read all of it. A damaged file raises UserError."""
    names: Callable[[], list[str]]
    """Read the image names alone, fast. A damaged file gives fewer names, or raises UserError."""


def fits_image(width: float, height: float) -> bool:
    """Whether a size in px is positive, whole and within ``LARGEST_SIDE_PX``."""
    return all(0 < side <= LARGEST_SIDE_PX and side == int(side) for side in (width, height))


def read_bytes(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions and the disk.") from error
