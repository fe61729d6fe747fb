"""SEED-GRPO: prompts that the policy answers in many ways are learned from with care."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uadt.groups import Groups
from uadt.shaping.parts import (
    check_advantage,
    check_between,
    check_choice,
    like_advantage,
    multiplier_of,
    shaped_positions,
)
from uadt.types import EmptyState, Rollout, Shaped
from uadt.uncertainty import semantic_entropy

__all__ = ["SEED"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SEED:
    r"""Damp the advantages of a whole group by the semantic entropy of its answers.

    $$\hat{A}'_i = \hat{A}_i \cdot f\left(\alpha \, \frac{SE(q)}{\log G}\right), \qquad
    f(x) = 1 - x, \; e^{-x}, \text{ or } (1 - x)^\gamma$$

    | | group uncertain | group certain |
    |---|---|---|
    | **correct** (A > 0) | smaller | unchanged |
    | **wrong** (A < 0) | smaller | unchanged |

    UADT looks at one completion and explores where it is unsure; SEED looks at all answers to a
    prompt and holds back where they disagree. The paper's baseline is $r - \bar r$, without
    division by the standard deviation: `group_advantage` with ``scale="none"``.

    SE is the plug-in estimate by counting (`semantic_entropy`); the paper's own,
    $-\frac{1}{K} \sum_k \log p(C_k)$, weighs every cluster alike and is not bounded by log G.
    There is no official code, so there is nothing else to be faithful to.

    Signals: ``extra["cluster"]``, one integer a completion (same number, same meaning), and the
    group. A group of one has no disagreement and is left alone.

    Info:
        seed/uncertainty: SE(q) / log G of the completion's group, ``(B,)``, in [0, 1]; NaN
            without tokens.
        seed/multiplier: A′/A, in the shape of the advantages.

    Example:
        >>> rollout = Rollout(
        ...     mask=torch.ones(4, 1) > 0,
        ...     group=torch.tensor([0, 0, 1, 1]),
        ...     extra={"cluster": torch.tensor([0, 1, 5, 5])},
        ... )
        >>> advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])  # two answers; one answer
        >>> SEED(alpha=0.5)(advantage, rollout, EmptyState()).advantage  # 1 - .5 * 1, 1 - 0
        tensor([ 0.5000, -0.5000,  1.0000, -1.0000])

    References:
        SEED-GRPO (arXiv:2505.12346).
    """

    alpha: float = 0.5
    """α, in ``[0, 1]``, so that no sign turns (ours: its value was not available)."""
    gain: Literal["linear", "exponential", "focal"] = "linear"
    """f (stated: the three; which is the default: ours)."""
    gamma: float = 2.0
    """The exponent of ``"focal"``, positive (ours, the focal loss's)."""

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_between("alpha", self.alpha, 0.0, 1.0, open_high=False)
        check_choice("gain", self.gain, ("linear", "exponential", "focal"))
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma must be positive, got {self.gamma}")

    @property
    def signals(self) -> frozenset[str]:
        """The group and the clusters."""
        return frozenset({"group", "cluster"})

    def init(self) -> EmptyState:
        """Return the empty state."""
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        """Damp every group by its disagreement."""
        advantage = check_advantage(advantage, rollout, wanted_by="SEED")
        alive = rollout.mask.any(dim=-1)
        uncertainty = torch.full(alive.shape, math.nan, device=alive.device)
        if bool(alive.any()):
            group = rollout.signal("group", wanted_by="SEED")[alive]
            clusters = rollout.signal("cluster", wanted_by="SEED")[alive].long()
            groups = Groups.of(group)
            size = groups.spread(groups.count).float()
            entropy = semantic_entropy(clusters, group)
            uncertainty[alive] = torch.where(size > 1, entropy / size.log(), 0.0)
        x = self.alpha * uncertainty.nan_to_num(0.0)
        gain = {
            "linear": 1.0 - x,
            "exponential": (-x).exp(),
            "focal": (1.0 - x).clamp(min=0.0) ** self.gamma,
        }[self.gain]
        counts = shaped_positions(advantage, rollout.mask)
        gain = like_advantage(gain, advantage).to(advantage.dtype)
        shaped = torch.where(counts, advantage * gain, advantage)
        info = {
            "seed/uncertainty": uncertainty,
            "seed/multiplier": multiplier_of(shaped, advantage, counts),
        }
        return Shaped(shaped, state, info)
