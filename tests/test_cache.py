"""The image cache: the budget changes no bit and is never exceeded, read-ahead works, and a full disk is reported."""

from __future__ import annotations

import errno
import gc
import os
import re
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_resume import Trace, differences

from gs_train.cameras.camera import Camera
from gs_train.config.settings import TrainConfig
from gs_train.density.config import DensityConfig
from gs_train.errors import UserError
from gs_train.machine import free_memory
from gs_train.run.checkpoint import list_checkpoints, read_checkpoint
from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.photos import cache as module
from gs_train.scene.photos import decode as decode_module
from gs_train.scene.photos import threads
from gs_train.scene.photos.cache import READ_AHEAD, ImageCache
from gs_train.scene.photos.decode import decode_image, decode_images
from gs_train.scene.types import View
from gs_train.training.loop import train
from gs_train.training.state import TrainState

COUNT = 12


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> list[View]:
    """Views of photos of several sizes, every third one with alpha."""
    folder, rng, made = tmp_path_factory.mktemp("photos"), np.random.default_rng(0), []
    for index in range(COUNT):
        width, height, channels = 40 + index, 30 + index % 3, 4 if index % 3 == 2 else 3
        file = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, channels), dtype=np.uint8)).save(file)
        camera = Camera(width=width, height=height, fx=1, fy=1, cx=0, cy=0)
        made.append(View(name=file.name, image_path=file, camera=camera, world_to_camera=np.eye(4)))
    return made


def all_bytes(views: list[View]) -> int:
    return sum(decode_image(view).nbytes for view in views)


def largest_bytes(views: list[View]) -> int:
    return max(decode_image(view).nbytes for view in views)


@pytest.mark.parametrize("share", [0.0, 0.12, 0.2, 0.5, 0.7, 0.999, 1.0, 1.2, 5.0])
@pytest.mark.parametrize("announce", [True, False])
def test_the_budget_changes_no_bit_and_is_kept(views: list[View], tmp_path: Path, share: float, announce: bool) -> None:
    """Training sizes from coarse to fine and back, and requests for views that were not announced."""
    budget = int(share * all_bytes(views))
    plain, cache = ImageCache(views, 10**9), ImageCache(views, budget, tmp_path)
    assert len(cache) == COUNT
    assert cache.stored_byte_count() == (0 if share >= 1 else all_bytes(views))
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(COUNT), 2)).tolist()
    for downscale in (4, 2, 1, 2):
        for step in range(len(order)):
            if announce:
                cache.expect(order[step : step + 1 + READ_AHEAD], downscale)
            for index in (order[step], (7 * step) % COUNT):
                pixels = cache.get(index, downscale)
                assert np.array_equal(pixels, plain.get(index, downscale)) and pixels.dtype == np.uint8
                assert cache.byte_count() <= budget
    assert np.array_equal(plain.get(3), decode_image(views[3]))
    assert plain.byte_count() > all_bytes(views) and plain.stored_byte_count() == 0
    assert list(tmp_path.iterdir()) == []


def test_byte_count_is_the_memory_in_use(views: list[View], tmp_path: Path) -> None:
    budget = all_bytes(views) * 2 // 3
    cache = ImageCache(views, budget, tmp_path)
    for index in range(COUNT):
        cache.get(index, 2)
    assert cache.byte_count() == sum(pixels.nbytes for pixels in cache._held.values()) > 0
    # Only less than one image of the budget outside the read-ahead reserve stays unused.
    assert cache.byte_count() + 3 * largest_bytes(views) > budget - (1 + READ_AHEAD) * largest_bytes(views)


