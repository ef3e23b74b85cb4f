"""A photo's pixels as the tensor that a render is compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def over(pixels: NDArray[np.uint8], background: Tensor) -> Tensor:
    """Composite a photo over a colour.

    Args:
        pixels: [H, W, 3] uint8 RGB, or [H, W, 4 or 5] with alpha fourth and the colours multiplied by it; a fifth channel is passed over.
        background: [3] float32 in 0..1, on the device that the result is wanted on; no gradient flows to it.

    Returns:
        [H, W, 3] float32 in 0..1.
    """
    photo = torch.from_numpy(pixels).to(background.device).float() / 255.0
    if pixels.shape[2] >= 4:
        photo = photo[:, :, :3] + (1.0 - photo[:, :, 3:4]) * background.detach()
    return photo
