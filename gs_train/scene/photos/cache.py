"""Keeps decoded photos at hand: in memory up to a budget, beyond it in one nameless file on the disk, and reads ahead what is announced.

Not here: what a photo's pixels are (``images.py``) and which view comes next (``train/state.py``). The invariant: an array handed out holds
the same bits whatever the budget, and wherever it lay.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError
from gs_train.scene.photos.decode import decode_images, reduced
from gs_train.scene.types import View

READ_AHEAD = 4
"""So many views after the one in hand are read before they are asked for, where the budget has room for them."""

_GB = 10**9
_UNTOLD = 8 * _GB  # Where the system does not say what it has.
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # versions 2 and 1

_Key = tuple[int, int]  # index of the view, downscale


class ImageCache:
    """All images of some views, decoded when the cache is made.

    Where all fit into the budget they stay in memory. Where not, all go to the disk, and what the budget has left beside the images read
    ahead keeps some of them for good: over random permutations they are hit as often as they are many, and the latest ones less often.
    """

    def __init__(self, views: Sequence[View], budget: int | None = None, folder: Path | None = None) -> None:
        """Decode every view's image; while that lasts, it takes up to half the budget on top, or what one photo takes.

        Args:
            views: in the order of the indices.
            budget: bytes of pixels to hold in memory; half of the free memory if not given.
            folder: an existing one, on the disk that takes what the budget does not; the system's folder for temporary files if not given.

        Raises:
            UserError: an image is truncated, cannot be decoded or is no longer there (the message names it), or the disk has no room.
        """
        self._budget = free_memory() // 2 if budget is None else budget
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._held: dict[_Key, NDArray[np.uint8]] = {}
        self._held_bytes = 0
        self._coming: dict[_Key, Future[NDArray[np.uint8]]] = {}
        self._reader = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="read ahead"
        )  # It starts with the first thing to read.
        self._shapes: list[tuple[int, ...]] = []
        self._largest = 0
        self._store: _Store | None = None
        for index, pixels in enumerate(decode_images(views, self._budget // 2)):
            self._shapes.append(pixels.shape)
            self._largest = max(self._largest, pixels.nbytes)
            if self._store is None and self._held_bytes + pixels.nbytes > self._budget:
                self._store = self._stored_so_far(views)
            if self._store is not None:
                self._store.append(pixels)
            self._hold((index, 1), pixels)
        if self._store is not None:
            # Only now is the largest image known, which says how much room is kept for those in hand and ahead.
            held, self._held, self._held_bytes = self._held, {}, 0
            for key, pixels in held.items():
                self._hold(key, pixels)

    def __len__(self) -> int:
        return len(self._shapes)

    def get(self, index: int, downscale: int = 1) -> NDArray[np.uint8]:
        """[H, W, C] uint8 of view ``index``, as ``decode_image`` gives it: the cache's own array, not to be written to.

        Args:
            downscale: with N, each pixel is the mean of N x N; kept when first asked for, as far as the budget goes.
        """
        key = index, downscale
        if key in self._held:
            return self._held[key]
        pixels = self._coming[key].result() if key in self._coming else self._made(index, downscale)
        if self._hold(key, pixels):
            self._coming.pop(key, None)
        return pixels

    def expect(self, indices: Sequence[int], downscale: int = 1) -> None:
        """Begin to read these views, the first one first, where they are not in memory; what was announced before and is not now goes.

        Args:
            indices: the view that is asked for next, then those after it.
            downscale: the size they will be asked for.
        """
        keys = [(index, downscale) for index in indices]
        for key in self._coming.keys() - set(keys):
            self._coming.pop(key).cancel()
        for key in keys:
            if key in self._held or key in self._coming:
                continue
            if self.byte_count() + self._size(key) > self._budget:
                break
            self._coming[key] = self._reader.submit(self._made, *key)

    def byte_count(self) -> int:
        """Memory that the images take, in bytes, with those that are being read."""
        return self._held_bytes + sum(map(self._size, self._coming))

    def stored_byte_count(self) -> int:
        """What lies on the disk, in bytes; 0 where all fit into memory."""
        return 0 if self._store is None else self._store.size

    def _made(self, index: int, downscale: int) -> NDArray[np.uint8]:
        """An image that is not in memory at this size. Also called by the thread that reads ahead, so it changes nothing."""
        full = self._held.get((index, 1))
        if full is None:
            # Without a store, full images are never let go.
            assert self._store is not None
            full = self._store.read(index, self._shapes[index])
        return full if downscale == 1 else reduced(full, downscale)

    def _hold(self, key: _Key, pixels: NDArray[np.uint8]) -> bool:
        """Keep an image in memory if there is room; images of sizes that are not asked for any more make room. Whether it is kept."""
        # The image in hand and those read ahead need their place; without a store they are small ones at most, and may have none.
        if self._store is not None:
            limit = self._budget - self._largest * min(1 + READ_AHEAD, self._budget // self._largest)
        else:
            limit = self._budget - sum(self._size(other) for other in self._coming if other != key)
        for other in list(self._held):
            if self._held_bytes + pixels.nbytes <= limit:
                break
            if other[1] != key[1] and (self._store is not None or other[1] != 1):
                self._held_bytes -= self._held.pop(other).nbytes
        if self._held_bytes + pixels.nbytes > limit:
            return False
        self._held[key] = pixels
        self._held_bytes += pixels.nbytes
        return True

    def _size(self, key: _Key) -> int:
        height, width, channels = self._shapes[key[0]]
        return -(-height // key[1]) * -(-width // key[1]) * channels

    def _stored_so_far(self, views: Sequence[View]) -> _Store:
        """A store with the images decoded before this one; from now on memory holds copies of some of it."""
        store = _Store(self._folder, sum(3 * view.camera.width * view.camera.height for view in views))
        for pixels in self._held.values():
            store.append(pixels)
        return store


class _Store:
    """Images in a file without a name, so that nothing is left of it whatever becomes of the process; read by plain reads, because the
    pages of a mapped file count as the process's memory."""

    def __init__(self, folder: Path, least: int) -> None:
        """Create the file where ``least`` bytes are free.

        Raises:
            UserError: they are not, or no file can be created there.
        """
        self.size = 0
        self._folder, self._least = folder, least
        self._begins: list[int] = []
        self._lock = threading.Lock()
        try:
            free = shutil.disk_usage(folder).free
            if free < least:
                raise OSError(f"{free / _GB:.1f} GB are free")
            self._file = tempfile.TemporaryFile(prefix=".gs-train-photos-", dir=folder, buffering=0)
        except OSError as error:
            raise self._no_room(error) from error

    def append(self, pixels: NDArray[np.uint8]) -> None:
        """Write one more image.

        Raises:
            UserError: the disk is full, or the file cannot be written; the file is gone then.
        """
        rest = np.ascontiguousarray(pixels).data.cast("B")
        self._begins.append(self.size)
        self.size += len(rest)
        try:
            while rest:
                # On a disk that is nearly full, and beyond 2 GiB, a write takes only part of what it is given.
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.close()
            raise self._no_room(error) from error

    def read(self, index: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The image that was written as number ``index``."""
        pixels = np.empty(shape, np.uint8)
        rest = pixels.data.cast("B")
        with self._lock:
            self._file.seek(self._begins[index])
            while rest:
                count = self._file.readinto(rest)
                if not count:
                    raise EOFError(f"the file of decoded photos in {self._folder} ends before photo {index}")
                rest = rest[count:]
        return pixels

    def _no_room(self, error: OSError) -> UserError:
        message = f"{self._folder} cannot take the decoded photos ({error.strerror or error})"
        needed_gb = max(self._least, self.size) / _GB
        return UserError(
            f"{message}: free {needed_gb:.1f} GB there, or hold all in memory by a larger --image-cache-gb."
        )

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def free_memory() -> int:
    """Bytes of memory that can be taken without swapping, as far as the system and its control group say; else 8 GB."""
    message: list[int] = []
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        message += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    if not message and hasattr(os, "sysconf"):
        with suppress(OSError, ValueError):
            message.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in _CGROUP_LIMITS:
        # "max" where there is none.
        with suppress(OSError, ValueError):
            message.append(int(Path(file).read_text()))
    return min(message, default=_UNTOLD)
