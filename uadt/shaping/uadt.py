"""UADT, as far as it is published: uncertainty against a moving threshold shapes the advantage."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from uadt.factor import (
    SIGN_POLICIES,
    Scale,
    SignPolicy,
    exponential_factor,
    linear_factor,
    shape_advantage,
    sigmoid_factor,
    step_factor,
    tanh_factor,
)
from uadt.shaping.parts import (
    check_advantage,
    check_between,
    check_choice,
    like_advantage,
    multiplier_of,
    shaped_positions,
)
from uadt.threshold import EmaState, ema_threshold, per_task, task_thresholds
from uadt.types import EmptyState, PerSequence, Rollout, Shaped, TokenMask, all_finite
from uadt.uncertainty import sequence_max, sequence_mean, sequence_sum, sequence_top_mean

__all__ = ["UADT", "TaskState"]


class TaskState(NamedTuple):
    """What UADT remembers with a threshold for each task."""

    by_task: dict[str, EmaState]
    """One moving average for each name seen so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UADT:
    r"""Uncertainty-Aware Dynamic Thinking, as far as it is published.

    $$U_i = \frac{\sum_t m_{it} H_{it}}{\sum_t m_{it}} \qquad
    \omega_i = \tanh\frac{U_i - \theta_s}{T} \qquad
    \hat{A}'_i = \hat{A}_i + \lambda \omega_i |\hat{A}_i|$$

    with $\theta_s$ the moving average of the mean uncertainty, as it was before this batch:
    $\tau_s = \gamma \tau_{s-1} + (1 - \gamma) \bar U_s$. The first batch is judged by its own mean.

    | | uncertain (ω > 0) | certain (ω < 0) |
    |---|---|---|
    | **correct** (A > 0) | larger | smaller |
    | **wrong** (A < 0) | smaller (explore on) | larger (overconfident) |

    Provenance. *Stated*: sample-level uncertainty via entropy modulates the exploration depth
    by a shaped advantage. *Figure*: entropy over the vocabulary, an EMA threshold, tanh of the
    two, that the sign of the advantage matters. *Ours*: every number, the mean over tokens, the
    order of use and update, the scale of tanh, and the form A + λω|A|; so all of them can be
    switched. docs/paper.md has the table.

    A completion without tokens (or without any in ``span``) has uncertainty NaN and ω = 0: it
    keeps its advantage and does not move the threshold. λ < 1, so no sign turns (but for
    ``sign_policy="additive"``). Advantages of 0 stay 0 (with the same exception).

    Info:
        uadt/uncertainty: $U_i$, ``(B,)``, in nats if the signal is; NaN without tokens.
        uadt/threshold: θ that each completion was judged by, ``(B,)``; NaN before the first vote.
        uadt/factor: ω, ``(B,)``, in [-1, 1].
        uadt/multiplier: A′/A, in the shape of the advantages; 1 where A is 0.
        uadt/of_surprisal: 1, with ``signal="surprisal"``, so that nobody takes what is shown for
            entropies; with any other signal its name in place of ``surprisal``.

    Raises:
        ValueError: If a number is out of its range; when it is called, if the advantages do
            not fit the rollout or are not finite.
        MissingSignalError: When it is called, if the rollout lacks the signal.

    Example:
        >>> entropy = torch.tensor([[0.2, 0.2], [0.8, 0.4]])  # U = .2 and .6, so θ = .4
        >>> rollout = Rollout(mask=entropy > 0, entropy=entropy)
        >>> shaping = UADT()
        >>> advantage, state, info = shaping(torch.tensor([1.0, -1.0]), rollout, shaping.init())
        >>> info["uadt/factor"]  # tanh((.2 - .4) / .4), tanh((.6 - .4) / .4)
        tensor([-0.4621,  0.4621])
        >>> advantage  # 1 - .5 * .4621, -1 + .5 * .4621
        tensor([ 0.7689, -0.7689])
        >>> state.step
        1

    References:
        OphthaReason, figure "Stage 3" (arXiv:2508.16129).
    """

    decay: float = 0.9
    """γ, the weight of the past in the threshold, in ``[0, 1)`` (ours)."""
    strength: float = 0.5
    """λ, in ``[0, 1)``; 0 is the identity (ours)."""
    scale: Scale = "relative"
    """T: a number of nats, or ``"relative"``, the threshold itself, at least 0.01 (ours)."""
    reduce: Literal["mean", "top_mean", "max", "sum"] = "mean"
    """How a completion's tokens become one number (ours)."""
    sign_policy: SignPolicy = "explore"
    """What ω does to correct and to wrong completions (ours); see `shape_advantage`."""
    signal: str = "entropy"
    """The rollout's signal: ``"entropy"`` (figure), ``"surprisal"``, or a key of ``extra``."""
    per_task: bool = False
    """True keeps a threshold for each name in ``Rollout.task`` (ours)."""
    update: Literal["after", "before"] = "after"
    """``"before"`` moves the threshold first, as the figure's boxes are drawn (ours: after)."""
    threshold: float | None = None
    """A fixed threshold in place of the moving average (ours: ``None``)."""
    top_fraction: float = 0.2
    """The part of the tokens that ``reduce="top_mean"`` looks at, in ``(0, 1]`` (ours)."""
    span: str | None = None
    """A ``(B, T)`` bool signal in ``extra``, such as ``"think"``: only its tokens are asked."""
    curve: Literal["tanh", "linear", "exponential", "sigmoid", "step"] = "tanh"
    """From the distance to ω (figure: tanh); the others are the siblings in `uadt.factor`."""
    strength_in_tanh: bool = False
    """True puts λ inside: ω = tanh(λ(U − θ)/T) and A + ω|A| (ours: False)."""

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_between("decay", self.decay, 0.0, 1.0, open_high=True)
        check_between("strength", self.strength, 0.0, 1.0, open_high=True)
        check_between("top_fraction", self.top_fraction, 0.0, 1.0, open_high=False)
        if self.top_fraction == 0:
            raise ValueError(f"top_fraction must be above 0, got {self.top_fraction}")
        if self.scale != "relative" and (
            isinstance(self.scale, str) or not 0 < self.scale < math.inf
        ):
            raise ValueError(f'scale must be "relative" or a positive number, got {self.scale!r}')
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be finite or None, got {self.threshold}")
        check_choice("reduce", self.reduce, ("mean", "top_mean", "max", "sum"))
        check_choice("sign_policy", self.sign_policy, SIGN_POLICIES)
        check_choice("update", self.update, ("after", "before"))
        check_choice("curve", self.curve, ("tanh", "linear", "exponential", "sigmoid", "step"))
        if self.strength_in_tanh and self.curve != "tanh":
            raise ValueError(f'strength_in_tanh needs curve="tanh", got {self.curve!r}')
        if self.per_task and self.threshold is not None:
            raise ValueError(f"per_task needs a moving threshold, got threshold={self.threshold}")

    @property
    def signals(self) -> frozenset[str]:
        """The signal, and the tasks and the span if they are used."""
        more = {"task"} if self.per_task else set[str]()
        return frozenset({self.signal} | more | ({self.span} if self.span else set[str]()))

    def init(self) -> EmaState | TaskState | EmptyState:
        """Return the state before the first batch."""
        if self.threshold is not None:
            return EmptyState()
        return TaskState({}) if self.per_task else EmaState(threshold=0.0, step=0)

    def __call__(
        self, advantage: Tensor, rollout: Rollout, state: EmaState | TaskState | EmptyState
    ) -> Shaped:
        """Shape by the uncertainty beside the threshold, and move the threshold."""
        advantage = check_advantage(advantage, rollout, wanted_by="UADT")
        uncertainty = self._uncertainty(rollout)
        threshold, after = self._threshold(uncertainty, rollout, state)
        factor = self._factor(uncertainty, threshold)
        counts = shaped_positions(advantage, rollout.mask)
        shaped = shape_advantage(
            # Padding may hold NaN.
            advantage if all_finite(advantage) else advantage.masked_fill(~counts, 0.0),
            factor,
            strength=None if self.strength_in_tanh else self.strength,
            sign_policy=self.sign_policy,
        )
        # ω = 0 gives A + 0, which is A, but for -0.0; "keeps its advantage" is meant to the bit.
        asked = like_advantage(~uncertainty.isnan(), advantage)
        shaped = torch.where(counts & asked, shaped, advantage)
        info = {
            "uadt/uncertainty": uncertainty,
            "uadt/threshold": threshold,
            "uadt/factor": factor,
            "uadt/multiplier": multiplier_of(shaped, advantage, counts),
        }
        if self.signal != "entropy":
            info[f"uadt/of_{self.signal}"] = advantage.new_ones(())
        return Shaped(shaped, after, info)

    def _uncertainty(self, rollout: Rollout) -> PerSequence:
        """Reduce the signal to one number a completion, NaN where there is nothing to ask."""
        values = rollout.signal(self.signal, wanted_by="UADT")
        mask = self._asked(rollout)
        if values.shape != mask.shape:
            raise ValueError(
                f"UADT needs the signal {self.signal!r} of shape {tuple(mask.shape)}, "
                f"got {tuple(values.shape)}"
            )
        if self.reduce == "top_mean":
            return sequence_top_mean(values, mask, fraction=self.top_fraction)
        return {"mean": sequence_mean, "max": sequence_max, "sum": sequence_sum}[self.reduce](
            values, mask
        )

    def _asked(self, rollout: Rollout) -> TokenMask:
        """Return the tokens that vote: all, or those within the span."""
        if self.span is None:
            return rollout.mask
        span = rollout.signal(self.span, wanted_by="UADT")
        if span.dtype != torch.bool or span.shape != rollout.mask.shape:
            raise ValueError(
                f"UADT needs the span {self.span!r} as bool of shape {tuple(rollout.mask.shape)}, "
                f"got {str(span.dtype).removeprefix('torch.')} of shape {tuple(span.shape)}"
            )
        return rollout.mask & span

    def _threshold(
        self, uncertainty: PerSequence, rollout: Rollout, state: EmaState | TaskState | EmptyState
    ) -> tuple[PerSequence, EmaState | TaskState | EmptyState]:
        """Return θ for each completion, and the state after this batch."""
        move = partial(ema_threshold, decay=self.decay)
        if self.threshold is not None:
            return torch.full_like(uncertainty, self.threshold), EmptyState()
        if self.per_task:
            if not isinstance(state, TaskState):
                raise ValueError(f"UADT(per_task=True) needs a TaskState, got {state!r}")
            task = rollout.tasks(wanted_by="UADT")
            after = per_task(state.by_task, uncertainty, task, move)
            used = {name: self._used(state.by_task.get(name), after[name]) for name in after}
            return task_thresholds(used, task).to(uncertainty), TaskState(after)
        if not isinstance(state, EmaState):
            raise ValueError(f"UADT needs an EmaState, got {state!r}: start with UADT(...).init()")
        moved = move(state, uncertainty)
        used = self._used(state, moved)
        return torch.full_like(uncertainty, used.threshold if used.step else math.nan), moved

    def _used(self, before: EmaState | None, after: EmaState) -> EmaState:
        """Return the state whose threshold judges this batch; the first is judged by itself."""
        if before is None or before.step == 0 or self.update == "before":
            return after
        return before

    def _factor(self, uncertainty: PerSequence, threshold: PerSequence) -> PerSequence:
        """Return ω."""
        match self.curve:
            case "tanh" if self.strength_in_tanh:
                if self.strength == 0:
                    return torch.zeros_like(uncertainty)
                return tanh_factor(uncertainty, threshold, scale=self.scale, slope=self.strength)
            case "tanh":
                return tanh_factor(uncertainty, threshold, scale=self.scale)
            case "linear":
                return linear_factor(uncertainty, threshold, scale=self.scale)
            case "exponential":
                return exponential_factor(uncertainty, threshold, scale=self.scale)
            case "sigmoid":
                return sigmoid_factor(uncertainty, threshold, scale=self.scale)
            case "step":
                return step_factor(uncertainty, threshold)
