"""Metrics of one view: PSNR and SSIM of a render against its photo. LPIPS and FLIP are in ``perceptual.py``.

A new metric is one field of ``ViewMetrics`` and its value in ``view_metrics``; ``evaluate.py`` averages the fields and
writes them to files. Renders are clamped to 0..1, as a viewer shows them. SSIM covers the valid region only, as in
torchmetrics: windows that need zero padding do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gs_train.losses import HIGHEST_PSNR, apply_mask, psnr, ssim

SSIM_REGION: Literal["valid"] = "valid"


@dataclass(frozen=True, kw_only=True)
class ViewMetrics:
    """Metrics of one view, each a float whose mean over the views is meaningful."""

    psnr: float
    """Peak signal-to-noise ratio, dB."""
    psnr_colour_matched: float
    """PSNR after the best affine change of the render's colours, dB: it ignores differences of exposure and white
    balance."""
    ssim: float
    """Structural similarity, at most 1."""
    counted: float
    """Share of the photo that counts, 0 to 1: the mean weight of its pixels."""
    lpips: float | None = None
    """Learned perceptual distance, 0 for equal pictures; None if it is not measured."""
    flip: float | None = None
    """Mean difference that a viewer sees when the pictures alternate (LDR-FLIP), 0 to 1; None if it is not measured."""


def view_metrics(image: Tensor, target: Tensor, weight: Tensor | None = None) -> ViewMetrics:
    """Compare a render with a photo.

    Args:
        image: [H, W, 3], not clamped.
        target: [H, W, 3] in 0..1.
        weight: [H, W, 1] in 0..1, the weight of each pixel; None for 1 throughout. PSNR is a weighted mean. SSIM works
            on windows, so the render is blended with the target by the weight instead.
    """
    shown = image.clamp(0.0, 1.0)
    matched = match_colours(shown, target, weight).clamp(0.0, 1.0)
    return ViewMetrics(
        psnr=min(psnr(shown, target, weight).item(), HIGHEST_PSNR),
        psnr_colour_matched=min(psnr(matched, target, weight).item(), HIGHEST_PSNR),
        ssim=ssim(apply_mask(shown, target, weight), target, padding=SSIM_REGION).item(),
        counted=1.0 if weight is None else weight.mean().item(),
    )


def match_colours(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The affine map of ``image``'s colours with the least squared difference from ``target``, applied.

    Args:
        image, target: [H, W, 3].
        weight: as in ``view_metrics``.

    Returns:
        [H, W, 3], not clamped.
    """
    colours = torch.cat([image, torch.ones_like(image[..., :1])], dim=2).reshape(-1, 4).double()
    weighed = colours if weight is None else colours * weight.reshape(-1, 1)
    # Normal equations: a 4x4 solve instead of a factorisation of all pixels. The small diagonal handles images of one
    # colour.
    gram = weighed.T @ colours + 1e-9 * len(colours) * torch.eye(4, dtype=torch.float64, device=image.device)
    affine = torch.linalg.solve(gram, weighed.T @ target.reshape(-1, 3).double())
    return (colours @ affine).to(image.dtype).view_as(image)
