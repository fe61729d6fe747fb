"""Rows of one batch that lie in several places: micro-batches of a process, ranks of a job.

A shaping sees the whole batch of the step. `join` lays ragged micro-batches on one another,
`gather` brings the rows of all ranks together, and `split` and `own_part` cut the result up again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from uadt.types import Advantage, GroupIds, PerSequence, PerToken, Rollout, TokenMask

__all__ = ["Rows", "gather", "join", "own_part", "split"]

_PER_TOKEN = ("mask", "entropy", "logprob")
_PER_ROW = ("reward", "group")


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Some rows of a step: their advantages, and what a shaping may look at.

    Unlike a `Rollout` it may be empty: a rank can have fewer rows than its neighbours.
    """

    advantage: Advantage
    """One a completion, or one a token."""
    mask: TokenMask
    """True where the policy chose a token."""
    entropy: PerToken | None = None
    """Nats, at the sampling temperature."""
    logprob: PerToken | None = None
    """Log-probabilities of the sampled tokens, in nats."""
    reward: PerSequence | None = None
    """One reward a completion."""
    group: GroupIds | None = None
    """Which completions answer the same prompt; equal labels on two ranks mean one group."""
    task: Sequence[str] | None = None
    """One name a completion."""

    def rollout(self) -> Rollout:
        """Return what the shaping looks at.

        Returns:
            The rows without their advantages; its construction checks them.
        """
        return Rollout(
            mask=self.mask,
            entropy=self.entropy,
            logprob=self.logprob,
            reward=self.reward,
            group=self.group,
            task=self.task,
        )

    def present(self) -> tuple[str, ...]:
        """Return the names of the signals that are there.

        Returns:
            Names of fields, in their order.
        """
        names = (*_PER_TOKEN, *_PER_ROW, "task")
        return tuple(name for name in names if getattr(self, name) is not None)

    def widened(self, width: int) -> "Rows":
        """Pad on the right, with a mask that is False there.

        Args:
            width: Number of positions wanted, at least those that there are.

        Returns:
            The same rows, ``width`` positions wide.
        """
        missing = width - self.mask.shape[1]
        changed: dict[str, Any] = {
            name: pad(value, (0, missing))
            for name in _PER_TOKEN
            if (value := getattr(self, name)) is not None
        }
        if self.advantage.ndim == 2:
            changed["advantage"] = pad(self.advantage, (0, missing))
        return replace(self, **changed)


def join(parts: Sequence[Rows]) -> Rows:
    """Lay the rows of several micro-batches on one another.

    Args:
        parts: At least one, each with the same signals; their widths may differ.

    Returns:
        All rows in order, as wide as the widest part.

    Raises:
        ValueError: If there is no part, or if one has a signal that another lacks.

    Example:
        >>> short = Rows(advantage=torch.tensor([1.0]), mask=torch.tensor([[True]]))
        >>> long = Rows(advantage=torch.tensor([2.0]), mask=torch.tensor([[True, True]]))
        >>> join([short, long]).mask
        tensor([[ True, False],
                [ True,  True]])
    """
    if not parts:
        raise ValueError("join needs at least one micro-batch, got none")
    _same_signals([part.present() for part in parts], "micro-batch")
    width = max(part.mask.shape[1] for part in parts)
    wide = [part.widened(width) for part in parts]
    names = [name for name in parts[0].present() if name != "task"]
    columns: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in wide]) for name in names
    }
    if parts[0].task is not None:
        columns["task"] = [name for part in parts for name in part.task or ()]
    return Rows(advantage=torch.cat([part.advantage for part in wide]), **columns)


def split(advantage: Advantage, parts: Sequence[Rows]) -> list[Tensor]:
    """Cut joined advantages up into the micro-batches that they came from.

    Args:
        advantage: In the order of `join`.
        parts: What was joined; gives the numbers of rows and the widths.

    Returns:
        One tensor a part, in the shape of its own advantages.
    """
    pieces = torch.split(advantage, [len(part.mask) for part in parts])
    return [
        piece[:, : part.mask.shape[1]] if piece.ndim == 2 else piece
        for piece, part in zip(pieces, parts, strict=True)
    ]


def gather(rows: Rows, *, process_group: Any = None) -> tuple[Rows, int]:
    """Bring the rows of all ranks together, in the order of the ranks.

    Every rank of the group has to call it, with the same signals; numbers of rows and widths may
    differ. Without `torch.distributed`, or with one rank, it returns what it was given.

    Args:
        rows: Those of this rank; may be empty.
        process_group: Whose ranks hold the batch; all of the job if it is None.

    Returns:
        The rows of all ranks, and the place of this rank's first row among them.

    Raises:
        ValueError: On all ranks alike, if one has a signal that another lacks.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return rows, 0
    world = dist.get_world_size(process_group)
    if world == 1:
        return rows, 0
    mine = (len(rows.mask), rows.mask.shape[1], rows.present(), tuple(rows.task or ()))
    everyone: list[tuple[int, int, tuple[str, ...], tuple[str, ...]]] = [mine] * world
    dist.all_gather_object(everyone, mine, group=process_group)
    _same_signals([present for _, _, present, _ in everyone], "rank")
    counts = [count for count, _, _, _ in everyone]
    wide = rows.widened(max(width for _, width, _, _ in everyone))

    def of_all_ranks(value: Tensor) -> Tensor:
        # Collectives want equal shapes, so short ranks are filled up, and the filling is cut off.
        filling = [0, 0] * (value.ndim - 1) + [0, max(counts) - len(value)]
        # Not every backend takes bool.
        sent = pad(value.byte() if value.dtype == torch.bool else value, filling).contiguous()
        received = [torch.empty_like(sent) for _ in counts]
        dist.all_gather(received, sent, group=process_group)
        kept = [part[:count] for part, count in zip(received, counts, strict=True)]
        return torch.cat(kept).to(value.dtype)

    columns: dict[str, Any] = {
        name: of_all_ranks(getattr(wide, name)) for name in rows.present() if name != "task"
    }
    if rows.task is not None:
        columns["task"] = [name for _, _, _, names in everyone for name in names]
    start = sum(counts[: dist.get_rank(process_group)])
    return Rows(advantage=of_all_ranks(wide.advantage), **columns), start


def own_part(advantage: Advantage, rows: Rows, start: int) -> Tensor:
    """Take this rank's rows back out of those of all ranks.

    Args:
        advantage: Of all ranks, in the order of `gather`.
        rows: What this rank gave to `gather`.
        start: What `gather` returned beside the rows.

    Returns:
        In the shape of ``rows.advantage``.
    """
    own = advantage[start : start + len(rows.mask)]
    return own[:, : rows.mask.shape[1]] if own.ndim == 2 else own


def _same_signals(present: Sequence[tuple[str, ...]], place: str) -> None:
    for index, names in enumerate(present):
        if names != present[0]:
            raise ValueError(
                f"every {place} must hold the same signals, "
                f"got {list(present[0])} in {place} 0 and {list(names)} in {place} {index}"
            )
