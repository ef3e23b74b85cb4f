"""``Shot``: a camera at a pose, for films and pages; and the shots of the photos of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import Camera
from gs_train.cameras.poses import camera_centre, pose_at
from gs_train.run.folder import RunFolder
from gs_train.run.open import OpenedSplat


@dataclass(frozen=True, kw_only=True, eq=False)
class Shot:
    """A camera at a pose."""

    camera: Camera
    """A pinhole camera."""
    world_to_camera: NDArray[np.float64]
    """[4, 4], OpenCV axes."""
    name: str = ""
    """Of the photo; empty if there is none."""


def shots_of_run(opened: OpenedSplat) -> tuple[Shot, ...] | None:
    """The shots of all photos of a run, from its cameras.json and in its coordinates.

    None if the splat belongs to no run, or if cameras.json is missing, empty or damaged.
    """
    run = RunFolder.holding(opened.path)
    if run is None or not run.cameras.is_file():
        return None
    try:
        shots = tuple(_shot(entry) for entry in json.loads(run.cameras.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return shots or None


def eyes_and_turns(shots: tuple[Shot, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[V, 3] camera centres and [V, 3, 3] rotations, world -> camera, of at least one shot."""
    eyes = np.stack([camera_centre(shot.world_to_camera) for shot in shots])
    return eyes, np.stack([shot.world_to_camera[:3, :3] for shot in shots])


def _shot(entry: dict[str, Any]) -> Shot:
    """The shot of one entry of cameras.json, which holds camera-to-world poses; raises ValueError for a damaged one."""
    width, height = int(entry["width"]), int(entry["height"])
    fx, fy = float(entry["fx"]), float(entry["fy"])
    eye = np.array(entry["position"], dtype=np.float64).reshape(3)
    turn = np.array(entry["rotation"], dtype=np.float64).reshape(3, 3).T
    if not (min(width, height) > 0 and min(fx, fy) > 0 and np.isfinite([fx, fy, *eye]).all()):
        raise ValueError("invalid intrinsics or position")
    if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) or np.linalg.det(turn) < 0:
        raise ValueError("invalid rotation")
    camera = Camera(width=width, height=height, fx=fx, fy=fy, cx=width / 2, cy=height / 2)
    return Shot(camera=camera, world_to_camera=pose_at(eye, turn), name=str(entry["img_name"]))
