"""Real spherical harmonics up to degree 4 and their gradient, for one direction at a time.

Ordering and constants follow Sloan, "Efficient Spherical Harmonic Evaluation" (JCGT 2013), as gsplat does: degree 1 is
0.48860251 * (-y, z, -x). The invariant: ``evaluate_basis`` and ``direction_gradient`` describe the same polynomials in (x, y, z).
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
def direction_gradient(x: float, y: float, z: float, degree: int, c: NDArray) -> tuple[float, float, float]:
    """The gradient of sum_k c[k] * basis[k] by (x, y, z), taking them as independent; the caller projects onto the sphere."""
    gx, gy, gz = 0.0, 0.0, 0.0
    if degree >= 1:
        gx, gy, gz = -_S1 * c[3], -_S1 * c[1], _S1 * c[2]
    xx, yy, zz = x * x, y * y, z * z
    if degree >= 2:
        a, b, d = _S2[0], 6.0 * _S2[1], 2.0 * _S2[2]
        gx += a * (y * c[4] - z * c[7]) + d * x * c[8]
        gy += a * (x * c[4] - z * c[5]) - d * y * c[8]
        gz += b * z * c[6] - a * (y * c[5] + x * c[7])
    if degree >= 3:
        a, b, d, e, f = _S3
        q = 3.0 * a * (xx - yy)
        gx += b * y * z * c[10] - 6.0 * a * x * y * c[9] - d * (5.0 * zz - 1.0) * c[13] + 2.0 * f * x * z * c[14] - q * c[15]
        gy += b * x * z * c[10] - q * c[9] - d * (5.0 * zz - 1.0) * c[11] - 2.0 * f * y * z * c[14] + 6.0 * a * x * y * c[15]
        gz += b * x * y * c[10] - 10.0 * d * z * (y * c[11] + x * c[13]) + e * (15.0 * zz - 3.0) * c[12] + f * (xx - yy) * c[14]
    if degree >= 4:
        a, b, d, e, f, g, h = _S4
        q = 3.0 * b * (xx - yy) * z
        gx += a * y * (3.0 * xx - yy) * c[16] - 6.0 * b * x * y * z * c[17] + d * y * (7.0 * zz - 1.0) * c[18]
        gx += 2.0 * g * x * (7.0 * zz - 1.0) * c[22] - e * z * (7.0 * zz - 3.0) * c[21] - q * c[23] + 4.0 * h * x * (xx - 3.0 * yy) * c[24]
        gy += a * x * (xx - 3.0 * yy) * c[16] - q * c[17] + d * x * (7.0 * zz - 1.0) * c[18] - e * z * (7.0 * zz - 3.0) * c[19]
        gy += -2.0 * g * y * (7.0 * zz - 1.0) * c[22] + 6.0 * b * x * y * z * c[23] - 4.0 * h * y * (3.0 * xx - yy) * c[24]
        gz += -b * y * (3.0 * xx - yy) * c[17] + 14.0 * d * x * y * z * c[18] - e * y * (21.0 * zz - 3.0) * c[19]
        gz += f * z * (140.0 * zz - 60.0) * c[20] - e * x * (21.0 * zz - 3.0) * c[21] + 14.0 * g * z * (xx - yy) * c[22]
        gz += -b * x * (xx - 3.0 * yy) * c[23]
    return gx, gy, gz
