"""Checks that poses and points agree: the photos see the points, and see them in the points' colours.

Poses in a wrong convention train without an error, to a useless splat. The check projects some
points into some photos and compares colours. If poses or points agree much better in another convention, the message
names it. Measured on six scenes, the correlation of colours is 0.51 to 0.64 with right poses, and at most 0.38 with
wrong ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gs_train.cameras.camera import points_in_frame
from gs_train.cameras.poses import camera_to_world
from gs_train.errors import UserError
from gs_train.scene.photos.decode import decode_images
from gs_train.scene.types import PointCloud, Scene, View

_VIEWS, _POINTS = 8, 3000
"""Sample sizes."""
_FEWEST_POINTS = 50
"""Fewer points decide nothing."""
_FEWEST_IN_VIEW = 20
"""Fewer points in a photo give no correlation."""
_LEAST_SEEN = 0.2
"""Smallest share of the points that the sampled photos see. SfM points reach 0.95; a laser scan may reach further."""
_CLEARLY = 0.15
"""How much larger the correlation of another convention must be."""
_LEAST_CORRELATION = 0.35
"""Smallest correlation of another convention that counts, and of ``_UNRELATED`` below which colours do not fit."""
_UNRELATED = 0.1

_FLIP: NDArray[np.float64] = np.diag((1.0, -1.0, -1.0, 1.0))
_FLIPPED = "the y and z axes of the cameras are flipped (OpenCV axes where OpenGL axes belong, or the reverse)"
_INVERTED = "the poses are inverted (camera-to-world where world-to-camera belongs, or the reverse)"
_BOTH = "the poses are inverted and the y and z axes of the cameras are flipped"

Matrix = NDArray[np.float64]
_POSES: tuple[tuple[str, Callable[[Matrix], Matrix]], ...] = (
    (_FLIPPED, lambda pose: _FLIP @ pose),
    (_INVERTED, camera_to_world),
    (_INVERTED, lambda pose: _FLIP @ camera_to_world(pose) @ _FLIP),
    (_BOTH, lambda pose: camera_to_world(pose) @ _FLIP),
    (_BOTH, lambda pose: _FLIP @ camera_to_world(pose)),
)


@dataclass(frozen=True, kw_only=True)
class _Agreement:
    """How well points fit photos."""

    seen: float
    """Share of the points that lie in front of and inside at least one photo."""
    correlation: float
    """Median over the photos of the correlation between the colours of points and pixels, -1 to 1; -1 if too few
    photos see enough points, or if colours do not vary."""
    correlated: bool
    """Whether the correlation could be measured."""


def check_agreement(scene: Scene, points: PointCloud, named: str, notify: Callable[[str], None]) -> None:
    """Check that the training photos see ``points`` in their colours. Decodes a few photos.

    Args:
        scene: gives the training views.
        points: in the coordinates of ``scene``; too few points pass.
        named: name of the points' origin, for messages.
        notify: takes a sentence about colours that do not fit, if no other convention explains them.

    Raises:
        UserError: the photos see few of the points, or points and photos agree much better in another convention.
    """
    if len(points.xyz) < _FEWEST_POINTS:
        return
    rows = np.random.default_rng(0).permutation(len(points.xyz))[:_POINTS]
    xyz, rgb = points.xyz[rows], points.rgb[rows].astype(np.float64)
    chosen = np.unique(np.linspace(0, len(scene.train_views) - 1, _VIEWS).round().astype(int))
    views = [scene.train_views[index] for index in chosen]
    photos = list(decode_images(views))
    poses = [view.world_to_camera for view in views]
    as_given = _measure(views, photos, poses, xyz, rgb)

    def score(other: _Agreement) -> float:
        return other.correlation if other.seen >= 0.5 else -1.0

    others = [(text, _measure(views, photos, changed, other, rgb)) for text, changed, other in _others(poses, xyz)]
    text, best = max(others, key=lambda each: score(each[1]))
    share = f"the sampled photos of {scene.path} see {as_given.seen:.0%} of the points in {named}"
    remedy = "Correct the poses or the points, or go on as they are with --ignore-pose-check"
    if score(best) >= max(_LEAST_CORRELATION, as_given.correlation + _CLEARLY):
        fit = f"colours correlate by {max(as_given.correlation, 0.0):.2f}, and by {best.correlation:.2f}"
        raise UserError(f"{share} and their {fit} if {text}. {remedy}.")
    if as_given.seen < _LEAST_SEEN:
        raise UserError(f"{share}: poses and points do not belong together. {remedy}.")
    if as_given.correlated and as_given.correlation < _UNRELATED:
        notify(f"The colours of the points in {named} do not fit the photos: poses or points may be wrong.")


def _others(poses: Sequence[Matrix], xyz: Matrix) -> Iterator[tuple[str, list[Matrix], Matrix]]:
    """Other conventions: a description, the poses [4, 4] and the points [P, 3] read that way."""
    for text, change in _POSES:
        yield text, [change(pose) for pose in poses], xyz
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            if order == (0, 1, 2) and min(signs) > 0:
                continue
            axes = ", ".join(f"{'-' if sign < 0 else ''}{'xyz'[axis]}" for axis, sign in zip(order, signs, strict=True))
            yield f"the points (x, y, z) are read as ({axes})", list(poses), xyz[:, order] * signs


def _measure(
    views: Sequence[View], photos: Sequence[NDArray[np.uint8]], poses: Sequence[Matrix], xyz: Matrix, rgb: Matrix
) -> _Agreement:
    seen = np.zeros(len(xyz), bool)
    correlations = []
    for view, photo, pose in zip(views, photos, poses, strict=True):
        inside, row, column = _pixels(view, pose, xyz)
        seen |= inside
        if inside.sum() >= _FEWEST_IN_VIEW:
            correlation = _correlation(photo[row, column, :3].astype(np.float64), rgb[inside])
            if correlation is not None:
                correlations.append(correlation)
    enough = len(correlations) >= max(1, len(views) // 3)
    median = float(np.median(correlations)) if enough else -1.0
    return _Agreement(seen=float(seen.mean()), correlation=median, correlated=enough)


def _pixels(view: View, pose: Matrix, xyz: Matrix) -> tuple[NDArray[np.bool_], NDArray[np.intp], NDArray[np.intp]]:
    """[P] which points lie in front of and inside the photo, and the rows and columns of their pixels."""
    inside, row, column, _ = points_in_frame(view.camera, pose, xyz)
    return inside, row[inside].astype(np.intp), column[inside].astype(np.intp)


def _correlation(first: Matrix, second: Matrix) -> float | None:
    """Correlation of two sets of colours [K, 3], each channel about its mean; None if one set does not vary."""
    a, b = first - first.mean(axis=0), second - second.mean(axis=0)
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > len(a) else None
