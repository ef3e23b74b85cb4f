"""Compilation of the Numba kernels: one set of options, and notices. Their cache is in ``cache.py``.

The options never let the compiler reorder sums or products. They let it fuse a multiplication and an addition
(``contract``), so two kernels that share an expression may round differently. In practice they have agreed so far.
``error_model="numpy"`` makes a division by zero return inf or NaN. It raises no exception, so it needs no branch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import llvmlite.binding
import numba
import torch
from numba.core import event

from gs_train.kernels.cache import KernelCache, cache_folder, why_not_kept

if numba.config.CPU_FEATURES is None and numba.config.CPU_NAME is None:
    _features = llvmlite.binding.get_host_cpu_features()
    WIDE_VECTORS = bool(_features.get("avx512f"))
    if WIDE_VECTORS:
        # LLVM prefers 256-bit vectors on many processors with 512-bit registers, but blending is 1.6 times as fast with
        # 512-bit vectors. Numba reads this setting at its first compilation; set later, it is ignored.
        numba.config.CPU_FEATURES = _features.flatten() + ",-prefer-256-bit"
else:
    WIDE_VECTORS = "+avx512f" in (numba.config.CPU_FEATURES or "")

# `omp` kills forked child processes (a data loader, a test runner), so it comes last.
numba.config.THREADING_LAYER_PRIORITY = ["tbb", "workqueue", "omp"]

FASTMATH = {"contract", "nsz", "arcp"}

_OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": FASTMATH, "nogil": True, "no_cfunc_wrapper": True}

helper: Callable[..., Any] = numba.njit(**_OPTIONS, forceinline=True, no_cpython_wrapper=True)
"""Decorator for a function that only kernels call. It is compiled into each kernel and has no cache file of its own."""

inline_once: Callable[..., Any] = numba.njit(**_OPTIONS, inline="always")
"""Like ``helper``, for a long function with one caller. Numba inlines its source code, so it is compiled only once."""

KERNEL_LOCK = threading.RLock()
"""Held while kernels run: Numba's workqueue threading layer, the default without TBB, ends the process when two threads
start parallel kernels at once."""


def parallel_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a kernel whose ``prange`` iterations write to disjoint memory. It is cached on disk."""
    compiled = numba.njit(**_OPTIONS, parallel=True)(function)
    with suppress(RuntimeError):  # without a home folder there is no cache
        compiled._cache = KernelCache(function)
    return compiled  # type: ignore[no-any-return]


@contextmanager
def report_compilation(notify: Callable[[str], None]) -> Iterator[None]:
    """Notify the user if this block compiles kernels, because the disk has none yet, and report the time at the end."""
    listener = _Compilations(notify)
    began_s = time.perf_counter()
    with event.install_listener("numba:compile", listener):
        yield
    if listener.kernels > 0:
        took_s = time.perf_counter() - began_s
        fault = why_not_kept()
        kept = f"they are kept in {cache_folder()}" if fault is None else f"they are not kept, as {fault}"
        notify(f"Compiled {listener.kernels} kernels in {took_s:.0f} s; {kept}.")


class _Compilations(event.Listener):  # type: ignore[misc]
    """Counts the kernels that Numba compiles instead of loading them, and notifies the user at the first."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify, self._depth, self.kernels = notify, 0, 0

    def on_start(self, event: Any) -> None:
        # A kernel's helpers compile within the kernel's own event, so only the outermost event counts.
        if self._depth == 0:
            if self.kernels == 0:
                self._notify(
                    "Compiling the CPU kernels (projection, tiles, blending, loss), once per machine: "
                    "about half a minute."
                )
            self.kernels += 1
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1


def follow_torch_threads() -> None:
    """Use as many threads as torch, so that ``torch.set_num_threads`` or OMP_NUM_THREADS controls both."""
    numba.set_num_threads(max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)))
