"""COLMAP's camera models: projection from the plane z = 1 in front of a camera to pixels, and back.

The undistortion of photos is in ``undistort.py``. Where a lens can be inverted, ``project(camera, unproject(camera,
pixels))`` returns the pixels to full double precision; elsewhere ``unproject`` returns NaN.

All models share three steps:

1. A fisheye model scales the point (x, y) on the plane from its length r to the length theta = atan(r). Other models
   skip this step.
2. The distortion moves (x, y). With q = x^2 + y^2, the new coordinates are

       x (1 + k1 q + k2 q^2 + ...) / (1 + d1 q + d2 q^2 + d3 q^3) + 2 p1 x y + p2 (q + 2 x^2) + sx1 q + sx2 q^2
       y (1 + k1 q + k2 q^2 + ...) / (1 + d1 q + d2 q^2 + d3 q^3) + 2 p2 x y + p1 (q + 2 y^2) + sy1 q + sy2 q^2

   The model FOV instead scales (x, y) to the length atan(2 r tan(omega/2)) / omega. RAD_TAN_THIN_PRISM_FISHEYE computes
   the terms with p and s from the coordinates after the radial terms.
3. Focal lengths and principal point turn the result into pixels.

A lens can be inverted up to the radius at which the radial part stops growing (``fold_radius``). Where the tangential
and prism terms are not small, the Jacobian determinant must also stay positive. Fisheye models end at 90 degrees, where
the plane ends.

Source: COLMAP, src/colmap/sensor/models (earlier: sensor/models.h). ``DISTORTION_TERMS`` keeps its parameter orders.
For |omega| < 0.01 COLMAP replaces FOV by a series whose sign is that of the inverse; this module uses the closed form
for every omega.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from gs_train.cameras.camera import Camera

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
"""COLMAP's camera models in the order of their ids, from 0, each with its distortion parameters in COLMAP's order.

The parameters have the names of the formula above.
"""

_RADIAL = ("k1", "k2", "k3", "k4", "k5", "k6")
_DENOMINATOR = ("d1", "d2", "d3")
_DECENTRING = ("p1", "p2", "sx1", "sx2", "sy1", "sy2")
_RADIAL_FIRST = ("RAD_TAN_THIN_PRISM_FISHEYE",)
_GRID = 4096
_NEWTON_STEPS = 60
_CONVERGED = 1e-14  # Relative to the larger of 1 and the distorted radius, as is _ACCEPTED.
_ACCEPTED = 1e-12
_ZERO_BELOW = 1e-100  # Smaller parameters move no point, and a division by one of them would overflow.


def project(camera: Camera, plane: Points) -> Points:
    """Pixel positions of points, also of points outside the fold of the lens.

    Args:
        camera: of any model in ``DISTORTION_TERMS``.
        plane: [..., 2] x/z and y/z of points in front of the camera, OpenCV axes.

    Returns:
        [..., 2] px. Pixel centres lie at +0.5.
    """
    with np.errstate(all="ignore"):  # Outside the fold a denominator may be 0.
        distorted = _distort(camera, _bent(plane) if camera.is_fisheye() else plane)
        return np.asarray(distorted * (camera.fx, camera.fy) + (camera.cx, camera.cy))


def unproject(camera: Camera, pixels: Points) -> Points:
    """The inverse of ``project``, by Newton's method in two dimensions from the inverse of the radial part.

    Args:
        camera: of any model in ``DISTORTION_TERMS``.
        pixels: [..., 2] px.

    Returns:
        [..., 2] x/z and y/z, NaN where the lens has no inverse (outside its fold, or 90 degrees or more off the axis).
    """
    distorted = ((pixels - (camera.cx, camera.cy)) / (camera.fx, camera.fy)).reshape(-1, 2)
    with np.errstate(all="ignore"):  # Points that overflow have not converged and become NaN.
        found = _undistort_fov(camera, distorted) if camera.model == "FOV" else _undistort(camera, distorted)
        if camera.is_fisheye():
            theta = np.linalg.norm(found, axis=1, keepdims=True)
            found = np.where(
                theta < math.pi / 2,
                found * np.divide(np.tan(theta), theta, where=theta > 0, out=np.ones_like(theta)),
                np.nan,
            )
    return found.reshape(np.shape(pixels))


def fold_radius(camera: Camera) -> float:
    """Distance on the plane z = 1 within which the radial distortion grows and has an inverse; may be infinite."""
    fold = _fold(camera)
    if not camera.is_fisheye():
        return fold
    return math.tan(fold) if fold < math.pi / 2 else math.inf


def _terms(camera: Camera) -> dict[str, float]:
    named = zip(DISTORTION_TERMS[camera.model].split(), camera.distortion, strict=True)
    return {name: 0.0 if abs(value) < _ZERO_BELOW else value for name, value in named}


def _bent(plane: Points) -> Points:
    """Step 1 of a fisheye model, [..., 2]: keeps the direction and sets the length to the angle from the axis."""
    r = np.linalg.norm(plane, axis=-1, keepdims=True)
    return np.asarray(plane * np.divide(np.arctan(r), r, where=r > 0, out=np.ones_like(r)))


def _fold(camera: Camera) -> float:
    """The smallest radius before step 2 at which the radial part's slope or its denominator is 0."""
    if camera.model == "FOV":
        return math.inf if abs(_terms(camera)["omega"]) < math.pi else 0.0
    above, below = _rational(camera)
    with np.errstate(all="ignore"):
        # The slope of r a(q) / b(q) is (a b + 2 q (a' b - a b')) / b^2, with q = r^2.
        slope = above * below + Polynomial((0.0, 2.0)) * (above.deriv() * below - above * below.deriv())
        if not np.isfinite(slope.coef).all():  # Coefficients overflow: no real lens has them.
            return 0.0
        try:
            roots = np.concatenate([part.trim().roots() for part in (slope, below)])
        except np.linalg.LinAlgError:  # Ratios of coefficients overflow.
            return 0.0
    positive = roots.real[(abs(roots.imag) <= 1e-9 * abs(roots)) & (roots.real > 0)]
    return math.sqrt(positive.min()) if len(positive) else math.inf


