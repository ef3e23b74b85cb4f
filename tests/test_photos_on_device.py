"""Photos that stay on a GPU up to a budget and are copied ahead beyond it: on a pretended GPU, on a GPU, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pretended_device
import pytest
import torch
from numpy.typing import NDArray

from gs_train.scene.photos.cache import READ_AHEAD
from gs_train.scene.photos.on_device import PhotosOnDevice


class Images:
    """Photos of 12 px width; notes the calls."""

    def __init__(self, heights: Sequence[int] = (10, 10, 10), scale: int = 1) -> None:
        rng = np.random.default_rng(0)
        sizes = [(height * scale, 12 * scale, 3) for height in heights]
        self.photos = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
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


ORDER = [0, 2, 4, 1, 3] * 10
HEIGHTS = (12, 10, 12, 9, 11)


@pytest.mark.parametrize("held", [0, 2])
def test_the_next_photo_is_copied_ahead_through_two_buffers(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the pretended GPU a copy takes as long as CUDA allows, so a missing wait gives wrong pixels."""
    images, stays = Images(HEIGHTS), ORDER[:held]
    wanted = ORDER[:1]
    gpu = pretended_device.install(monkeypatch)
    with gpu:
        photos = PhotosOnDevice(images, pretended_device.DEVICE, held * images.photos[0].nbytes)  # type: ignore[arg-type]

        def get(index: int) -> None:
            assert np.array_equal(pretended_device.to_cpu(photos.get(index, 1)).numpy(), images.photos[index])

        for step in range(40):
            coming = ORDER[step : step + 1 + READ_AHEAD]
            photos.expect(coming, 1)
            assert images.expected[-1] == [i for i in coming if i not in stays[:step] and (step == 0 or i != coming[0])]
            get(coming[0])
            wanted += [coming[1]] if step == 0 or coming[1] not in stays else []
            if step % 9 == 5:  # A round of density control takes other photos.
                for index in ORDER[step - 2 : step]:
                    get(index)
                    wanted += [index] if index not in stays else []
            assert [index for index, _ in images.read] == wanted
    assert not gpu.waits
    assert len(gpu.streams.pinned) == 2 and not gpu.streams.main.queue
    # The photo ahead is not in use yet.
    assert len(gpu.streams.recorded) == len(wanted) - (ORDER[40] not in stays)


def test_the_cpu_reads_the_photos_of_the_cache() -> None:
    images = Images()
    photos = PhotosOnDevice(images, torch.device("cpu"), budget=0)  # type: ignore[arg-type]
    photos.expect([1, 0], 1)
    assert images.expected == [[1, 0]]
    pixels = photos.get(1, 1)
    assert np.array_equal(pixels.numpy(), images.photos[1]) and images.read == [(1, 1)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("held", [0, 2])
def test_a_busy_gpu_gets_the_pixels_without_a_wait(held: int) -> None:
    """Copies of 4 MB pass kernels that take longer than a copy."""
    images, device = Images(HEIGHTS, scale=100), torch.device("cuda", torch.cuda.current_device())
    photos = PhotosOnDevice(images, device, budget=held * images.photos[0].nbytes)  # type: ignore[arg-type]
    expected = [torch.from_numpy(photo).to(device) for photo in images.photos]
    busy = torch.ones(4096, 4096, device=device)
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(40):
            photos.expect(ORDER[step : step + 1 + READ_AHEAD], 1)
            pixels = photos.get(ORDER[step], 1)
            busy = (busy @ busy).clamp(max=1.0)
            wrong += (pixels != expected[ORDER[step]]).sum()
            del pixels
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(wrong) == 0
