"""COLMAP's camera models as plain functions: from the plane z = 1 in front of a camera to pixels, and back.

Not here: what a photo becomes when its distortion is taken out; see ``undistort.py``. The invariant: inside the region where a lens can be
inverted, ``project(lens, unproject(lens, pixels))`` gives the pixels back to full double precision; outside it ``unproject`` says NaN.

All models share three steps. (1) A fisheye model bends the plane's (x, y) of length r to length theta = atan(r); the others leave it.
(2) The distortion moves (x, y), with q = x^2 + y^2:

    x (1 + k1 q + k2 q^2 + ...) / (1 + d1 q + d2 q^2 + d3 q^3) + 2 p1 x y + p2 (q + 2 x^2) + sx1 q + sx2 q^2, and
    y (1 + k1 q + k2 q^2 + ...) / (1 + d1 q + d2 q^2 + d3 q^3) + 2 p2 x y + p1 (q + 2 y^2) + sy1 q + sy2 q^2,

and the model FOV instead gives it the length atan(2 r tan(omega/2)) / omega. RAD_TAN_THIN_PRISM_FISHEYE computes the terms with p and s
from the (x, y) that the radial terms have moved already. (3) Focal lengths and principal point make pixels of it.

Where it can be inverted: up to the radius at which the radial part stops growing (``fold_radius``), and, where the tangential and prism
terms are not small, as long as the whole still keeps its orientation. Fisheye models end at 90 degrees, where the plane does.

Source: COLMAP, src/colmap/sensor/models (before: sensor/models.h), whose parameter orders are those of ``DISTORTION_TERMS``. For
|omega| < 0.01 COLMAP takes a series for FOV whose sign is that of the inverse; the closed form stands here for every omega.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from gs_train.scene.types import Lens

Points = NDArray[np.float64]

DISTORTION_TERMS: dict[str, str] = {
    "SIMPLE_PINHOLE": "",
    "PINHOLE": "",
    "SIMPLE_RADIAL": "k1",
    "RADIAL": "k1 k2",
    "OPENCV": "k1 k2 p1 p2",
    "OPENCV_FISHEYE": "k1 k2 k3 k4",
    "FULL_OPENCV": "k1 k2 p1 p2 k3 d1 d2 d3",
    "FOV": "omega",
    "SIMPLE_RADIAL_FISHEYE": "k1",
    "RADIAL_FISHEYE": "k1 k2",
    "THIN_PRISM_FISHEYE": "k1 k2 p1 p2 k3 k4 sx1 sy1",
    "RAD_TAN_THIN_PRISM_FISHEYE": "k1 k2 k3 k4 k5 k6 p2 p1 sx1 sx2 sy1 sy2",
}
"""COLMAP's camera models in the order of their ids, from 0: what each of a model's distortion parameters is, in COLMAP's order, by the
names of the formula above."""

_RADIAL = ("k1", "k2", "k3", "k4", "k5", "k6")
_DENOMINATOR = ("d1", "d2", "d3")
_DECENTRING = ("p1", "p2", "sx1", "sx2", "sy1", "sy2")
_RADIAL_FIRST = ("RAD_TAN_THIN_PRISM_FISHEYE",)
_GRID = 4096
_NEWTON_STEPS = 60
_CONVERGED = 1e-14  # of the larger of 1 and the distorted radius
_ACCEPTED = 1e-12
_NOTHING = 1e-100  # What is smaller moves no point, and divided by it other numbers overflow.


def is_fisheye(lens: Lens) -> bool:
    """Does the model measure the angle from the axis, rather than the place on the plane?"""
    return lens.model.endswith("FISHEYE")


def is_pinhole(lens: Lens) -> bool:
    """Does the lens leave straight lines straight, by its model or because all its distortion parameters are 0?"""
    return not is_fisheye(lens) and not any(lens.distortion)


def project(lens: Lens, plane: Points) -> Points:
    """Where a lens shows points, also past its fold.

    Args:
        lens: any of the models in COLMAP.
        plane: [..., 2] x/z and y/z of points in front of the camera, OpenCV axes.

    Returns:
        [..., 2] px, pixel centres at +0.5.
    """
    with np.errstate(all="ignore"):  # a denominator may be 0 past the fold
        distorted = _distort(lens, _bent(plane) if is_fisheye(lens) else plane)
        return np.asarray(distorted * (lens.fx, lens.fy) + (lens.cx, lens.cy))


def unproject(lens: Lens, pixels: Points) -> Points:
    """The inverse of ``project``: Newton's method in two dimensions, from the inverse of the radial part.

    Args:
        lens: any of the models in COLMAP.
        pixels: [..., 2] px.

    Returns:
        [..., 2] x/z and y/z; NaN where the lens cannot be inverted (past its fold, or 90 degrees and more off the axis).
    """
    distorted = ((pixels - (lens.cx, lens.cy)) / (lens.fx, lens.fy)).reshape(-1, 2)
    with np.errstate(all="ignore"):  # what overflows has not converged, and ends as NaN
        found = _undistort_fov(lens, distorted) if lens.model == "FOV" else _undistort(lens, distorted)
        if is_fisheye(lens):
            theta = np.linalg.norm(found, axis=1, keepdims=True)
            found = np.where(
                theta < math.pi / 2,
                found * np.divide(np.tan(theta), theta, where=theta > 0, out=np.ones_like(theta)),
                np.nan,
            )
    return found.reshape(np.shape(pixels))


def fold_radius(lens: Lens) -> float:
    """Distance on the plane up to which the radial part of the distortion grows, and with it the lens can be inverted; may be infinite."""
    fold = _fold(lens)
    if not is_fisheye(lens):
        return fold
    return math.tan(fold) if fold < math.pi / 2 else math.inf


def _terms(lens: Lens) -> dict[str, float]:
    named = zip(DISTORTION_TERMS[lens.model].split(), lens.distortion, strict=True)
    return {name: 0.0 if abs(value) < _NOTHING else value for name, value in named}


def _bent(plane: Points) -> Points:
    """Step 1 of a fisheye model: the same direction from the axis, and the angle for length."""
    r = np.linalg.norm(plane, axis=-1, keepdims=True)
    return np.asarray(plane * np.divide(np.arctan(r), r, where=r > 0, out=np.ones_like(r)))


def _fold(lens: Lens) -> float:
    """The radius before step 2 at which the radial part's slope or its denominator first becomes 0."""
    if lens.model == "FOV":
        return math.inf if abs(_terms(lens)["omega"]) < math.pi else 0.0
    above, below = _rational(lens)
    with np.errstate(all="ignore"):
        # The slope of r a(q) / b(q) is (a b + 2 q (a' b - a b')) / b^2, with q = r^2.
        slope = above * below + Polynomial((0.0, 2.0)) * (above.deriv() * below - above * below.deriv())
        if not np.isfinite(slope.coef).all():  # coefficients that overflow, which no lens has
            return 0.0
        try:
            roots = np.concatenate([part.trim().roots() for part in (slope, below)])
        except np.linalg.LinAlgError:  # their ratios overflow
            return 0.0
    positive = roots.real[(abs(roots.imag) <= 1e-9 * abs(roots)) & (roots.real > 0)]
    return math.sqrt(positive.min()) if len(positive) else math.inf