def _rational(camera: Camera) -> tuple[Polynomial, Polynomial]:
    """Numerator and denominator of the radial factor, as polynomials in the squared radius."""
    terms = _terms(camera)
    above, below = ([1.0, *(terms.get(name, 0.0) for name in names)] for names in (_RADIAL, _DENOMINATOR))
    return Polynomial(above).trim(), Polynomial(below).trim()


def _radial_factor(camera: Camera, q: Points) -> Points:
    above, below = _rational(camera)
    return np.asarray(above(q) / below(q))


def _distort(camera: Camera, points: Points) -> Points:
    """Step 2 of [..., 2] points."""
    if camera.model == "FOV":
        return _distort_fov(camera, points)
    radial = points * _radial_factor(camera, (points * points).sum(axis=-1))[..., None]
    terms = _terms(camera)
    if not any(terms.get(name) for name in _DECENTRING):
        return radial
    return np.asarray(radial + _decentring(terms, radial if camera.model in _RADIAL_FIRST else points))


def _distort_slope(camera: Camera, points: Points) -> Points:
    """[..., 2, 2] Jacobian of ``_distort``. FOV does not need it: its inverse has a closed form."""
    above, below = _rational(camera)
    q = (points * points).sum(axis=-1)
    a, b = above(q), below(q)
    factor, factor_slope = a / b, (above.deriv()(q) * b - a * below.deriv()(q)) / (b * b)
    slope = (
        factor[..., None, None] * np.eye(2)
        + 2 * factor_slope[..., None, None] * points[..., :, None] * points[..., None, :]
    )
    if camera.model in _RADIAL_FIRST:
        return np.asarray(slope + _decentring_slope(_terms(camera), points * factor[..., None]) @ slope)
    return np.asarray(slope + _decentring_slope(_terms(camera), points))


def _decentring(terms: dict[str, float], points: Points) -> Points:
    """The tangential and prism terms at [..., 2] points."""
    p1, p2, sx1, sx2, sy1, sy2 = (terms.get(name, 0.0) for name in _DECENTRING)
    x, y = points[..., 0], points[..., 1]
    q = x * x + y * y
    along_x = 2 * p1 * x * y + p2 * (q + 2 * x * x) + sx1 * q + sx2 * q * q
    along_y = 2 * p2 * x * y + p1 * (q + 2 * y * y) + sy1 * q + sy2 * q * q
    return np.stack((along_x, along_y), axis=-1)


