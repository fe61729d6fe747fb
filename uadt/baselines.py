"""Rewards and groups → advantages.

Groups may have any size, order and labels. ``keep`` leaves rows out, such as the padding groups
of a stack: they may hold anything, count nowhere, and get advantage 0. All arithmetic is in
float64 and shifted by a member of the group, so that equal rewards give exactly 0.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from uadt.groups import Groups, row_numbers
from uadt.types import GroupIds, PerSequence

__all__ = [
    "group_advantage",
    "maxrl_advantage",
    "quantile_advantage",
    "rloo_advantage",
    "weighted_reinforce",
]

KeepMask = Bool[Tensor, " B"]
"""True where a row counts."""


def group_advantage(
    reward: PerSequence,
    group: GroupIds,
    *,
    scale: Literal["std", "none"] = "std",
    eps: float = 1e-6,
    singleton: Literal["zero", "raw"] = "zero",
    keep: KeepMask | None = None,
) -> PerSequence:
    r"""Rewards relative to the other completions of the prompt: GRPO and Dr.GRPO.

    $$A_i = \frac{r_i - \mathrm{mean}(r_g)}{\mathrm{std}(r_g) + \epsilon}$$

    with the standard deviation of n − 1 (as verl and TRL compute it); ``scale="none"`` leaves
    out the division (Dr.GRPO). Equal rewards give 0. verl's ε is 1e-6, TRL's 1e-4.

    Args:
        reward: One number a completion.
        group: Which completions answer the same prompt.
        scale: ``"std"`` or ``"none"``.
        eps: ε, not negative.
        singleton: A group of one says nothing about its prompt, so ``"zero"``; ``"raw"`` takes
            mean 0 and standard deviation 1 for it, as verl does.
        keep: True where a row counts; all by default.

    Returns:
        One advantage a completion; 0 for rows left out.

    Raises:
        ValueError: If shapes or dtypes do not fit, a reward that counts is not finite, ``eps``
            is negative, or a name is unknown.

    Example:
        >>> reward = torch.tensor([1.0, 0.0, 1.0, 0.0, 7.0])
        >>> group = torch.tensor([0, 0, 0, 0, 1])
        >>> group_advantage(reward, group)  # ±0.5 / sqrt(4 * 0.25 / 3); a group of one
        tensor([ 0.8660, -0.8660,  0.8660, -0.8660,  0.0000])

    References:
        GRPO: DeepSeekMath (arXiv:2402.03300). Dr.GRPO: Liu et al. (arXiv:2503.20783).
    """
    _check_choice("scale", scale, ("std", "none"))
    _check_choice("singleton", singleton, ("zero", "raw"))
    _check_eps(eps)

    def advantage(reward: Tensor, groups: Groups) -> Tensor:
        deviation = _deviation(reward, groups)
        if scale == "std":
            deviation = _over(deviation, groups.spread(_std(deviation, groups)) + eps)
        if singleton == "raw":
            raw = reward / (1.0 + eps) if scale == "std" else reward
            deviation = torch.where(groups.spread(groups.count) == 1, raw, deviation)
        return deviation

    return _over_groups(reward, group, keep, advantage)


def rloo_advantage(
    reward: PerSequence,
    group: GroupIds,
    *,
    singleton: Literal["zero", "raw"] = "zero",
    keep: KeepMask | None = None,
) -> PerSequence:
    r"""Rewards relative to the mean of the others: REINFORCE leave-one-out.

    $$A_i = r_i - \frac{1}{n - 1} \sum_{j \ne i} r_j = \frac{n}{n - 1} (r_i - \mathrm{mean}(r_g))$$

    Args:
        reward: One number a completion.
        group: Which completions answer the same prompt.
        singleton: A group of one has no others: ``"zero"``, or ``"raw"`` for the reward itself,
            as verl has it.
        keep: True where a row counts; all by default.

    Returns:
        One advantage a completion; 0 for rows left out.

    Raises:
        ValueError: As `group_advantage`.

    Example:
        >>> rloo_advantage(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([5, 5, 5]))
        tensor([ 1.0000, -0.5000, -0.5000])

    References:
        Ahmadian et al., "Back to basics" (arXiv:2402.14740).
    """
    _check_choice("singleton", singleton, ("zero", "raw"))

    def advantage(reward: Tensor, groups: Groups) -> Tensor:
        count = groups.spread(groups.count)
        scaled = _deviation(reward, groups) * count / (count - 1).clamp(min=1)
        return torch.where(count == 1, reward, scaled) if singleton == "raw" else scaled

    return _over_groups(reward, group, keep, advantage)


def quantile_advantage(
    reward: PerSequence,
    group: GroupIds,
    *,
    quantile: float,
    scale: Literal["std", "none"] = "none",
    eps: float = 1e-6,
    keep: KeepMask | None = None,
) -> PerSequence:
    r"""Rewards relative to a quantile of the group, which is one of its rewards.

    $$A_i = r_i - r_{(k)}, \qquad k = \max(1, \lceil K n \rceil)$$

    with $r_{(1)} \le r_{(2)} \le \dots$ the rewards of the group: the quantile is
    $\min\{x : F(x) \ge K\}$ of its empirical distribution F, and does not interpolate. For
    rewards 0 and 1 with success rate p̂ it is a gate: at $\hat{p} \le 1 - K$ (equality included)
    the baseline is 0 and only successes count; above, it is 1 and only failures do. An
    interpolated quantile is neither at the border.

    Args:
        reward: One number a completion.
        group: Which completions answer the same prompt.
        quantile: K, within ``[0, 1]``. The paper uses 0.4.
        scale: ``"none"``, or ``"std"`` to divide by the group's standard deviation + ε.
        eps: ε, not negative.
        keep: True where a row counts; all by default.

    Returns:
        One advantage a completion; 0 for rows left out, and for a group of one.

    Raises:
        ValueError: If ``quantile`` is outside ``[0, 1]``; else as `group_advantage`.

    Example:
        >>> reward = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])  # p = 0.6 = 1 - K: the hard side
        >>> quantile_advantage(reward, torch.zeros(5, dtype=torch.int64), quantile=0.4)
        tensor([1., 0., 0., 1., 1.])

    References:
        QAE: "Quantile advantage estimation for entropy-safe reasoning" (arXiv:2509.22611).
    """
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile must be within [0, 1], got {quantile}")
    _check_choice("scale", scale, ("std", "none"))
    _check_eps(eps)

    def advantage(reward: Tensor, groups: Groups) -> Tensor:
        ascending = reward.argsort(stable=True)
        by_group = ascending[groups.index[ascending].argsort(stable=True)]
        start = groups.count.cumsum(0) - groups.count
        # 0.07 * 100 is 7.000000000000001: without the small term it would round up to 8.
        place = (quantile * groups.count.double() - 1e-9).ceil().long().clamp(min=1) - 1
        baseline = reward[by_group[start + place]]
        result = reward - groups.spread(baseline)
        if scale == "std":
            spread = _std(_deviation(reward, groups), groups)
            result = _over(result, groups.spread(spread) + eps)
        return result

    return _over_groups(reward, group, keep, advantage)


def maxrl_advantage(
    reward: PerSequence,
    group: GroupIds,
    *,
    eps: float = 1e-6,
    keep: KeepMask | None = None,
) -> PerSequence:
    r"""Rewards relative to the success rate, and in units of it: MaxRL.

    $$A_i = \frac{r_i - \hat{p}}{\hat{p} + \epsilon}, \qquad \hat{p} = \mathrm{mean}(r_g)$$

    A rare success weighs $1/\hat{p}$, as in the gradient of the likelihood of success. A group
    that all failed gives 0.

    Args:
        reward: One number a completion, within ``[0, 1]``.
        group: Which completions answer the same prompt.
        eps: ε, not negative.
        keep: True where a row counts; all by default.

    Returns:
        One advantage a completion; 0 for rows left out, and for a group of one.

    Raises:
        ValueError: If a reward that counts is outside ``[0, 1]``; else as `group_advantage`.

    Example:
        >>> maxrl_advantage(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64))
        tensor([ 3.0000, -1.0000, -1.0000, -1.0000])

    References:
        MaxRL: "Maximum likelihood reinforcement learning" (arXiv:2602.02710).
    """
    _check_eps(eps)

    def advantage(reward: Tensor, groups: Groups) -> Tensor:
        outside = (reward < 0) | (reward > 1)
        if bool(outside.any()):
            raise ValueError(
                f"reward must be within [0, 1] for a success rate, got {reward[outside].tolist()}"
            )
        rate = groups.spread(groups.mean(reward))
        deviation = _deviation(reward, groups)
        # Without an ε, a group without a success is 0 / 0: it has nothing to say.
        return (deviation / (rate + eps)).masked_fill(rate == 0, 0.0)

    return _over_groups(reward, group, keep, advantage)


def weighted_reinforce(
    reward: PerSequence,
    *,
    positive: float,
    negative: float = 1.0,
    correct_above: float = 0.5,
    keep: KeepMask | None = None,
) -> PerSequence:
    r"""A weight for each right completion, minus another for each wrong one: W-REINFORCE.

    $$A_i = \begin{cases} +w^+ & r_i > c \\ -w^- & \text{else} \end{cases}$$

    No baseline and no groups. ``positive=1, negative=0`` is positive sample reinforcement (PSR),
    ``positive=0`` negative sample reinforcement (NSR).

    Args:
        reward: One number a completion.
        positive: $w^+$, not negative. The paper uses 0.1.
        negative: $w^-$, not negative.
        correct_above: c, the reward that a right completion exceeds; 0.5 is *ours* and fits
            rewards of 0 and 1.
        keep: True where a row counts; all by default.

    Returns:
        One advantage a completion; 0 for rows left out.

    Raises:
        ValueError: If a weight is negative or not finite; else as `group_advantage`.

    Example:
        >>> weighted_reinforce(torch.tensor([1.0, 0.0]), positive=0.1)
        tensor([ 0.1000, -1.0000])

    References:
        Zhu et al., "The surprising effectiveness of negative reinforcement" (arXiv:2506.01347).
    """
    for name, weight in (("positive", positive), ("negative", negative)):
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"{name} must be finite and not negative, got {weight}")

    def advantage(reward: Tensor, _groups: Groups) -> Tensor:
        right = torch.full_like(reward, positive)
        return torch.where(reward > correct_above, right, -negative)

    one_group = torch.zeros(reward.shape, dtype=torch.int64, device=reward.device)
    return _over_groups(reward, one_group, keep, advantage)


def _over_groups(
    reward: Tensor,
    group: Tensor,
    keep: Tensor | None,
    advantage: Callable[[Tensor, Groups], Tensor],
) -> Tensor:
    """Compute over the rows that count; every other row gets 0."""
    if reward.ndim != 1 or len(reward) == 0 or not reward.is_floating_point():
        raise ValueError(
            f"reward must be a floating tensor of shape (B,) with B > 0, "
            f"got {reward.dtype} of shape {tuple(reward.shape)}"
        )
    if group.shape != reward.shape or group.is_floating_point() or group.dtype == torch.bool:
        raise ValueError(
            f"group must be an integer tensor of shape {tuple(reward.shape)} like reward, "
            f"got {group.dtype} of shape {tuple(group.shape)}"
        )
    if keep is not None and (keep.shape != reward.shape or keep.dtype != torch.bool):
        raise ValueError(
            f"keep must be a bool tensor of shape {tuple(reward.shape)} like reward, "
            f"got {keep.dtype} of shape {tuple(keep.shape)}"
        )
    counted = (reward if keep is None else reward[keep]).detach().double()
    if not bool(counted.sum().isfinite()):  # one number to look at; rows only if they are needed
        wrong = ~reward.isfinite()
        rows = row_numbers(wrong if keep is None else wrong & keep)
        if rows:
            raise ValueError(f"reward must be finite, got {reward[rows].tolist()} in rows {rows}")
    dtype = torch.promote_types(reward.dtype, torch.float32)
    if keep is None:
        return advantage(counted, Groups.of(group)).to(dtype)
    result = torch.zeros_like(reward, dtype=dtype)
    if len(counted):
        result[keep] = advantage(counted, Groups.of(group[keep])).to(dtype)
    return result


def _deviation(reward: Tensor, groups: Groups) -> Tensor:
    shifted = reward - groups.spread(groups.member(reward))  # equal rewards: exactly 0
    return shifted - groups.spread(groups.mean(shifted))


def _std(deviation: Tensor, groups: Groups) -> Tensor:
    return (groups.total(deviation.square()) / (groups.count - 1).clamp(min=1)).sqrt()


def _over(values: Tensor, scale: Tensor) -> Tensor:
    """Divide, but for 0 / 0, which is equal rewards without an ε: nothing."""
    return values / scale.masked_fill(scale == 0, 1.0)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {known}, got {value!r}")


def _check_eps(eps: float) -> None:
    if not 0.0 <= eps < float("inf"):
        raise ValueError(f"eps must be finite and not negative, got {eps}")
