"""Colours of the Gaussians seen from a camera, on an NVIDIA GPU, in one Triton kernel each way.

gsplat evaluates spherical harmonics from one tensor of all coefficients. The model has two, ``f_dc`` and ``f_rest``; to
join them, and to part their gradient, copies 192 bytes per Gaussian each way. These kernels read both tensors where
they are, compute the directions and the clamping as well, and skip Gaussians that are not visible.

The real basis functions are gsplat's (Sloan 2013, "Efficient Spherical Harmonic Evaluation").
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 128
"""Gaussians of one program."""


@triton.jit
def _direction(xyz, view, n, mask):
    """The normalised direction x, y, z from the camera to Gaussian n, and the inverse of its length before.

    The centre of the camera is -R^T t, because a pose is a rigid transformation.
    """
    tx = tl.load(view + 3)
    ty = tl.load(view + 7)
    tz = tl.load(view + 11)
    x = tl.load(xyz + 3 * n, mask=mask, other=0.0)
    y = tl.load(xyz + 3 * n + 1, mask=mask, other=0.0)
    z = tl.load(xyz + 3 * n + 2, mask=mask, other=1.0)
    x += tl.load(view) * tx + tl.load(view + 4) * ty + tl.load(view + 8) * tz
    y += tl.load(view + 1) * tx + tl.load(view + 5) * ty + tl.load(view + 9) * tz
    z += tl.load(view + 2) * tx + tl.load(view + 6) * ty + tl.load(view + 10) * tz
    inverse = 1.0 / tl.sqrt(x * x + y * y + z * z)
    return x * inverse, y * inverse, z * inverse, inverse


@triton.jit
def _is_visible(radii, n, exists):
    width = tl.load(radii + 2 * n, mask=exists, other=0)
    height = tl.load(radii + 2 * n + 1, mask=exists, other=0)
    return (width > 0) & (height > 0)


@triton.jit
def _add(rest, n, mask, k, basis, r, g, b, REST: tl.constexpr):
    """Add coefficient k of the three channels times its basis function."""
    at = rest + n * (3 * REST) + 3 * (k - 1)
    r += basis * tl.load(at, mask=mask, other=0.0)
    g += basis * tl.load(at + 1, mask=mask, other=0.0)
    b += basis * tl.load(at + 2, mask=mask, other=0.0)
    return r, g, b


@triton.jit(do_not_specialize=["count"])
def _evaluate(
    xyz,  # [count, 3]
    dc,  # [count, 1, 3]
    rest,  # [count, REST, 3]
    view,  # [4, 4] world to camera
    radii,  # [count, 2] int32
    colours,  # [count, 3]; written, 0 for rows that are not visible
    count,
    DEGREE: tl.constexpr,
    REST: tl.constexpr,
    ROWS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = n < count
    mask = _is_visible(radii, n, exists)
    r = 0.2820947917738781 * tl.load(dc + 3 * n, mask=mask, other=0.0)
    g = 0.2820947917738781 * tl.load(dc + 3 * n + 1, mask=mask, other=0.0)
    b = 0.2820947917738781 * tl.load(dc + 3 * n + 2, mask=mask, other=0.0)
    if DEGREE >= 1:
        x, y, z, _ = _direction(xyz, view, n, mask)
        r, g, b = _add(rest, n, mask, 1, -0.48860251190292 * y, r, g, b, REST)
        r, g, b = _add(rest, n, mask, 2, 0.48860251190292 * z, r, g, b, REST)
        r, g, b = _add(rest, n, mask, 3, -0.48860251190292 * x, r, g, b, REST)
        if DEGREE >= 2:
            r, g, b = _add(rest, n, mask, 4, 2.0 * 0.5462742152960395 * x * y, r, g, b, REST)
            r, g, b = _add(rest, n, mask, 5, -1.092548430592079 * y * z, r, g, b, REST)
            r, g, b = _add(rest, n, mask, 6, 0.9461746957575601 * z * z - 0.3153915652525201, r, g, b, REST)
            r, g, b = _add(rest, n, mask, 7, -1.092548430592079 * x * z, r, g, b, REST)
            r, g, b = _add(rest, n, mask, 8, 0.5462742152960395 * (x * x - y * y), r, g, b, REST)
        if DEGREE >= 3:
            r, g, b = _add(rest, n, mask, 9, -0.5900435899266435 * y * (3.0 * x * x - y * y), r, g, b, REST)
            r, g, b = _add(rest, n, mask, 10, 2.0 * 1.445305721320277 * x * y * z, r, g, b, REST)
            r, g, b = _add(rest, n, mask, 11, y * (0.4570457994644658 - 2.285228997322329 * z * z), r, g, b, REST)
            r, g, b = _add(rest, n, mask, 12, z * (1.865881662950577 * z * z - 1.119528997770346), r, g, b, REST)
            r, g, b = _add(rest, n, mask, 13, x * (0.4570457994644658 - 2.285228997322329 * z * z), r, g, b, REST)
            r, g, b = _add(rest, n, mask, 14, 1.445305721320277 * z * (x * x - y * y), r, g, b, REST)
            r, g, b = _add(rest, n, mask, 15, -0.5900435899266435 * x * (x * x - 3.0 * y * y), r, g, b, REST)
    tl.store(colours + 3 * n, tl.where(mask, tl.maximum(r + 0.5, 0.0), 0.0), mask=exists)
    tl.store(colours + 3 * n + 1, tl.where(mask, tl.maximum(g + 0.5, 0.0), 0.0), mask=exists)
    tl.store(colours + 3 * n + 2, tl.where(mask, tl.maximum(b + 0.5, 0.0), 0.0), mask=exists)


@triton.jit
def _back(rest, v_rest, n, exists, mask, k, basis, dx, dy, dz, vr, vg, vb, sx, sy, sz, REST: tl.constexpr):
    """Write the gradient of coefficient k, and add its part of the gradient of the direction.

    ``dx``, ``dy`` and ``dz`` are the derivatives of the basis function by the direction.
    """
    offset = n * (3 * REST) + 3 * (k - 1)
    by_basis = vr * tl.load(rest + offset, mask=mask, other=0.0)
    by_basis += vg * tl.load(rest + offset + 1, mask=mask, other=0.0)
    by_basis += vb * tl.load(rest + offset + 2, mask=mask, other=0.0)
    tl.store(v_rest + offset, basis * vr, mask=exists)
    tl.store(v_rest + offset + 1, basis * vg, mask=exists)
    tl.store(v_rest + offset + 2, basis * vb, mask=exists)
    return sx + dx * by_basis, sy + dy * by_basis, sz + dz * by_basis


@triton.jit
def _back_degree_1(rest, v_rest, n, exists, mask, x, y, z, vr, vg, vb, sx, sy, sz, REST: tl.constexpr):
    o = tl.zeros_like(x)
    a = o + 0.48860251190292
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 1, -a * y, o, -a, o, vr, vg, vb, sx, sy, sz, REST)
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 2, a * z, o, o, a, vr, vg, vb, sx, sy, sz, REST)
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 3, -a * x, -a, o, o, vr, vg, vb, sx, sy, sz, REST)
    return sx, sy, sz


@triton.jit
def _back_degree_2(rest, v_rest, n, exists, mask, x, y, z, vr, vg, vb, sx, sy, sz, REST: tl.constexpr):
    o = tl.zeros_like(x)
    # The factors 1.09... and 0.94... of the basis functions, times the direction.
    ax, ay, az = 1.092548430592079 * x, 1.092548430592079 * y, 1.092548430592079 * z
    b6, b8 = 0.9461746957575601 * z * z - 0.3153915652525201, 0.5 * (ax * x - ay * y)
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 4, ax * y, ay, ax, o, vr, vg, vb, sx, sy, sz, REST)
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 5, -ay * z, o, -az, -ay, vr, vg, vb, sx, sy, sz, REST)
    d6 = 1.8923493915151202 * z
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 6, b6, o, o, d6, vr, vg, vb, sx, sy, sz, REST)
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 7, -ax * z, -az, o, -ax, vr, vg, vb, sx, sy, sz, REST)
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 8, b8, ax, -ay, o, vr, vg, vb, sx, sy, sz, REST)
    return sx, sy, sz


@triton.jit
def _back_degree_3(rest, v_rest, n, exists, mask, x, y, z, vr, vg, vb, sx, sy, sz, REST: tl.constexpr):
    o = tl.zeros_like(x)
    difference, h = x * x - y * y, 0.4570457994644658 - 2.285228997322329 * z * z
    ax, ay, az = 1.7701307697799304 * x, 1.7701307697799304 * y, 2.890611442640554 * z
    b9, b15 = y * (ay * y / 3.0 - ax * x), x * (ay * y - ax * x / 3.0)
    d = 1.7701307697799304 * difference
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 9, b9, -2.0 * ax * y, -d, o, vr, vg, vb, sx, sy, sz, REST)
    b, by_z = az * x * y, 2.890611442640554 * x * y
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 10, b, az * y, az * x, by_z, vr, vg, vb, sx, sy, sz, REST)
    h_z = -4.570457994644658 * z
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 11, y * h, o, h, h_z * y, vr, vg, vb, sx, sy, sz, REST)
    b, by_z = z * (1.865881662950577 * z * z - 1.119528997770346), 5.597644988851731 * z * z - 1.119528997770346
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 12, b, o, o, by_z, vr, vg, vb, sx, sy, sz, REST)
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 13, x * h, h, o, h_z * x, vr, vg, vb, sx, sy, sz, REST)
    b, by_z = 0.5 * az * difference, 1.445305721320277 * difference
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 14, b, az * x, -az * y, by_z, vr, vg, vb, sx, sy, sz, REST)
    sx, sy, sz = _back(rest, v_rest, n, exists, mask, 15, b15, -d, 2.0 * ax * y, o, vr, vg, vb, sx, sy, sz, REST)
    return sx, sy, sz


@triton.jit(do_not_specialize=["count"])
def _differentiate(
    xyz,  # [count, 3]
    rest,  # [count, REST, 3]
    view,  # [4, 4] world to camera
    radii,  # [count, 2] int32
    colours,  # [count, 3], from _evaluate
    v_colours,  # [count, 3]
    v_xyz,  # [count, 3]; written, as the next two
    v_dc,  # [count, 1, 3]
    v_rest,  # [count, REST, 3]; only coefficients of the degree are written
    count,
    DEGREE: tl.constexpr,
    REST: tl.constexpr,
    ROWS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = n < count
    mask = _is_visible(radii, n, exists)
    # A clamped colour is 0 and has no gradient.
    vr = tl.where(tl.load(colours + 3 * n, mask=mask, other=0.0) > 0.0, 1.0, 0.0)
    vg = tl.where(tl.load(colours + 3 * n + 1, mask=mask, other=0.0) > 0.0, 1.0, 0.0)
    vb = tl.where(tl.load(colours + 3 * n + 2, mask=mask, other=0.0) > 0.0, 1.0, 0.0)
    vr *= tl.load(v_colours + 3 * n, mask=mask, other=0.0)
    vg *= tl.load(v_colours + 3 * n + 1, mask=mask, other=0.0)
    vb *= tl.load(v_colours + 3 * n + 2, mask=mask, other=0.0)
    tl.store(v_dc + 3 * n, 0.2820947917738781 * vr, mask=exists)
    tl.store(v_dc + 3 * n + 1, 0.2820947917738781 * vg, mask=exists)
    tl.store(v_dc + 3 * n + 2, 0.2820947917738781 * vb, mask=exists)
    sx = tl.zeros((ROWS,), tl.float32)
    sy = tl.zeros((ROWS,), tl.float32)
    sz = tl.zeros((ROWS,), tl.float32)
    if DEGREE >= 1:
        x, y, z, inverse = _direction(xyz, view, n, mask)
        sx, sy, sz = _back_degree_1(rest, v_rest, n, exists, mask, x, y, z, vr, vg, vb, sx, sy, sz, REST)
        if DEGREE >= 2:
            sx, sy, sz = _back_degree_2(rest, v_rest, n, exists, mask, x, y, z, vr, vg, vb, sx, sy, sz, REST)
        if DEGREE >= 3:
            sx, sy, sz = _back_degree_3(rest, v_rest, n, exists, mask, x, y, z, vr, vg, vb, sx, sy, sz, REST)
        # Only the part across the direction moves a normalised vector.
        along = x * sx + y * sy + z * sz
        sx = tl.where(mask, (sx - x * along) * inverse, 0.0)
        sy = tl.where(mask, (sy - y * along) * inverse, 0.0)
        sz = tl.where(mask, (sz - z * along) * inverse, 0.0)
    tl.store(v_xyz + 3 * n, sx, mask=exists)
    tl.store(v_xyz + 3 * n + 1, sy, mask=exists)
    tl.store(v_xyz + 3 * n + 2, sz, mask=exists)


class TritonColours(torch.autograd.Function):
    """[1, N, 3] colours, clamped at 0, of Gaussians seen from a camera. No gradient reaches the pose."""

    @staticmethod
    def forward(ctx: Any, xyz: Tensor, dc: Tensor, rest: Tensor, view: Tensor, radii: Tensor, degree: int) -> Tensor:
        """Evaluate the spherical harmonics of degree 0 to ``degree``.

        Args:
            xyz, dc, rest: the parameters ``xyz``, ``f_dc`` and ``f_rest`` of a model, float32.
            view: [4, 4] float32, world to camera.
            radii: [1, N, 2] int32; rows with a 0 are not visible and get the colour 0.
            degree: 0 to 3.
        """
        colours = xyz.new_empty(1, len(xyz), 3)
        view, radii = view.contiguous(), radii.contiguous()
        settings = {"count": len(xyz), "DEGREE": degree, "REST": rest.shape[1], "ROWS": _ROWS}
        _evaluate[(triton.cdiv(len(xyz), _ROWS),)](xyz, dc, rest, view, radii, colours, **settings)
        ctx.save_for_backward(xyz, rest, view, radii, colours)
        ctx.settings = settings
        return colours

    @staticmethod
    def backward(ctx: Any, v_colours: Tensor) -> Any:
        """The gradients by ``xyz``, ``dc`` and ``rest``."""
        xyz, rest, view, radii, colours = ctx.saved_tensors
        every = ctx.settings["DEGREE"] == 0 or (ctx.settings["DEGREE"] + 1) ** 2 - 1 < rest.shape[1]
        v_xyz, v_dc = torch.empty_like(xyz), xyz.new_empty(len(xyz), 1, 3)
        v_rest = torch.zeros_like(rest) if every else torch.empty_like(rest)
        grid = (triton.cdiv(len(xyz), _ROWS),)
        v_colours = v_colours.contiguous()
        _differentiate[grid](xyz, rest, view, radii, colours, v_colours, v_xyz, v_dc, v_rest, **ctx.settings)
        return v_xyz, v_dc, v_rest, None, None, None
