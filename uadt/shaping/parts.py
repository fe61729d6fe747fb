"""Small pure parts that several shapings share.

Statistics are taken over flat lists of numbers with a label each, ``values (N,)`` and
``labels (N,)``: what the label is (the batch, a group, a completion, a position of a group, the
correct completions) is the scope. So padding never enters: it is left out when the list is made.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from uadt.groups import Groups, row_numbers
from uadt.types import PerToken, Rollout, TokenMask, all_finite

__all__ = [
    "Scope",
    "check_advantage",
    "check_between",
    "check_choice",
    "entropy_of",
    "exponential_gain",
    "like_advantage",
    "minmax_within",
    "multiplier_of",
    "quantile_within",
    "shaped_positions",
    "share_within",
    "token_labels",
    "top_within",
    "zscore_within",
]

Values = Float[Tensor, " N"]
"""Numbers to compare, padding left out."""
Labels = Int[Tensor, " N"]
"""The scope that each number is compared within; any integers."""
Scope = Literal["batch", "group", "sequence"]
"""What a token is compared with: the whole batch, its prompt's completions, or its completion."""


def check_advantage(
    advantage: Tensor, rollout: Rollout, *, wanted_by: str, per_token: bool = False
) -> Tensor:
    """Refuse advantages that do not belong to the rollout, and cut their gradient.

    Args:
        advantage: What the caller passed.
        rollout: The completions that it should belong to.
        wanted_by: The name of the shaping, for the error.
        per_token: True if the shaping gives every token its own advantage, so that one a
            completion is not enough.

    Returns:
        The advantages, without gradient: shaped ones are constants of the loss.

    Raises:
        ValueError: If the shape is neither ``(B,)`` nor ``(B, T)``, the dtype is not floating,
            or a value that counts is not finite; the words name the rows.

    Example:
        >>> rollout = Rollout(mask=torch.tensor([[True, False]]))
        >>> check_advantage(torch.tensor([[1.0, float("nan")]]), rollout, wanted_by="UADT")
        tensor([[1., nan]])
    """
    batch, positions = rollout.mask.shape
    shape = tuple(advantage.shape)
    if per_token and shape == (batch,):
        raise ValueError(
            f"{wanted_by} gives every token its own advantage, so it needs advantages of shape "
            f"{(batch, positions)}, got {shape}: pass "
            f"advantage[:, None].expand({batch}, {positions})"
        )
    if shape not in ((batch,), (batch, positions)):
        raise ValueError(
            f"{wanted_by} needs advantages of shape {(batch,)} or {(batch, positions)} "
            f"like the rollout, got {shape}"
        )
    if not advantage.is_floating_point():
        raise ValueError(
            f"{wanted_by} needs floating advantages, "
            f"got {str(advantage.dtype).removeprefix('torch.')}"
        )
    if all_finite(advantage):
        return advantage.detach()
    rows = row_numbers(~advantage.isfinite() & shaped_positions(advantage, rollout.mask))
    if rows:
        raise ValueError(f"{wanted_by} needs finite advantages, got NaN or infinity in rows {rows}")
    return advantage.detach()


