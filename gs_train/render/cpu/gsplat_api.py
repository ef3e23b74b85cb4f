"""``rasterization``: a drop-in for ``gsplat.rasterization`` on CPU tensors.

It has the same argument names, shapes and return values, and computes gsplat 1.5.3's function. It ignores no argument
silently: a value without support raises an error that names the argument.

Importing the module makes Numba prefer wide vectors and a threading layer that survives forks. Calling the function
sets Numba's number of threads to torch's.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gs_train.model.spherical_harmonics import MAX_SH_DEGREE
from gs_train.render.cpu.autograd import Settings, check_tensors, rasterize, wants_gradient

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]


def rasterization(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    width: int, height: int, near_plane: float = 0.01, far_plane: float = 1e10, radius_clip: float = 0.0,
    eps2d: float = 0.3, sh_degree: int | None = None, packed: bool = False, tile_size: int = 16,
    backgrounds: Tensor | None = None, render_mode: RenderMode = "RGB", sparse_grad: bool = False,
    absgrad: bool = False, rasterize_mode: Literal["classic", "antialiased"] = "classic", channel_chunk: int = 32,
    distributed: bool = False, camera_model: Literal["pinhole", "ortho", "fisheye", "ftheta"] = "pinhole",
    segmented: bool = False, covars: Tensor | None = None, with_ut: bool = False, with_eval3d: bool = False,
    **unsupported: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:  # fmt: skip
    """Render N Gaussians from C cameras on the CPU, differentiably.

    Args:
        means: [N, 3] world units.
        quats: [N, 4] wxyz, any length.
        scales: [N, 3] standard deviations, world units.
        opacities: [N] in 0..1.
        colors: SH coefficients [N, K, 3] when ``sh_degree`` is given, else RGB [N, 3] or [C, N, 3].
        viewmats: [C, 4, 4] world -> OpenCV camera.
        Ks: [C, 3, 3] pinhole intrinsics, px; skew must be zero.
        width, height: image size, px.
        near_plane, far_plane: depth range of rendered Gaussians, world units.
        eps2d: low-pass added to the 2D covariance's diagonal, px^2.
        sh_degree: degree to evaluate, 0 to 4; None for plain colours.
        backgrounds: [C, 3], or None for black.
        render_mode: RGB, accumulated depth D, expected depth ED, or RGB with one of them as the fourth channel.
        absgrad: also set ``meta["means2d"].absgrad`` in the backward pass.
        rasterize_mode: ``antialiased`` reduces opacity to compensate for the area that the low-pass adds.
        packed: False only. gsplat's default, True, changes only the layout of the meta dict.
        channel_chunk: accepted and ignored, because it has no effect on gsplat's result.
        tile_size, radius_clip, sparse_grad, distributed, camera_model, segmented, covars, with_ut, with_eval3d: only
            gsplat's defaults, as for all other arguments of gsplat.

    Returns:
        images [C, H, W, 3, 1 or 4], alphas [C, H, W, 1], and a dict with radii [C, N, 2] int32, means2d [C, N, 2] px (a
        leaf, so it retains its gradient), depths [C, N] world units, width, height, n_cameras and tile_size.

    Raises:
        ValueError: an argument is unsupported, or has a wrong shape, dtype or device; the message names it.
    """
    _refuse(
        packed=(packed, False), tile_size=(tile_size, 16), radius_clip=(radius_clip, 0.0),
        sparse_grad=(sparse_grad, False), distributed=(distributed, False),
        camera_model=(camera_model, "pinhole"), segmented=(segmented, False),
        covars=(covars, None), with_ut=(with_ut, False), with_eval3d=(with_eval3d, False),
        **{name: (value, None) for name, value in unsupported.items()},
    )  # fmt: skip
    _check_shapes(means, quats, scales, opacities, colors, viewmats, Ks, backgrounds, sh_degree)
    if render_mode not in ("RGB", "D", "ED", "RGB+D", "RGB+ED"):
        raise ValueError(f"render_mode={render_mode!r} is not supported; use RGB, D, ED, RGB+D or RGB+ED")
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(f"rasterize_mode={rasterize_mode!r} is not supported; use classic or antialiased")
    settings = Settings(
        width=width, height=height, sh_degree=-1 if sh_degree is None else sh_degree, near=near_plane, far=far_plane,
        eps2d=eps2d, antialiased=rasterize_mode == "antialiased", depth=render_mode != "RGB", absgrad=absgrad,
    )  # fmt: skip
    scene = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "colors": colors}
    images, alphas, meta = _render(scene, viewmats, Ks, backgrounds, settings)
    images = _arrange(images, alphas, render_mode)
    return images, alphas, meta | {"width": width, "height": height, "tile_size": tile_size}


def _render(
    scene: dict[str, Tensor], viewmats: Tensor, Ks: Tensor, backgrounds: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render checked arguments camera by camera; images have all channels of ``settings``."""
    means, colors = scene["means"], scene["colors"]
    count, cameras = means.shape[0], viewmats.shape[0]
    # One leaf for all cameras: each camera writes its projected means, and later their gradient, to its own row.
    inputs = [*scene.values(), viewmats, *([] if backgrounds is None else [backgrounds])]
    means2d = torch.zeros(cameras, count, 2, requires_grad=wants_gradient(inputs))
    means2d_absgrad = torch.zeros(cameras, count if settings.absgrad else 0, 2)
    images, alphas, radii = [], [], []
    for c in range(cameras):
        if settings.sh_degree < 0:
            sh0, sh_rest = colors if colors.dim() == 2 else colors[c], means.new_zeros(count, 0, 3)
        else:
            sh0, sh_rest = colors[:, 0], colors[:, 1:]
        image, alpha, seen, _ = rasterize(
            means=means, quats=scene["quats"], scales=scene["scales"], opacities=scene["opacities"],
            sh0=sh0, sh_rest=sh_rest, view=viewmats[c],
            intrinsics=(float(Ks[c, 0, 0]), float(Ks[c, 1, 1]), float(Ks[c, 0, 2]), float(Ks[c, 1, 2])),
            background=means.new_zeros(3) if backgrounds is None else backgrounds[c], settings=settings,
            means2d=means2d[c], means2d_absgrad=means2d_absgrad[c],
        )  # fmt: skip
        images.append(image)
        alphas.append(alpha[..., None])
        radii.append(seen)
    if settings.absgrad:
        means2d.absgrad = means2d_absgrad  # type: ignore[attr-defined]
    depths = means @ viewmats[:, 2, :3, None] + viewmats[:, None, 2, 3:]
    meta = {
        "radii": torch.stack(radii),
        "means2d": means2d,
        "depths": depths.squeeze(-1),
        "n_cameras": cameras,
    }
    return torch.stack(images), torch.stack(alphas), meta


