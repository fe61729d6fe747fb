"""Batches that several tests of shapings share."""

import math

import torch
from torch import Tensor

from uadt.entropy import token_entropy
from uadt.types import Rollout

NAN = math.nan


def random_batch(seed: int, *, batch: int = 6, positions: int = 5) -> tuple[Tensor, Rollout]:
    """Return advantages (B, T) and a rollout that holds every signal any shaping reads."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    lengths = torch.randint(1, positions + 1, (batch,), generator=generator)
    mask = torch.arange(positions) < lengths[:, None]
    reward = (uniform(batch) > 0.5).float()
    advantage = torch.randn(batch, generator=generator)[:, None].expand(batch, positions)
    rollout = Rollout(
        mask=mask,
        entropy=uniform(batch, positions) * 2 + 0.01,
        logprob=-uniform(batch, positions) * 3,
        reward=reward,
        group=torch.arange(batch) // 3,
        task=["basic", "complex"] * (batch // 2) + ["basic"] * (batch % 2),
        extra={
            "self_certainty": uniform(batch, positions) * 8,
            "logit": uniform(batch, positions) * 20,
            "cluster": torch.randint(0, 3, (batch,), generator=generator),
            "think": mask & (torch.arange(positions) < 2),
        },
    )
    return advantage.clone(), rollout


def pick(rollout: Rollout, rows: Tensor) -> Rollout:
    """Return the same rollout with other rows, or in another order."""
    return Rollout(
        mask=rollout.mask[rows],
        entropy=None if rollout.entropy is None else rollout.entropy[rows],
        logprob=None if rollout.logprob is None else rollout.logprob[rows],
        reward=None if rollout.reward is None else rollout.reward[rows],
        group=None if rollout.group is None else rollout.group[rows],
        task=None if rollout.task is None else [rollout.task[int(row)] for row in rows],
        extra={name: value[rows] for name, value in rollout.extra.items()},
    )


def replaced(
    rollout: Rollout, *, mask: Tensor | None = None, entropy: Tensor | None = None
) -> Rollout:
    """Return the same rollout with another mask, or other entropies."""
    return Rollout(
        mask=rollout.mask if mask is None else mask,
        entropy=rollout.entropy if entropy is None else entropy,
        logprob=rollout.logprob,
        reward=rollout.reward,
        group=rollout.group,
        task=rollout.task,
        extra=rollout.extra,
    )


def padded(rollout: Rollout, more: int) -> Rollout:
    """Return the same rollout with more padding, and NaN in all of it."""

    def widen(value: Tensor) -> Tensor:
        if value.dtype == torch.bool:
            filler = torch.zeros(len(value), more, dtype=torch.bool)
            return torch.cat([value, filler], dim=1)
        filler = torch.full((len(value), more), float("nan"))
        return torch.cat([value.masked_fill(~rollout.mask, float("nan")), filler], dim=1)

    assert rollout.entropy is not None
    assert rollout.logprob is not None
    return Rollout(
        mask=widen(rollout.mask),
        entropy=widen(rollout.entropy),
        logprob=widen(rollout.logprob),
        reward=rollout.reward,
        group=rollout.group,
        task=rollout.task,
        extra={
            name: widen(value) if value.ndim == 2 else value
            for name, value in rollout.extra.items()
        },
    )


def rollout_of(
    rows: list[list[float]],
    *,
    reward: list[float] | None = None,
    group: list[int] | None = None,
    clusters: list[int] | None = None,
) -> Rollout:
    """Return a rollout of ragged entropies, padded with NaN."""
    width = max(map(len, rows))
    entropy = torch.tensor([row + [NAN] * (width - len(row)) for row in rows])
    return Rollout(
        mask=~entropy.isnan(),
        entropy=entropy,
        reward=None if reward is None else torch.tensor(reward),
        group=None if group is None else torch.tensor(group),
        extra={} if clusters is None else {"cluster": torch.tensor(clusters)},
    )


def sine_entropy() -> Tensor:
    """Return the entropies of logits 3 · sin(1 + i + 2t + 5v) at temperature .8."""
    logits = [
        [[3 * math.sin(1 + i + 2 * t + 5 * v) for v in range(5)] for t in range(4)]
        for i in range(3)
    ]
    return token_entropy(torch.tensor(logits), temperature=0.8)
