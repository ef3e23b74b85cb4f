"""``Frame``: the coordinates of training, a shift and a uniform scale away from the coordinates of the scene's files.

Parameters are float32, so a scene far from the origin loses precision, and a few constants (the near plane, the noise
of MCMC) assume a scene of a few units. Training therefore works in a frame whose origin is near the cameras and whose
extent is near 5; readers, ``load_scene``, exports and cameras.json use the scene's own coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.poses import camera_centre, pose_at
from gs_train.scene.extent import camera_centres, near_cameras
from gs_train.scene.types import Scene, View

_EXTENT = 5.0
"""Extent to scale towards. COLMAP and the public benchmarks give extents of 4 to 7, which keep their scale."""
_GRID = 8.0
"""Offsets are multiples of this many extents, so a scene around the origin keeps its coordinates to the bit."""
_FAR = 1024.0
"""Largest offset, in training units, that float32 positions can hold beside the details of a scene.

An offset of 2500 extents costs 0.5 dB, one of 250 extents (1250 units) nothing measurable.
"""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Training coordinates x of a point X in the scene's coordinates: x = scale * (X - offset)."""

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Origin of the training coordinates in the scene's coordinates, world units."""
    scale: float = 1.0
    """Training units per world unit: a power of two, so that scaling does not round."""

    @property
    def of_files(self) -> Frame:
        """The frame of splat files and cameras.json: the scene's own coordinates, less an offset that float32 cannot
        hold beside the details of the scene."""
        too_far = max(map(abs, self.offset)) * self.scale > _FAR
        return Frame(offset=self.offset) if too_far else Frame()

    def to_training(self, xyz: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N, 3] training coordinates of points in the scene's coordinates."""
        return (np.asarray(xyz, np.float64) - self.offset) * self.scale

    def to_scene(self, xyz: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N, 3] scene coordinates of points in training coordinates."""
        return np.asarray(xyz, np.float64) / self.scale + self.offset

    def pose_to_training(self, world_to_camera: NDArray[np.float64]) -> NDArray[np.float64]:
        """[4, 4] the pose in training coordinates of a camera in the scene's coordinates; both world-to-camera."""
        if self == Frame():
            return world_to_camera
        return pose_at(self.to_training(camera_centre(world_to_camera)[None])[0], world_to_camera[:3, :3])

    def pose_to_scene(self, world_to_camera: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of ``pose_to_training``."""
        if self == Frame():
            return world_to_camera
        return pose_at(self.to_scene(camera_centre(world_to_camera)[None])[0], world_to_camera[:3, :3])

    def apply(self, scene: Scene) -> Scene:
        """The scene in training coordinates."""
        if self == Frame():
            return scene

        def moved(view: View) -> View:
            return replace(view, world_to_camera=self.pose_to_training(view.world_to_camera))

        return replace(
            scene,
            train_views=tuple(map(moved, scene.train_views)),
            test_views=tuple(map(moved, scene.test_views)),
            points=replace(scene.points, xyz=self.to_training(scene.points.xyz)),
            extent=scene.extent * self.scale,
        )


def training_frame(scene: Scene) -> Frame:
    """The frame to train a scene in. It is the identity for a scene around the origin with an extent of 3.6 to 7."""
    centres = camera_centres(scene.train_views)
    middle = centres[near_cameras(centres)].mean(axis=0)
    scale = 2.0 ** round(math.log2(_EXTENT / scene.extent))
    grid = _GRID * _EXTENT / scale
    x, y, z = (grid * round(value / grid) for value in middle.tolist())
    return Frame(offset=(x, y, z), scale=scale)