def _arrange(image: Tensor, alpha: Tensor, render_mode: RenderMode) -> Tensor:
    """Select and normalise the channels of the render mode."""
    if render_mode == "RGB":
        return image
    depth = image[..., 3:]
    if render_mode.endswith("ED"):
        depth = depth / alpha.clamp(min=1e-10)
    return torch.cat([image[..., :3], depth], dim=-1) if render_mode.startswith("RGB") else depth


def _refuse(**given: tuple[Any, Any]) -> None:
    for name, (value, only) in given.items():
        same = value is only if only is None else value == only
        if not same:
            raise ValueError(f"{name}={value!r} is not supported by the CPU rasterizer; only {name}={only!r} is")


def _check_shapes(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    backgrounds: Tensor | None, sh_degree: int | None,
) -> None:  # fmt: skip
    n, c = means.shape[0], viewmats.shape[0]
    if c == 0:
        raise ValueError("viewmats holds no camera; it must hold at least one")
    expected = {
        "means": (means, (n, 3)), "quats": (quats, (n, 4)), "scales": (scales, (n, 3)), "opacities": (opacities, (n,)),
        "viewmats": (viewmats, (c, 4, 4)), "Ks": (Ks, (c, 3, 3)),
    }  # fmt: skip
    if backgrounds is not None:
        expected["backgrounds"] = (backgrounds, (c, 3))
    if sh_degree is None:
        expected["colors"] = (colors, (n, 3) if colors.dim() == 2 else (c, n, 3))
    else:
        if not 0 <= sh_degree <= MAX_SH_DEGREE:
            raise ValueError(f"sh_degree={sh_degree} is not supported; use 0 to {MAX_SH_DEGREE}")
        if colors.dim() != 3 or colors.shape[1] < (sh_degree + 1) ** 2:
            raise ValueError(
                f"colors has shape {tuple(colors.shape)}; "
                f"sh_degree={sh_degree} needs [N, K >= {(sh_degree + 1) ** 2}, 3]"
            )
        expected["colors"] = (colors, (n, colors.shape[1], 3))
    check_tensors(expected)
