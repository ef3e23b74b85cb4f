"""A double of gsplat 1.5.3's compiled extension: its functions in plain torch on CPU tensors, with the same signatures.

gsplat's own Python (projection, colours, tiles, autograd) runs unchanged on top of it, so the CUDA path of this package
is tested without a GPU. Sums are computed in float64 and returned in float32. Rows that the CUDA kernels leave
uninitialised are NaN here, so a test fails if anything reads them. The double blends all Gaussians in all pixels at
once: use few Gaussians and small images.
"""

from __future__ import annotations

import enum
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

_LEAST_ALPHA, _MOST_ALPHA = 1.0 / 255.0, 0.999
_LEAST_TRANSMITTANCE = 1e-4
_REACH = 3.33
"""Largest extent of a Gaussian in standard deviations."""


class CameraModelType(enum.Enum):
    """As in gsplat; this package renders pinhole cameras only."""

    PINHOLE = 0


def _float32(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.detach().float() for tensor in tensors)


def _leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def _project(
    means: Tensor, quats: Tensor, scales: Tensor, viewmats: Tensor, Ks: Tensor, width: int, height: int, eps2d: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Projected means, depths, conics and compensations, by gsplat's reference in torch."""
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

    covars, _ = _quat_scale_to_covar_preci(quats, scales, True, False, triu=False)
    _, means2d, depths, conics, compensations = _fully_fused_projection(
        means, covars, viewmats, Ks, width, height, eps2d=eps2d, calc_compensations=True
    )
    return means2d, depths, conics, compensations


@torch.no_grad()
def projection_ewa_3dgs_fused_fwd(
    means: Tensor,
    covars: None,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    eps2d: float,
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    calc_compensations: bool,
    camera_model: CameraModelType,
) -> tuple[Tensor | None, ...]:
    assert covars is None and camera_model is CameraModelType.PINHOLE
    inputs = _leaves(means, quats, scales, viewmats)
    means2d, depths, conics, compensations = _project(*inputs, Ks.double(), width, height, eps2d)
    determinant = conics[..., 0] * conics[..., 2] - conics[..., 1] ** 2
    deviations = (torch.stack([conics[..., 2], conics[..., 0]], dim=-1) / determinant[..., None]).sqrt()
    opacities = opacities.double() * (compensations if calc_compensations else torch.ones_like(depths))
    reach = (2.0 * (opacities / _LEAST_ALPHA).clamp(min=1.0).log()).sqrt().clamp(max=_REACH)
    radii = (reach[..., None] * deviations).ceil()
    size = torch.tensor([width, height])
    seen = (depths >= near_plane) & (depths <= far_plane) & (opacities >= _LEAST_ALPHA)
    seen &= (radii > radius_clip).any(-1) & (means2d + radii > 0).all(-1) & (means2d - radii < size).all(-1)
    hidden = ~seen[..., None]
    return (
        torch.where(hidden, 0.0, radii.nan_to_num(0.0).clamp(max=2**30)).to(torch.int32),
        *_float32(means2d.masked_fill(hidden, torch.nan), depths.masked_fill(hidden[..., 0], torch.nan)),
        *_float32(conics.masked_fill(hidden, torch.nan)),
        *_float32(compensations.masked_fill(hidden[..., 0], 0.0) if calc_compensations else None),
    )


@torch.enable_grad()
def projection_ewa_3dgs_fused_bwd(
    means: Tensor,
    covars: None,
    quats: Tensor,
    scales: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    eps2d: float,
    camera_model: CameraModelType,
    radii: Tensor,
    conics: Tensor,
    compensations: Tensor | None,
    v_means2d: Tensor,
    v_depths: Tensor,
    v_conics: Tensor,
    v_compensations: Tensor | None,
    viewmats_requires_grad: bool,
) -> tuple[Tensor | None, ...]:
    seen = (radii > 0).all(-1)
    inputs = _leaves(means, quats, scales, viewmats)
    outputs = _project(*inputs, Ks.double(), width, height, eps2d)
    upstream = (v_means2d, v_depths, v_conics, v_compensations)
    total = sum((out[seen] * v[seen]).sum() for out, v in zip(outputs, upstream, strict=True) if v is not None)
    v_means, v_quats, v_scales, v_viewmats = torch.autograd.grad(total, inputs)
    rows = seen.any(0)[:, None]
    v_means, v_quats, v_scales = (torch.where(rows, v, 0.0) for v in (v_means, v_quats, v_scales))
    return (*_float32(v_means, None, v_quats, v_scales, v_viewmats if viewmats_requires_grad else None),)


@torch.no_grad()
def spherical_harmonics_fwd(degree: int, dirs: Tensor, coeffs: Tensor, masks: Tensor | None) -> Tensor:
    from gsplat.cuda._torch_impl import _spherical_harmonics

    colours = _spherical_harmonics(degree, dirs.double(), coeffs.double()).float()
    return colours if masks is None else colours.masked_fill(~masks[..., None], torch.nan)


@torch.enable_grad()
def spherical_harmonics_bwd(
    num_bases: int, degree: int, dirs: Tensor, coeffs: Tensor, masks: Tensor, v_colors: Tensor, compute_v_dirs: bool
) -> tuple[Tensor | None, ...]:
    from gsplat.cuda._torch_impl import _spherical_harmonics

    assert num_bases == coeffs.shape[-2]
    inputs = _leaves(dirs, coeffs)
    colours = _spherical_harmonics(degree, *inputs)
    v_dirs, v_coeffs = torch.autograd.grad((colours[masks] * v_colors[masks]).sum(), inputs, allow_unused=True)
    v_dirs = torch.zeros_like(inputs[0]) if v_dirs is None else torch.where(masks[..., None], v_dirs, 0.0)
    return _float32(v_coeffs, v_dirs if compute_v_dirs else None)


def intersect_tile(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    image_ids: None,
    gaussian_ids: None,
    images: int,
    tile_size: int,
    tile_width: int,
    tile_height: int,
    sort: bool,
    segmented: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every visible Gaussian once, by depth, in place of once per tile: the double blends the image as one tile."""
    assert images == 1
    seen = (radii > 0).all(-1)[0]
    order = torch.argsort(torch.where(seen, depths[0], torch.inf), stable=True)[: int(seen.sum())]
    return seen.int()[None], order, order.int()


def intersect_offset(isect_ids: Tensor, images: int, tile_width: int, tile_height: int) -> Tensor:
    return torch.zeros(images, tile_height, tile_width, dtype=torch.int32)


def _blend(
    means2d: Tensor, conics: Tensor, colours: Tensor, opacities: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Blend Gaussians in the order of their rows: image [H, W, C], transmittance [H, W], offsets [M, H, W, 2]."""
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    offsets = means2d[:, None, None, :] - torch.stack([xs, ys], dim=-1)
    dx, dy = offsets.unbind(-1)
    a, b, c = (conic[:, None, None] for conic in conics.unbind(-1))
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities[:, None, None] * torch.exp(-sigma)).clamp(max=_MOST_ALPHA)
    alpha = torch.where((alpha >= _LEAST_ALPHA) & (sigma >= 0), alpha, 0.0)
    # The transmittance never rises, so the rows after the first that falls below the limit fall below it, too.
    alpha = torch.where(torch.cumprod(1.0 - alpha, dim=0) > _LEAST_TRANSMITTANCE, alpha, 0.0)
    after = torch.cumprod(1.0 - alpha, dim=0)
    before = torch.cat([torch.ones(1, height, width, dtype=after.dtype), after])
    image = torch.einsum("nhw,nc->hwc", alpha * before[:-1], colours)
    return image, before[-1], offsets


@torch.no_grad()
def rasterize_to_pixels_3dgs_fwd(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    backgrounds: Tensor | None,
    masks: None,
    width: int,
    height: int,
    tile_size: int,
    offsets: Tensor,
    flatten_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    assert masks is None
    rows = flatten_ids.long()
    inputs = [tensor[0, rows].double() for tensor in (means2d, conics, colors, opacities)]
    image, transmittance, _ = _blend(*inputs, width, height)
    if backgrounds is not None:
        image = image + transmittance[:, :, None] * backgrounds[0]
    return image.float()[None], (1.0 - transmittance).float()[None, :, :, None], torch.zeros(1, height, width)


@torch.enable_grad()
def rasterize_to_pixels_3dgs_bwd(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    backgrounds: Tensor | None,
    masks: None,
    width: int,
    height: int,
    tile_size: int,
    offsets: Tensor,
    flatten_ids: Tensor,
    render_alphas: Tensor,
    last_ids: Tensor,
    v_colors: Tensor,
    v_alphas: Tensor,
    absgrad: bool,
) -> tuple[Tensor | None, ...]:
    rows, every = flatten_ids.long(), (means2d, conics, colors, opacities)
    inputs = _leaves(*(tensor[0, rows] for tensor in every))
    image, transmittance, distances = _blend(*inputs, width, height)
    if backgrounds is not None:
        image = image + transmittance[:, :, None] * backgrounds[0].double()
    total = (image * v_colors[0]).sum() + ((1.0 - transmittance) * v_alphas[0, :, :, 0]).sum()
    *gradients, by_distance = torch.autograd.grad(total, [*inputs, distances])

    def scatter(template: Tensor, values: Tensor) -> Tensor:
        whole = torch.zeros_like(template)
        whole[0, rows] = values.float()
        return whole

    absolute = scatter(means2d, by_distance.abs().sum((1, 2))) if absgrad else None
    return absolute, *(scatter(template, values) for template, values in zip(every, gradients, strict=True))


FUNCTIONS = (
    projection_ewa_3dgs_fused_fwd,
    projection_ewa_3dgs_fused_bwd,
    spherical_harmonics_fwd,
    spherical_harmonics_bwd,
    intersect_tile,
    intersect_offset,
    rasterize_to_pixels_3dgs_fwd,
    rasterize_to_pixels_3dgs_bwd,
)


def install(monkeypatch: pytest.MonkeyPatch, functions: dict[str, Any] | None = None) -> None:
    """Put the double in place of gsplat's compiled extension until the test ends; skips the test without gsplat.

    Args:
        monkeypatch: undoes the installation.
        functions: replacements by name; None for the functions of this module.
    """
    cuda = pytest.importorskip("gsplat.cuda", reason="gsplat is not installed")
    compiled = ModuleType("gsplat.csrc")
    content = {function.__name__: function for function in FUNCTIONS} if functions is None else functions
    # gsplat looks the members of the enumeration up in the extension itself.
    vars(compiled).update(content, CameraModelType=CameraModelType, PINHOLE=CameraModelType.PINHOLE)
    backend = ModuleType("gsplat.cuda._backend")
    vars(backend)["_C"] = compiled
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", backend)
    monkeypatch.setattr(cuda, "_backend", backend, raising=False)
