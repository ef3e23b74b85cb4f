"""What an image is worth beside the truth: PSNR and SSIM of one view.

Averages and files are in ``evaluate.py``. The invariant: both images are clamped to 0..1, because that is what a viewer shows, and SSIM is
taken over the valid region only, as torchmetrics does, so that the zero padding of training does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gs_train.losses import psnr, ssim, where_it_counts

SSIM_REGION: Literal["valid"] = "valid"

HIGHEST_PSNR = 100.0
"""dB; what an exact match counts for, because the mean would be infinite otherwise."""


@dataclass(frozen=True, kw_only=True)
class ViewMetrics:
    """Figures of one view."""

    psnr: float
    """Peak signal-to-noise ratio, dB."""
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
    similarity = ssim(where_it_counts(shown, target, weight), target, padding=SSIM_REGION)
    return ViewMetrics(psnr=min(psnr(shown, target, weight).item(), HIGHEST_PSNR), ssim=similarity.item())
