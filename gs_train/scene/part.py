"""A part of a scene, as a scene of its own: a folder whose ``part.json`` names the scene, the photos and a region.

The photos and the model stay where they are. ``gs-train blocks plan`` writes such folders; every command that takes a
scene takes them.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gs_train.atomic_write import atomic_write_text
from gs_train.errors import UserError, first_few
from gs_train.scene.types import PointCloud, Scene, View

PART = "part.json"


@dataclass(frozen=True, kw_only=True)
class Region:
    """A box on the ground plane: low <= position < high along two axes. The box has no limits along the third."""

    axes: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Two unit vectors that span the ground plane, scene coordinates."""
    low: tuple[float, float]
    """World units along the axes; -inf without a limit."""
    high: tuple[float, float]
    """World units along the axes; inf without a limit."""

    def flat(self, xyz: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N, 2] positions on the ground plane of points [N, 3] in scene coordinates."""
        return np.asarray(np.asarray(xyz, np.float64) @ np.array(self.axes).T)

    def contains(self, xyz: NDArray[np.float64]) -> NDArray[np.bool_]:
        """[N] whether points [N, 3] in scene coordinates are in the box."""
        flat = self.flat(xyz)
        return np.asarray(((flat >= self.low) & (flat < self.high)).all(axis=1))

    def distance(self, xyz: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N] distance on the ground plane of points [N, 3] in scene coordinates to the box, 0 inside, world units."""
        flat = self.flat(xyz)
        return np.asarray(np.linalg.norm(np.maximum(np.maximum(self.low - flat, flat - self.high), 0.0), axis=1))

    def widened(self, margin: float) -> Region:
        """The box with its limits moved outwards by ``margin`` world units."""
        (left, bottom), (right, top) = self.low, self.high
        return replace(self, low=(left - margin, bottom - margin), high=(right + margin, top + margin))


@dataclass(frozen=True, kw_only=True)
class Part:
    """The content of a ``part.json``."""

    scene: Path
    """The scene that this is a part of."""
    photos: tuple[str, ...]
    """Names of the training views."""
    region: Region
    """The part's own region. Points inside it, and points that its photos see, start the training."""
    margin: float
    """World units around the region: its neighbours' Gaussians there take part in its finish, and points there start
    the training if the scene does not tell which photos see them."""
    extent: float
    """The scene's extent for the training, world units: one for all parts, so that their schedules are alike."""

    def write(self, folder: Path) -> None:
        """Write the ``part.json`` of a folder; raises OSError."""
        content = {
            "scene": str(self.scene),
            "photos": list(self.photos),
            "axes": [list(axis) for axis in self.region.axes],
            "low": [_finite_or_none(value) for value in self.region.low],
            "high": [_finite_or_none(value) for value in self.region.high],
            "margin": self.margin,
            "extent": self.extent,
        }
        atomic_write_text(folder / PART, json.dumps(content, indent=1) + "\n")

    def cut(self, path: Path, whole: Scene) -> Scene:
        """The part of the scene ``whole``, under the name ``path``; it has no test views.

        Raises:
            UserError: the scene lacks a photo of the part.
        """
        views = {view.name: view for view in (*whole.train_views, *whole.test_views)}
        missing = [name for name in self.photos if name not in views]
        if missing:
            raise UserError(
                f"{path / PART} names {len(missing)} photos that {self.scene} lacks ({first_few(missing)}): plan the "
                "blocks of that scene again."
            )
        chosen = tuple(views[name] for name in sorted(self.photos))
        points = whole.points
        keep = self.region.contains(points.xyz)
        seen = seen_points(chosen, points)
        keep |= self.region.widened(self.margin).contains(points.xyz) if seen is None else seen
        points = PointCloud(
            xyz=points.xyz[keep], rgb=points.rgb[keep], ids=None if points.ids is None else points.ids[keep]
        )
        return replace(whole, path=path, train_views=chosen, test_views=(), points=points, extent=self.extent)


def seen_points(views: tuple[View, ...], points: PointCloud) -> NDArray[np.bool_] | None:
    """[P] whether some of the views observe a point; None if the scene does not tell."""
    if points.ids is None or any(view.point_ids is None for view in views):
        return None
    observed = [view.point_ids for view in views if view.point_ids is not None]
    return np.isin(points.ids, np.concatenate(observed)) if observed else np.zeros(len(points.ids), bool)


def read_part(folder: Path) -> Part | None:
    """The content of the ``part.json`` of a folder; None without one.

    Raises:
        UserError: it is damaged.
    """
    path = folder / PART
    # Path.is_file fails on a name that is too long.
    if not os.path.isfile(path):
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        first, second = (_numbers(axis, 3) for axis in content["axes"])
        low = tuple(-math.inf if value is None else float(value) for value in content["low"])
        high = tuple(math.inf if value is None else float(value) for value in content["high"])
        part = Part(
            scene=Path(content["scene"]),
            photos=tuple(map(str, content["photos"])),
            region=Region(axes=(first, second), low=(low[0], low[1]), high=(high[0], high[1])),
            margin=float(content["margin"]),
            extent=float(content["extent"]),
        )
        if not (math.isfinite(part.margin) and 0 < part.extent < math.inf) or not part.photos:
            raise ValueError("a number is outside its range")
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): plan the blocks again.") from None
    return part


def _numbers(values: Any, count: int) -> tuple[float, float, float]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{values} are not {count} numbers")
    return numbers  # type: ignore[return-value]


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
