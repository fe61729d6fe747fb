"""High-entropy minority tokens: only the forks of a completion are learned from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from uadt.shaping.parts import (
    Scope,
    check_advantage,
    check_between,
    check_choice,
    quantile_within,
    token_labels,
)
from uadt.types import EmptyState, Rollout, Shaped

__all__ = ["HighEntropyTokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HighEntropyTokens:
    r"""Keep the advantage of the tokens of high entropy, and set the others to 0.

    $$\hat{A}'_{it} = \hat{A}_{it} \cdot \mathbb{1}[H_{it} \ge Q_{1-\rho}(H)]$$

    | | uncertain | certain |
    |---|---|---|
    | **correct** (A > 0) | unchanged | 0 |
    | **wrong** (A < 0) | unchanged | 0 |

    Over which tokens the quantile is taken is the method's hidden choice, and published codes
    differ: the tokens of a micro-batch on all ranks (TRL), of the local micro-batch (a Megatron
    trainer of ms-swift), of each completion (Archer). Here it is named, and none depends on the
    micro-batch. There is no official code.

    Whoever normalises the loss by the number of tokens still counts those set to 0, as TRL does.

    Info:
        high_entropy_tokens/threshold: The entropy a token had to reach, ``(B, T)``, in nats.
        high_entropy_tokens/multiplier: 1 where the advantage was kept, else 0; 1 at padding.

    Raises:
        ValueError: When it is called with one advantage a completion.

    Example:
        >>> entropy = torch.tensor([[0.1, 0.2, 0.3, 0.4, 2.0]])
        >>> rollout = Rollout(mask=entropy > 0, entropy=entropy)
        >>> shaping = HighEntropyTokens()  # the .8 quantile is .4 + .2 * (2 - .4) = .72
        >>> shaping(torch.ones(1, 5), rollout, shaping.init()).advantage
        tensor([[0., 0., 0., 0., 1.]])

    References:
        Beyond the 80/20 Rule (arXiv:2506.01939).
    """

    fraction: float = 0.2
    """ρ, the part of the tokens that is kept, in ``(0, 1]`` (stated: 0.2)."""
    scope: Scope = "batch"
    """Where the quantile is taken: ``"batch"`` (stated), ``"group"`` or ``"sequence"``."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_between("fraction", self.fraction, 0.0, 1.0, open_high=False)
        if self.fraction == 0:
            raise ValueError(f"fraction must be above 0, got {self.fraction}")
        check_choice("scope", self.scope, ("batch", "group", "sequence"))

    @property
    def signals(self) -> frozenset[str]:
        """The entropy, and the group if it is the scope."""
        return frozenset({"entropy", "group"} if self.scope == "group" else {"entropy"})

    def init(self) -> EmptyState:
        """Return the empty state."""
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        """Set the advantages of low-entropy tokens to 0."""
        name = "HighEntropyTokens"
        advantage = check_advantage(advantage, rollout, wanted_by=name, per_token=True)
        entropy = rollout.signal("entropy", wanted_by=name)
        mask = rollout.mask
        labels = token_labels(rollout, self.scope, wanted_by=name)
        threshold = entropy.new_full(mask.shape, torch.nan)
        threshold[mask] = quantile_within(entropy[mask], labels, 1.0 - self.fraction)
        dropped = mask & (entropy < threshold)
        shaped = torch.where(dropped, 0.0, advantage)
        info = {
            "high_entropy_tokens/threshold": threshold,
            "high_entropy_tokens/multiplier": (~dropped).to(advantage.dtype),
        }
        return Shaped(shaped, state, info)
