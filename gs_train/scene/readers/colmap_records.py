"""Checked records of a COLMAP model, shared by the binary and the text format.

The argument ``where`` is "<file>, byte N" or "<file>, line N", for messages.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import Camera
from gs_train.cameras.distortion import DISTORTION_TERMS
from gs_train.cameras.poses import quaternion_to_rotation
from gs_train.errors import UserError
from gs_train.scene.readers.reconstruction import LARGEST_IN_POSE, RegisteredImage, fits_image

_ONE_FOCAL_LENGTH = {"SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"}

CAMERA_MODELS: dict[int, tuple[str, int]] = {
    number: (name, (3 if name in _ONE_FOCAL_LENGTH else 4) + len(terms.split()))
    for number, (name, terms) in enumerate(DISTORTION_TERMS.items())
}
"""COLMAP's model id -> (name, number of parameters)."""

PARAMETER_COUNTS = dict(CAMERA_MODELS.values())
"""Model name -> number of parameters."""

KNOWN_MODELS = ", ".join(PARAMETER_COUNTS)
"""For messages."""

AGAIN = "export the model again or copy it again"
"""The remedy for a damaged model, for messages."""


def make_camera(where: str, model: str, width: int, height: int, params: tuple[float, ...]) -> Camera:
    """A camera from COLMAP's parameters: focal length(s), principal point, distortion.

    Raises:
        UserError: the size or a parameter is out of range.
    """
    if not fits_image(width, height):
        raise UserError(f"{where}: invalid image size {width}x{height}: {AGAIN}.")
    fx, fy = params[0], params[0 if model in _ONE_FOCAL_LENGTH else 1]
    cx, cy, *distortion = params[1 if model in _ONE_FOCAL_LENGTH else 2 :]
    if not all(math.isfinite(value) for value in params) or fx <= 0 or fy <= 0:
        expected = "finite numbers and a positive focal length"
        raise UserError(f"{where}: the camera has the parameters {params}, not {expected}: {AGAIN}.")
    return Camera(width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy, model=model, distortion=tuple(distortion))


def make_image(
    where: str,
    wxyz: tuple[float, ...],
    translation: tuple[float, ...],
    camera_id: int,
    name: str,
    point_ids: NDArray[np.int64],
) -> RegisteredImage:
    """An image from COLMAP's pose: world-to-camera quaternion of any length, and translation.

    Raises:
        UserError: the name leads out of the images folder, or the pose is not a rotation and a position.
    """
    parts = re.split(r"[/\\]", name)
    if not name or ".." in parts or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
        raise UserError(f"{where}: the image name {name!r} leads out of the images folder: rename it in the model.")
    norm = math.hypot(*wxyz)
    if not 1 / LARGEST_IN_POSE <= norm <= LARGEST_IN_POSE or not all(
        abs(component) <= LARGEST_IN_POSE for component in translation
    ):
        pose = f"the pose of image {name!r} is not a rotation and a position"
        raise UserError(f"{where}: {pose} (quaternion {wxyz}, translation {translation}): {AGAIN}.")
    w, x, y, z = (component / norm for component in wxyz)
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = quaternion_to_rotation((w, x, y, z))
    world_to_camera[:3, 3] = translation
    return RegisteredImage(name=name, camera_id=camera_id, world_to_camera=world_to_camera, point_ids=point_ids)
