"""EDGE-GRPO's entropy-driven advantage: certain completions count for more."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uadt.shaping.parts import (
    check_advantage,
    check_choice,
    entropy_of,
    like_advantage,
    multiplier_of,
    shaped_positions,
)
from uadt.types import EmptyState, Rollout, Shaped
from uadt.uncertainty import sequence_mean

__all__ = ["EDGE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EDGE:
    r"""Divide a completion's advantage by its entropy, relative to the batch.

    $$\hat{A}'_i = \hat{A}_i \Big/ \frac{\bar H_i}{\frac{1}{B} \sum_k \bar H_k}$$

    | | uncertain | certain |
    |---|---|---|
    | **correct** (A > 0) | smaller | larger |
    | **wrong** (A < 0) | smaller | larger |

    The opposite of UADT where the answer is right. ``faithful_to="code"`` repeats what
    ZhangXJ199/EDGE-GRPO@cbe13ca does: the mean runs over padding too, as if every completion
    were as long as the batch, and nothing keeps an entropy near 0 from making the advantage
    explode. A third deviation cannot be repeated here, and should not be: there the entropy
    stays in the graph, so that the policy can earn advantage by lowering it. Our signals carry
    no gradient.

    Info:
        edge/uncertainty: $\bar H_i$, ``(B,)``, in nats; NaN without tokens.
        edge/multiplier: A′/A, in the shape of the advantages.

    Example:
        >>> entropy = torch.tensor([[0.2], [0.6]])
        >>> rollout = Rollout(mask=entropy > 0, entropy=entropy)
        >>> EDGE()(torch.tensor([1.0, -1.0]), rollout, EmptyState()).advantage  # .4/.2, .4/.6
        tensor([ 2.0000, -0.6667])

    References:
        EDGE-GRPO (arXiv:2507.21848).
    """

    floor: float = 0.01
    """Entropies below it, in nats, count as it; ours, at least 0. The code has none."""
    faithful_to: Literal["paper", "code"] = "paper"
    """``"code"`` averages over padding and ignores ``floor``."""

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not 0 <= self.floor < float("inf"):
            raise ValueError(f"floor must be at least 0, got {self.floor}")
        check_choice("faithful_to", self.faithful_to, ("paper", "code"))

    @property
    def signals(self) -> frozenset[str]:
        """The entropy."""
        return frozenset({"entropy"})

    def init(self) -> EmptyState:
        """Return the empty state."""
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        """Divide by the relative entropy."""
        advantage = check_advantage(advantage, rollout, wanted_by="EDGE")
        alive = rollout.mask.any(dim=-1)
        if self.faithful_to == "code":
            uncertainty = rollout.signal("entropy", wanted_by="EDGE").mean(dim=-1)
            batch_mean, divisor = uncertainty.mean(), uncertainty
        else:
            uncertainty = sequence_mean(entropy_of(rollout, wanted_by="EDGE"), rollout.mask)
            batch_mean = uncertainty[alive].double().mean()  # whatever the order of the rows
            divisor = uncertainty.clamp(min=self.floor)
        gain = like_advantage(batch_mean / divisor, advantage).to(advantage.dtype)
        counts = shaped_positions(advantage, rollout.mask)
        shaped = torch.where(counts, advantage * gain, advantage)
        info = {
            "edge/uncertainty": uncertainty,
            "edge/multiplier": multiplier_of(shaped, advantage, counts),
        }
        return Shaped(shaped, state, info)
