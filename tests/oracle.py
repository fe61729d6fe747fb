"""A slow second opinion: every statistic in Python's own float64, one number at a time.

It shares no code with `uadt` and does not know torch: lists in, floats out.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """The statistics of one distribution, in nats."""

    entropy: float
    logprobs: list[float]
    varentropy: float
    renyi2: float
    min_entropy: float
    self_certainty: float


def row(logits: Sequence[float], temperature: float = 1.0) -> Row:
    """Every statistic from the definition, over the tokens that can be sampled."""
    largest = max(logits)
    weights = [math.exp((x - largest) / temperature) for x in logits]
    total = math.fsum(weights)
    log_total = math.log(total)
    logprobs = [
        (x - largest) / temperature - log_total if x > -math.inf else -math.inf for x in logits
    ]
    p = [w / total for w in weights]
    entropy = math.fsum(-q * lq for q, lq in zip(p, logprobs, strict=True) if q > 0)
    varentropy = math.fsum(
        q * (lq + entropy) ** 2 for q, lq in zip(p, logprobs, strict=True) if q > 0
    )
    possible = [lq for lq in logprobs if lq > -math.inf]
    return Row(
        entropy=entropy,
        logprobs=logprobs,
        varentropy=varentropy,
        renyi2=-math.log(math.fsum(q * q for q in p)),
        min_entropy=-max(logprobs),
        # KL(u || p) = sum_v 1/n (log 1/n - log p_v)
        self_certainty=math.fsum(-math.log(len(possible)) - lq for lq in possible) / len(possible),
    )


def entropy_gradient(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """dH/dx_v = -p_v (log p_v + H) / temperature; 0 for a token that cannot be sampled."""
    r = row(logits, temperature)
    return [
        -math.exp(lq) * (lq + r.entropy) / temperature if lq > -math.inf else 0.0
        for lq in r.logprobs
    ]


def mean(values: Sequence[float]) -> float:
    """NaN for nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def top_mean(values: Sequence[float], count: int) -> float:
    """The mean of the ``count`` largest."""
    return mean(sorted(values, reverse=True)[:count])


def grpo(rewards: Sequence[float], eps: float) -> list[float]:
    """One group: (r - mean) / (std + eps) with n - 1; a group of one: 0."""
    m = mean(rewards)
    if len(rewards) == 1:
        return [0.0]
    std = math.sqrt(math.fsum((r - m) ** 2 for r in rewards) / (len(rewards) - 1))
    return [(r - m) / (std + eps) for r in rewards]


def rloo(rewards: Sequence[float]) -> list[float]:
    """One group: r minus the mean of the others; a group of one: 0."""
    if len(rewards) == 1:
        return [0.0]
    return [
        r - mean([other for j, other in enumerate(rewards) if j != i])
        for i, r in enumerate(rewards)
    ]


def uadt(advantage: float, uncertainty: float, threshold: float, strength: float) -> float:
    """A + lambda omega |A| with the relative scale."""
    if math.isnan(uncertainty):
        return advantage
    omega = math.tanh((uncertainty - threshold) / max(threshold, 0.01))
    return advantage + strength * omega * abs(advantage)