def _rational(lens: Lens) -> tuple[Polynomial, Polynomial]:
    """Numerator and denominator of the radial factor, as polynomials of the squared radius."""
    terms = _terms(lens)
    above, below = ([1.0, *(terms.get(name, 0.0) for name in names)] for names in (_RADIAL, _DENOMINATOR))
    return Polynomial(above).trim(), Polynomial(below).trim()


def _radial_factor(lens: Lens, q: Points) -> Points:
    above, below = _rational(lens)
    return np.asarray(above(q) / below(q))


def _distort(lens: Lens, points: Points) -> Points:
    """Step 2 of [..., 2] points."""
    if lens.model == "FOV":
        return _distort_fov(lens, points)
    radial = points * _radial_factor(lens, (points * points).sum(axis=-1))[..., None]
    terms = _terms(lens)
    if not any(terms.get(name) for name in _DECENTRING):
        return radial
    return np.asarray(radial + _decentring(terms, radial if lens.model in _RADIAL_FIRST else points))


def _distort_slope(lens: Lens, points: Points) -> Points:
    """[..., 2, 2] the derivative of ``_distort`` by the points; not for FOV, whose inverse is a formula."""
    above, below = _rational(lens)
    q = (points * points).sum(axis=-1)
    a, b = above(q), below(q)
    factor, factor_slope = a / b, (above.deriv()(q) * b - a * below.deriv()(q)) / (b * b)
    slope = (
        factor[..., None, None] * np.eye(2)
        + 2 * factor_slope[..., None, None] * points[..., :, None] * points[..., None, :]
    )
    if lens.model in _RADIAL_FIRST:
        return np.asarray(slope + _decentring_slope(_terms(lens), points * factor[..., None]) @ slope)
    return np.asarray(slope + _decentring_slope(_terms(lens), points))


