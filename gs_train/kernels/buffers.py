"""Arrays for the kernels: they begin with a cache line, and large ones are used again once nobody holds them.

A fresh array costs a page fault for every 4 KiB that is written to, which for the gradients of a million Gaussians takes as long as to
compute them. The invariant: an array is handed out again only when no view of it is left, whoever held it (a tensor, autograd, a user).
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_LINE = 64  # bytes
_LARGE = 2**20  # bytes; below, the allocator keeps memory by itself
_kept: list[NDArray[np.uint8]] = []
_lock = threading.Lock()


def aligned_buffer(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """An array that is not initialised and begins with a cache line, so that a row of 64 bytes is one line and not parts of two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    base = _large(size + _LINE) if size >= _LARGE else np.empty(size + _LINE, np.uint8)
    begin = -base.ctypes.data % _LINE
    return base[begin : begin + size].view(dtype).reshape(shape)


def _large(size: int) -> NDArray[np.uint8]:
    with _lock:
        for index in range(len(_kept)):
            if len(_kept[index]) == size and _references(_kept, index) == _UNUSED:
                return _kept[index]
        # A size that is new means that the Gaussians have become more or fewer: what is free now will not be asked for again.
        _kept[:] = [_kept[index] for index in range(len(_kept)) if _references(_kept, index) > _UNUSED]
        _kept.append(np.empty(size, np.uint8))
        return _kept[-1]


def _references(arrays: list[NDArray[np.uint8]], index: int) -> int:
    return sys.getrefcount(arrays[index])


_UNUSED = _references([np.empty(0, np.uint8)], 0)
"""References to an array that nobody but a list holds, as they are counted here: Python versions differ in that."""
