"""One number a token → one number a completion: how unsure the policy was of it.

A completion without a counted token has no uncertainty: NaN, which is not zero. A position
outside the mask may hold anything, NaN included.

To look at a part of the completion only, restrict the mask to it: ``mask & think`` or
``mask & answer``, with a span mask of shape ``(B, T)``. A completion without that span then has
none of its tokens counted, and so no uncertainty.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from uadt.groups import Groups, renumber, row_numbers
from uadt.types import GroupIds, PerSequence, PerToken, TokenMask

__all__ = [
    "answer_entropy",
    "semantic_entropy",
    "sequence_max",
    "sequence_mean",
    "sequence_sum",
    "sequence_top_mean",
]


def sequence_mean(values: PerToken, mask: TokenMask) -> PerSequence:
    r"""Mean over the tokens that count.

    $$U_i = \frac{\sum_t m_{it} v_{it}}{\sum_t m_{it}}$$

    Args:
        values: One number a token, such as its entropy.
        mask: True where a token counts.

    Returns:
        The mean, in the unit of ``values``; NaN for a completion without tokens.

    Raises:
        ValueError: If ``mask`` is not boolean or has another shape than ``values``.

    Example:
        >>> values = torch.tensor([[1.0, 3.0, 9.0], [4.0, 9.0, 9.0]])
        >>> think = torch.tensor([[True, True, False], [True, False, False]])
        >>> sequence_mean(values, think)  # (1 + 3) / 2 and 4
        tensor([2., 4.])

    References:
        OphthaReason calls its uncertainty "sample-level" (arXiv:2508.16129): *stated*. That it is
        the mean: *ours*.
    """
    return _counted(values, mask, 0.0).sum(dim=-1) / mask.count_nonzero(dim=-1)  # 0 / 0 is NaN


def sequence_sum(values: PerToken, mask: TokenMask) -> PerSequence:
    r"""Sum over the tokens that count.

    $$U_i = \sum_t m_{it} v_{it}$$

    It grows with the length of a completion, so a threshold on it is one on length as well.

    Args:
        values: One number a token, such as its entropy.
        mask: True where a token counts.

    Returns:
        The sum, in the unit of ``values``; NaN for a completion without tokens.

    Raises:
        ValueError: If ``mask`` is not boolean or has another shape than ``values``.

    Example:
        >>> sequence_sum(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([4.])
    """
    total = _counted(values, mask, 0.0).sum(dim=-1)
    return total.masked_fill(~mask.any(dim=-1), math.nan)


def sequence_max(values: PerToken, mask: TokenMask) -> PerSequence:
    r"""Largest value among the tokens that count.

    $$U_i = \max_{t : m_{it}} v_{it}$$

    Args:
        values: One number a token, such as its entropy.
        mask: True where a token counts.

    Returns:
        The maximum, in the unit of ``values``; NaN for a completion without tokens.

    Raises:
        ValueError: If ``mask`` is not boolean or has another shape than ``values``.

    Example:
        >>> sequence_max(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([3.])
    """
    counted = _counted(values, mask, -math.inf)
    if counted.shape[-1] == 0:
        return counted.new_full(counted.shape[:-1], math.nan)
    return counted.amax(dim=-1).masked_fill(~mask.any(dim=-1), math.nan)


def sequence_top_mean(values: PerToken, mask: TokenMask, *, fraction: float = 0.2) -> PerSequence:
    r"""Mean over the largest values: the forking tokens, not the many that follow from them.

    $$U_i = \frac{1}{k_i} \sum_{j=1}^{k_i} v_{i(j)}, \qquad
    k_i = \lceil \text{fraction} \cdot \textstyle\sum_t m_{it} \rceil$$

    with $v_{i(1)} \ge v_{i(2)} \ge \dots$ the values of the tokens that count. Rounded up, so at
    least one token (*ours*).

    Args:
        values: One number a token, such as its entropy.
        mask: True where a token counts.
        fraction: Share of the tokens to average, within ``(0, 1]``.

    Returns:
        The mean, in the unit of ``values``; NaN for a completion without tokens.

    Raises:
        ValueError: If ``fraction`` is outside ``(0, 1]``, or ``mask`` is not boolean or has
            another shape than ``values``.

    Example:
        >>> values = torch.tensor([[1.0, 5.0, 2.0, 3.0, 9.0]])
        >>> mask = torch.tensor([[True, True, True, True, False]])
        >>> sequence_top_mean(values, mask, fraction=0.5)  # (5 + 3) / 2
        tensor([4.])

    References:
        Wang et al., "Beyond the 80/20 rule" (arXiv:2506.01939), for the fraction of forking
        tokens; AdaThink-Med (arXiv:2509.24560) averages the same 20%.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must be within (0, 1], got {fraction}")
    descending = _counted(values, mask, -math.inf).sort(dim=-1, descending=True).values
    # 0.07 * 100 is 7.000000000000001: without the small term it would round up to 8.
    top = (mask.sum(dim=-1, keepdim=True).double() * fraction - 1e-9).ceil()
    rank = torch.arange(mask.shape[-1], device=mask.device)
    return descending.masked_fill(rank >= top, 0.0).sum(dim=-1) / top.squeeze(-1).to(
        descending.dtype
    ).clamp(min=0.0)


def semantic_entropy(
    clusters: GroupIds, group: GroupIds, *, logprob: PerSequence | None = None
) -> PerSequence:
    r"""Entropy of what a group of completions means, whatever its words.

    $$H_g = -\sum_{c} p_g(c) \log p_g(c), \qquad
    p_g(c) = \frac{\sum_{i \in g,\, i \in c} w_i}{\sum_{i \in g} w_i}$$

    With $w_i = 1$ it counts; with ``logprob`` $\ell_i$ it weighs, $w_i = e^{\ell_i}$. Both are
    plug-in estimates: a group of G completions cannot show more than $\log G$, and on average
    they are too low, by about $(K - 1) / 2G$ for K meanings. So compare groups of one size.

    Args:
        clusters: Which completions of a group mean the same; any integer labels, read within
            the group only.
        group: Which completions answer the same prompt.
        logprob: Log-probability of each completion in nats, usually divided by its length: with
            undivided ones a single short completion outweighs the group.

    Returns:
        Nats, the same for each completion of a group, within ``[0, log G]``.

    Raises:
        ValueError: If the arguments differ in length, or a log-probability is NaN or ``+inf``,
            or a whole group has ``-inf``.

    Example:
        >>> clusters = torch.tensor([0, 0, 1, 5])
        >>> group = torch.tensor([1, 1, 1, 2])
        >>> semantic_entropy(clusters, group)  # -(2/3 ln 2/3 + 1/3 ln 1/3); a group of one: 0
        tensor([0.6365, 0.6365, 0.6365, 0.0000])

    References:
        Farquhar et al., "Detecting hallucinations in large language models using semantic
        entropy", Nature 630 (2024).
    """
    _check_rows("clusters", clusters, group)
    groups = Groups.of(group)
    labels, count = renumber(clusters)
    meanings = Groups.of(groups.index * len(count) + labels)
    if logprob is None:
        weight = torch.ones(len(group), dtype=torch.float64, device=group.device)
    else:
        _check_rows("logprob", logprob, group)
        ell = logprob.detach().double()
        weight = (ell - groups.spread(groups.largest(ell))).exp()
        rows = row_numbers(weight.isnan())
        if rows:
            raise ValueError(
                "logprob must be below +inf, and above -inf for one completion of each group, "
                f"got {logprob[rows].tolist()} in rows {rows}"
            )
    p = weight / groups.spread(groups.total(weight))
    p_meaning = meanings.spread(meanings.total(p))
    # Each completion brings its own share of -p(c) log p(c); 0 log 0 = 0.
    share = -p * p_meaning.log().masked_fill(p_meaning == 0, 0.0)
    entropy = groups.spread(groups.total(share)).clamp(min=0.0)  # rounding only: no -0.0
    return entropy.to(torch.float32 if logprob is None else _at_least_float32(logprob.dtype))


def answer_entropy(answers: Sequence[str | None], group: GroupIds) -> PerSequence:
    """Entropy of the answers of a group, equal strings counted as one.

    `semantic_entropy` with the answer as its meaning; the same bias.

    Args:
        answers: One canonical answer a completion; ``None`` (no answer) is one of its own, and
            differs from the empty string.
        group: Which completions answer the same prompt.

    Returns:
        Nats, the same for each completion of a group, within ``[0, log G]``.

    Raises:
        ValueError: If there is another number of answers than of rows.

    Example:
        >>> answer_entropy(["A", "B", "A", "B"], torch.tensor([0, 0, 1, 1]))  # ln 2
        tensor([0.6931, 0.6931, 0.6931, 0.6931])
    """
    numbers: dict[str | None, int] = {}
    clusters = [numbers.setdefault(answer, len(numbers)) for answer in answers]
    return semantic_entropy(torch.tensor(clusters, device=group.device).long(), group)


def _counted(values: Tensor, mask: Tensor, fill: float) -> Tensor:
    if mask.dtype != torch.bool or mask.shape != values.shape or mask.ndim != 2:
        raise ValueError(
            f"mask must be a bool tensor of the shape (B, T) of values, {tuple(values.shape)}, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    if len(mask) == 0:
        raise ValueError("values and mask must hold at least one completion, got B = 0")
    return torch.where(mask, values.to(_at_least_float32(values.dtype)), fill)


def _check_rows(name: str, values: Tensor, group: Tensor) -> None:
    if group.ndim != 1 or len(group) == 0 or values.shape != group.shape:
        raise ValueError(
            f"{name} and group must have the same shape (B,) with B > 0, "
            f"got {tuple(values.shape)} and {tuple(group.shape)}"
        )


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
