"""``ProcessGroup``: several processes, connected by torch.distributed.

Small numbers and texts travel over gloo, also on GPUs: a gloo call raises as soon as another process has ended. The
Gaussians' gradients travel over NCCL on GPUs and over gloo on CPUs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from gs_train.distributed.gpu import gpu_name
from gs_train.distributed.place import Place
from gs_train.errors import UserError

_MOST_PARTS, _MOST_DIMENSIONS = 4, 4
"""Of ``ProcessGroup.gather``."""
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
"""The name since torch 2.13, which warns of the name before."""


class ConnectionLost(Exception):
    """Another process has ended in the middle of an exchange."""


class ProcessGroup:
    """This process and the others, as ``Processes``. Every process must make the same calls in the same order."""

    def __init__(self, place: Place) -> None:
        """Use the default group of torch.distributed, which must be a gloo group."""
        self._place, self._device = place, torch.device("cpu")
        self._data: dist.ProcessGroup | None = None

    @property
    def rank(self) -> int:
        """As ``Processes.rank``."""
        return self._place.rank

    @property
    def count(self) -> int:
        """As ``Processes.count``."""
        return self._place.count

    @property
    def count_here(self) -> int:
        """As ``Processes.count_here``."""
        return self._place.count_here

    # ---- numbers and texts ----

    def any(self, flag: bool) -> bool:
        """As ``Processes.any``."""
        number = torch.tensor([int(flag)])
        with _exchange():
            dist.all_reduce(number, dist.ReduceOp.MAX)
        return bool(number)

    def wait_for_all(self) -> None:
        """Return when all processes have come here."""
        self.any(False)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """As ``Processes.in_turn``."""
        if self._place.number_here > 0:
            self.wait_for_all()
        yield
        if self._place.number_here == 0:
            self.wait_for_all()

    def gather_texts(self, text: str) -> list[str]:
        """The ``text`` of every process, in the order of their ranks."""
        content = torch.tensor(list(text.encode()), dtype=torch.uint8)
        sizes = self._gather_numbers(torch.tensor([len(content)])).flatten().tolist()
        padded = torch.zeros(max(sizes) + 1, dtype=torch.uint8)
        padded[: len(content)] = content
        rows = self._gather_numbers(padded)
        return [bytes(row[:size].tolist()).decode() for row, size in zip(rows, sizes, strict=True)]

    def _gather_numbers(self, numbers: Tensor) -> Tensor:
        """[count, n] the [n] ``numbers`` of every process, on the CPU."""
        every = torch.empty(self.count * len(numbers), dtype=numbers.dtype)
        with _exchange():
            _all_gather(every, numbers)
        return every.view(self.count, -1)

    # ---- checks ----

    def use_device(self, device: torch.device) -> None:
        """As ``Processes.use_device``."""
        names = self.gather_texts(gpu_name(device) if device.type == "cuda" else "")
        for rank, name in enumerate(names):
            if bool(name) != bool(names[0]):
                kinds = [f"process {each} the {'GPU' if names[each] else 'CPU'}" for each in (0, rank)]
                raise UserError(f"{' and '.join(kinds)} use: give the same --device everywhere, cpu or cuda.")
            if name and names.index(name) < rank:
                raise UserError(
                    f"processes {names.index(name)} and {rank} use the same GPU: start one process per GPU, or train "
                    "with --device cpu."
                )
        if device.type == "cuda":
            if not dist.is_nccl_available():
                raise UserError("this torch has no NCCL, which several GPUs need: train with one process.")
            self._data = dist.new_group(backend="nccl")
        self._device = device

    def check_same(self, facts: Callable[[], Mapping[str, str]]) -> None:
        """As ``Processes.check_same``."""
        first, *others = (json.loads(text) for text in self.gather_texts(json.dumps(dict(facts()))))
        for rank, other in enumerate(others, start=1):
            for name, value in first.items():
                if other[name] != value:
                    raise UserError(
                        f"process {rank} has other {name} than process 0 ({other[name]}, not {value}): give every "
                        "process the same files, the same arguments and the same installation."
                    )

    def check_replicas(self, tensors: Mapping[str, Tensor], iteration: int) -> None:
        """As ``Processes.check_replicas``."""
        sums = self._gather_numbers(torch.stack([_checksum(tensor.detach()) for tensor in tensors.values()]).cpu())
        for rank, other in enumerate(sums[1:], start=1):
            differing = [name for name, same in zip(tensors, (other == sums[0]).tolist(), strict=True) if not same]
            if differing:
                raise UserError(
                    f"processes 0 and {rank} hold different Gaussians after iteration {iteration} "
                    f"({', '.join(differing)}): use equal processors or GPUs for all processes, or train with one."
                )

    # ---- tensors ----

    def gather(self, parts: Sequence[Tensor] | None, dealt: int) -> list[Sequence[Tensor]]:
        """As ``Processes.gather``. Each process sends its parts to all others."""
        shapes = self._shapes(parts, dealt)
        sizes = [torch.Size(shape).numel() for shape in shapes]
        if not any(sizes):
            return [[torch.zeros(shape) for shape in shapes] for _ in range(dealt)]
        if parts is None:
            own = torch.zeros(sum(sizes), device=self._device)
        else:
            own = torch.cat([part.detach().flatten() for part in parts if part.numel() > 0])
        every = torch.empty(self.count * len(own), device=self._device)
        with _exchange():
            _all_gather(every, own, group=self._data)
        rows = every.view(self.count, -1)[:dealt]
        return [[part.view(shape) for part, shape in zip(row.split(sizes), shapes, strict=True)] for row in rows]

    def _shapes(self, parts: Sequence[Tensor] | None, dealt: int) -> list[list[int]]:
        """The shapes of the parts. In a round without a view for every process, process 0 tells them."""
        if dealt == self.count:
            assert parts is not None
            return [list(part.shape) for part in parts]
        table = torch.full((_MOST_PARTS, _MOST_DIMENSIONS + 1), -1)
        for row, part in enumerate(parts or ()):
            table[row, : part.dim() + 1] = torch.tensor([part.dim(), *part.shape])
        with _exchange():
            dist.broadcast(table, src=0)
        return [row[1 : 1 + row[0]] for row in table.tolist() if row[0] >= 0]

    def map(self, function: Callable[[int], Tensor], items: Iterable[int]) -> Iterator[Tensor]:
        """As ``Processes.map``."""
        remaining = iter(items)
        while dealt := list(islice(remaining, self.count)):
            own = [function(dealt[self.rank])] if self.rank < len(dealt) else None
            for (result,) in self.gather(own, len(dealt)):
                yield result

    @contextmanager
    def sum_gradients(self, parameters: Sequence[Tensor]) -> Iterator[Callable[[int], None]]:
        """As ``Processes.sum_gradients``: a ring all-reduce's volume with a fixed order of summation.

        Every process owns one chunk of all gradients. In each round, it receives its chunk from every view and adds the
        views in order. At the end, the sums of all chunks go to all processes. A batch of R rounds sends (R + 1) (count
        - 1) / count of the gradients' bytes per process.
        """
        sizes = [parameter.numel() for parameter in parameters]
        chunk = -(-sum(sizes) // self.count)
        total: Tensor | None = None

        def add_round(dealt: int) -> None:
            nonlocal total
            sends = self.rank < dealt
            own = torch.zeros(chunk * self.count if sends else 0, device=self._device)
            if sends:
                _take_gradients(parameters, own.split([*sizes, len(own) - sum(sizes)]))
            received = torch.empty(chunk * dealt, device=self._device)
            receive = [chunk] * dealt + [0] * (self.count - dealt)
            send = [chunk if sends else 0] * self.count
            with _exchange():
                dist.all_to_all_single(received, own, receive, send, group=self._data)
            # The first view is not added to zeros, which would change the sign of a zero.
            first, *others = received.split(chunk)
            total = first.clone() if total is None else total.add_(first)
            for other in others:
                total.add_(other)

        yield add_round
        assert total is not None
        every = torch.empty(chunk * self.count, device=self._device)
        with _exchange():
            _all_gather(every, total, group=self._data)
        for parameter, values in zip(parameters, every[: sum(sizes)].split(sizes), strict=True):
            parameter.grad = values.view_as(parameter)


def _take_gradients(parameters: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    """Move the gradients of one view to ``places``; a parameter without a gradient leaves its place."""
    for parameter, place in zip(parameters, places[: len(parameters)], strict=True):
        if parameter.grad is not None:
            place.copy_(parameter.grad.flatten())
            parameter.grad = None


def _checksum(tensor: Tensor) -> Tensor:
    """An int64 that depends on the bits of all float32 values and on the order of the rows."""
    rows = tensor.view(torch.int32).flatten(1).sum(dim=1, dtype=torch.int64)
    return (rows * torch.arange(1, len(rows) + 1, device=rows.device)).sum()


@contextmanager
def _exchange() -> Iterator[None]:
    """Raises ConnectionLost if an exchange in the block fails."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ConnectionLost(str(error)) from error
