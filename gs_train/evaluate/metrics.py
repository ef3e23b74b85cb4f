"""What an image is worth beside the truth: PSNR and SSIM of one view.

Averages and files are in ``evaluate.py``. The invariant: both images are clamped to 0..1, because that is what a viewer shows, and SSIM is
taken over the valid region only, as torchmetrics does, so that the zero padding of training does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gs_train.losses import psnr, ssim

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


def view_metrics(image: Tensor, target: Tensor) -> ViewMetrics:
    """Compare a render with a photo.

    Args:
        image: [H, W, 3], not clamped.
        target: [H, W, 3] in 0..1.
    """
    shown = image.clamp(0.0, 1.0)
    return ViewMetrics(psnr=min(psnr(shown, target).item(), HIGHEST_PSNR), ssim=ssim(shown, target, padding=SSIM_REGION).item())
