"""Photos on the device of the training: uint8 pixels that stay there as far as a budget reaches.

A photo that is not on the GPU yet is copied while the GPU computes the step before. ``cache.py`` decodes the photos and
keeps them in memory or on disk; ``composite.py`` makes floats of the pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from gs_train.scene.photos.cache import ImageCache

_Key = tuple[int, int]  # index of the view, downscale
_BUFFERS = 2
"""One buffer is read by a copy while the other one is filled."""


class PhotosOnDevice:
    """The photos of a cache as tensors on one device."""

    def __init__(self, images: ImageCache, device: torch.device, budget: int) -> None:
        """Start with no photo on the device.

        Args:
            images: the decoded photos.
            device: device of the tensors.
            budget: bytes of photos to keep on the device; 0 for a CPU, which reads the photos of the cache.
        """
        self._images, self._budget = images, budget
        self._copies = None if device.type == "cpu" else _CopyStream(device)
        self._held: dict[_Key, Tensor] = {}
        self._held_bytes = 0
        self._next: _Key | None = None
        self._ahead: dict[_Key, tuple[Tensor, torch.cuda.Event]] = {}

    def expect(self, indices: Sequence[int], downscale: int) -> None:
        """Announce the views of the following ``get`` calls, in order.

        The cache reads the missing photos ahead. The first ``get`` call also begins to copy the second photo.
        """
        keys = [(index, downscale) for index in indices]
        self._ahead = {key: copy for key, copy in self._ahead.items() if key in keys}
        self._next = keys[1] if len(keys) > 1 else None
        self._images.expect([key[0] for key in keys if key not in self._held and key not in self._ahead], downscale)

    def get(self, index: int, downscale: int) -> Tensor:
        """[H, W, C] uint8 pixels of view ``index``, as ``ImageCache.get``. Callers must not write to it."""
        if self._copies is None:
            return self._read((index, downscale))
        key = index, downscale
        pixels = self._held.get(key)
        if pixels is None:
            pixels = self._copies.finish(*(self._ahead.pop(key, None) or self._copies.begin(self._read(key))))
            self._hold(key, pixels)
        following, self._next = self._next, None
        if following is not None and following not in self._held:
            self._ahead[following] = self._copies.begin(self._read(following))
        return pixels

    def _read(self, key: _Key) -> Tensor:
        return torch.from_numpy(self._images.get(*key))

    def _hold(self, key: _Key, pixels: Tensor) -> None:
        """Keep a photo if there is room. Drops photos of another size first."""
        for other in [other for other in self._held if other[1] != key[1]]:
            self._held_bytes -= self._held.pop(other).nbytes
        if self._held_bytes + pixels.nbytes <= self._budget:
            self._held[key] = pixels
            self._held_bytes += pixels.nbytes


class _CopyStream:
    """Copies photos to a GPU beside its kernels, on a stream of its own, through pinned buffers that are reused.

    The program waits for a copy only if both buffers are in use.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin with empty buffers; they grow with the photos."""
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        for _ in range(_BUFFERS):
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._buffers.append((torch.empty(0, dtype=torch.uint8), event))

    def begin(self, pixels: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Begin to copy uint8 pixels from the CPU; the arguments of ``finish``."""
        buffer, copied = self._buffers.popleft()
        # The copy that reads this buffer has usually ended long ago.
        copied.synchronize()
        count = pixels.numel()
        if len(buffer) < count:
            buffer = torch.empty(count, dtype=torch.uint8).pin_memory()
        staged = buffer[:count].view(pixels.shape)
        staged.copy_(pixels)
        with torch.cuda.stream(self._stream):
            copy = staged.to(self._device, non_blocking=True)
            copied.record(self._stream)
        self._buffers.append((buffer, copied))
        return copy, copied

    def finish(self, copy: Tensor, copied: torch.cuda.Event) -> Tensor:
        """Return the copy; the GPU, not the program, waits for it before it runs the caller's next kernels."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        # The memory belongs to the other stream, which must not reuse it while the caller's kernels read it.
        copy.record_stream(current)
        return copy
