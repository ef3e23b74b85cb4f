"""Photos on the device of the training: uint8 pixels that stay there as far as a budget reaches.

``cache.py`` decodes the photos and keeps them in memory or on disk; ``composite.py`` makes floats of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gs_train.scene.photos.cache import ImageCache

_Key = tuple[int, int]  # index of the view, downscale


class PhotosOnDevice:
    """The photos of a cache as tensors on one device."""

    def __init__(self, images: ImageCache, device: torch.device, budget: int) -> None:
        """Start with no photo on the device.

        Args:
            images: the decoded photos.
            device: device of the tensors.
            budget: bytes of photos to keep on the device; 0 for a CPU, which reads the photos of the cache.
        """
        self._images, self._device, self._budget = images, device, budget
        self._held: dict[_Key, Tensor] = {}
        self._held_bytes = 0

    def expect(self, indices: Sequence[int], downscale: int) -> None:
        """Announce the views of the following ``get`` calls, in order: the cache reads the missing ones ahead."""
        self._images.expect([index for index in indices if (index, downscale) not in self._held], downscale)

    def get(self, index: int, downscale: int) -> Tensor:
        """[H, W, C] uint8 pixels of view ``index``, as ``ImageCache.get``. Callers must not write to it."""
        key = index, downscale
        if key not in self._held:
            pixels = torch.from_numpy(self._images.get(index, downscale))
            if self._device.type == "cpu":
                return pixels
            # From pinned memory, a copy need not wait for the GPU.
            pixels = pixels.pin_memory().to(self._device, non_blocking=True)
            if not self._hold(key, pixels):
                return pixels
        return self._held[key]

    def _hold(self, key: _Key, pixels: Tensor) -> bool:
        """Keep a photo if there is room, and drop photos of another size first. Returns whether it was kept."""
        for other in [other for other in self._held if other[1] != key[1]]:
            self._held_bytes -= self._held.pop(other).nbytes
        if self._held_bytes + pixels.nbytes > self._budget:
            return False
        self._held[key] = pixels
        self._held_bytes += pixels.nbytes
        return True