def test_images_of_other_sizes_make_room(views: list[View], tmp_path: Path) -> None:
    cache = ImageCache(views, all_bytes(views) * 2 // 3, tmp_path)
    full = {key for key in cache._held if key[1] == 1}
    for downscale in (4, 1):
        for index in range(COUNT):
            cache.get(index, downscale)
    assert full and {(index, 4) for index in range(COUNT)} > {key for key in cache._held if key[1] == 4}
    assert len({key for key in cache._held if key[1] == 1}) >= len(full)


class Reads:
    """Wraps the store's ``read`` and records each image and the thread that read it."""

    def __init__(self, cache: ImageCache) -> None:
        assert cache._store is not None
        self.threads: dict[int, str] = {}
        self.indices: list[int] = []
        self.wait_for: threading.Event | None = None
        self._read = cache._store.read
        cache._store.read = self.read  # type: ignore[method-assign]

    def read(self, index: int, shape: tuple[int, ...]) -> Any:
        if self.wait_for is not None:
            assert self.wait_for.wait(20)
        self.threads[index] = threading.current_thread().name
        self.indices.append(index)
        return self._read(index, shape)


def wait_for_reads(cache: ImageCache) -> None:
    for future in cache._pending.values():
        future.result(20)


def test_announced_images_are_read_ahead_once(views: list[View], tmp_path: Path) -> None:
    cache = ImageCache(views, 6 * largest_bytes(views), tmp_path)
    reads = Reads(cache)
    missing = [index for index in range(COUNT) if (index, 1) not in cache._held]
    wanted = missing[: 1 + READ_AHEAD]
    cache.expect(wanted)
    wait_for_reads(cache)
    assert reads.indices == wanted
    for index in wanted:
        assert np.array_equal(cache.get(index), decode_image(views[index]))
    cache.expect(wanted[1:])
    wait_for_reads(cache)
    assert reads.indices == wanted
    assert all(name.startswith("read ahead") for name in reads.threads.values())
    # This image was not announced.
    cache.get(missing[-1])
    assert reads.threads[missing[-1]] == threading.main_thread().name


def test_a_step_does_not_wait_for_later_images(views: list[View], tmp_path: Path) -> None:
    cache = ImageCache(views, 6 * largest_bytes(views), tmp_path)
    reads = Reads(cache)
    missing = [index for index in range(COUNT) if (index, 1) not in cache._held]
    cache.expect(missing[:1])
    wait_for_reads(cache)
    reads.wait_for = threading.Event()
    cache.expect(missing[:5])
    assert np.array_equal(cache.get(missing[0]), decode_image(views[missing[0]]))
    assert reads.indices == missing[:1]
    reads.wait_for.set()
    wait_for_reads(cache)
    assert reads.indices == missing[:5]


def test_images_no_longer_announced_are_dropped(views: list[View], tmp_path: Path) -> None:
    cache = ImageCache(views, 5 * largest_bytes(views), tmp_path)
    held = cache.byte_count()
    missing = [index for index in range(COUNT) if (index, 1) not in cache._held]
    cache.expect(missing[:4])
    assert cache.byte_count() == held + sum(decode_image(views[index]).nbytes for index in missing[:4])
    cache.expect([])
    assert cache.byte_count() == held


def test_where_all_fits_no_thread_is_started(views: list[View], tmp_path: Path) -> None:
    cache = ImageCache(views, all_bytes(views), tmp_path)
    cache.expect(range(COUNT))
    assert cache.get(3) is cache.get(3) and not cache._reader._threads


# ---- the disk


def test_a_full_disk_gives_one_sentence(views: list[View], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[Any] = []

    class Filling:
        """A file with room for one and a half images, which takes them in parts."""

        def __init__(self, **_: object) -> None:
            self.room, self.closed = largest_bytes(views) * 3 // 2, False
            files.append(self)

        def write(self, data: memoryview) -> int:
            taken = min(len(data), self.room, 1000)
            if taken == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room -= taken
            return taken

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(module.tempfile, "TemporaryFile", Filling)
    with pytest.raises(UserError, match="--image-cache-gb") as caught:
        ImageCache(views, 0, tmp_path)
    assert (
        str(tmp_path) in str(caught.value)
        and os.strerror(errno.ENOSPC) in str(caught.value)
        and "\n" not in str(caught.value)
    )
    assert files[0].room == 0 and files[0].closed


def test_a_disk_without_room_is_reported_before_writing(
    views: list[View], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=5000))
    monkeypatch.setattr(module.tempfile, "TemporaryFile", lambda **_: pytest.fail("a file was made"))
    with pytest.raises(
        UserError, match=re.escape(f"{tmp_path} has no room for the decoded photos (0.0 GB are free): free 0.0 GB")
    ):
        ImageCache(views, 0, tmp_path)


def test_a_folder_that_takes_no_file_is_named(views: list[View], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "none"))):
        ImageCache(views, 0, tmp_path / "none")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files")
