"""Turns, scales and moves a splat for its export, and finds the direction that is up in its scene."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError
from gs_train.formats.splat_data import SplatData
from gs_train.formats.turn import rotation_about_axes, rotation_between, transformed
from gs_train.options import PLACEMENT, check, parse_numbers, setting
from gs_train.run.folder import RunFolder
from gs_train.run.open import OpenedSplat
from gs_train.scene.frame import Frame

_UP_IN_FILES = np.array([0.0, -1.0, 0.0])
"""Viewers show the axis -y of a splat file upwards."""
_LEAST_AGREEMENT = 0.5
"""Smallest length of the mean of the cameras' upward directions, each of length 1."""
Up = Literal["none", "auto", "x", "-x", "y", "-y", "z", "-z"]


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    """How to place a splat. It is turned upright first, then rotated, scaled and moved."""

    up: Up = setting("none", group=PLACEMENT)
    """Axis of the scene that viewers shall show upwards. auto takes it from the cameras of a run; use it when a viewer
    shows the scene tilted. none keeps the coordinates of the scene, which fit cameras.json."""
    rotate: str = setting("", group=PLACEMENT)
    """Rotate by x,y,z degrees about the axis x, then y, then z, for example 0,90,0."""
    scale: float = setting(1.0, above=0, group=PLACEMENT)
    """Scale by this factor, for example 0.01 for centimetres to metres."""
    translate: str = setting("", group=PLACEMENT)
    """Move by x,y,z world units, after the rotation and the scaling, for example 0,0,-2."""

    def __post_init__(self) -> None:
        """Raise UserError, naming the flag, for a value outside its range."""
        check(self)
        self.rotation()
        self.shift()

    def rotation(self) -> NDArray[np.float64]:
        """[3, 3] of ``rotate``."""
        x, y, z = parse_numbers("--rotate", self.rotate, "x,y,z") if self.rotate else (0.0, 0.0, 0.0)
        return rotation_about_axes(x, y, z)

    def shift(self) -> tuple[float, ...]:
        """x, y, z of ``translate``."""
        return parse_numbers("--translate", self.translate, "x,y,z") if self.translate else (0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """A placed splat."""

    data: SplatData
    """The Gaussians."""
    frame: Frame
    """The coordinates of the Gaussians, against the placed scene."""
    rotation: NDArray[np.float64]
    """[3, 3] of the placement: a point x of the splat is now at ``scale * rotation @ x + shift``."""
    notes: tuple[str, ...]
    """Sentences for the user."""


def place(data: SplatData, frame: Frame, opened: OpenedSplat, config: PlacementConfig) -> Placed:
    """Place a splat.

    Args:
        data: in the coordinates of ``frame``.
        frame: an offset without a scale. The placed splat keeps its share: offset + position turns, scales and moves.
        opened: the source of the splat, for its cameras.
        config: the placement.

    Raises:
        UserError: ``up`` is ``auto`` and the cameras are unknown, or the positions leave the range of float32.
    """
    up, notes = _up_axis(opened, config.up)
    upright = np.eye(3) if up is None else rotation_between(up, _UP_IN_FILES)
    rotation = config.rotation() @ upright
    with np.errstate(over="ignore"):
        placed = transformed(data, rotation, config.scale, config.shift())
    if not np.isfinite(placed.xyz).all():
        raise UserError("--scale and --translate give positions beyond the numbers of splat files: give smaller ones.")
    x, y, z = (config.scale * rotation @ frame.offset).tolist()
    return Placed(data=placed, frame=Frame(offset=(x, y, z)), rotation=rotation, notes=notes)


def tilt_deg(opened: OpenedSplat) -> float:
    """Degrees between the upward direction of a run's cameras and the direction that viewers show upwards; 0 if the
    cameras are unknown or do not agree."""
    ups = _camera_ups(opened)
    mean = None if ups is None else ups.mean(axis=0)
    if mean is None or np.linalg.norm(mean) < _LEAST_AGREEMENT:
        return 0.0
    return math.degrees(math.acos(np.clip(mean @ _UP_IN_FILES / np.linalg.norm(mean), -1, 1)))


def _up_axis(opened: OpenedSplat, up: Up) -> tuple[NDArray[np.float64] | None, tuple[str, ...]]:
    """The direction in the scene to turn upwards, [3], and sentences for the user; None to turn nothing."""
    if up == "none":
        return None, ()
    if up != "auto":
        sign = -1.0 if up.startswith("-") else 1.0
        return sign * np.eye(3)["xyz".index(up[-1])], ()
    ups = _camera_ups(opened)
    if ups is None and opened.scene_path is not None:
        # The run has not ended yet.
        scene = opened.load_scene()
        ups = -np.stack([view.world_to_camera[1, :3] for view in (*scene.train_views, *scene.test_views)])
    if ups is None:
        raise UserError(f"--up auto needs the cameras of a run, and {opened.path} has none: name an axis, as --up z.")
    mean = ups.mean(axis=0)
    if np.linalg.norm(mean) < _LEAST_AGREEMENT:
        return None, ("The cameras do not agree which direction is up: the splat keeps its orientation.",)
    return mean, ()


def _camera_ups(opened: OpenedSplat) -> NDArray[np.float64] | None:
    """[V, 3] the upward direction of each camera in the scene, from the run's cameras.json; None without a run."""
    run = RunFolder.holding(opened.path)
    if run is None or not run.cameras.is_file():
        return None
    try:
        rotations = [entry["rotation"] for entry in json.loads(run.cameras.read_text(encoding="utf-8"))]
        # Camera-to-world, so the second column is the camera's axis y, which points down.
        ups = -np.array(rotations, dtype=np.float64).reshape(-1, 3, 3)[:, :, 1]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return ups if len(ups) and np.isfinite(ups).all() else None
