"""Sums over groups of rows: any sizes, any order, any labels, no loop over rows.

In float64: the sum then depends on the order of the rows, and on a GPU on luck, only in digits
that float32 does not have.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from uadt.types import GroupIds

__all__ = ["Groups", "renumber", "row_numbers"]


@dataclass(frozen=True, eq=False)
class Groups:
    """Which rows belong together.

    Example:
        >>> groups = Groups.of(torch.tensor([7, 3, 7]))
        >>> groups.mean(torch.tensor([1.0, 5.0, 2.0]))  # group 3: 5; group 7: (1 + 2) / 2
        tensor([5.0000, 1.5000], dtype=torch.float64)
        >>> groups.spread(groups.count)
        tensor([2, 1, 2])
    """

    index: Tensor
    """The group of each row, ``0 … K-1`` in the order of the labels, shape ``(B,)``."""
    count: Tensor
    """The rows of each group, shape ``(K,)``."""

    @staticmethod
    def of(group: GroupIds) -> "Groups":
        """Find the groups.

        Args:
            group: One label a row.

        Returns:
            The groups.
        """
        index, count = renumber(group)
        return Groups(index, count)

    def total(self, values: Tensor) -> Tensor:
        """Sum over each group.

        Args:
            values: One number a row.

        Returns:
            One float64 number a group.
        """
        zeros = torch.zeros(len(self.count), dtype=torch.float64, device=values.device)
        return zeros.scatter_add(0, self.index, values.double())  # faster than index_add

    def mean(self, values: Tensor) -> Tensor:
        """Average over each group.

        Args:
            values: One number a row.

        Returns:
            One float64 number a group.
        """
        return self.total(values) / self.count

    def largest(self, values: Tensor) -> Tensor:
        """Find the largest value of each group.

        Args:
            values: One number a row.

        Returns:
            One float64 number a group.
        """
        zeros = torch.zeros(len(self.count), dtype=torch.float64, device=values.device)
        return zeros.scatter_reduce(0, self.index, values.double(), "amax", include_self=False)

    def member(self, values: Tensor) -> Tensor:
        """Pick a value of each group, no matter whose: what the others can be compared with.

        Args:
            values: One number a row.

        Returns:
            One float64 number a group.
        """
        zeros = torch.zeros(len(self.count), dtype=torch.float64, device=values.device)
        return zeros.scatter(0, self.index, values.double())

    def spread(self, per_group: Tensor) -> Tensor:
        """Give each row the value of its group.

        Args:
            per_group: One number a group.

        Returns:
            One number a row.
        """
        return per_group.index_select(0, self.index)  # several times faster than [index]


def renumber(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Number labels from 0 on, in their order.

    Labels that lie close together, as those that count prompts do, are counted instead of sorted.

    Args:
        labels: Any integers, one a row.

    Returns:
        The number of each label, and how often each occurs.

    Example:
        >>> renumber(torch.tensor([7, 3, 7]))
        (tensor([1, 0, 1]), tensor([1, 2]))
    """
    if labels.dtype == torch.int64 and labels.numel() > 0:
        low, high = (int(x) for x in torch.aminmax(labels))
        if high - low < 4 * labels.numel():  # room for gaps, but no table larger than the batch
            return _renumber_close(labels - low if low else labels)
    found = cast(
        "tuple[Tensor, Tensor, Tensor]",
        torch.unique(labels, return_inverse=True, return_counts=True),
    )
    return found[1], found[2]


def _renumber_close(labels: Tensor) -> tuple[Tensor, Tensor]:
    """`renumber` labels that start at 0 and end soon, without sorting them."""
    count = torch.bincount(labels)
    present = count > 0
    if bool(present.all()):
        return labels, count
    return (present.cumsum(0) - 1).index_select(0, labels), count[present]


def row_numbers(wrong: Tensor) -> list[int]:
    """List the rows of a mask that hold a True, for an error that names them.

    Args:
        wrong: A mask whose first axis is the rows.

    Returns:
        Their numbers.

    Example:
        >>> row_numbers(torch.tensor([[False, False], [False, True]]))
        [1]
    """
    rows = wrong.reshape(len(wrong), -1).any(dim=-1).nonzero().flatten()
    return cast("list[int]", rows.tolist())
