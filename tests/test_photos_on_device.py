"""Photos that stay on a GPU up to a budget, on a pretended GPU, and on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pretended_device
import pytest
import torch
from numpy.typing import NDArray

from gs_train.scene.photos.on_device import PhotosOnDevice


class Images:
    """Three photos of 12x10 px; notes the calls."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.photos = [rng.integers(0, 256, (10, 12, 3), dtype=np.uint8) for _ in range(3)]
        self.read: list[tuple[int, int]] = []
        self.expected: list[list[int]] = []

    def get(self, index: int, downscale: int = 1) -> NDArray[np.uint8]:
        self.read.append((index, downscale))
        return np.ascontiguousarray(self.photos[index][::downscale, ::downscale])

    def expect(self, indices: Sequence[int], downscale: int = 1) -> None:
        self.expected.append(list(indices))


SIZE = 10 * 12 * 3


def test_photos_stay_on_the_device_up_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images()
    gpu = pretended_device.install(monkeypatch)
    with gpu:
        photos = PhotosOnDevice(images, pretended_device.DEVICE, budget=2 * SIZE)  # type: ignore[arg-type]
        for index in (0, 1, 2, 2, 1, 0):
            pixels = photos.get(index, 1)
            assert pixels.device == pretended_device.DEVICE and pixels.dtype == torch.uint8
            assert np.array_equal(pretended_device.to_cpu(pixels).numpy(), images.photos[index])
        assert images.read == [(0, 1), (1, 1), (2, 1), (2, 1)], "the third photo has no room"
        photos.expect([0, 2, 1], 1)
        assert images.expected == [[2]]
        # Photos of another size take the room of the old ones.
        photos.expect([0, 1, 2], 2)
        for index in (0, 1, 2, 0, 1, 2):
            photos.get(index, 2)
        assert images.expected[-1] == [0, 1, 2] and images.read[4:] == [(0, 2), (1, 2), (2, 2)]
        assert photos.get(0, 1).shape == (10, 12, 3)
    assert not gpu.waits


def test_the_cpu_reads_the_photos_of_the_cache() -> None:
    images = Images()
    photos = PhotosOnDevice(images, torch.device("cpu"), budget=0)  # type: ignore[arg-type]
    pixels = photos.get(1, 1)
    assert np.array_equal(pixels.numpy(), images.photos[1])
    photos.expect([0, 1], 1)
    assert images.expected == [[0, 1]]
