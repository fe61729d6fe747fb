r"""Completions without padding: the tokens of all, one after the other, and their lengths.

The per-token functions (`uadt.token_statistics`, `uadt.linear_token_statistics`) take packed
tokens as they are, for they treat each token alone: logits of shape ``(M, V)``, or a nested
tensor. What looks at a completion as a whole needs its borders, and is here: the siblings of
`uadt.sequence_mean` and its like, and the way to a rectangle and back.

With ``M`` tokens in ``B`` completions, ``lengths`` sums to ``M``; a completion may have none.
"""

import math

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from uadt.types import PerSequence, TokenMask

__all__ = [
    "packed_max",
    "packed_mean",
    "packed_sum",
    "packed_top_mean",
    "spread",
    "to_packed",
    "to_padded",
]

Packed = Float[Tensor, " M"]
"""One number a token, completion after completion."""
Lengths = Int[Tensor, " B"]
"""Number of tokens of each completion."""


def packed_mean(values: Packed, lengths: Lengths) -> PerSequence:
    r"""Mean over the tokens of each completion.

    Args:
        values: One number a token, such as its entropy.
        lengths: Number of tokens of each completion.

    Returns:
        The mean, in the unit of ``values``; NaN for a completion without tokens.

    Raises:
        ValueError: If the lengths are not integers of at least 0 that sum to the tokens.

    Example:
        >>> packed_mean(torch.tensor([1.0, 3.0, 4.0]), torch.tensor([2, 1, 0]))
        tensor([2., 4., nan])
    """
    return packed_sum(values, lengths) / lengths


def packed_sum(values: Packed, lengths: Lengths) -> PerSequence:
    r"""Sum over the tokens of each completion.

    Args:
        values: One number a token, such as its entropy.
        lengths: Number of tokens of each completion.

    Returns:
        The sum, in the unit of ``values``; NaN for a completion without tokens.

    Raises:
        ValueError: If the lengths are not integers of at least 0 that sum to the tokens.

    Example:
        >>> packed_sum(torch.tensor([1.0, 3.0, 4.0]), torch.tensor([2, 1]))
        tensor([4., 4.])
    """
    total = values.new_zeros(len(lengths)).index_add(0, _owners(values, lengths), values)
    return total.masked_fill(lengths == 0, math.nan)


def packed_max(values: Packed, lengths: Lengths) -> PerSequence:
    r"""Largest value among the tokens of each completion.

    Args:
        values: One number a token, such as its entropy.
        lengths: Number of tokens of each completion.

    Returns:
        The maximum, in the unit of ``values``; NaN for a completion without tokens.

    Raises:
        ValueError: If the lengths are not integers of at least 0 that sum to the tokens.

    Example:
        >>> packed_max(torch.tensor([1.0, 3.0, 4.0]), torch.tensor([2, 1]))
        tensor([3., 4.])
    """
    owner = _owners(values, lengths)
    largest = values.new_full((len(lengths),), math.nan)
    return largest.scatter_reduce(0, owner, values, reduce="amax", include_self=False)


def packed_top_mean(values: Packed, lengths: Lengths, *, fraction: float = 0.2) -> PerSequence:
    r"""Mean over the largest values of each completion; see `uadt.sequence_top_mean`.

    Args:
        values: One number a token, such as its entropy.
        lengths: Number of tokens of each completion.
        fraction: Share of the tokens to average, within ``(0, 1]``; rounded up.

    Returns:
        The mean, in the unit of ``values``; NaN for a completion without tokens.

    Raises:
        ValueError: If ``fraction`` is outside ``(0, 1]``, or the lengths are not integers of at
            least 0 that sum to the tokens.

    Example:
        >>> values, lengths = torch.tensor([1.0, 5.0, 2.0, 3.0, 9.0]), torch.tensor([4, 1])
        >>> packed_top_mean(values, lengths, fraction=0.5)  # (5 + 3) / 2 and 9
        tensor([4., 9.])
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must be within (0, 1], got {fraction}")
    owner = _owners(values, lengths)
    by_value = values.argsort(descending=True)
    order = by_value[owner[by_value].argsort(stable=True)]  # by completion, then by value
    starts = lengths.cumsum(0) - lengths
    rank = torch.arange(len(values), device=values.device) - starts[owner]
    # 0.07 * 100 is 7.000000000000001: without the small term it would round up to 8.
    top = (lengths.double() * fraction - 1e-9).ceil()
    kept = values[order].masked_fill(rank >= top[owner], 0.0)
    total = values.new_zeros(len(lengths)).index_add(0, owner, kept)
    return (total / top.to(values.dtype)).masked_fill(lengths == 0, math.nan)


def spread(per_sequence: Shaped[Tensor, " B"], lengths: Lengths) -> Shaped[Tensor, " M"]:
    """Give each token the value of its completion, such as an advantage.

    Args:
        per_sequence: One value a completion.
        lengths: Number of tokens of each completion.

    Returns:
        One value a token, completion after completion.

    Example:
        >>> spread(torch.tensor([1.0, -1.0]), torch.tensor([2, 1]))
        tensor([ 1.,  1., -1.])
    """
    return per_sequence.repeat_interleave(lengths)


def to_padded(
    values: Shaped[Tensor, " M"], lengths: Lengths
) -> tuple[Shaped[Tensor, "B T"], TokenMask]:
    """Lay packed tokens out in a rectangle, for what wants one.

    Args:
        values: One value a token, completion after completion.
        lengths: Number of tokens of each completion.

    Returns:
        The values, each completion from the left, 0 behind it; and the mask of the tokens.

    Raises:
        ValueError: If the lengths are not integers of at least 0 that sum to the tokens.

    Example:
        >>> to_padded(torch.tensor([1.0, 3.0, 4.0]), torch.tensor([2, 1]))[0]
        tensor([[1., 3.],
                [4., 0.]])
    """
    _owners(values, lengths)
    longest = int(lengths.max()) if len(lengths) else 0
    mask = torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)
    return values.new_zeros(mask.shape).masked_scatter(mask, values), mask


def to_packed(
    values: Shaped[Tensor, "B T"], mask: TokenMask
) -> tuple[Shaped[Tensor, " M"], Lengths]:
    """Take the tokens that count out of a rectangle; the way back of `to_padded`.

    Args:
        values: One value a position.
        mask: True where a token counts.

    Returns:
        The values of those tokens, completion after completion, and how many each has.

    Example:
        >>> to_packed(torch.tensor([[1.0, 3.0], [4.0, 9.0]]), torch.tensor([[1, 1], [1, 0]]).bool())
        (tensor([1., 3., 4.]), tensor([2, 1]))
    """
    return values[mask], mask.sum(dim=-1)


def _owners(values: Tensor, lengths: Tensor) -> Tensor:
    """Return the completion of each token, or say what is wrong with the lengths."""
    integer = not (lengths.is_floating_point() or lengths.dtype == torch.bool)
    if lengths.ndim != 1 or not integer or bool((lengths < 0).any()):
        raise ValueError(
            f"lengths must be integers of at least 0, one a completion, got {lengths.dtype} "
            f"of shape {tuple(lengths.shape)}: {lengths[:8].tolist()}"
        )
    if values.ndim != 1 or int(lengths.sum()) != len(values):
        raise ValueError(
            f"lengths must sum to the number of tokens, {len(values)}, got {int(lengths.sum())}"
        )
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
