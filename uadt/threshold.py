"""(state, uncertainties of a step) → state: what counts as uncertain.

Each function is pure, and its state holds Python numbers, so that it survives JSON bit for bit.
A completion without tokens (NaN) does not vote; a step of nothing else leaves the state as it
was. Means are exact sums, rounded once: the order of the rows, and how they were split over
ranks before they were gathered, cannot change a bit.

The four are siblings: the same arguments, the same state, so that one can stand for another.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from uadt.types import PerSequence

__all__ = [
    "EmaState",
    "ema_threshold",
    "fixed_threshold",
    "per_task",
    "quantile_threshold",
    "target_threshold",
    "task_thresholds",
]


class EmaState(NamedTuple):
    """What has to be remembered between steps, and written to a checkpoint."""

    threshold: float
    """The current τ, in the unit of the uncertainty. Without meaning while ``step`` is 0."""
    step: int
    """How many batches it has seen, those without a token left out."""


def ema_threshold(state: EmaState | None, uncertainty: PerSequence, *, decay: float) -> EmaState:
    r"""Move the threshold towards the mean uncertainty of this batch.

    $$\tau_0 = \bar{U}_0, \qquad \tau_s = \gamma \, \tau_{s-1} + (1 - \gamma) \, \bar{U}_s$$

    with $\bar{U}_s$ the mean over all completions of the step (on all ranks), each weighing 1.
    Whether a step is judged by $\tau_{s-1}$ or by $\tau_s$ is the shaping's to say.

    Args:
        state: The last state; ``None``, or one at step 0, starts it.
        uncertainty: One number a completion; NaN for one without tokens, which does not vote.
        decay: Weight γ of the past, within ``[0, 1)``.

    Returns:
        The next state.

    Raises:
        ValueError: If ``decay`` is outside ``[0, 1)``, there is no completion, or an
            uncertainty is infinite.

    Example:
        >>> first = ema_threshold(None, torch.tensor([1.0, 3.0, float("nan")]), decay=0.75)
        >>> first
        EmaState(threshold=2.0, step=1)
        >>> ema_threshold(first, torch.tensor([6.0]), decay=0.75)  # 3/4 * 2 + 1/4 * 6
        EmaState(threshold=3.0, step=2)

    References:
        OphthaReason, figure "Stage 3", τ_s = EMA(τ_{s−1}) (arXiv:2508.16129): *figure*. The form
        and τ_0: *ours*.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must be within [0, 1), got {decay}")
    votes = _votes(uncertainty)
    state = state or _START
    if not votes:
        return state
    mean = math.fsum(votes) / len(votes)
    if state.step:
        mean = decay * state.threshold + (1.0 - decay) * mean
    return EmaState(mean, state.step + 1)


def fixed_threshold(
    state: EmaState | None, uncertainty: PerSequence, *, threshold: float
) -> EmaState:
    r"""Keep the threshold where it is set.

    $$\tau_s = \tau$$

    Args:
        state: The last state, or ``None``.
        uncertainty: One number a completion; NaN for one without tokens.
        threshold: The τ to keep.

    Returns:
        The next state; a batch without tokens is not counted.

    Raises:
        ValueError: If ``threshold`` is not finite, there is no completion, or an uncertainty is
            infinite.

    Example:
        >>> fixed_threshold(None, torch.tensor([1.0, 3.0]), threshold=0.25)
        EmaState(threshold=0.25, step=1)
    """
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be finite, got {threshold}")
    state = state or _START
    return EmaState(threshold, state.step + bool(_votes(uncertainty)))


def quantile_threshold(
    state: EmaState | None, uncertainty: PerSequence, *, quantile: float
) -> EmaState:
    r"""Set the threshold to a quantile of this batch.

    $$\tau_s = U_{(k)}, \qquad k = \max(1, \lceil q B \rceil)$$

    with $U_{(1)} \le U_{(2)} \le \dots$: the smallest uncertainty that at least the share q does
    not exceed. Never between two of them, and without the size limit of `torch.quantile`.

    Args:
        state: The last state, or ``None``.
        uncertainty: One number a completion; NaN for one without tokens, which does not vote.
        quantile: The share q, within ``[0, 1]``.

    Returns:
        The next state.

    Raises:
        ValueError: If ``quantile`` is outside ``[0, 1]``, there is no completion, or an
            uncertainty is infinite.

    Example:
        >>> quantile_threshold(None, torch.tensor([4.0, 1.0, 2.0, 3.0]), quantile=0.5)
        EmaState(threshold=2.0, step=1)
    """
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile must be within [0, 1], got {quantile}")
    votes = _votes(uncertainty)
    state = state or _START
    if not votes:
        return state
    return EmaState(_order_statistic(votes, quantile), state.step + 1)


