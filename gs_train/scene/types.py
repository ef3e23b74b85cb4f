"""What a scene is: cameras, views, points. Plain frozen data, no behaviour beyond what follows from the fields.

Axes are OpenCV's (x right, y down, z forward) everywhere inside the project; readers convert. The invariant: ``View.camera`` describes
the image at the size it is trained at, whatever the size of the file on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

AlphaUse = Literal["composite", "mask", "ignore"]
"""What a photo's alpha is for, see ``--alpha``."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera. Pixel centres lie at +0.5: the top left pixel's centre is (0.5, 0.5)."""

    width: int
    """Image width in pixels."""
    height: int
    """Image height in pixels."""
    fx: float
    """Focal length along x, px."""
    fy: float
    """Focal length along y, px."""
    cx: float
    """Principal point x, px."""
    cy: float
    """Principal point y, px."""

    def reduced(self, factor: int) -> Camera:
        """The camera of the image whose pixels are ``factor`` x ``factor`` of this one's; the last row and column may be less."""
        if factor == 1:
            return self
        return replace(
            self,
            width=-(-self.width // factor),
            height=-(-self.height // factor),
            fx=self.fx / factor,
            fy=self.fy / factor,
            cx=self.cx / factor,
            cy=self.cy / factor,
        )


@dataclass(frozen=True, kw_only=True)
class Lens:
    """A camera as a reconstruction has it, with the distortion of its lens. What the numbers mean is in ``distortion.py``."""

    model: str
    """COLMAP's name of the camera model."""
    width: int
    """Width of the distorted image, px."""
    height: int
    """Height of the distorted image, px."""
    fx: float
    """Focal length along x, px."""
    fy: float
    """Focal length along y, px."""
    cx: float
    """Principal point x, px."""
    cy: float
    """Principal point y, px."""
    distortion: tuple[float, ...]
    """The model's parameters after focal length and principal point, in COLMAP's order."""

    def resized(self, width: int, height: int) -> Lens:
        """The lens of the same image at another size. With pixel centres at +0.5, resizing plainly scales each axis' intrinsics."""
        x, y = width / self.width, height / self.height
        return replace(self, width=width, height=height, fx=self.fx * x, fy=self.fy * y, cx=self.cx * x, cy=self.cy * y)


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One photo: where its file is, the camera it is trained with, and where that camera stood."""

    name: str
    """Image name as the scene gives it, with ``/`` between folders."""
    image_path: Path
    """The file to decode. Its size may differ from the camera's: it is resized when decoded."""
    camera: Camera
    """Intrinsics at training size."""
    world_to_camera: NDArray[np.float64]
    """[4, 4] rigid transform, world -> OpenCV camera."""
    point_ids: NDArray[np.int64] | None = None
    """Ids of the points that were matched in it, and others that mean nothing; None where the scene does not say."""
    mask_path: Path | None = None
    """The mask, whose black pixels do not count. Its size may differ from the photo's, not its shape."""
    alpha: AlphaUse = "composite"
    """What to make of the photo's alpha, where it has any."""
    lens: Lens | None = None
    """What the photo in the file was taken through, where it has to be undistorted to become ``camera``'s; at about the training size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PointCloud:
    """Sparse points to start from; may be empty."""

    xyz: NDArray[np.float64]
    """[P, 3] world units."""
    rgb: NDArray[np.uint8]
    """[P, 3]."""
    ids: NDArray[np.int64] | None = None
    """[P] by which views name the points they see; None where they name none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Everything known before training starts."""

    path: Path
    """The scene folder, or the file in it that was named as the scene."""
    train_views: tuple[View, ...]
    """Views to train on, sorted by name."""
    test_views: tuple[View, ...]
    """Views held out, sorted by name; may be empty."""
    points: PointCloud
    """Sparse points, finite."""
    extent: float
    """1.1 x the largest distance of a training camera's centre from their mean, world units (original: cameras_extent)."""
    notices: tuple[str, ...] = ()
    """Sentences the user should hear: points dropped, photos skipped, and the like."""