def _decentring(terms: dict[str, float], points: Points) -> Points:
    """The tangential and prism terms at [..., 2] points."""
    p1, p2, sx1, sx2, sy1, sy2 = (terms.get(name, 0.0) for name in _DECENTRING)
    x, y = points[..., 0], points[..., 1]
    q = x * x + y * y
    along_x = 2 * p1 * x * y + p2 * (q + 2 * x * x) + sx1 * q + sx2 * q * q
    along_y = 2 * p2 * x * y + p1 * (q + 2 * y * y) + sy1 * q + sy2 * q * q
    return np.stack((along_x, along_y), axis=-1)


def _decentring_slope(terms: dict[str, float], points: Points) -> Points:
    """[..., 2, 2] the derivative of ``_decentring`` by the points."""
    p1, p2, sx1, sx2, sy1, sy2 = (terms.get(name, 0.0) for name in _DECENTRING)
    x, y = points[..., 0], points[..., 1]
    q = x * x + y * y
    prism_x, prism_y = 2 * sx1 + 4 * sx2 * q, 2 * sy1 + 4 * sy2 * q  # to be multiplied by x or by y
    x_by = np.stack((2 * p1 * y + 6 * p2 * x + prism_x * x, 2 * p1 * x + 2 * p2 * y + prism_x * y), axis=-1)
    y_by = np.stack((2 * p2 * y + 2 * p1 * x + prism_y * x, 2 * p2 * x + 6 * p1 * y + prism_y * y), axis=-1)
    return np.stack((x_by, y_by), axis=-2)


def _undistort(lens: Lens, distorted: Points) -> Points:
    """[n, 2] the points that step 2 moves to ``distorted``, NaN where there are none this side of the fold."""
    fold = _fold(lens)
    size = np.maximum(1.0, np.linalg.norm(distorted, axis=1))
    points = _undistort_radially(lens, distorted, fold)
    for _ in range(_NEWTON_STEPS):
        left = _distort(lens, points) - distorted
        if not (np.linalg.norm(left, axis=1) > _CONVERGED * size).any():
            break
        points = points - _solved(_distort_slope(lens, points), left)
    sound = np.linalg.norm(_distort(lens, points) - distorted, axis=1) <= _ACCEPTED * size
    sound &= (_determinant(_distort_slope(lens, points)) > 0) & (np.linalg.norm(points, axis=1) <= fold * (1 + 1e-9))
    return np.where(sound[:, None], points, np.nan)


def _undistort_radially(lens: Lens, distorted: Points, fold: float) -> Points:
    """A start for Newton's method: the inverse of the radial part, to one part in ``_GRID`` and never past the point sought.

    Near the fold the radial part bends down, and there Newton's method from below converges without overshooting.
    """
    radius = np.linalg.norm(distorted, axis=1)
    top, furthest = min(fold, 1.0), float(radius.max(initial=0.0))
    while top < min(fold, 1e6) and top * _radial_factor(lens, np.array(top * top)) < furthest:
        top = min(fold, 2 * top)
    grid = np.linspace(0.0, top, _GRID + 1)
    grown = grid * _radial_factor(lens, grid * grid)
    start = grid[np.clip(np.searchsorted(grown, radius) - 1, 0, _GRID - 1)]
    return np.asarray(distorted * np.divide(start, radius, where=radius > 0, out=np.zeros_like(radius))[:, None])


def _determinant(matrices: Points) -> Points:
    return np.asarray(matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] * matrices[:, 1, 0])


def _solved(matrices: Points, right: Points) -> Points:
    """[n, 2] solutions of 2 x 2 systems; where one has none it comes out infinite or NaN, and nobody raises."""
    x = matrices[:, 1, 1] * right[:, 0] - matrices[:, 0, 1] * right[:, 1]
    y = matrices[:, 0, 0] * right[:, 1] - matrices[:, 1, 0] * right[:, 0]
    return np.asarray(np.stack((x, y), axis=1) / _determinant(matrices)[:, None])


def _distort_fov(lens: Lens, points: Points) -> Points:
    omega = abs(_terms(lens)["omega"])
    r = np.linalg.norm(points, axis=-1, keepdims=True)
    if omega == 0.0:
        return points
    wide = 2 * math.tan(omega / 2)
    return np.asarray(
        points * np.divide(np.arctan(r * wide), r * omega, where=r > 0, out=np.full_like(r, wide / omega))
    )


def _undistort_fov(lens: Lens, distorted: Points) -> Points:
    omega = abs(_terms(lens)["omega"])
    if omega == 0.0:
        return distorted
    r = np.linalg.norm(distorted, axis=1, keepdims=True)
    wide = 2 * math.tan(omega / 2)
    factor = np.divide(np.tan(r * omega), r * wide, where=r > 0, out=np.full_like(r, omega / wide))
    return np.where((r * omega < math.pi / 2) & (omega < math.pi), distorted * factor, np.nan)
