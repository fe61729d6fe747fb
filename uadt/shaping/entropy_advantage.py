"""Entropy advantage: every token earns a bonus for its entropy, capped by its advantage."""

from dataclasses import dataclass

import torch
from torch import Tensor

from uadt.shaping.parts import check_advantage, check_between, entropy_of, multiplier_of
from uadt.types import EmptyState, Rollout, Shaped

__all__ = ["EntropyAdvantage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyAdvantage:
    r"""Add a token's entropy to its advantage, never more than a part of it.

    $$\hat{A}'_{it} = \hat{A}_{it} + \min\left(\alpha H_{it},\; |\hat{A}_{it}| / \kappa\right)$$

    The bonus is never negative: it raises what is right and softens what is wrong. With κ > 1
    the sign cannot turn. The entropy carries no gradient (the paper insists). One that rounding
    pushed below 0 counts as 0 and earns nothing (ours).

    | | uncertain | certain |
    |---|---|---|
    | **correct** (A > 0) | larger | nearly unchanged |
    | **wrong** (A < 0) | smaller | nearly unchanged |

    The paper trains with Clip-Higher; without it the authors of copies report that entropy
    collapses all the same. There is no official code; formula and numbers are *stated*.

    Info:
        entropy_advantage/multiplier: A′/A, ``(B, T)``.
        entropy_advantage/bonus: What was added, ``(B, T)``; 0 at padding.

    Raises:
        ValueError: When it is called with one advantage a completion: the bonus is the token's.

    Example:
        >>> entropy = torch.tensor([[0.5, 2.0]])
        >>> rollout = Rollout(mask=entropy > 0, entropy=entropy)
        >>> shaping = EntropyAdvantage()  # .4 * .5 = .2; .4 * 2 = .8, but at most 1 / 2
        >>> shaping(torch.tensor([[1.0, 1.0]]), rollout, shaping.init()).advantage
        tensor([[1.2000, 1.5000]])

    References:
        Reasoning with Exploration: An Entropy Perspective (arXiv:2506.14758).
    """

    alpha: float = 0.4
    """Advantage a nat earns; 0.4 for GRPO, 0.1 for PPO (stated)."""
    kappa: float = 2.0
    """The bonus is at most ``|A| / kappa``; above 1, so that no sign turns (stated: 2)."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_between("alpha", self.alpha, 0.0, float("inf"), open_high=True)
        if not self.kappa > 1:
            raise ValueError(f"kappa must be above 1, got {self.kappa}")

    @property
    def signals(self) -> frozenset[str]:
        """The entropy."""
        return frozenset({"entropy"})

    def init(self) -> EmptyState:
        """Return the empty state."""
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        """Add the bonus to every token."""
        name = "EntropyAdvantage"
        advantage = check_advantage(advantage, rollout, wanted_by=name, per_token=True)
        entropy = entropy_of(rollout, wanted_by=name)
        bonus = torch.minimum(self.alpha * entropy, advantage.abs() / self.kappa)
        bonus = torch.where(rollout.mask, bonus.to(advantage.dtype), 0.0)
        shaped = torch.where(rollout.mask, advantage + bonus, advantage)
        info = {
            "entropy_advantage/multiplier": multiplier_of(shaped, advantage, rollout.mask),
            "entropy_advantage/bonus": bonus,
        }
        return Shaped(shaped, state, info)
