"""Decoding in threads: Pillow decodes outside Python's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from gs_train.machine import cpu_threads

Item = TypeVar("Item")
Result = TypeVar("Result")

DECODING_BYTES = 10**9
"""Memory that all threads together may need for decoding, approximately, if the caller sets no other limit."""


def for_each(function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None) -> Iterator[Result]:
    """Map ``function`` over the items in a thread pool; results come in order, and an exception ends the iteration.

    The pool runs only a few items ahead of the consumer. ``workers`` is the number of threads, by default
    ``cpu_threads()``.
    """
    count = workers or cpu_threads()
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max_workers=count) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # The consumer may have stopped, or an image is damaged: drop the items that have not begun.
            pool.shutdown(wait=False, cancel_futures=True)


def thread_count(largest: int, memory: int = DECODING_BYTES) -> int:
    """Number of threads that together need about ``memory`` bytes, at least one.

    Args:
        largest: bytes for the largest item.
        memory: the limit.
    """
    return max(1, min(cpu_threads(), memory // max(largest, 1)))
