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

_COLMAP_4 = {
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
}
"""Models of COLMAP 4, which only ``make_camera`` knows.

COLMAP's undistorter leaves cameras without distortion as they are, so these are read: the fisheye models equal
OPENCV_FISHEYE with coefficients of 0, the others are pinhole cameras if their first distortion parameter is 0.
"""
_ONE_FOCAL_LENGTH = {
    *("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"),
    *("SIMPLE_DIVISION", "SIMPLE_FISHEYE"),
}

CAMERA_MODELS: dict[int, tuple[str, int]] = {
    number: (name, (3 if name in _ONE_FOCAL_LENGTH else 4) + len(terms.split()))
    for number, (name, terms) in enumerate(DISTORTION_TERMS.items())
} | _COLMAP_4
"""COLMAP's model id -> (name, number of parameters)."""

PARAMETER_COUNTS = dict(CAMERA_MODELS.values())
"""Model name -> number of parameters."""

_PANORAMA = ("EQUIRECTANGULAR", 17)
"""COLMAP's name and id of cameras that see all around, which no perspective photo can replace."""

AGAIN = "export the model again or copy it again"
"""The remedy for a damaged model, for messages."""


def unknown_model(where: str, folder: Path, model: str | int) -> UserError:
    """The error for a camera model (name or id) that training cannot use.

    COLMAP's undistorter turns every model but panoramas into PINHOLE.
    """
    if model in _PANORAMA:
        remedy = "cut the panoramas into perspective photos and run the reconstruction of these"
    else:
        undistort = "colmap image_undistorter --image_path PHOTOS --output_path NEW_SCENE --input_path"
        undistorted = f"undistort the photos with `{undistort} {shlex.quote(str(folder))}` and train NEW_SCENE"
        remedy = f"{undistorted}, or run the reconstruction again with the camera model OPENCV"
    return UserError(f"{where} has the camera model {model}, which gs_train does not know: {remedy}.")


def make_camera(where: str, folder: Path, model: str, width: int, height: int, params: tuple[float, ...]) -> Camera:
    """A camera from COLMAP's parameters: focal length(s), principal point, distortion.

    Raises:
        UserError: the size or a parameter is out of range, or training cannot use the model.
    """
    if not fits_image(width, height):
        raise UserError(f"{where} has the invalid image size {width}x{height}: {AGAIN}.")
    fx, fy = params[0], params[0 if model in _ONE_FOCAL_LENGTH else 1]
    cx, cy, *distortion = params[1 if model in _ONE_FOCAL_LENGTH else 2 :]
    if not all(math.isfinite(value) for value in params) or fx <= 0 or fy <= 0:
        expected = "finite numbers and a positive focal length"
        raise UserError(f"{where} has a camera with the parameters {params}, not {expected}: {AGAIN}.")
    if model in ("SIMPLE_FISHEYE", "FISHEYE"):
        model, distortion = "OPENCV_FISHEYE", [0.0] * 4
    elif (model, len(params)) in _COLMAP_4.values():
        if distortion[0] != 0.0:
            raise unknown_model(where, folder, model)
        model, distortion = "PINHOLE", []
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
