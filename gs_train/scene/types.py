"""The data of a scene: views, sparse points, and the scene itself.

Axes are OpenCV's (x right, y down, z forward) everywhere inside the project; readers convert. ``View.camera`` describes
the image at its training size, independent of the size of the file on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import Camera

AlphaUse = Literal["composite", "mask", "ignore"]
"""How training uses the alpha channel of photos, see ``SceneConfig.alpha``."""


@dataclass(frozen=True, kw_only=True)
class Mask:
    """The mask of one photo: an image whose black pixels hide the photo's."""

    path: Path
    """The file. It has the photo's aspect ratio, but its size may differ."""
    in_alpha: bool = False
    """Whether the alpha channel holds the mask, and transparent pixels are black."""
    inverted: bool = False
    """Whether white pixels hide the photo's instead of black pixels."""
    orientation: int = 1
    """EXIF orientation that turns the mask like the photo."""
    hidden: float = 0.0
    """Share of the photo that the mask hides, 0 to 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One photo: its file, its camera and its pose."""

    name: str
    """Image name as the scene gives it, with ``/`` between folders."""
    image_path: Path
    """The file to decode. Decoding resizes it to the camera's size."""
    camera: Camera
    """The pinhole camera at training size."""
    world_to_camera: NDArray[np.float64]
    """[4, 4] rigid transform, world -> OpenCV camera."""
    point_ids: NDArray[np.int64] | None = None
    """[K] ids of the points matched in this photo, also ids of no point; None if the scene lists none."""
    orientation: int = 1
    """EXIF orientation, 1 to 8, to apply to the stored pixels; 1 leaves them as they are."""
    white: float = 65535.0
    """The value that becomes white in a photo with one channel of more than 8 bits."""
    mask: Mask | None = None
    """The mask, whose hidden pixels do not count; None if the whole photo counts."""
    alpha: AlphaUse = "composite"
    """How to use the photo's alpha channel, if it has one."""
    distorted_camera: Camera | None = None
    """The camera of the photo in the file, at about the training size; None if the photo needs no undistortion."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PointCloud:
    """Sparse points to start from; may be empty."""

    xyz: NDArray[np.float64]
    """[P, 3] world units."""
    rgb: NDArray[np.uint8]
    """[P, 3]."""
    ids: NDArray[np.int64] | None = None
    """[P] ids that ``View.point_ids`` refers to; None if the scene has none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """All that is known before training starts."""

    path: Path
    """The scene folder or transforms file that the user named."""
    train_views: tuple[View, ...]
    """Views to train on, sorted by name."""
    test_views: tuple[View, ...]
    """Held-out views, sorted by name; may be empty."""
    points: PointCloud
    """Sparse points, finite."""
    extent: float
    """1.1 x the largest distance of a training camera from their mean, world units (original: cameras_extent)."""
    notices: tuple[str, ...] = ()
    """Sentences for the user, for example about dropped points or skipped photos."""
