"""STARE: the most surprising tokens of what is right count more, while entropy is low."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from uadt.shaping.parts import (
    check_advantage,
    check_between,
    check_choice,
    multiplier_of,
    top_within,
)
from uadt.types import Rollout, Shaped

__all__ = ["STARE", "StareState"]


class StareState(NamedTuple):
    """What the controller remembers."""

    up: float
    """W, the multiplier of surprising tokens of correct completions."""
    down: float
    """M, the multiplier of surprising tokens of wrong completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class STARE:
    r"""Raise the top tokens by surprisal of correct completions while the entropy is below target.

    With $s_{it} = -\log \pi(y_{it})$, $L^+$ the ``fraction`` of the tokens with A > 0 that
    surprise most, $L^-$ the same of those with A < 0, and $\bar H$ the mean entropy over the
    batch's tokens:

    $$\hat{A}'_{it} = \hat{A}_{it} \cdot \begin{cases}
    W & it \in L^+ \text{ and } \bar H < H_\text{target} \\
    M & it \in L^- \text{ and } \bar H < H_\text{target} \text{ (variant C2)} \\
    1 & \text{else} \end{cases}$$

    and with ``adaptive`` the controller moves W by $\pm\delta$ and M by $\mp\delta$, up while
    the entropy is below target, before they are used. While the entropy is not below target the
    whole method is the identity.

    | | uncertain (surprising) | certain |
    |---|---|---|
    | **correct** (A > 0) | larger | unchanged |
    | **wrong** (A < 0) | unchanged (O1) or smaller (C2) | unchanged |

    In hp-luo/STARE@bffb9e7 the weight multiplies the clipped loss, which is the same as the
    advantage; but there the tokens are chosen in each *micro-batch*, by the surprisal of the
    *current* policy. Here they are chosen once a step in the whole batch, by the log-probs of
    the rollout. With one update per rollout and one micro-batch both agree, to the number; but
    tokens of equal surprisal at the border share the places that are left, so that they get a
    weight between 1 and W (ours), where the code takes the ones that its sort puts first.

    Info:
        stare/multiplier: ``(B, T)``.
        stare/gate: 1 while the entropy is below target, else 0.
        stare/up: W in use.
        stare/down: M in use.
        stare/entropy: $\bar H$, in nats; NaN for a batch without tokens, which changes nothing.

    Raises:
        ValueError: When it is called with one advantage a completion.

    Example:
        >>> logprob = torch.tensor([[-0.1, -3.0], [-0.2, -2.0]])
        >>> rollout = Rollout(
        ...     mask=logprob < 0, logprob=logprob, entropy=torch.full((2, 2), 0.2)
        ... )
        >>> shaping = STARE(fraction=0.5)  # the token of -3 in the correct completion
        >>> advantage = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> shaping(advantage, rollout, shaping.init()).advantage
        tensor([[ 1.0000,  1.1000],
                [-1.0000, -1.0000]])

    References:
        STARE (arXiv:2606.19236).
    """

    fraction: float = 0.1
    """P, the part of each class that is chosen, rounded up (stated: 10%)."""
    up: float = 1.1
    """W at the start, in ``[1, up_limit]`` (stated; 1.05 for 14B and 32B)."""
    down: float = 0.9
    """M at the start, in ``[down_limit, 1]`` (stated; 0.95 for 14B and 32B)."""
    target: float = 0.3
    """The entropy, in nats, below which the method acts (stated)."""
    variant: Literal["O1", "C2"] = "O1"
    """``"C2"`` lowers wrong tokens too (stated default: O1)."""
    adaptive: bool = False
    """True lets the controller move W and M (stated default: False)."""
    step: float = 0.01
    """δ, how far W and M move a step (the code's default)."""
    up_limit: float = 1.5
    """The greatest W (the code's default)."""
    down_limit: float = 0.5
    """The least M (the code's default)."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_between("fraction", self.fraction, 0.0, 1.0, open_high=False)
        check_between("up", self.up, 1.0, self.up_limit, open_high=False)
        check_between("down_limit", self.down_limit, 0.0, 1.0, open_high=False)
        check_between("down", self.down, self.down_limit, 1.0, open_high=False)
        check_between("target", self.target, 0.0, float("inf"), open_high=True)
        check_between("step", self.step, 0.0, float("inf"), open_high=True)
        check_choice("variant", self.variant, ("O1", "C2"))

    @property
    def signals(self) -> frozenset[str]:
        """Log-probs to choose the tokens, entropy to open the gate."""
        return frozenset({"logprob", "entropy"})

    def init(self) -> StareState:
        """Return the weights at the start."""
        return StareState(up=self.up, down=self.down)

    def __call__(self, advantage: Tensor, rollout: Rollout, state: StareState) -> Shaped:
        """Move the controller, then multiply the chosen tokens."""
        advantage = check_advantage(advantage, rollout, wanted_by="STARE", per_token=True)
        mask = rollout.mask
        entropy = rollout.signal("entropy", wanted_by="STARE")[mask].double().mean()
        state = self._move(state, float(entropy))
        gate = float(entropy) < self.target
        up, down = (state.up, state.down if self.variant == "C2" else 1.0) if gate else (1.0, 1.0)
        surprisal = rollout.signal("surprisal", wanted_by="STARE")
        multiplier = torch.ones_like(advantage)
        for weight, members in ((up, mask & (advantage > 0)), (down, mask & (advantage < 0))):
            values = surprisal[members]
            chosen = top_within(values, torch.zeros_like(values, dtype=torch.int64), self.fraction)
            multiplier[members] = (1.0 + (weight - 1.0) * chosen.double()).to(advantage.dtype)
        shaped = torch.where(mask, advantage * multiplier, advantage)
        info = {
            "stare/multiplier": multiplier_of(shaped, advantage, mask),
            "stare/gate": advantage.new_tensor(float(gate)),
            "stare/up": advantage.new_tensor(state.up),
            "stare/down": advantage.new_tensor(state.down),
            "stare/entropy": entropy.to(advantage.dtype),
        }
        return Shaped(shaped, state, info)

    def _move(self, state: StareState, entropy: float) -> StareState:
        """Move W and M towards more, or less, of the method."""
        if not self.adaptive or entropy != entropy:  # NaN: no tokens, nothing learned
            return state
        gap = self.target - entropy
        sign = (gap > 0) - (gap < 0)
        up = min(max(state.up + self.step * sign, 1.0), self.up_limit)
        down = min(max(state.down - self.step * sign, self.down_limit), 1.0)
        return StareState(up=up, down=down)
