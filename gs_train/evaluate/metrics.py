"""What an image is worth beside the truth: PSNR and SSIM of one view.

Averages and files are in ``evaluate.py``. The invariant: both images are clamped to 0..1, because that is what a viewer shows, and SSIM is
taken over the valid region only, as torchmetrics does, so that the zero padding of training does not count.
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
    """Figures of one view."""

    psnr: float
    """Peak signal-to-noise ratio, dB."""
    psnr_colour_matched: float
    """The same after the affine change of the render's colours that brings them nearest to the photo's, dB: what is left when exposure and
    white balance are forgiven."""
    ssim: float
    """Structural similarity, at most 1."""


def view_metrics(image: Tensor, target: Tensor, weight: Tensor | None = None) -> ViewMetrics:
    """Compare a render with a photo.

    Args:
        image: [H, W, 3], not clamped.
        target: [H, W, 3] in 0..1.
        weight: [H, W, 1] in 0..1, how much each pixel counts; None for all. What does not count is left out of PSNR; SSIM, which is over
            windows, sees the target there on both sides.
    """
    shown = image.clamp(0.0, 1.0)
    matched = match_colours(shown, target, weight).clamp(0.0, 1.0)
    return ViewMetrics(
        psnr=min(psnr(shown, target, weight).item(), HIGHEST_PSNR),
        psnr_colour_matched=min(psnr(matched, target, weight).item(), HIGHEST_PSNR),
        ssim=ssim(apply_mask(shown, target, weight), target, padding=SSIM_REGION).item(),
    )


def match_colours(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """``image`` ([H, W, 3]) under the affine map of its colours that has the least squared difference from ``target``; not clamped.

    ``weight`` as in ``view_metrics``.
    """
    colours = torch.cat([image, torch.ones_like(image[..., :1])], dim=2).reshape(-1, 4).double()
    weighed = colours if weight is None else colours * weight.reshape(-1, 1)
    # By the normal equations, with just enough added for images of one colour: 4 x 4 instead of a factorisation of all pixels.
    gram = weighed.T @ colours + 1e-9 * len(colours) * torch.eye(4, dtype=torch.float64, device=image.device)
    affine = torch.linalg.solve(gram, weighed.T @ target.reshape(-1, 3).double())
    return (colours @ affine).to(image.dtype).view_as(image)
