"""UCAS: an exponential gain by self-certainty, then a penalty for each certain token."""

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
    exponential_gain,
    minmax_within,
    multiplier_of,
    token_labels,
    zscore_within,
)
from uadt.types import EmptyState, Rollout, Shaped
from uadt.uncertainty import sequence_mean

__all__ = ["UCAS"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UCAS:
    r"""Weigh completions by how certain they are within their group, then tax certain tokens.

    With $c_i$ the completion's self-certainty $\mathrm{KL}(U \| p)$, $\hat c_i$ its z-score in
    the group, and $\hat z_{it}$ the sampled token's raw logit, min-max over the batch:

    $$W_i = \begin{cases} e^{-\alpha^+ \hat c_i} & A_i > 0 \\ e^{\alpha^- \hat c_i} & \text{else}
    \end{cases} \qquad \hat{A}'_{it} = \hat{A}_i W_i - \lambda \hat z_{it}$$

    where what was positive before the tax is not pushed below 0.

    | | uncertain | certain |
    |---|---|---|
    | **correct** (A > 0) | larger | smaller |
    | **wrong** (A < 0) | smaller | larger |

    and the tax lowers every row a little more. UADT's directions, with two signals of its own
    and relative to the group where UADT is relative to the past.

    ``faithful_to="code"`` repeats xvolcano02/UCAS@b122ff2:

    * $c_i$ is the **sum** over tokens of $\mathrm{KL}(U \| p) + \log V$, so that it grows with
      length (and wants ``vocab_size``).
    * Completions with advantage 0, of groups that are all correct too, pay the tax.
    * A group of one keeps its $c_i$ as it is, so that its gain is far from 1.
    * Without division by the standard deviation in the baseline
      (``norm_adv_by_std_in_grpo=False``), $\hat c_i$ is centred and not divided either, so that
      the gains grow by orders: ``standardise=False``.

    One more lies outside a shaping: the code masks nothing in its sum. Under
    ``use_remove_padding=True``, as in the authors' scripts, certainty at padding is 0, and
    ``"code"`` equals this. Without it the certainty of padding is summed too, which is a fault.

    With ``"paper"``, $c_i$ is the mean of $\mathrm{KL}(U \| p)$ (ours: the paper's versions word
    it differently), and advantages of 0 and the certainty of a group of one stay 0 (ours). The
    code holds its constants fixed; here they are arguments.

    Signals: ``extra["self_certainty"]`` (``token_statistics(...).self_certainty``) and, unless
    ``penalty`` is 0, ``extra["logit"]``, the raw logit of the sampled token before temperature.
    ``certainty="entropy"`` takes minus the entropy for $\mathrm{KL}(U \| p)$: another statistic
    (ours), for stacks that hold nothing else.

    Info:
        ucas/certainty: $\hat c_i$, ``(B,)``; 0 without tokens.
        ucas/multiplier: A′/A, ``(B, T)``.

    Raises:
        ValueError: When it is called with one advantage a completion.

    Example:
        >>> certainty = torch.tensor([[1.0], [3.0]])
        >>> rollout = Rollout(
        ...     mask=certainty > 0,
        ...     group=torch.zeros(2, dtype=torch.int64),
        ...     extra={"self_certainty": certainty},
        ... )
        >>> shaping = UCAS(penalty=0.0)  # z = -+ 1/sqrt(2): e^(.25 * .7071), e^(.35 * .7071)
        >>> shaping(torch.tensor([[1.0], [-1.0]]), rollout, EmptyState()).advantage
        tensor([[ 1.1934],
                [-1.2808]])

    References:
        Uncertainty-aware Advantage Shaping (arXiv:2510.10649v2).
    """

    alpha_positive: float = 0.25
    """α⁺, at least 0 (the code's constant)."""
    alpha_negative: float = 0.35
    """α⁻, at least 0 (the code's constant)."""
    penalty: float = 0.05
    """λ, at least 0 (the code's constant); 0 leaves the second stage out."""
    certainty: Literal["self_certainty", "entropy"] = "self_certainty"
    """Where the first stage's certainty comes from."""
    vocab_size: int | None = None
    """V; only for ``faithful_to="code"`` with self-certainty."""
    faithful_to: Literal["paper", "code"] = "paper"
    """``"code"`` sums with the offset, taxes advantages of 0, and lets groups of one be."""
    standardise: bool = True
    """False only centres ĉ in its group, without dividing by the standard deviation."""
    eps: float = 1e-6
    """Added to the standard deviation and to the range (the code's constant)."""

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name in ("alpha_positive", "alpha_negative", "penalty", "eps"):
            check_between(name, getattr(self, name), 0.0, math.inf, open_high=True)
        check_choice("faithful_to", self.faithful_to, ("paper", "code"))
        check_choice("certainty", self.certainty, ("self_certainty", "entropy"))
        wants_size = self.faithful_to == "code" and self.certainty == "self_certainty"
        if wants_size and (self.vocab_size is None or self.vocab_size < 1):
            raise ValueError(
                f'faithful_to="code" adds log V a token, so vocab_size must be positive, '
                f"got {self.vocab_size}"
            )

    @property
    def signals(self) -> frozenset[str]:
        """The certainty, the group, and the logit if there is a penalty."""
        return frozenset({self.certainty, "group"} | ({"logit"} if self.penalty else set[str]()))

    def init(self) -> EmptyState:
        """Return the empty state."""
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        """Weigh the completions, then tax the tokens."""
        advantage = check_advantage(advantage, rollout, wanted_by="UCAS", per_token=True)
        certainty = self._certainty(rollout)
        gain = exponential_gain(
            certainty[:, None],
            advantage,
            positive=-self.alpha_positive,
            negative=self.alpha_negative,
        )
        # A group of one may have an infinite gain with "code", and nothing times it is nothing.
        weighed = torch.where(advantage == 0, 0.0, advantage * gain.to(advantage.dtype))
        taxed = weighed - self.penalty * self._logit(rollout).to(advantage.dtype)
        taxed = torch.where(weighed > 0, taxed.clamp(min=0.0), taxed)
        if self.faithful_to == "paper":
            taxed = torch.where(advantage == 0, advantage, taxed)
        shaped = torch.where(rollout.mask, taxed, advantage)
        info = {
            "ucas/certainty": certainty,
            "ucas/multiplier": multiplier_of(shaped, advantage, rollout.mask),
        }
        return Shaped(shaped, state, info)

    def _certainty(self, rollout: Rollout) -> Tensor:
        """Return each completion's certainty beside the others of its group."""
        mask, alive = rollout.mask, rollout.mask.any(dim=-1)
        values = rollout.signal(self.certainty, wanted_by="UCAS")
        if self.certainty == "entropy":
            values = -values
        if self.faithful_to == "code":
            offset = math.log(self.vocab_size) if self.vocab_size else 0.0
            certainty = (values + offset).masked_fill(~mask, 0.0).sum(dim=-1)
        else:
            certainty = sequence_mean(values, mask)
        result = torch.zeros_like(certainty)
        result[alive] = self._beside(
            certainty[alive], rollout.signal("group", wanted_by="UCAS")[alive]
        )
        return result

    def _beside(self, certainty: Tensor, group: Tensor) -> Tensor:
        """Return the z-score in the group, or the distance from its mean."""
        groups = Groups.of(group)
        if self.standardise:
            result = zscore_within(certainty, group, eps=self.eps, correction=1)
        else:
            result = (certainty - groups.spread(groups.mean(certainty))).to(certainty.dtype)
        if self.faithful_to == "code":  # mean 0 and standard deviation 1 for a group of one
            raw = certainty / (1.0 + self.eps) if self.standardise else certainty
            result = torch.where(groups.spread(groups.count) == 1, raw, result)
        return result

    def _logit(self, rollout: Rollout) -> Tensor:
        """Return the tokens' logits in [0, 1]; 0 at padding."""
        result = torch.zeros(rollout.mask.shape, device=rollout.mask.device)
        if self.penalty:
            values = rollout.signal("logit", wanted_by="UCAS")[rollout.mask].float()
            labels = token_labels(rollout, "batch", wanted_by="UCAS")
            result[rollout.mask] = minmax_within(values, labels, eps=self.eps)
        return result
