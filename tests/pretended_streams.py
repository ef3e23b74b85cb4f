"""Streams and pinned memory of the pretended GPU.

A copy on a stream other than the main one happens when its event is waited for, so a missing wait gives wrong pixels.
The source of a copy may change after ``Event.synchronize`` only: a stream that waits tells the program nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor


class Streams:
    """The streams of one device."""

    def __init__(self, record_wait: Callable[[str], None]) -> None:
        self.main = self.current = Stream()
        self.recorded: list[int] = []
        """Number of elements of each tensor that is used on a stream other than its own (``record_stream``)."""
        self.pinned: list[Tensor] = []
        """Every pinned tensor."""
        self._all = [self.main]
        self._record_wait = record_wait

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace torch's streams, events and pinned memory."""
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self._pin(tensor))  # noqa: PLW0108 A bound method would not bind.
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.recorded.append(tensor.numel()))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self._new())
        monkeypatch.setattr(torch.cuda, "Event", lambda: Event(self._record_wait))
        monkeypatch.setattr(torch.cuda, "stream", self._use)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)

    def is_pinned(self, tensor: Tensor) -> bool:
        return any(_same_memory(each, tensor) for each in self.pinned)

    def run(self, copy: Tensor, source: Tensor) -> None:
        """Copy on the current stream: at once on the main one."""
        self.current.queue.append((copy, source))
        if self.current is self.main:
            self.main.finish(len(self.main.queue))

    def check_unused(self, buffer: Tensor) -> None:
        """Raise if a copy may still read a pinned buffer."""
        for stream in self._all:
            if any(_same_memory(source, buffer) for _, source in stream.queue[stream.known :]):
                raise RuntimeError("a pinned buffer changes while a copy may read it")

    def _new(self) -> Stream:
        self._all.append(Stream())
        return self._all[-1]

    def _pin(self, tensor: Tensor) -> Tensor:
        self.pinned.append(tensor.clone())
        return self.pinned[-1]

    @contextmanager
    def _use(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


class Stream:
    """Copies in their order."""

    def __init__(self) -> None:
        self.queue: list[tuple[Tensor, Tensor]] = []
        """Destination and source."""
        self.known = 0
        """Number of copies that the program knows to have ended."""
        self._ended = 0

    def finish(self, count: int) -> bool:
        """Run the first ``count`` copies; returns whether some had not run."""
        late = self.queue[self._ended : count]
        for copy, source in late:
            copy.copy_(source)
        self._ended = max(self._ended, count)
        return bool(late)

    def wait_event(self, event: Event) -> None:
        event.finish()


class Event:
    """A place in the queue of a stream."""

    def __init__(self, record_wait: Callable[[str], None]) -> None:
        self._place: tuple[Stream, int] | None = None
        self._record_wait = record_wait

    def record(self, stream: Stream) -> None:
        self._place = stream, len(stream.queue)

    def finish(self) -> bool:
        return self._place is not None and self._place[0].finish(self._place[1])

    def synchronize(self) -> None:
        if self.finish():
            self._record_wait("synchronize")
        if self._place is not None:
            self._place[0].known = self._place[1]


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
