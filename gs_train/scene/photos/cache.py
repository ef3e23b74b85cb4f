"""``ImageCache``: decoded photos, in memory up to a budget, beyond it in an anonymous file on disk.

``decode.py`` defines the pixels, ``training/state.py`` the order of the views. An array has the same bits with every
budget.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gs_train.errors import UserError
from gs_train.machine import free_memory
from gs_train.scene.photos.decode import decode_images, reduced
from gs_train.scene.types import View

READ_AHEAD = 4
"""Number of views to read before they are requested, if the budget has room for them."""

_GB = 10**9


_Key = tuple[int, int]  # index of the view, downscale


class ImageCache:
    """All images of some views, decoded when the cache is created.

    If all images fit the budget they stay in memory. Otherwise all go to disk, and the budget not reserved for
    read-ahead pins a fixed subset in memory. In random order, a fixed subset is hit more often than the most recent
    images.
    """

    def __init__(self, views: Sequence[View], budget: int | None = None, folder: Path | None = None) -> None:
        """Decode every view's image. This takes memory for one photo, up to half the budget, in addition to the budget.

        Args:
            views: in the order of the indices.
            budget: bytes of pixels to hold in memory; None for half of the free memory.
            folder: an existing folder for the file of images beyond the budget; None for the system's temporary folder.

        Raises:
            UserError: an image is truncated, cannot be decoded or no longer exists (the message names it), or the disk
                is full.
        """
        self._budget = free_memory() // 2 if budget is None else budget
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._held: dict[_Key, NDArray[np.uint8]] = {}
        self._held_bytes = 0
        self._pending: dict[_Key, Future[NDArray[np.uint8]]] = {}
        # The thread starts with the first image to read.
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read ahead")
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
            # The largest image, which sets the reserve for read-ahead, is known only now.
            held, self._held, self._held_bytes = self._held, {}, 0
            for key, pixels in held.items():
                self._hold(key, pixels)

    def __len__(self) -> int:
        return len(self._shapes)

    def get(self, index: int, downscale: int = 1) -> NDArray[np.uint8]:
        """[H, W, C] uint8 image of view ``index`` in the format of ``decode_image``; callers must not write to it.

        Args:
            index: the view.
            downscale: N gives the mean of N x N pixels per pixel. The cache keeps the result if the budget has room.
        """
        key = index, downscale
        if key in self._held:
            return self._held[key]
        pixels = self._pending[key].result() if key in self._pending else self._make(index, downscale)
        if self._hold(key, pixels):
            self._pending.pop(key, None)
        return pixels

    def expect(self, indices: Sequence[int], downscale: int = 1) -> None:
        """Begin to read views that are not in memory, in order. Drops images read ahead that are no longer listed.

        Args:
            indices: the views of the following ``get`` calls, in order.
            downscale: that of these calls.
        """
        keys = [(index, downscale) for index in indices]
        for key in self._pending.keys() - set(keys):
            self._pending.pop(key).cancel()
        for key in keys:
            if key in self._held or key in self._pending:
                continue
            if self.byte_count() + self._size(key) > self._budget:
                break
            self._pending[key] = self._reader.submit(self._make, *key)

    def byte_count(self) -> int:
        """Memory of the images, including images being read ahead, in bytes."""
        return self._held_bytes + sum(map(self._size, self._pending))

    def stored_byte_count(self) -> int:
        """Size of the file on disk, in bytes; 0 if all images fit in memory."""
        return 0 if self._store is None else self._store.size

    def _make(self, index: int, downscale: int) -> NDArray[np.uint8]:
        """Make an image that is not in memory. Changes no state, because the read-ahead thread calls it too."""
        full = self._held.get((index, 1))
        if full is None:
            # Without a store, full-size images always stay in memory.
            assert self._store is not None
            full = self._store.read(index, self._shapes[index])
        return full if downscale == 1 else reduced(full, downscale)

    def _hold(self, key: _Key, pixels: NDArray[np.uint8]) -> bool:
        """Keep an image in memory if there is room. Drops images of other sizes first. Returns whether it was kept."""
        # With a store, the current image and the images read ahead need a reserve. Without one, only images at reduced
        # sizes are read ahead, and their room is not guaranteed.
        if self._store is not None:
            limit = self._budget - self._largest * min(1 + READ_AHEAD, self._budget // self._largest)
        else:
            limit = self._budget - sum(self._size(other) for other in self._pending if other != key)
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
        """A store with all images decoded so far. Memory keeps copies of some of them."""
        store = _Store(self._folder, sum(3 * view.camera.width * view.camera.height for view in views))
        for pixels in self._held.values():
            store.append(pixels)
        return store


class _Store:
    """Images in an anonymous file, which disappears with the process.

    It is read with plain reads, because the pages of a memory-mapped file would count as memory of the process.
    """

    def __init__(self, folder: Path, least: int) -> None:
        """Create the file in ``folder``, which must have ``least`` free bytes.

        Raises:
            UserError: the disk has less space, or the file cannot be created.
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
        """Append an image.

        Raises:
            UserError: the disk is full, or the file cannot be written. The file is then deleted.
        """
        rest = np.ascontiguousarray(pixels).data.cast("B")
        self._begins.append(self.size)
        self.size += len(rest)
        try:
            while rest:
                # A write may be partial, on a nearly full disk or above 2 GiB.
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.close()
            raise self._no_room(error) from error

    def read(self, index: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The image that was appended as number ``index``."""
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
        message = f"{self._folder} has no room for the decoded photos ({error.strerror or error})"
        needed_gb = max(self._least, self.size) / _GB
        return UserError(
            f"{message}: free {needed_gb:.1f} GB there, or keep all photos in memory with a larger --image-cache-gb."
        )

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
