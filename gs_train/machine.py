"""Memory of this machine and of this process, in bytes."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

_ASSUMED = 8 * 10**9
"""Free memory to assume if the system does not report any."""
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
