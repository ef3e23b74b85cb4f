"""Aligns a camera to its photo: the motion that moves a render of the splat onto the photo.

The derivative of the render by the camera's motion is approximated from the image's gradient and the rendered depth
(Lucas and Kanade 1981), which costs a fraction of a backward pass. The gradient is the mean of render's and photo's, so
that a step of several pixels is right to second order (Malis 2004). Measured from 1.5 px away, one step leaves 0.3 px,
and the exact derivative of the rasterizer leaves 1.0 px.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gs_train.alignment.estimate import SOFTNESS, robust_step_by_groups, without_exposure
from gs_train.alignment.motion import pixel_flow, pixel_metric
from gs_train.cameras.camera import Camera

_OPAQUE = 0.5
"""Pixels of a lower alpha have no depth to rely on."""
_TILES = 6
"""The image has so many tiles across and down, whose errors count as independent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoFit:
    """A motion of a camera that was estimated from its photo; float64."""

    motion: Tensor
    """[6]"""
    covariance: Tensor
    """[6, 6] of the error of ``motion``, from the differences between parts of the image. It also covers errors of the
    splat, but not those that all parts have in common."""
    metric: Tensor
    """[6, 6] in px of the images at full size, see ``pixel_metric``."""


def align_to_photo(
    camera: Camera,
    image: Tensor,
    photo: Tensor,
    depth: Tensor,
    alpha: Tensor,
    weights: Tensor | None = None,
    *,
    reduction: int = 1,
) -> PhotoFit:
    """The motion of the camera that moves a render onto the photo.

    Args:
        camera: a pinhole of the size of the images.
        image: [H, W, 3] the render, 0 to 1.
        photo: [H, W, 3], 0 to 1.
        depth, alpha: [H, W] of the render, as in ``RenderOutput``.
        weights: [H, W, 1] weights of the photo's pixels; None for 1.
        reduction: compare images reduced by this factor. Factors 2 and 4 see larger displacements, with less precision.
    """
    image, photo = reduced_image(image, reduction), reduced_image(photo, reduction)
    counted = ((depth > 0) & (alpha > _OPAQUE)).to(image)[..., None]
    seen = reduced_image(counted, reduction)
    # The mean depth of the pixels that have one.
    inverse_depth = (seen / reduced_image(depth[..., None] * counted, reduction).clamp(min=1e-6))[..., 0]
    camera, (height, width) = camera.reduced(reduction), image.shape[:2]
    columns, rows = (torch.arange(size, device=image.device) + 0.5 for size in (width, height))
    x = ((columns - camera.cx) / camera.fx).expand(height, width)
    y = ((rows - camera.cy) / camera.fy)[:, None].expand(height, width)
    flow = pixel_flow(camera, x, y, inverse_depth)
    across, down = (0.5 * (a + b) for a, b in zip(image_gradient(image), image_gradient(photo), strict=True))
    jacobian = -(flow[0][:, None] * across + flow[1][:, None] * down)
    counts = (seen if weights is None else seen * reduced_image(weights, reduction))[..., 0]
    each = counts.flatten()[:, None]
    residual = without_exposure(image.flatten(0, 1), photo.flatten(0, 1), each, softness=SOFTNESS).T
    motion, covariance = robust_step_by_groups(
        _tiles(jacobian), _tiles(residual.view(3, height, width)), _tiles(counts.expand(3, height, width))
    )
    # Colours or depths beyond the numbers of float32 give no estimate, and the camera stays.
    finite = motion.isfinite().all() & covariance.isfinite().all()
    motion, covariance = motion.where(finite, 0.0), covariance.where(finite, 0.0)
    return PhotoFit(motion=motion, covariance=covariance, metric=reduction**2 * pixel_metric(flow, seen[..., 0]))


def _tiles(planes: Tensor) -> Tensor:
    """[G, ..., R] values of ``planes`` [..., 3, H, W], sorted into the G tiles of the image; a tile is padded by 0."""
    height, width = planes.shape[-2:]
    tall, wide = -(-height // _TILES), -(-width // _TILES)
    padded = functional.pad(planes, (0, _TILES * wide - width, 0, _TILES * tall - height))
    tiles = padded.unflatten(-1, (_TILES, wide)).unflatten(-3, (_TILES, tall))
    # [..., 3, tiles down, tall, tiles across, wide] -> [tiles down, tiles across, ..., 3, tall, wide]
    return tiles.movedim((-4, -2), (0, 1)).flatten(0, 1).flatten(-3)


def image_gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    """[3, H, W] derivative of an image [H, W, 3] along columns and along rows, per px; central differences."""
    padded = functional.pad(image.permute(2, 0, 1)[None], (1, 1, 1, 1), mode="replicate")[0]
    across = 0.5 * (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2])
    return across, 0.5 * (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1])


def reduced_image(image: Tensor, factor: int) -> Tensor:
    """[H // factor, W // factor, C] means of ``factor`` x ``factor`` pixels of an image [H, W, C]."""
    if factor == 1:
        return image
    return functional.avg_pool2d(image.permute(2, 0, 1)[None], factor)[0].permute(1, 2, 0)
