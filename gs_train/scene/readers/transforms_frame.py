"""The pose and the camera of one frame of a transforms file.

A pose is an OpenGL camera-to-world matrix (x right, y up, z backward). The argument ``where`` is "<file>, frame N
(path)", for messages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import Camera
from gs_train.cameras.poses import opengl_to_opencv, pose_at
from gs_train.errors import UserError
from gs_train.scene.photos.files import image_size
from gs_train.scene.readers.reconstruction import LARGEST_IN_POSE, fits_image

AGAIN = "write the file again"
"""The remedy for a damaged file, for messages."""

_PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
_FISHEYE = "OPENCV_FISHEYE"
_PANORAMAS = ("EQUIRECTANGULAR", "SPHERICAL")
_DISTORTION = {"OPENCV": ("k1", "k2", "p1", "p2"), "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4")}
_SKEW = 1e-3  # Allowed relative difference between the lengths of a pose's axes: rounding to four digits passes.


def read_pose(where: str, rows: Any) -> tuple[NDArray[np.float64], float]:
    """The [4, 4] rigid world-to-camera pose of a camera-to-world matrix, and the scale of that matrix.

    Raises:
        UserError: ``rows`` are not the rows of a rotation with a uniform scale and a position.
    """
    matrix = _matrix(where, rows)
    left, lengths, right = np.linalg.svd(matrix[:3, :3])
    scale = float(lengths.mean())
    remove = f"{AGAIN}, or remove the frame"
    if lengths[2] <= 1e-9 * max(1.0, lengths[0]):
        raise UserError(f"{where}: transform_matrix cannot be inverted: {remove}.")
    if lengths[0] - lengths[2] > _SKEW * scale:
        message = f"transform_matrix stretches its axes unevenly, by {lengths[2]:.6g} to {lengths[0]:.6g}"
        raise UserError(f"{where}: {message}, but a pose may only rotate and scale: {remove}.")
    # The nearest rotation, which also removes the rounding of the file's digits.
    rotation = left @ right
    if np.linalg.det(rotation) < 0:
        raise UserError(f"{where}: transform_matrix mirrors, but a pose may only rotate and scale: {remove}.")
    return pose_at(matrix[:3, 3], opengl_to_opencv(rotation).T), scale


def _matrix(where: str, rows: Any) -> NDArray[np.float64]:
    """[3 or 4, 4] the numbers of ``rows``, checked."""
    shaped = (
        isinstance(rows, list) and len(rows) in (3, 4) and all(isinstance(row, list) and len(row) == 4 for row in rows)
    )
    if not shaped or not all(_is_number(value) for row in rows for value in row):
        raise UserError(f"{where}: transform_matrix is not 4 (or 3) rows of 4 numbers: {AGAIN}.")
    matrix = np.array([[float(value) for value in row] for row in rows])
    if not (np.abs(matrix) <= LARGEST_IN_POSE).all():
        raise UserError(f"{where}: transform_matrix has numbers that are not finite: {AGAIN}, or remove the frame.")
    if len(matrix) == 4 and not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6):
        raise UserError(f"{where}: the last row of transform_matrix is {rows[3]} instead of [0, 0, 0, 1]: {AGAIN}.")
    return matrix


def read_camera(where: str, entry: Mapping[str, Any], document: Mapping[str, Any], photo: Path | None) -> Camera | None:
    """The camera of a frame. The frame's own intrinsics take precedence over the file's.

    Args:
        where: the frame, for messages.
        entry: the frame.
        document: the whole file.
        photo: gives the image size if the file does not; None for a missing photo.

    Returns:
        None if the file does not give the image size and the photo is missing or damaged.

    Raises:
        UserError: a key is missing or its value is out of range.
    """
    sources = (entry, document)
    width, height = _number(where, "w", sources), _number(where, "h", sources)
    if (width is None or height is None) and photo is not None:
        # The search for the photos reports each missing or damaged photo.
        with suppress(UserError):
            width, height = image_size(photo)
    model, distortion = _read_distortion(where, sources)
    fx, fy = _read_focal(where, width or 1.0, height or 1.0, sources)
    if width is None or height is None:
        return None
    if not fits_image(width, height):
        raise UserError(f"{where}: invalid image size {width:g}x{height:g}: {AGAIN}.")
    cx, cy = _number(where, "cx", sources), _number(where, "cy", sources)
    return Camera(
        width=int(width),
        height=int(height),
        fx=fx,
        fy=fy,
        cx=0.5 * width if cx is None else cx,
        cy=0.5 * height if cy is None else cy,
        model=model,
        distortion=distortion,
    )


def _read_focal(where: str, width: float, height: float, sources: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """fx and fy in px, from fl_x and fl_y, or else from the fields of view. One axis alone sets both."""
    for source in sources:
        lengths: list[float | None] = []
        for axis, side in (("x", width), ("y", height)):
            length, angle = _number(where, f"fl_{axis}", [source]), _number(where, f"camera_angle_{axis}", [source])
            if length is None and angle is not None:
                if not 0 < 0.5 * angle < 0.5 * math.pi:  # Half of the smallest float is 0.
                    raise UserError(f"{where}: camera_angle_{axis} is {angle:g}, not between 0 and pi: {AGAIN}.")
                length = 0.5 * side / math.tan(0.5 * angle)
            lengths.append(length)
        known = [length for length in lengths if length is not None]
        if not known:
            continue
        fx, fy = known[0], known[-1]
        if min(fx, fy) <= 0:
            raise UserError(f"{where}: the focal length {fx:g}, {fy:g} px is not positive: {AGAIN}.")
        return fx, fy
    raise UserError(f"{where}: neither the frame nor the file has fl_x or camera_angle_x: add one of them to the file.")


def _read_distortion(where: str, sources: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[float, ...]]:
    """COLMAP's camera model and its distortion. Coefficients count under every perspective model, as in nerfstudio."""
    named = next((source["camera_model"] for source in sources if source.get("camera_model") is not None), "OPENCV")
    if any(source.get("is_fisheye") is True for source in sources):  # instant-ngp's key
        named = _FISHEYE
    if named not in (*_PERSPECTIVE, _FISHEYE):
        known = ", ".join((*_PERSPECTIVE, _FISHEYE))
        remedy = f"run the reconstruction again with one of {known}"
        if named in _PANORAMAS:
            remedy = "cut the panoramas into perspective photos and run the reconstruction of these"
        raise UserError(f"{where}: camera_model {named!r} is unknown: {remedy}.")
    model = _FISHEYE if named == _FISHEYE else "OPENCV"
    found = {key: _number(where, key, sources) or 0.0 for key in ("k1", "k2", "k3", "k4", "p1", "p2")}
    beyond = [key for key, value in found.items() if value and key not in _DISTORTION[model]]
    if beyond == ["k3"] and model == "OPENCV":
        return "FULL_OPENCV", (found["k1"], found["k2"], found["p1"], found["p2"], found["k3"], 0.0, 0.0, 0.0)
    if beyond:
        message = f"{where}: camera_model {named} has no {' and no '.join(beyond)}"
        raise UserError(f"{message}: write the file with another camera model.")
    if model == "OPENCV" and not any(found.values()):
        return "PINHOLE", ()
    return model, tuple(found[key] for key in _DISTORTION[model])


def _number(where: str, key: str, sources: Sequence[Mapping[str, Any]]) -> float | None:
    """The number under ``key`` in the first source that has it; None if no source has it."""
    value = next((source[key] for source in sources if source.get(key) is not None), None)
    if value is None:
        return None
    if not _is_number(value) or not math.isfinite(value):
        raise UserError(f"{where}: {key} is {value!r}, not a finite number: {AGAIN}.")
    return float(value)


def _is_number(value: Any) -> bool:
    """Whether a JSON value is a number that fits a float."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300)
