"""Schedules that are plain functions of the iteration: batch size and training size."""

from __future__ import annotations


def batch_size_at(iteration: int, size: int, start: int) -> int:
    """Number of views in the step at ``iteration`` (from 1): 1 before iteration ``start``, ``size`` from ``start``
    on."""
    return size if iteration >= start else 1


def downscale_at(iteration: int, start: int, full_size_from: int) -> int:
    """Factor by which photos are reduced at ``iteration``: ``start``, half of it, and so on, and 1 from
    ``full_size_from`` on.

    The sizes before ``full_size_from`` last equally long.

    Args:
        iteration: from 1.
        start: a power of two.
        full_size_from: an iteration.
    """
    if iteration >= full_size_from:
        return 1
    halvings = start.bit_length() - 1
    return start >> min(halvings, (iteration - 1) * halvings // max(full_size_from - 1, 1))
