"""How our kernels are compiled and cached: one set of Numba options.

Not here: any arithmetic. The invariant: nothing in the options lets the compiler reorder sums or products. Multiply and add may be fused
(``contract``), so two kernels that share an expression agree on it where LLVM makes the same choice in both, as it was seen to.
``error_model="numpy"`` keeps division free of exceptions, and with them of branches.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import torch
from numba.core import event

if numba.config.CPU_FEATURES is None and numba.config.CPU_NAME is None:
    _features = llvmlite.binding.get_host_cpu_features()
    WIDE_VECTORS = bool(_features.get("avx512f"))
    if WIDE_VECTORS:
        # LLVM prefers 256-bit vectors on many processors that have 512-bit ones; blending is 1.6 times as fast with the wide ones. Numba
        # reads this when it first compiles, so it works only if nothing was compiled before, and does no harm otherwise.
        numba.config.CPU_FEATURES = _features.flatten() + ",-prefer-256-bit"
else:
    WIDE_VECTORS = "+avx512f" in (numba.config.CPU_FEATURES or "")

# `omp` kills forked children (a data loader, a test runner), so it comes last.
numba.config.THREADING_LAYER_PRIORITY = ["tbb", "workqueue", "omp"]

FASTMATH = {"contract", "nsz", "arcp"}

_OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": FASTMATH, "nogil": True, "no_cfunc_wrapper": True}

helper: Callable[..., Any] = numba.njit(**_OPTIONS, forceinline=True, no_cpython_wrapper=True)
"""Decorator for a function that only kernels call; it is compiled into them and not cached by itself."""

inline_once: Callable[..., Any] = numba.njit(**_OPTIONS, inline="always")
"""As ``helper``, for a long function with one caller: its source is taken into the caller's, so it is not compiled twice."""

KERNEL_LOCK = threading.RLock()
"""Held around kernels: Numba's default threading layer ends the process when two threads start parallel kernels at once."""


def parallel_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a kernel with ``prange`` loops whose iterations write disjoint memory, cached on disk."""
    compiled = numba.njit(**_OPTIONS, parallel=True)(function)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_cache_folder())
    try:
        compiled.enable_caching()
    except (RuntimeError, OSError):
        # No folder can be written to. Kernels are then compiled anew in each process, as they would be the first time.
        pass
    finally:
        numba.config.CACHE_DIR = before
    return compiled  # type: ignore[no-any-return]


@functools.cache
def _cache_folder() -> Path:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR or the user's cache folder, and in it one folder per state of our sources.

    Numba only looks at the file that defines a kernel. A kernel compiles in what it takes from other files, so a change there would leave
    an old kernel in use.
    """
    digest = hashlib.sha256()
    kernels = Path(__file__).parent
    for source in sorted([*kernels.glob("*.py"), *(kernels.parent / "render" / "cpu").glob("*.py")]):
        digest.update(source.read_bytes())
    if numba.config.CACHE_DIR:
        root = Path(numba.config.CACHE_DIR)
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "gs_train" / f"kernels-{digest.hexdigest()[:12]}"


@contextmanager
def report_compilation(notify: Callable[[str], None]) -> Iterator[None]:
    """Say so if kernels have to be compiled in this block, because they are not on disk yet, and afterwards how long it took."""
    listener = _Compilations(notify)
    began_s = time.perf_counter()
    with event.install_listener("numba:compile", listener):
        yield
    if listener.kernels > 0:
        took_s = time.perf_counter() - began_s
        kept = f"they are kept in {_cache_folder()}"
        lost = f"they are not kept, as {_cache_folder()} cannot be written to; NUMBA_CACHE_DIR names another folder"
        notify(f"Compiled {listener.kernels} kernels in {took_s:.0f} s; {kept if _cache_folder().is_dir() else lost}.")


class _Compilations(event.Listener):  # type: ignore[misc]
    """Counts the kernels that are compiled (and not loaded), and says so at the first."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify, self._depth, self.kernels = notify, 0, 0

    def on_start(self, event: Any) -> None:
        # What kernels call is compiled inside them.
        if self._depth == 0:
            if self.kernels == 0:
                self._notify(
                    "Compiling the CPU kernels (projection, tiles, blending, loss), once per machine: about half a minute."
                )
            self.kernels += 1
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1


def follow_torch_threads() -> None:
    """Use as many threads as torch does, so that one knob (``torch.set_num_threads`` or OMP_NUM_THREADS) rules both."""
    numba.set_num_threads(max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)))