def test_nothing_stays_open(views: list[View], tmp_path: Path) -> None:
    def open_in_folder() -> list[str]:
        links = [file for file in Path("/proc/self/fd").iterdir() if os.path.lexists(file)]
        return [target for link in links if (target := os.readlink(link)).startswith(str(tmp_path))]

    cache = ImageCache(views, 0, tmp_path)
    assert len(open_in_folder()) == 1
    del cache
    gc.collect()
    assert open_in_folder() == []


# ---- decoding


def test_only_so_many_photos_are_decoded_at_once(views: list[View], monkeypatch: pytest.MonkeyPatch) -> None:
    lock, at_once, most = threading.Lock(), 0, 0
    begun: list[str] = []
    together = threading.Barrier(1)

    def decode(view: View) -> Any:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
            begun.append(view.name)
        # Each thread waits until the expected number of threads is decoding.
        together.wait(60)
        pixels = decode_image(view)
        with lock:
            at_once -= 1
        return pixels

    monkeypatch.setattr(decode_module, "decode_image", decode)
    monkeypatch.setattr(threads, "cpu_threads", lambda: 6)
    one = decode_module._BYTES_PER_PIXEL * max(view.camera.width * view.camera.height for view in views)
    for memory, expected in ((0, 1), (3 * one, 3), (10**9, 6)):
        most, together = 0, threading.Barrier(expected)
        assert sum(pixels.nbytes for pixels in decode_images(views, memory)) == all_bytes(views)
        assert most == expected
    # Requesting one image decodes only a few.
    begun.clear()
    together = threading.Barrier(1)
    assert next(decode_images(views, one)).shape == (30, 40, 3)
    assert len(begun) <= 3


def test_free_memory_is_plausible() -> None:
    assert 2**26 < free_memory() < 2**46


# ---- training


@pytest.mark.parametrize("count", [2, 3, READ_AHEAD, 11])
def test_upcoming_views_are_known_across_permutations(count: int) -> None:
    state: Any = SimpleNamespace(view_order=[], view_generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    plain = [index for _ in range(20) for index in torch.randperm(count, generator=generator).tolist()[::-1]]
    for step in range(15 * count):
        assert TrainState.next_view(state, count) == plain[step]
        assert TrainState.coming_views(state) == plain[step + 1 : step + 1 + READ_AHEAD]


@pytest.mark.parametrize("downscale", [1, 4])
def test_training_gives_the_same_bits_and_goes_on_exactly_with_a_small_budget(
    tiny_scene: Path, tmp_path: Path, downscale: int
) -> None:
    scene = load_scene(tiny_scene, SceneConfig())
    density = DensityConfig(
        kind="multiview",
        from_iteration=10,
        until_iteration=60,
        interval=20,
        opacity_reset_interval=0,
        grad_threshold=1e-5,
    )
    plain = TrainConfig(
        iterations=60, device="cpu", max_gaussians=450, save_every=30, log_every=20, density=density,
        start_downscale=downscale, full_size_from=40,
    ).resolved()  # fmt: skip
    # Seven photos of 9216 bytes each. The budgets hold two images in memory and one read ahead, then none.
    small, none = replace(plain, image_cache_gb=3e-5), replace(plain, image_cache_gb=1e-9)
    said: list[str] = []
    train(scene, plain, tmp_path / "plain", notify=said.append)
    assert not any("--image-cache-gb" in line for line in said)
    parts = Trace()
    train(
        scene,
        small,
        tmp_path / "parts",
        after_step=[parts],
        should_stop=lambda: len(parts.counts) == 33,
        notify=said.append,
    )
    assert any("--image-cache-gb" in line and str(tmp_path) in line for line in said)
    train(scene, none, tmp_path / "parts", resume=True)
    left, right = (read_checkpoint(list_checkpoints(tmp_path / run / "checkpoints")[0]) for run in ("plain", "parts"))
    assert differences(left.state, right.state) == []
    assert not torch.equal(left.state["model"]["parameters"]["xyz"][0], torch.zeros(3))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".gs-train")] == []
