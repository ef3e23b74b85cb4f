"""Real spherical harmonics up to degree 4 and their gradient, for one direction at a time.

Ordering and constants follow Sloan, "Efficient Spherical Harmonic Evaluation" (JCGT 2013), as gsplat does: degree 1 is
0.48860251 * (-y, z, -x). The invariant: ``basis[k]`` and ``gradient[k]`` describe the same polynomial in (x, y, z).
"""

from __future__ import annotations

from numpy.typing import NDArray

from gs_train.jit import helper

_S0 = 0.28209479177387814
_S1 = 0.4886025119029199
_S2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
_S3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)
_S4 = (2.5033429417967046, 1.7701307697799304, 0.9461746957575601, 0.6690465435572892, 0.10578554691520431,
       0.47308734787878004, 0.6258357354491761)  # fmt: skip


@helper
def evaluate_basis(x: float, y: float, z: float, degree: int, basis: NDArray) -> None:
    """Write basis[: (degree + 1)**2] for the unit direction (x, y, z)."""
    basis[0] = _S0
    if degree < 1:
        return
    basis[1] = -_S1 * y
    basis[2] = _S1 * z
    basis[3] = -_S1 * x
    if degree < 2:
        return
    xx, yy, zz = x * x, y * y, z * z
    basis[4] = _S2[0] * x * y
    basis[5] = -_S2[0] * y * z
    basis[6] = _S2[1] * (3.0 * zz - 1.0)
    basis[7] = -_S2[0] * x * z
    basis[8] = _S2[2] * (xx - yy)
    if degree < 3:
        return
    basis[9] = -_S3[0] * y * (3.0 * xx - yy)
    basis[10] = _S3[1] * x * y * z
    basis[11] = -_S3[2] * y * (5.0 * zz - 1.0)
    basis[12] = _S3[3] * z * (5.0 * zz - 3.0)
    basis[13] = -_S3[2] * x * (5.0 * zz - 1.0)
    basis[14] = _S3[4] * z * (xx - yy)
    basis[15] = -_S3[0] * x * (xx - 3.0 * yy)
    if degree < 4:
        return
    basis[16] = _S4[0] * x * y * (xx - yy)
    basis[17] = -_S4[1] * y * z * (3.0 * xx - yy)
    basis[18] = _S4[2] * x * y * (7.0 * zz - 1.0)
    basis[19] = -_S4[3] * y * z * (7.0 * zz - 3.0)
    basis[20] = _S4[4] * (35.0 * zz * zz - 30.0 * zz + 3.0)
    basis[21] = -_S4[3] * x * z * (7.0 * zz - 3.0)
    basis[22] = _S4[5] * (xx - yy) * (7.0 * zz - 1.0)
    basis[23] = -_S4[1] * x * z * (xx - 3.0 * yy)
    basis[24] = _S4[6] * (xx * (xx - 3.0 * yy) - yy * (3.0 * xx - yy))


@helper
def _set(gradient: NDArray, k: int, dx: float, dy: float, dz: float) -> None:
    gradient[k, 0] = dx
    gradient[k, 1] = dy
    gradient[k, 2] = dz


@helper
def evaluate_gradient(x: float, y: float, z: float, degree: int, gradient: NDArray) -> None:
    """Write gradient[k] = (d/dx, d/dy, d/dz) of basis[k], taking x, y, z as independent; the caller projects onto the sphere."""
    _set(gradient, 0, 0.0, 0.0, 0.0)
    if degree < 1:
        return
    _set(gradient, 1, 0.0, -_S1, 0.0)
    _set(gradient, 2, 0.0, 0.0, _S1)
    _set(gradient, 3, -_S1, 0.0, 0.0)
    if degree < 2:
        return
    xx, yy, zz, a = x * x, y * y, z * z, _S2[0]
    _set(gradient, 4, a * y, a * x, 0.0)
    _set(gradient, 5, 0.0, -a * z, -a * y)
    _set(gradient, 6, 0.0, 0.0, _S2[1] * 6.0 * z)
    _set(gradient, 7, -a * z, 0.0, -a * x)
    _set(gradient, 8, _S2[2] * 2.0 * x, -_S2[2] * 2.0 * y, 0.0)
    if degree < 3:
        return
    a, b, c = _S3[0], _S3[2], _S3[4]
    _set(gradient, 9, -a * 6.0 * x * y, -a * 3.0 * (xx - yy), 0.0)
    _set(gradient, 10, _S3[1] * y * z, _S3[1] * x * z, _S3[1] * x * y)
    _set(gradient, 11, 0.0, -b * (5.0 * zz - 1.0), -b * 10.0 * y * z)
    _set(gradient, 12, 0.0, 0.0, _S3[3] * (15.0 * zz - 3.0))
    _set(gradient, 13, -b * (5.0 * zz - 1.0), 0.0, -b * 10.0 * x * z)
    _set(gradient, 14, c * 2.0 * x * z, -c * 2.0 * y * z, c * (xx - yy))
    _set(gradient, 15, -a * 3.0 * (xx - yy), a * 6.0 * x * y, 0.0)
    if degree < 4:
        return
    a, b, c, d = _S4[0], _S4[1], _S4[2], _S4[3]
    _set(gradient, 16, a * y * (3.0 * xx - yy), a * x * (xx - 3.0 * yy), 0.0)
    _set(gradient, 17, -b * 6.0 * x * y * z, -b * 3.0 * z * (xx - yy), -b * y * (3.0 * xx - yy))
    _set(gradient, 18, c * y * (7.0 * zz - 1.0), c * x * (7.0 * zz - 1.0), c * 14.0 * x * y * z)
    _set(gradient, 19, 0.0, -d * z * (7.0 * zz - 3.0), -d * y * (21.0 * zz - 3.0))
    _set(gradient, 20, 0.0, 0.0, _S4[4] * z * (140.0 * zz - 60.0))
    _set(gradient, 21, -d * z * (7.0 * zz - 3.0), 0.0, -d * x * (21.0 * zz - 3.0))
    _set(gradient, 22, _S4[5] * 2.0 * x * (7.0 * zz - 1.0), -_S4[5] * 2.0 * y * (7.0 * zz - 1.0), _S4[5] * 14.0 * z * (xx - yy))
    _set(gradient, 23, -b * 3.0 * z * (xx - yy), b * 6.0 * x * y * z, -b * x * (xx - 3.0 * yy))
    _set(gradient, 24, _S4[6] * 4.0 * x * (xx - 3.0 * yy), -_S4[6] * 4.0 * y * (3.0 * xx - yy), 0.0)
