"""GTPO and GRPO-S: the reward of a class, shared out by entropy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from uadt.groups import Groups
from uadt.shaping.parts import (
    check_advantage,
    check_between,
    entropy_of,
    like_advantage,
    share_within,
    zscore_within,
)
from uadt.types import EmptyState, Rollout, Shaped
from uadt.uncertainty import sequence_mean

__all__ = ["GRPOS", "GTPO"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GTPO:
    r"""Share the reward of a position out by entropy, among the right and among the wrong.

    At position t of a group, $O^+_t$ are the correct completions that are still going and
    $O^-_t$ the wrong ones, $d_t$ and $h_t$ how many they are:

    $$\tilde r^+_{it} = \alpha_1 r_i + \alpha_2 \frac{H_{it}}{\sum_{k \in O^+_t} H_{kt}} d_t
    \qquad
    \tilde r^-_{jt} = -\alpha_1 - \alpha_2 \frac{1 / H_{jt}}{\sum_{k \in O^-_t} 1 / H_{kt}} h_t$$

    and $\hat{A}'$ is the z-score of $\tilde r^+$ over all tokens of the correct completions of
    the group, and of $\tilde r^-$ over those of the wrong ones, each class alone. It **replaces**
    the advantage that comes in.

    | | uncertain | certain |
    |---|---|---|
    | **correct** (r above the threshold) | positive | **negative** |
    | **wrong** | **positive** | negative |

    Two consequences of the z-score by class: the mean advantage of each class is 0, so that
    correct and wrong completions are pushed equally hard on average; and with rewards of 0 and 1
    both $\alpha$ cancel, whatever they are. The table is relative to the class and position.

    Follows version 6 of the paper (versions differ; this one has $H_{it} / \sum_k H_{kt}$). No
    official code exists. A position where every entropy is 0 is shared equally (ours).

    Info:
        gtpo/shaped_reward: The reward before the z-score, ``(B, T)``; 0 at padding.

    Raises:
        ValueError: When it is called with one advantage a completion.

    Example:
        >>> entropy = torch.tensor([[1.0, 1.0], [3.0, 1.0]])  # one group, both correct
        >>> rollout = Rollout(
        ...     mask=entropy > 0,
        ...     entropy=entropy,
        ...     reward=torch.ones(2),
        ...     group=torch.zeros(2, dtype=torch.int64),
        ... )
        >>> shaped = GTPO()(torch.zeros(2, 2), rollout, EmptyState())
        >>> shaped.info["gtpo/shaped_reward"]  # 1 + .1 * 2 * (1/4, 3/4), then 1 + .1 * 2 * 1/2
        tensor([[1.0500, 1.1000],
                [1.1500, 1.1000]])
        >>> shaped.advantage.round(decimals=4)  # mean 1.1, standard deviation .1 / sqrt(8)
        tensor([[-1.4142,  0.0000],
                [ 1.4142,  0.0000]])

    References:
        GTPO and GRPO-S (arXiv:2508.04349v6), equations 3, 5 and 6.
    """

    alpha_1: float = 1.0
    """Weight of the reward (stated, by a copy of the paper).

    Proposition 2.2 wants the two weights to add up to 1.
    """
    alpha_2: float = 0.1
    """Weight of the entropy's share (stated, by a copy of the paper)."""
    correct_above: float = 0.5
    """A reward above it is correct; ours, the paper has rewards of 0 and 1."""
    eps: float = 1e-8
    """Added to 1/H's denominator and to the standard deviation (ours)."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_weights("alpha", self.alpha_1, self.alpha_2, self.eps)

    @property
    def signals(self) -> frozenset[str]:
        """Entropy, reward and group."""
        return frozenset({"entropy", "reward", "group"})

    def init(self) -> EmptyState:
        """Return the empty state."""
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        """Replace the advantage of every token."""
        name = "GTPO"
        advantage = check_advantage(advantage, rollout, wanted_by=name, per_token=True)
        mask = rollout.mask
        entropy = entropy_of(rollout, wanted_by=name)[mask]
        reward = rollout.signal("reward", wanted_by=name)[:, None].expand_as(mask)[mask]
        group = rollout.signal("group", wanted_by=name).long()[:, None].expand_as(mask)[mask]
        position = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)[mask]
        correct = reward > self.correct_above
        classes = _pair(group, correct.long())
        shaped = _share(
            entropy, reward, correct, _pair(classes, position), self.alpha_1, self.alpha_2, self.eps
        )
        result = advantage.clone()
        scored = zscore_within(shaped, classes, eps=self.eps, correction=0)
        result[mask] = scored.to(advantage.dtype)
        shown = advantage.new_zeros(mask.shape)
        shown[mask] = shaped.to(advantage.dtype)
        return Shaped(result, state, {"gtpo/shaped_reward": shown})


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPOS:
    r"""GRPO-S, GTPO's sibling a level higher: whole completions share the reward of their class.

    $$\tilde r^+_i = \beta_1 r_i + \beta_2 \frac{\bar H_i}{\sum_{k \in O^+} \bar H_k} |O^+|
    \qquad
    \tilde r^-_j = -\beta_1 - \beta_2 \frac{1/\bar H_j}{\sum_{k \in O^-} 1/\bar H_k} |O^-|$$

    $\hat{A}'$ is the z-score of $\tilde r$ over the whole group, right and wrong together. It
    **replaces** the advantage that comes in; the sample standard deviation, and 0 for a group of
    one, are those of GRPO.

    | | uncertain | certain |
    |---|---|---|
    | **correct** | larger | smaller |
    | **wrong** | smaller | larger |

    Written from a summary of the paper, since neither code nor equation was available: that the
    group is standardised as a whole, and that β are GTPO's α, is *ours*.

    Info:
        grpo_s/shaped_reward: The reward before the z-score, ``(B,)``.
        grpo_s/uncertainty: $\bar H_i$, ``(B,)``, in nats; NaN without tokens.

    Example:
        >>> entropy = torch.tensor([[1.0], [3.0], [2.0]])
        >>> rollout = Rollout(
        ...     mask=entropy > 0,
        ...     entropy=entropy,
        ...     reward=torch.tensor([1.0, 1.0, 0.0]),
        ...     group=torch.zeros(3, dtype=torch.int64),
        ... )
        >>> shaped = GRPOS()(torch.zeros(3), rollout, EmptyState())
        >>> shaped.info["grpo_s/shaped_reward"]  # 1 + .1 * 2 * (1/4, 3/4); -1 - .1 * 1
        tensor([ 1.0500,  1.1500, -1.1000])
        >>> shaped.advantage  # mean .3667, sample standard deviation 1.2711
        tensor([ 0.5376,  0.6162, -1.1538])

    References:
        GTPO and GRPO-S (arXiv:2508.04349v6).
    """

    beta_1: float = 1.0
    """Weight of the reward (ours, as GTPO's)."""
    beta_2: float = 0.1
    """Weight of the entropy's share (ours, as GTPO's)."""
    correct_above: float = 0.5
    """A reward above it is correct (ours)."""
    eps: float = 1e-6
    """Added to 1/H's denominator and to the standard deviation (ours, as in GRPO)."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_weights("beta", self.beta_1, self.beta_2, self.eps)

    @property
    def signals(self) -> frozenset[str]:
        """Entropy, reward and group."""
        return frozenset({"entropy", "reward", "group"})

    def init(self) -> EmptyState:
        """Return the empty state."""
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        """Replace the advantage of every completion."""
        name = "GRPO-S"
        advantage = check_advantage(advantage, rollout, wanted_by=name)
        alive = rollout.mask.any(dim=-1)
        mean = sequence_mean(entropy_of(rollout, wanted_by=name), rollout.mask)
        reward = rollout.signal("reward", wanted_by=name)[alive]
        group = rollout.signal("group", wanted_by=name).long()[alive]
        correct = reward > self.correct_above
        classes = _pair(group, correct.long())
        shaped = _share(mean[alive], reward, correct, classes, self.beta_1, self.beta_2, self.eps)
        scored = advantage.new_zeros(len(alive))
        scored[alive] = zscore_within(shaped, group, eps=self.eps, correction=1).to(scored.dtype)
        shown = torch.zeros_like(scored)
        shown[alive] = shaped.to(scored.dtype)
        counts = rollout.mask if advantage.ndim == 2 else alive
        result = torch.where(counts, like_advantage(scored, advantage), advantage)
        info = {"grpo_s/shaped_reward": shown, "grpo_s/uncertainty": mean}
        return Shaped(result, state, info)


def _share(  # noqa: PLR0913 - the formula's own letters
    entropy: Tensor,
    reward: Tensor,
    correct: Tensor,
    labels: Tensor,
    weight: float,
    bonus: float,
    eps: float,
) -> Tensor:
    """Return r̃: the reward and the share of the entropy, or of its inverse where wrong."""
    # float64: what is left of equal numbers in float32 would be blown up by the z-score.
    entropy, reward = entropy.double(), reward.double()
    measure = torch.where(correct, entropy, 1.0 / (entropy + eps))
    equal = share_within(torch.ones_like(measure), labels)  # 1 / d, or 1 / h
    share = share_within(measure, labels) / equal
    return torch.where(correct, weight * reward + bonus * share, -weight - bonus * share)


def _pair(first: Tensor, second: Tensor) -> Tensor:
    """Return one label for each pair of labels."""
    inner = Groups.of(second)
    return Groups.of(first).index * max(len(inner.count), 1) + inner.index


def _check_weights(name: str, first: float, second: float, eps: float) -> None:
    check_between(f"{name}_1", first, 0.0, float("inf"), open_high=True)
    check_between(f"{name}_2", second, 0.0, float("inf"), open_high=True)
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps must be positive, got {eps}")
