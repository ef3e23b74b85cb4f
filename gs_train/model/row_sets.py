"""Sets of equal rows of a tensor, which learn as one row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSets:
    """N rows in K sets, on one device."""

    labels: Tensor
    """[N] int64 number of each row's set, 0 to K - 1."""
    first: Tensor
    """[K] int64 lowest row of each set."""
    order: Tensor
    """[N] int64 rows in the order of their sets."""
    starts: Tensor
    """[K] int64 place of each set's lowest row in ``order``."""

    @classmethod
    def of_labels(cls, labels: Tensor) -> RowSets:
        """The sets that ``labels`` ([N] int64, each number from 0 to K - 1 at least once) names."""
        ordered, order = labels.sort(stable=True)
        begins = torch.ones_like(labels, dtype=torch.bool)
        begins[1:] = ordered[1:] != ordered[:-1]
        starts = begins.nonzero().squeeze(1)
        return cls(labels=labels, first=order[starts], order=order, starts=starts)

    def __len__(self) -> int:
        """The number of sets, K."""
        return len(self.first)

    def sums(self, tensor: Tensor) -> Tensor:
        """[K, ...] sum of the rows of each set of ``tensor`` ([N, ...]), in a fixed order."""
        flat = torch.nn.functional.embedding_bag(self.order, tensor.flatten(1), self.starts, mode="sum")
        return flat.view(len(self), *tensor.shape[1:])

    def spread(self, values: Tensor, into: Tensor) -> None:
        """Write the values of each set ([K, ...]) to all of its rows of ``into`` ([N, ...])."""
        torch.index_select(values, 0, self.labels, out=into)