def target_threshold(
    state: EmaState | None, uncertainty: PerSequence, *, share: float, rate: float
) -> EmaState:
    r"""Steer the threshold until a wanted share of the completions lies above it.

    $$\tau_0 = U_{(\lceil (1 - a) B \rceil)}, \qquad
    \tau_s = \tau_{s-1} + \eta \left( \frac{1}{B} \#\{i : U_i > \tau_{s-1}\} - a \right)$$

    The first batch sets it to its own quantile. Then it is an integral controller: it drifts
    after a policy that grows surer, by at most η a step, where the mean would jump with a single
    batch of hard prompts. *Ours.*

    Args:
        state: The last state; ``None``, or one at step 0, starts it.
        uncertainty: One number a completion; NaN for one without tokens, which does not vote.
        share: The wanted share a above the threshold, within ``[0, 1]``.
        rate: The step η, in the unit of the uncertainty; positive and finite.

    Returns:
        The next state.

    Raises:
        ValueError: If ``share`` or ``rate`` is out of its range, there is no completion, or an
            uncertainty is infinite.

    Example:
        >>> state = EmaState(threshold=1.0, step=1)
        >>> target_threshold(state, torch.tensor([0.5, 2.0, 3.0, 4.0]), share=0.5, rate=0.5)
        EmaState(threshold=1.125, step=2)
        >>> # 3/4 lie above: 1 + 1/2 * (3/4 - 1/2)
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be within [0, 1], got {share}")
    if not 0.0 < rate < math.inf:
        raise ValueError(f"rate must be positive and finite, got {rate}")
    votes = _votes(uncertainty)
    state = state or _START
    if not votes:
        return state
    if not state.step:
        return EmaState(_order_statistic(votes, 1.0 - share), 1)
    above = sum(vote > state.threshold for vote in votes) / len(votes)
    return EmaState(state.threshold + rate * (above - share), state.step + 1)


def per_task(
    states: Mapping[str, EmaState],
    uncertainty: PerSequence,
    task: Sequence[str],
    update: Callable[[EmaState | None, Tensor], EmaState],
) -> dict[str, EmaState]:
    """Keep one threshold a task: easy and hard questions live at different uncertainties.

    Each task is updated with its own completions, as if it were alone; one without a completion
    in this batch keeps its state.

    Args:
        states: The last states by name; empty at the start.
        uncertainty: One number a completion.
        task: One name a completion.
        update: A function of this module with its numbers filled in, such as
            ``functools.partial(ema_threshold, decay=0.9)``.

    Returns:
        The next states, sorted by name; ``states`` is left as it was.

    Raises:
        ValueError: If there is another number of names than of completions, or no completion.

    Example:
        >>> from functools import partial
        >>> update = partial(ema_threshold, decay=0.5)
        >>> uncertainty = torch.tensor([1.0, 3.0, 5.0])
        >>> per_task({}, uncertainty, ["basic", "basic", "complex"], update)["basic"]
        EmaState(threshold=2.0, step=1)
    """
    _check_names(task, len(uncertainty))
    if len(uncertainty) == 0:
        raise ValueError("uncertainty must hold at least one completion, got B = 0")
    after = dict(states)
    for name in sorted(set(task)):
        rows = torch.tensor([other == name for other in task], device=uncertainty.device)
        after[name] = update(states.get(name), uncertainty[rows])
    return {name: after[name] for name in sorted(after)}


def task_thresholds(states: Mapping[str, EmaState], task: Sequence[str]) -> PerSequence:
    """Give each completion the threshold of its task.

    Args:
        states: The states by name.
        task: One name a completion.

    Returns:
        One threshold a completion, float64 on the CPU; NaN for a task that has not been seen.

    Example:
        >>> task_thresholds({"basic": EmaState(0.25, 3)}, ["basic", "complex"])
        tensor([0.2500,    nan], dtype=torch.float64)
    """
    seen = {name: state.threshold for name, state in states.items() if state.step}
    return torch.tensor([seen.get(name, math.nan) for name in task], dtype=torch.float64)


_START = EmaState(threshold=0.0, step=0)


def _votes(uncertainty: Tensor) -> list[float]:
    if uncertainty.ndim != 1 or len(uncertainty) == 0:
        raise ValueError(
            f"uncertainty must have shape (B,) with B > 0, got {tuple(uncertainty.shape)}"
        )
    values = cast("list[float]", uncertainty.detach().double().tolist())
    infinite = [row for row, value in enumerate(values) if math.isinf(value)]
    if infinite:
        raise ValueError(
            "uncertainty must be finite, or NaN for a completion without tokens, "
            f"got inf in rows {infinite}"
        )
    return [value for value in values if not math.isnan(value)]


def _order_statistic(values: list[float], quantile: float) -> float:
    # 0.07 * 100 is 7.000000000000001: without the small term it would round up to 8.
    place = math.ceil(quantile * len(values) - 1e-9)
    return sorted(values)[max(place, 1) - 1]


def _check_names(task: Sequence[str], batch: int) -> None:
    if isinstance(task, str) or len(task) != batch:
        raise ValueError(f"task must hold {batch} names, one a completion, got {len(task)}")
