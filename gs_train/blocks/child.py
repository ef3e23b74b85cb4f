"""Runs ``gs-train`` for a block: ``python -m gs_train.blocks.child PARENT ARGUMENTS...``.

On Linux the process receives SIGTERM when its parent ends, even if that is killed: it saves a checkpoint and ends, so
that no second training writes to the folder of the block. Elsewhere the lock of the folder keeps a second one waiting.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Ask for SIGTERM at the end of the process ``parent``; exit if it has ended already."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    end_with_parent(int(sys.argv.pop(1)))
    runpy.run_module("gs_train", run_name="__main__")
