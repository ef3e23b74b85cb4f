"""Decoded pixels as tensors: the photo over a background colour, and the weight of each pixel."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def composite(pixels: NDArray[np.uint8] | Tensor, background: Tensor) -> Tensor:
    """Composite a photo over a colour.

    Args:
        pixels: [H, W, 3] uint8 RGB, or [H, W, 4 or 5] with RGB premultiplied by alpha, and alpha; on any device.
        background: [3] float32 in 0..1, on the device of the result. It receives no gradient.

    Returns:
        [H, W, 3] float32 in 0..1.
    """
    photo = torch.as_tensor(pixels).to(background.device) / 255.0
    if pixels.shape[2] >= 4:
        photo = photo[:, :, :3] + (1.0 - photo[:, :, 3:4]) * background.detach()
    return photo


def pixel_weights(pixels: NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor | None:
    """[H, W, 1] float32 weights of the pixels in 0..1; None if all weights are 1.

    Args:
        pixels: [H, W, 3 to 5] uint8 on any device; the fifth channel is the weight.
        device: device of the result.
    """
    if pixels.shape[2] < 5:
        return None
    return torch.as_tensor(pixels[:, :, 4:]).to(device) / 255.0
