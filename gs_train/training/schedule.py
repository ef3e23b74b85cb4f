"""Schedules that are plain functions of the iteration, and words that the configuration shares with what it configures.

No torch, so that the command line can build its help from the configuration quickly.
"""

from __future__ import annotations

from typing import Literal

BackgroundKind = Literal["black", "white", "random", "learned"]
ExposureKind = Literal["none", "affine"]


def batch_size_at(iteration: int, size: int, start: int) -> int:
    """How many views the step at ``iteration`` (from 1) takes: one, and ``size`` from iteration ``start`` on."""
    return size if iteration >= start else 1


def downscale_at(iteration: int, start: int, full_size_from: int) -> int:
    """By what the photos are reduced at ``iteration`` (from 1): ``start``, half of it, ... and 1 from ``full_size_from`` on.

    Each size has an equal share of the iterations before.

    Args:
        iteration: from 1.
        start: a power of two.
        full_size_from: an iteration.
    """
    if iteration >= full_size_from:
        return 1
    halvings = start.bit_length() - 1
    return start >> min(halvings, (iteration - 1) * halvings // max(full_size_from - 1, 1))
