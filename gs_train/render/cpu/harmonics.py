"""Real spherical harmonics up to degree 4 and their gradient, for one SIMD vector of directions at a time.

Order and constants follow Sloan, "Efficient Spherical Harmonic Evaluation" (JCGT 2013), as in gsplat: degree 1 is
0.48860251 * (-y, z, -x). ``evaluate_basis`` and ``direction_gradient`` must describe the same polynomials in (x, y, z).
"""

from __future__ import annotations

import numpy as np

from gs_train.kernels.jit import helper
from gs_train.kernels.simd import DOUBLES, load_doubles, store, zero_doubles

_S0 = 0.28209479177387814
_S1 = 0.4886025119029199
_S2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
_S3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)
_S4 = (2.5033429417967046, 1.7701307697799304, 0.9461746957575601, 0.6690465435572892, 0.10578554691520431,
       0.47308734787878004, 0.6258357354491761)  # fmt: skip


@helper
def _put(array, k, value):  # type: ignore[no-untyped-def]
    store(array, np.uint64(k * DOUBLES), value)


@helper
def _get(array, k):  # type: ignore[no-untyped-def]
    return load_doubles(array, np.uint64(k * DOUBLES))


@helper
def evaluate_basis(x, y, z, degree, basis):  # type: ignore[no-untyped-def]
    """Write the (degree + 1)**2 basis functions to ``basis`` (float32), a vector each; x, y, z are doubles."""
    _put(basis, 0, zero_doubles() + _S0)
    if degree < 1:
        return
    _put(basis, 1, -_S1 * y)
    _put(basis, 2, _S1 * z)
    _put(basis, 3, -_S1 * x)
    if degree < 2:
        return
    xx, yy, zz = x * x, y * y, z * z
    _put(basis, 4, _S2[0] * x * y)
    _put(basis, 5, -_S2[0] * y * z)
    _put(basis, 6, _S2[1] * (3.0 * zz - 1.0))
    _put(basis, 7, -_S2[0] * x * z)
    _put(basis, 8, _S2[2] * (xx - yy))
    if degree < 3:
        return
    _put(basis, 9, -_S3[0] * y * (3.0 * xx - yy))
    _put(basis, 10, _S3[1] * x * y * z)
    _put(basis, 11, -_S3[2] * y * (5.0 * zz - 1.0))
    _put(basis, 12, _S3[3] * z * (5.0 * zz - 3.0))
    _put(basis, 13, -_S3[2] * x * (5.0 * zz - 1.0))
    _put(basis, 14, _S3[4] * z * (xx - yy))
    _put(basis, 15, -_S3[0] * x * (xx - 3.0 * yy))
    if degree < 4:
        return
    _put(basis, 16, _S4[0] * x * y * (xx - yy))
    _put(basis, 17, -_S4[1] * y * z * (3.0 * xx - yy))
    _put(basis, 18, _S4[2] * x * y * (7.0 * zz - 1.0))
    _put(basis, 19, -_S4[3] * y * z * (7.0 * zz - 3.0))
    _put(basis, 20, _S4[4] * (35.0 * zz * zz - 30.0 * zz + 3.0))
    _put(basis, 21, -_S4[3] * x * z * (7.0 * zz - 3.0))
    _put(basis, 22, _S4[5] * (xx - yy) * (7.0 * zz - 1.0))
    _put(basis, 23, -_S4[1] * x * z * (xx - 3.0 * yy))
    _put(basis, 24, _S4[6] * (xx * (xx - 3.0 * yy) - yy * (3.0 * xx - yy)))


@helper
def direction_gradient(x, y, z, degree, c):  # type: ignore[no-untyped-def]
    """Gradient of sum_k c[k] * basis[k] with respect to (x, y, z), as independent variables.

    The caller projects it onto the sphere. x, y, z are doubles; ``c`` is float32 with the layout of ``basis``.
    """
    gx = gy = gz = zero_doubles()
    if degree >= 1:
        gx, gy, gz = -_S1 * _get(c, 3), -_S1 * _get(c, 1), _S1 * _get(c, 2)
    xx, yy, zz = x * x, y * y, z * z
    if degree >= 2:
        c4, c5, c6, c7, c8 = _get(c, 4), _get(c, 5), _get(c, 6), _get(c, 7), _get(c, 8)
        a, b, d = _S2[0], 6.0 * _S2[1], 2.0 * _S2[2]
        gx += a * (y * c4 - z * c7) + d * x * c8
        gy += a * (x * c4 - z * c5) - d * y * c8
        gz += b * z * c6 - a * (y * c5 + x * c7)
    if degree >= 3:
        c9, c10, c11, c12, c13, c14, c15 = (
            _get(c, 9),
            _get(c, 10),
            _get(c, 11),
            _get(c, 12),
            _get(c, 13),
            _get(c, 14),
            _get(c, 15),
        )
        a, b, d, e, f = _S3
        q, r, t = 3.0 * a * (xx - yy), 6.0 * a * x * y, d * (5.0 * zz - 1.0)
        gx += b * y * z * c10 - r * c9 - t * c13 + 2.0 * f * x * z * c14 - q * c15
        gy += b * x * z * c10 - q * c9 - t * c11 - 2.0 * f * y * z * c14 + r * c15
        gz += b * x * y * c10 - 10.0 * d * z * (y * c11 + x * c13) + e * (15.0 * zz - 3.0) * c12 + f * (xx - yy) * c14
    if degree >= 4:
        c16, c17, c18, c19, c20 = _get(c, 16), _get(c, 17), _get(c, 18), _get(c, 19), _get(c, 20)
        c21, c22, c23, c24 = _get(c, 21), _get(c, 22), _get(c, 23), _get(c, 24)
        a, b, d, e, f, g, h = _S4
        px, py = x * (xx - 3.0 * yy), y * (3.0 * xx - yy)
        q, r = 3.0 * b * (xx - yy) * z, 6.0 * b * x * y * z
        t, v, w = 7.0 * zz - 1.0, e * z * (7.0 * zz - 3.0), e * (21.0 * zz - 3.0)
        gx += a * py * c16 - r * c17 + d * y * t * c18 + 2.0 * g * x * t * c22 - v * c21 - q * c23 + 4.0 * h * px * c24
        gy += a * px * c16 - q * c17 + d * x * t * c18 - v * c19 - 2.0 * g * y * t * c22 + r * c23 - 4.0 * h * py * c24
        gz += 14.0 * z * (d * x * y * c18 + g * (xx - yy) * c22) - b * (py * c17 + px * c23) - w * (y * c19 + x * c21)
        gz += f * z * (140.0 * zz - 60.0) * c20
    return gx, gy, gz