def _decentring_slope(terms: dict[str, float], points: Points) -> Points:
    """[..., 2, 2] Jacobian of ``_decentring``."""
    p1, p2, sx1, sx2, sy1, sy2 = (terms.get(name, 0.0) for name in _DECENTRING)
    x, y = points[..., 0], points[..., 1]
    q = x * x + y * y
    prism_x, prism_y = 2 * sx1 + 4 * sx2 * q, 2 * sy1 + 4 * sy2 * q  # Factors of x and of y.
    x_by = np.stack((2 * p1 * y + 6 * p2 * x + prism_x * x, 2 * p1 * x + 2 * p2 * y + prism_x * y), axis=-1)
    y_by = np.stack((2 * p2 * y + 2 * p1 * x + prism_y * x, 2 * p2 * x + 6 * p1 * y + prism_y * y), axis=-1)
    return np.stack((x_by, y_by), axis=-2)


def _undistort(camera: Camera, distorted: Points) -> Points:
    """[n, 2] points that step 2 moves to ``distorted``, NaN where no point inside the fold does."""
    fold = _fold(camera)
    size = np.maximum(1.0, np.linalg.norm(distorted, axis=1))
    points = _undistort_radially(camera, distorted, fold)
    for _ in range(_NEWTON_STEPS):
        left = _distort(camera, points) - distorted
        if not (np.linalg.norm(left, axis=1) > _CONVERGED * size).any():
            break
        points = points - _solved(_distort_slope(camera, points), left)
    accepted = np.linalg.norm(_distort(camera, points) - distorted, axis=1) <= _ACCEPTED * size
    accepted &= (_determinant(_distort_slope(camera, points)) > 0) & (
        np.linalg.norm(points, axis=1) <= fold * (1 + 1e-9)
    )
    return np.where(accepted[:, None], points, np.nan)


def _undistort_radially(camera: Camera, distorted: Points, fold: float) -> Points:
    """[n, 2] start points for Newton's method: the inverse of the radial part, at or inside the solution.

    It is exact to one part in ``_GRID``. Near the fold the radial part is concave, so Newton's method from a smaller
    radius converges without overshooting.
    """
    radius = np.linalg.norm(distorted, axis=1)
    top, furthest = min(fold, 1.0), float(radius.max(initial=0.0))
    while top < min(fold, 1e6) and top * _radial_factor(camera, np.array(top * top)) < furthest:
        top = min(fold, 2 * top)
    grid = np.linspace(0.0, top, _GRID + 1)
    grown = grid * _radial_factor(camera, grid * grid)
    start = grid[np.clip(np.searchsorted(grown, radius) - 1, 0, _GRID - 1)]
    return np.asarray(distorted * np.divide(start, radius, where=radius > 0, out=np.zeros_like(radius))[:, None])


def _determinant(matrices: Points) -> Points:
    return np.asarray(matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] * matrices[:, 1, 0])


def _solved(matrices: Points, right: Points) -> Points:
    """[n, 2] solutions of n 2 x 2 linear systems. A singular system gives infinity or NaN instead of an error."""
    x = matrices[:, 1, 1] * right[:, 0] - matrices[:, 0, 1] * right[:, 1]
    y = matrices[:, 0, 0] * right[:, 1] - matrices[:, 1, 0] * right[:, 0]
    return np.asarray(np.stack((x, y), axis=1) / _determinant(matrices)[:, None])


def _distort_fov(camera: Camera, points: Points) -> Points:
    omega = abs(_terms(camera)["omega"])
    r = np.linalg.norm(points, axis=-1, keepdims=True)
    if omega == 0.0:
        return points
    wide = 2 * math.tan(omega / 2)
    return np.asarray(
        points * np.divide(np.arctan(r * wide), r * omega, where=r > 0, out=np.full_like(r, wide / omega))
    )


def _undistort_fov(camera: Camera, distorted: Points) -> Points:
    omega = abs(_terms(camera)["omega"])
    if omega == 0.0:
        return distorted
    r = np.linalg.norm(distorted, axis=1, keepdims=True)
    wide = 2 * math.tan(omega / 2)
    factor = np.divide(np.tan(r * omega), r * wide, where=r > 0, out=np.full_like(r, omega / wide))
    return np.where((r * omega < math.pi / 2) & (omega < math.pi), distorted * factor, np.nan)
