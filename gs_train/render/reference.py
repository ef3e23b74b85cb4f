"""The reference rasterizer: the same function in plain float64 PyTorch, differentiated by autograd. Slow, for tests.

This file defines the function (gsplat 1.5.3's), and tests compare the kernels with it. It has no tiles and no
optimisation: it blends one [H, W] plane per Gaussian, front to back. Besides the image it returns each pixel's distance
to the nearest discontinuity of the function (alpha at 1/255 or 0.999, transmittance at the stop), where rounding may
lead float32 and float64 to different decisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gs_train.cameras.camera import Camera

_NEAR = float(torch.tensor(0.01))  # rounded to float32, because gsplat compares in float32


@dataclass(frozen=True, kw_only=True)
class ReferenceOutput:
    """A rendered view in float64."""

    image: Tensor
    """[H, W, 3]"""
    depth: Tensor
    """[H, W] sum of alpha * transmittance * z, world units"""
    alpha: Tensor
    """[H, W] 1 - final transmittance"""
    means2d: Tensor
    """[N, 2] px; retains its ``grad``."""
    radii: Tensor
    """[N, 2] int32 half extents in px; 0 = not visible"""
    margin: Tensor
    """[H, W] smallest relative distance of a compared value from its threshold"""
    gradient_terms: list[tuple[int, Tensor, Tensor]]
    """Per visible Gaussian: index, and its planes dx and dy [H, W], which retain ``grad``, for absolute gradients."""


def spherical_harmonics(degree: int, directions: Tensor) -> Tensor:
    """[N, 3] unit directions -> [N, (degree + 1)**2] real basis values, degrees 0 to 3 (Sloan 2013)."""
    x, y, z = directions.unbind(-1)
    pi = math.pi
    basis = [torch.full_like(x, 0.5 / math.sqrt(pi))]
    if degree >= 1:
        n = math.sqrt(3 / (4 * pi))
        basis += [-n * y, n * z, -n * x]
    if degree >= 2:
        n = math.sqrt(15 / (4 * pi))
        m = math.sqrt(5 / (16 * pi))
        basis += [n * x * y, -n * y * z, m * (3 * z * z - 1), -n * x * z, n / 2 * (x * x - y * y)]
    if degree >= 3:
        a, b, c, d = (math.sqrt(v / pi) for v in (35 / 32, 105 / 4, 21 / 32, 7 / 16))
        basis += [
            -a * y * (3 * x * x - y * y), b * x * y * z, -c * y * (5 * z * z - 1), d * z * (5 * z * z - 3),
            -c * x * (5 * z * z - 1), b / 2 * z * (x * x - y * y), -a * x * (x * x - 3 * y * y),
        ]  # fmt: skip
    return torch.stack(basis, dim=-1)


def rotation_matrices(quats: Tensor) -> Tensor:
    """[N, 4] quaternions wxyz of any length -> [N, 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(-1, 3, 3)


def project(
    means: Tensor, quats: Tensor, scales: Tensor, view: Tensor, camera: Camera, eps2d: float = 0.3
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means [N, 2] px, low-passed covariances [N, 2, 2] px^2, depths [N], det before / det after low-pass [N]."""
    points = means @ view[:3, :3].T + view[:3, 3]
    x, y, z = points.unbind(-1)
    means2d = torch.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], dim=-1)
    tan_x, tan_y = 0.5 * camera.width / camera.fx, 0.5 * camera.height / camera.fy
    limited_x = z * (x / z).clamp(
        -(camera.cx / camera.fx + 0.3 * tan_x), (camera.width - camera.cx) / camera.fx + 0.3 * tan_x
    )
    limited_y = z * (y / z).clamp(
        -(camera.cy / camera.fy + 0.3 * tan_y), (camera.height - camera.cy) / camera.fy + 0.3 * tan_y
    )
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [camera.fx / z, zero, -camera.fx * limited_x / z**2, zero, camera.fy / z, -camera.fy * limited_y / z**2], dim=-1
    ).reshape(-1, 2, 3)
    shape = rotation_matrices(quats) * scales[:, None, :]
    covariance = shape @ shape.transpose(1, 2)
    projector = jacobian @ view[:3, :3]
    before = projector @ covariance @ projector.transpose(1, 2)
    after = before + eps2d * torch.eye(2, dtype=means.dtype)
    return means2d, after, z, torch.linalg.det(before) / torch.linalg.det(after)


def render_reference(
    *, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh: Tensor, sh_degree: int,
    view: Tensor, camera: Camera, background: Tensor, antialiased: bool = False,
) -> ReferenceOutput:  # fmt: skip
    """Render one view. All tensors are float64, with shapes as in ``cpu.autograd.rasterize``; sh is [N, K, 3]."""
    means2d, covariance, depths, ratio = project(means, quats, scales, view, camera)
    if means2d.requires_grad:
        means2d.retain_grad()
    opacity = opacities * ratio.clamp(min=0).sqrt() if antialiased else opacities
    directions = torch.nn.functional.normalize(means - torch.linalg.inv(view)[:3, 3], dim=-1)
    basis = spherical_harmonics(sh_degree, directions)
    colours = (torch.einsum("nk,nkc->nc", basis, sh[:, : basis.shape[1]]) + 0.5).clamp(min=0)
    radii = _radii(means2d, covariance, depths, opacity, camera)
    conics = torch.linalg.inv(covariance)

    ys, xs = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    transmittance = torch.ones(camera.height, camera.width, dtype=means.dtype)
    alive = torch.ones_like(transmittance, dtype=torch.bool)
    image, depth = torch.zeros(camera.height, camera.width, 3, dtype=means.dtype), torch.zeros_like(transmittance)
    margin, terms = torch.full_like(transmittance, math.inf), []
    # Front to back by float32 depth, then by index: the order of the kernels.
    for i in torch.argsort(depths.detach().float(), stable=True).tolist():
        if not bool((radii[i] > 0).all()):
            continue
        dx, dy = means2d[i, 0] - xs.to(means.dtype), means2d[i, 1] - ys.to(means.dtype)
        if dx.requires_grad:
            dx.retain_grad()
            dy.retain_grad()
            terms.append((i, dx, dy))
        sigma = 0.5 * (conics[i, 0, 0] * dx * dx + conics[i, 1, 1] * dy * dy) + conics[i, 0, 1] * dx * dy
        raw = opacity[i] * torch.exp(-sigma)
        alpha = raw.clamp(max=0.999)
        counts = alive & (alpha >= 1.0 / 255.0)
        rest = transmittance * (1 - alpha)
        stops = counts & (rest <= 1e-4)
        near = torch.minimum((raw * 255.0 - 1.0).abs(), (raw / 0.999 - 1.0).abs())
        near = torch.where(counts, torch.minimum(near, (rest / 1e-4 - 1.0).abs()), near)
        margin = torch.where(alive, torch.minimum(margin, near.detach()), margin)
        alive = alive & ~stops
        blends = counts & ~stops
        weight = torch.where(blends, alpha * transmittance, torch.zeros_like(alpha))
        image = image + weight[..., None] * colours[i]
        depth = depth + weight * depths[i]
        transmittance = torch.where(blends, rest, transmittance)
    image = image + transmittance[..., None] * background
    return ReferenceOutput(
        image=image,
        depth=depth,
        alpha=1 - transmittance,
        means2d=means2d,
        radii=radii,
        margin=margin,
        gradient_terms=terms,
    )


def _radii(means2d: Tensor, covariance: Tensor, depths: Tensor, opacity: Tensor, camera: Camera) -> Tensor:
    """[N, 2] int32 half extents in px; 0 for an invisible Gaussian."""
    with torch.no_grad():
        extent = torch.sqrt(2 * torch.log((255.0 * opacity).clamp(min=1.0))).clamp(max=3.33)
        radii = torch.ceil(extent[:, None] * torch.diagonal(covariance, dim1=1, dim2=2).sqrt())
        size = torch.tensor([camera.width, camera.height])
        seen = (depths >= _NEAR) & (depths <= 1e10) & (opacity >= 1.0 / 255.0) & (torch.linalg.det(covariance) > 0)
        seen &= ((means2d + radii > 0) & (means2d - radii < size)).all(dim=-1)
        return torch.where(seen[:, None], radii, torch.zeros_like(radii)).to(torch.int32)
