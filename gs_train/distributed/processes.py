"""The processes that train one scene together, as the training sees them. Usually it is one process, and then every
method here returns at once.

Every process holds all Gaussians. The views of a step are dealt out: place i of the batch goes to process i modulo the
number of processes, so a round is that many consecutive views. Gradients and statistics are combined in the order of
the views, so the number of processes does not change the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Processes(Protocol):
    """This process and the others."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def count(self) -> int:
        """Number of processes."""
        ...

    @property
    def count_here(self) -> int:
        """Number of processes on this machine."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in at least one process. Every process must call it."""
        ...

    def in_turn(self) -> AbstractContextManager[None]:
        """The first process of each machine runs the block before the others: it compiles kernels for all."""
        ...

    def use_device(self, device: torch.device) -> None:
        """Exchange tensors of ``device`` from now on.

        Raises:
            UserError: two processes use one GPU, or some processes use a CPU.
        """
        ...

    def check_same(self, facts: Callable[[], Mapping[str, str]]) -> None:
        """Check that all processes see the same scene, settings and versions.

        Args:
            facts: returns name -> value; not called in a single process.

        Raises:
            UserError: a value differs; the message has its name.
        """
        ...

    def check_replicas(self, tensors: Mapping[str, Tensor], iteration: int) -> None:
        """Check that all processes hold the same Gaussians after ``iteration``.

        Raises:
            UserError: they differ.
        """
        ...

    def gather(self, parts: Sequence[Tensor] | None, dealt: int) -> list[Sequence[Tensor]]:
        """What the processes measured in the views of one round, in the order of the views.

        Args:
            parts: float32 tensors of this process's view, with the same shapes in every process; None if it has no
                view in this round.
            dealt: number of views in the round, at most ``count``; the first processes have them.
        """
        ...

    def map(self, function: Callable[[int], Tensor], items: Iterable[int]) -> Iterator[Tensor]:
        """``function`` of every item, float32 tensors of one shape, in the order of the items, which are dealt out."""
        ...

    def sum_gradients(self, parameters: Sequence[Tensor]) -> AbstractContextManager[Callable[[int], None]]:
        """Sum the gradients of a batch over its views, in their order.

        Yields a function to call after the backward passes of each round, with the number of its views. After the
        block, ``parameter.grad`` is the sum over all views in every process.
        """
        ...


class OneProcess:
    """A process that trains alone."""

    rank, count, count_here = 0, 1, 1

    def any(self, flag: bool) -> bool:
        """As ``Processes.any``."""
        return flag

    def in_turn(self) -> AbstractContextManager[None]:
        """As ``Processes.in_turn``."""
        return nullcontext()

    def use_device(self, device: torch.device) -> None:
        """Do nothing."""

    def check_same(self, facts: Callable[[], Mapping[str, str]]) -> None:
        """Do nothing."""

    def check_replicas(self, tensors: Mapping[str, Tensor], iteration: int) -> None:
        """Do nothing."""

    def gather(self, parts: Sequence[Tensor] | None, dealt: int) -> list[Sequence[Tensor]]:
        """The parts of the only view of a round."""
        assert parts is not None
        return [parts]

    def map(self, function: Callable[[int], Tensor], items: Iterable[int]) -> Iterator[Tensor]:
        """As ``Processes.map``."""
        return map(function, items)

    @contextmanager
    def sum_gradients(self, parameters: Sequence[Tensor]) -> Iterator[Callable[[int], None]]:
        """Leave the sum to autograd, which accumulates gradients in the order of the backward passes."""
        yield lambda dealt: None
