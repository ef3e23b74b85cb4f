"""Checked records of a COLMAP model, shared by the binary and the text format.

The argument ``where`` is "<file> (byte N)" or "<file> (line N)", for messages.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import Camera
from gs_train.cameras.distortion import DISTORTION_TERMS
from gs_train.cameras.poses import quaternion_to_rotation
from gs_train.errors import UserError
from gs_train.scene.readers.reconstruction import LARGEST_IN_POSE, RegisteredImage, fits_image

_SIMPLE_FISHEYE, _FISHEYE = "SIMPLE_FISHEYE", "FISHEYE"
"""Models of COLMAP 4 that equal OPENCV_FISHEYE with coefficients of 0."""
_ONE_FOCAL_LENGTH = {
    *("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"),
    _SIMPLE_FISHEYE,
}

CAMERA_MODELS: dict[int, tuple[str, int]] = {
    number: (name, (3 if name in _ONE_FOCAL_LENGTH else 4) + len(terms.split()))
    for number, (name, terms) in enumerate(DISTORTION_TERMS.items())
} | {14: (_SIMPLE_FISHEYE, 3), 15: (_FISHEYE, 4)}
"""COLMAP's model id -> (name, number of parameters)."""

PARAMETER_COUNTS = dict(CAMERA_MODELS.values())
"""Model name -> number of parameters."""

_PANORAMA = ("EQUIRECTANGULAR", 17)
"""COLMAP's name and id of cameras that see all around, which no perspective photo can replace."""

AGAIN = "export the model again or copy it again"
"""The remedy for a damaged model, for messages."""


def unknown_model(where: str, folder: Path, model: str | int) -> UserError:
    """The error for a camera model (name or id) that is not among ``CAMERA_MODELS``.

    COLMAP 4 has the models 12, 13, 16 and 17 besides. Its undistorter turns all but panoramas (17) into PINHOLE.
    """
    if model in _PANORAMA:
        remedy = "cut the panoramas into perspective photos and run the reconstruction of these"
    else:
        undistort = "colmap image_undistorter --image_path PHOTOS --output_path NEW_SCENE --input_path"
        undistorted = f"undistort the photos with `{undistort} {shlex.quote(str(folder))}` and train NEW_SCENE"
        remedy = f"{undistorted}, or run the reconstruction again with the camera model OPENCV"
    return UserError(f"{where} has the camera model {model}, which gs_train does not know: {remedy}.")


def make_camera(where: str, model: str, width: int, height: int, params: tuple[float, ...]) -> Camera:
    """A camera from COLMAP's parameters: focal length(s), principal point, distortion.

    Raises:
        UserError: the size or a parameter is out of range.
    """
    if not fits_image(width, height):
        raise UserError(f"{where} has the invalid image size {width}x{height}: {AGAIN}.")
    fx, fy = params[0], params[0 if model in _ONE_FOCAL_LENGTH else 1]
    cx, cy, *distortion = params[1 if model in _ONE_FOCAL_LENGTH else 2 :]
    if not all(math.isfinite(value) for value in params) or fx <= 0 or fy <= 0:
        expected = "finite numbers and a positive focal length"
        raise UserError(f"{where} has a camera with the parameters {params}, not {expected}: {AGAIN}.")
    if model in (_SIMPLE_FISHEYE, _FISHEYE):
        model, distortion = "OPENCV_FISHEYE", [0.0] * 4
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
        UserError: the name is empty, or the pose is not a rotation and a position.
    """
    if not name:
        raise UserError(f"{where} has an image without a name: {AGAIN}.")
    norm = math.hypot(*wxyz)
    if not 1 / LARGEST_IN_POSE <= norm <= LARGEST_IN_POSE or not all(
        abs(component) <= LARGEST_IN_POSE for component in translation
    ):
        numbers = f"quaternion {wxyz}, translation {translation}"
        raise UserError(
            f"{where} has a pose of image {name!r} that is not a rotation and a position ({numbers}): {AGAIN}."
        )
    w, x, y, z = (component / norm for component in wxyz)
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = quaternion_to_rotation((w, x, y, z))
    world_to_camera[:3, 3] = translation
    return RegisteredImage(name=name, camera_id=camera_id, world_to_camera=world_to_camera, point_ids=point_ids)
