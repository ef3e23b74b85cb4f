"""``Camera``: the intrinsics of one camera, from the scene reader to the rasterizer.

The poses are in ``poses.py``. The meaning of the distortion parameters is in ``distortion.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Intrinsics and image size of a camera, a pinhole unless ``model`` and ``distortion`` say otherwise.

    Pixel centres lie at +0.5: the centre of the top left pixel is (0.5, 0.5). Instances are hashable.
    """

    width: int
    """Image width, px."""
    height: int
    """Image height, px."""
    fx: float
    """Focal length along x, px."""
    fy: float
    """Focal length along y, px."""
    cx: float
    """Principal point x, px."""
    cy: float
    """Principal point y, px."""
    model: str = "PINHOLE"
    """COLMAP's name of the camera model, a key of ``distortion.DISTORTION_TERMS``."""
    distortion: tuple[float, ...] = ()
    """The model's parameters after focal length and principal point, in COLMAP's order."""

    def is_fisheye(self) -> bool:
        """Whether the model measures the angle from the optical axis instead of the position on the image plane."""
        return self.model.endswith("FISHEYE")

    def is_pinhole(self) -> bool:
        """Whether straight lines stay straight, by the model or because every distortion parameter is 0."""
        return not self.is_fisheye() and not any(self.distortion)

    def pinhole_intrinsics(self) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy in px, for code that renders pinhole cameras only.

        Raises:
            ValueError: the camera is distorted, and a pinhole of the same focal length would show another image.
        """
        if not self.is_pinhole():
            raise ValueError(
                f"the camera has the distortion {self.distortion} ({self.model}), not a pinhole: undistort it first"
            )
        return self.fx, self.fy, self.cx, self.cy

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the same image resized to ``width`` x ``height`` px: intrinsics scale with each axis."""
        x, y = width / self.width, height / self.height
        return replace(self, width=width, height=height, fx=self.fx * x, fy=self.fy * y, cx=self.cx * x, cy=self.cy * y)

    def reduced(self, factor: int) -> Camera:
        """The camera of the image whose pixels each cover ``factor`` x ``factor`` pixels of this one.

        The last row and column may cover fewer pixels, so the size rounds up.
        """
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


def points_in_frame(
    camera: Camera, world_to_camera: NDArray[np.float64], xyz: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Points in the picture of a pinhole camera; occlusion does not count.

    Args:
        camera: its distortion is not applied.
        world_to_camera: [4, 4] pose.
        xyz: [N, 3] in the world.

    Returns:
        [N] each: whether the point lies in front of the camera and inside the picture, its row and its column in px
        (the middle of the first pixel is 0.5), and its depth in world units.
    """
    x, y, depth = world_to_camera[:3, :3] @ xyz.T + world_to_camera[:3, 3:]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        column, row = camera.fx * x / depth + camera.cx, camera.fy * y / depth + camera.cy
    inside = (depth > 0) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    return inside, row, column, depth
