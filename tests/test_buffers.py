"""The buffer pool reuses large arrays, but never while a view of one exists."""

from __future__ import annotations

import numpy as np
import torch

from gs_train.kernels.buffers import aligned_buffer

SHAPE = (700, 1000)


def test_arrays_are_aligned_to_cache_lines() -> None:
    for shape in ((3,), (5, 16), SHAPE, (0, 16)):
        array = aligned_buffer(shape)
        assert array.shape == shape
        assert array.dtype == np.float32
        assert array.ctypes.data % 64 == 0 or array.size == 0
    assert aligned_buffer((7,), np.uint64).dtype == np.uint64


def test_an_unused_large_array_is_reused() -> None:
    first = aligned_buffer(SHAPE)
    place = first.ctypes.data
    assert aligned_buffer(SHAPE).ctypes.data != place
    del first
    again = [aligned_buffer(SHAPE), aligned_buffer(SHAPE)]
    assert place in [array.ctypes.data for array in again]


def test_an_array_with_a_live_view_is_not_reused() -> None:
    row = aligned_buffer(SHAPE)[3, :10]
    tensor = torch.from_numpy(aligned_buffer(SHAPE))[5:, :7]
    kept = torch.nn.Parameter(torch.zeros(SHAPE))
    kept.grad = torch.from_numpy(aligned_buffer(SHAPE))
    row[:] = 1.0
    tensor[:] = 2.0
    kept.grad[:] = 3.0
    others = [aligned_buffer(SHAPE) for _ in range(5)]
    for other in others:
        other[:] = -1.0
    assert (row == 1.0).all()
    assert (tensor == 2.0).all()
    assert (kept.grad == 3.0).all()
    assert len({other.ctypes.data for other in others}) == len(others)
