"""Uninitialised arrays for the kernels: aligned to cache lines, and taken from a pool if they are large.

A fresh array costs one page fault per 4 KiB written. For the gradients of a million Gaussians, the page faults take as
long as the computation. The pool hands out an array again only when no view of it is left anywhere: in a tensor, in
autograd, or in a caller's variable. Reference counts tell.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_CACHE_LINE = 64  # bytes
_POOLED_SIZE = 2**20  # bytes; the allocator itself reuses smaller blocks
_pool: list[NDArray[np.uint8]] = []
_lock = threading.Lock()


def aligned_buffer(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """An uninitialised array that starts on a cache line: a row of 64 bytes fills one line instead of two halves."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    base = _pooled_array(size + _CACHE_LINE) if size >= _POOLED_SIZE else np.empty(size + _CACHE_LINE, np.uint8)
    begin = -base.ctypes.data % _CACHE_LINE
    return base[begin : begin + size].view(dtype).reshape(shape)


def _pooled_array(size: int) -> NDArray[np.uint8]:
    with _lock:
        for index in range(len(_pool)):
            if len(_pool[index]) == size and _reference_count(_pool, index) == _UNUSED_COUNT:
                return _pool[index]
        # A new size usually means that the number of Gaussians has changed: the unused buffers have the old sizes, so
        # the pool drops them.
        _pool[:] = [_pool[index] for index in range(len(_pool)) if _reference_count(_pool, index) > _UNUSED_COUNT]
        _pool.append(np.empty(size, np.uint8))
        return _pool[-1]


def _reference_count(arrays: list[NDArray[np.uint8]], index: int) -> int:
    return sys.getrefcount(arrays[index])


_UNUSED_COUNT = _reference_count([np.empty(0, np.uint8)], 0)
"""Reference count of an array that only the pool holds. It is measured, because it differs between Python versions."""
