"""Memory of this machine and of this process, in bytes, and the threads that this process may start."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

from gs_train.errors import UserError

_ASSUMED = 8 * 10**9
"""Free memory to assume if the system does not report any."""
_OTHER_THREADS = 2
"""Threads beside the pools: the progress bar's, and one to spare."""
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Limits of the control group, versions 2 and 1."""


def physical_memory() -> int | None:
    """Installed memory; None if the system does not report it (Windows)."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def free_memory() -> int:
    """Memory that can be allocated without swapping: the smaller of the free memory and the control group's limit; else
    8 GB."""
    limits: list[int] = []
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    installed = physical_memory()
    if not limits and installed is not None:
        limits.append(installed)
    for file in _CGROUP_LIMITS:
        # The file says "max" if the group has no limit.
        with suppress(OSError, ValueError):
            limits.append(int(Path(file).read_text()))
    return min(limits, default=_ASSUMED)


def peak_memory() -> int | None:
    """Largest resident size of this process so far; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS reports bytes, Linux reports KiB.
    return peak if sys.platform == "darwin" else 1024 * peak


def peak_gpu_memory() -> int | None:
    """Largest memory that torch has reserved on the GPU in use so far; None if this process uses no GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_reserved())


def check_threads() -> None:
    """Check that the thread pools of torch, Numba and the photos can start: native pools that cannot hang or crash.

    Raises:
        UserError: they cannot.
    """
    # torch and the photos use one number of threads, Numba another.
    wanted = 2 * cpu_threads() + _number_in("NUMBA_NUM_THREADS", _usable_cpus()) + _OTHER_THREADS
    started = _start_threads(wanted)
    if started < wanted:
        raise UserError(
            f"only {started} more threads can be started, and {wanted} are needed: raise the limit on processes "
            "(ulimit -u, or --pids-limit of the container), or set OMP_NUM_THREADS=1 and NUMBA_NUM_THREADS=1."
        )


def cpu_threads() -> int:
    """Number of threads for work on the CPU: OMP_NUM_THREADS, which torch follows, or one per usable CPU."""
    return _number_in("OMP_NUM_THREADS", _usable_cpus())


def share_threads(processes: int) -> None:
    """Leave CPUs for the other ``processes`` of this machine; call it before torch is imported.

    torch, Numba and the photos follow OMP_NUM_THREADS. torchrun sets it to 1. A larger number is the user's and stays.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        os.environ["OMP_NUM_THREADS"] = str(max(1, _usable_cpus() // processes))


def _usable_cpus() -> int:
    """The CPUs that this process may run on; a container or a scheduler may allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_threads(wanted: int) -> int:
    """How many of ``wanted`` threads start; they end before this returns."""
    threads: list[threading.Thread] = []
    release = threading.Event()
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=release.wait)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        pass
    finally:
        release.set()
        for thread in threads:
            thread.join()
    return len(threads)


def _number_in(variable: str, default: int) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() and int(value) > 0 else default