def check_between(name: str, value: float, low: float, high: float, *, open_high: bool) -> None:
    """Refuse a number outside its range, NaN included.

    Args:
        name: The argument, for the error.
        value: What the caller passed.
        low: The smallest value allowed.
        high: The end of the range.
        open_high: True if ``high`` itself is not allowed.

    Raises:
        ValueError: If ``value`` is outside.

    Example:
        >>> check_between("strength", 0.5, 0.0, 1.0, open_high=True)
    """
    if not (low <= value < high or (value == high and not open_high)):
        bracket = ")" if open_high else "]"
        raise ValueError(f"{name} must be in [{low:g}, {high:g}{bracket}, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of the known ones.

    Args:
        name: The argument, for the error.
        value: What the caller passed.
        choices: The known words.

    Raises:
        ValueError: If ``value`` is none of them; the words list them.

    Example:
        >>> check_choice("update", "after", ("after", "before"))
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def shaped_positions(advantage: Tensor, mask: TokenMask) -> Tensor:
    """Return where an advantage counts: completions with a token, or the tokens themselves.

    Args:
        advantage: Shape ``(B,)`` or ``(B, T)``.
        mask: True where the policy chose a token.

    Returns:
        Booleans in the shape of ``advantage``.

    Example:
        >>> mask = torch.tensor([[True, False], [False, False]])
        >>> shaped_positions(torch.ones(2), mask)
        tensor([ True, False])
    """
    return mask if advantage.ndim == 2 else mask.any(dim=-1)


def like_advantage(values: Shaped[Tensor, " B"], advantage: Tensor) -> Tensor:
    """Give one number a completion the axes of an advantage, so that the two broadcast.

    Args:
        values: One number a completion.
        advantage: Shape ``(B,)`` or ``(B, T)``.

    Returns:
        Shape ``(B,)`` or ``(B, 1)``.

    Example:
        >>> like_advantage(torch.ones(3), torch.zeros(3, 5)).shape
        torch.Size([3, 1])
    """
    return values if advantage.ndim == 1 else values[:, None]


def multiplier_of(shaped: Tensor, advantage: Tensor, counts: Tensor) -> Tensor:
    """Return A′/A, neutral at 1: also where A is 0, and where nothing counts.

    Args:
        shaped: The advantages after shaping.
        advantage: The advantages before.
        counts: True where a position counts.

    Returns:
        The multiplier, in the shape of ``advantage``.

    Example:
        >>> multiplier_of(torch.tensor([3.0, 0.5]), torch.tensor([2.0, 0.0]), torch.ones(2) > 0)
        tensor([1.5000, 1.0000])
    """
    defined = counts & (advantage != 0)
    return (shaped / advantage).masked_fill_(~defined, 1.0)


def entropy_of(rollout: Rollout, *, wanted_by: str) -> PerToken:
    """Return the entropy of the tokens, at least 0.

    Arithmetic in half precision gives a sure token an entropy a little below 0. A share of it, or
    its inverse, would have no meaning or the wrong sign, so it counts as the 0 that it is.

    Args:
        rollout: The completions.
        wanted_by: The name of the shaping, for the error when there is none.

    Returns:
        Nats, shape ``(B, T)``; padding may hold anything.

    Example:
        >>> rollout = Rollout(mask=torch.tensor([[True]]), entropy=torch.tensor([[-0.01]]))
        >>> entropy_of(rollout, wanted_by="docs")
        tensor([[0.]])
    """
    return rollout.signal("entropy", wanted_by=wanted_by).clamp(min=0.0)


def token_labels(rollout: Rollout, scope: Scope, *, wanted_by: str) -> Labels:
    """Return a label for every token that the mask keeps, in the order of ``values[mask]``.

    Args:
        rollout: The completions.
        scope: What a token is compared with.
        wanted_by: The name of the shaping, for the error when the group is missing.

    Returns:
        One label a token, shape ``(N,)``.

    Example:
        >>> rollout = Rollout(mask=torch.tensor([[True, True], [True, False]]))
        >>> token_labels(rollout, "sequence", wanted_by="docs")
        tensor([0, 0, 1])
    """
    mask = rollout.mask
    rows = torch.arange(len(mask), device=mask.device)
    if scope == "batch":
        rows = torch.zeros_like(rows)
    elif scope == "group":
        rows = rollout.signal("group", wanted_by=wanted_by).long()
    return rows[:, None].expand_as(mask)[mask]


def zscore_within(values: Values, labels: Labels, *, eps: float, correction: int) -> Values:
    r"""Standardise every number within its label.

    $$z = \frac{x - \bar{x}}{\mathrm{std}(x) + \epsilon}$$

    A label with a single number gets 0 (what it is compared with is itself), and so do equal
    numbers, also without ε.

    Args:
        values: The numbers.
        labels: The scope of each.
        eps: Added to the standard deviation.
        correction: 1 for the sample standard deviation, 0 for the population's.

    Returns:
        The standardised numbers.

    Example:
        >>> x, labels = torch.tensor([1.0, 3.0, 7.0]), torch.tensor([0, 0, 1])
        >>> zscore_within(x, labels, eps=0.0, correction=0)  # mean 2, std 1; 7 is alone
        tensor([-1.,  1.,  0.])
    """
    groups = Groups.of(labels)
    shifted = values.double() - groups.spread(groups.largest(values))  # equal numbers: exactly 0
    centred = shifted - groups.spread(groups.mean(shifted))
    freedom = (groups.count - correction).clamp(min=1)
    deviation = groups.spread((groups.total(centred.square()) / freedom).sqrt())
    return torch.where(centred == 0, 0.0, centred / (deviation + eps)).to(values.dtype)


def share_within(values: Values, labels: Labels) -> Values:
    r"""Return the part of its label's sum that each number makes up.

    $$\frac{x_i}{\sum_k x_k}$$

    Where the sum is 0, nothing can be told apart: everyone gets an equal part.

    Args:
        values: Numbers that are not negative.
        labels: The scope of each.

    Returns:
        Shares that add up to 1 within each label.

    Example:
        >>> share_within(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
        tensor([0.2500, 0.7500, 1.0000])
    """
    groups = Groups.of(labels)
    whole = groups.spread(groups.total(values))
    equal = 1.0 / groups.spread(groups.count).double()
    share = torch.where(whole > 0, values.double() / whole.where(whole > 0, 1.0), equal)
    return share.to(values.dtype)


def minmax_within(values: Values, labels: Labels, *, eps: float) -> Values:
    r"""Map every number to its place between the least and the greatest of its label.

    $$\frac{x - \min x}{\max x - \min x + \epsilon}$$

    If all are equal, each gets 0.5: neither confident nor unsure.

    Args:
        values: The numbers.
        labels: The scope of each.
        eps: Added to the range.

    Returns:
        Numbers in ``[0, 1]``.

    Example:
        >>> minmax_within(torch.tensor([2.0, 4.0, 3.0]), torch.zeros(3, dtype=int), eps=0.0)
        tensor([0.0000, 1.0000, 0.5000])
    """
    groups = Groups.of(labels)
    low = -groups.spread(groups.largest(-values)).to(values.dtype)
    high = groups.spread(groups.largest(values)).to(values.dtype)
    equal = torch.isclose(low, high)
    return torch.where(equal, 0.5, (values - low) / torch.where(equal, 1.0, high - low + eps))


def quantile_within(values: Values, labels: Labels, q: float) -> Values:
    """Return, for every number, the ``q`` quantile of its label.

    Linear between neighbours, as `torch.quantile`, but by sorting: there is no limit at
    2**24 numbers, and all labels are done at once.

    Args:
        values: The numbers.
        labels: The scope of each.
        q: In ``[0, 1]``; 0.8 is what 80% of the numbers lie below.

    Returns:
        The quantile that each number is compared with.

    Example:
        >>> x, labels = torch.tensor([4.0, 0.0, 1.0, 9.0]), torch.tensor([0, 0, 0, 1])
        >>> quantile_within(x, labels, 0.75)  # of 0, 1, 4: position 1.5
        tensor([2.5000, 2.5000, 2.5000, 9.0000])
    """
    groups = Groups.of(labels)
    ordered = values[_order(values, groups)].double()
    first = groups.count.cumsum(0) - groups.count
    place = q * (groups.count - 1).double()
    low, high = ordered[first + place.floor().long()], ordered[first + place.ceil().long()]
    return groups.spread(torch.lerp(low, high, place.frac())).to(values.dtype)


def top_within(values: Values, labels: Labels, fraction: float) -> Values:
    """Return how far each number is among the greatest ``ceil(fraction · n)`` of its label.

    1 for those that are, 0 for those that are not. Equal numbers at the border share the places
    that are left: the total is exact, and the order of the numbers changes nothing.

    Args:
        values: The numbers.
        labels: The scope of each.
        fraction: In ``[0, 1]``.

    Returns:
        Numbers in ``[0, 1]``.

    Example:
        >>> top_within(torch.tensor([1.0, 5.0, 3.0, 3.0]), torch.zeros(4, dtype=int), 0.5)
        tensor([0.0000, 1.0000, 0.5000, 0.5000])
    """
    groups = Groups.of(labels)
    ordered = values[_order(values, groups)]
    # 0.07 * 100 is 7.000000000000001: without the small term it would round up to 8.
    quota = (fraction * groups.count.double() - 1e-9).ceil().clamp(min=0.0)
    last = groups.count.cumsum(0) - quota.long().clamp(min=1)  # where the least of the top stands
    border = groups.spread(ordered[last])
    above, tied = values > border, values == border
    left = quota - groups.total(above)
    part = groups.spread(left / groups.total(tied)).clamp(min=0.0).to(values.dtype)
    return torch.where(above, 1.0, torch.where(tied, part, 0.0))


def exponential_gain(
    values: Tensor, advantage: Tensor, *, positive: float, negative: float
) -> Tensor:
    r"""Return an exponential multiplier with an exponent of its own for each sign of A.

    $$e^{k^+ x} \text{ where } A > 0, \qquad e^{k^- x} \text{ elsewhere}$$

    Args:
        values: x, one number an advantage.
        advantage: Its sign chooses.
        positive: k⁺.
        negative: k⁻.

    Returns:
        The multiplier.

    Example:
        >>> x, advantage = torch.tensor([0.0, 1.0]), torch.tensor([1.0, -1.0])
        >>> exponential_gain(x, advantage, positive=2.0, negative=1.0)
        tensor([1.0000, 2.7183])
    """
    return torch.where(advantage > 0, positive, negative).mul(values).exp()


def _order(values: Tensor, groups: Groups) -> Tensor:
    """Sort by label, then by value, then by place."""
    by_value = values.argsort(stable=True)
    return by_value[groups.index[by_value].argsort(stable=True)]
