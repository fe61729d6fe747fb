r"""(uncertainty, threshold) → ω, and (advantage, ω) → shaped advantage.

ω, the paper's "uncertainty adjustment factor", lies within [−1, 1] and is neutral at 0: above 0
for a completion more uncertain than the threshold, and exactly 0 for one without tokens. All
siblings are functions of $x = (U - \theta) / T$.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from uadt.groups import row_numbers
from uadt.types import Advantage, PerSequence, all_finite

__all__ = [
    "SIGN_POLICIES",
    "Scale",
    "SignPolicy",
    "exponential_factor",
    "linear_factor",
    "shape_advantage",
    "sigmoid_factor",
    "step_factor",
    "tanh_factor",
]

Scale = float | Literal["relative"]
"""What an uncertainty is measured in: a number in its unit, or the threshold itself."""

SignPolicy = Literal["explore", "exploit", "symmetric", "symmetric_inverted", "additive"]
"""What ω does to right and wrong completions; the tables are `shape_advantage`'s."""

SIGN_POLICIES: tuple[str, ...] = get_args(SignPolicy)
"""The names of the sign policies."""

_FLOOR = 0.01
"""The smallest scale that ``"relative"`` gives, in nats. *Ours.*"""


def tanh_factor(
    uncertainty: PerSequence,
    threshold: float | PerSequence,
    *,
    scale: Scale = "relative",
    slope: float = 1.0,
) -> PerSequence:
    r"""How uncertain a completion is beside the threshold, squashed into (−1, 1).

    $$\omega_i = \tanh\left( \text{slope} \cdot \frac{U_i - \theta}{T} \right)$$

    Relative, $T = \max(\theta, 0.01)$: a unitless distance, within $[\tanh(-1), 1)$ for an
    uncertainty that is not negative. In nats, $T$ is the number given; at the entropies of
    trained reasoners (0.05 to 0.5 nats) $T = 1$ leaves the tanh almost linear and ω tiny.

    Args:
        uncertainty: One number a completion; NaN for one without tokens.
        threshold: The θ in use, one for all or one a completion.
        scale: ``"relative"``, or $T$ in the unit of the uncertainty.
        slope: Steepness within the tanh. With λ here and ``strength=None`` in
            `shape_advantage`, the strength acts inside of the tanh and not outside.

    Returns:
        ω, within ``[-1, 1]``; 0 for a completion without tokens.

    Raises:
        ValueError: If the shapes differ, ``scale`` or ``slope`` is not positive and finite, or
            an uncertainty meets a threshold that is not finite.

    Example:
        >>> tanh_factor(torch.tensor([0.30, 0.25, float("nan")]), 0.25)  # tanh 0.2, 0, no tokens
        tensor([0.1974, 0.0000, 0.0000])

    References:
        OphthaReason, figure "Stage 3", H_seq & τ_s → tanh → ω (arXiv:2508.16129): *figure*. The
        argument of the tanh and T: *ours*.
    """
    if not 0.0 < slope < math.inf:
        raise ValueError(f"slope must be positive and finite, got {slope}")
    return _neutral((slope * _distance(uncertainty, threshold, scale)).tanh())


def linear_factor(
    uncertainty: PerSequence, threshold: float | PerSequence, *, scale: Scale = "relative"
) -> PerSequence:
    r"""A straight line, cut off at the ends.

    $$\omega_i = \max\left(-1, \min\left(1, \frac{U_i - \theta}{T}\right)\right)$$

    Args:
        uncertainty: One number a completion; NaN for one without tokens.
        threshold: The θ in use, one for all or one a completion.
        scale: ``"relative"`` ($T = \max(\theta, 0.01)$), or $T$ in the unit of the uncertainty.

    Returns:
        ω, within ``[-1, 1]``; 0 for a completion without tokens.

    Raises:
        ValueError: As `tanh_factor`.

    Example:
        >>> linear_factor(torch.tensor([0.5, 2.0]), 1.0, scale=2.0)  # -0.5 / 2, 1 / 2
        tensor([-0.2500,  0.5000])
    """
    return _neutral(_distance(uncertainty, threshold, scale).clamp(-1.0, 1.0))


def exponential_factor(
    uncertainty: PerSequence, threshold: float | PerSequence, *, scale: Scale = "relative"
) -> PerSequence:
    r"""An exponential approach to ±1: steepest at the threshold.

    $$\omega_i = \mathrm{sign}(x_i) \left(1 - e^{-|x_i|}\right), \qquad
    x_i = \frac{U_i - \theta}{T}$$

    Args:
        uncertainty: One number a completion; NaN for one without tokens.
        threshold: The θ in use, one for all or one a completion.
        scale: ``"relative"`` ($T = \max(\theta, 0.01)$), or $T$ in the unit of the uncertainty.

    Returns:
        ω, within ``[-1, 1]``; 0 for a completion without tokens.

    Raises:
        ValueError: As `tanh_factor`.

    Example:
        >>> exponential_factor(torch.tensor([2.0]), 1.0)  # 1 - 1/e
        tensor([0.6321])
    """
    x = _distance(uncertainty, threshold, scale)
    return _neutral(-x.sign() * (-x.abs()).expm1())


def sigmoid_factor(
    uncertainty: PerSequence, threshold: float | PerSequence, *, scale: Scale = "relative"
) -> PerSequence:
    r"""The logistic function, stretched to (−1, 1): a tanh of half the slope.

    $$\omega_i = 2\,\sigma\left(\frac{U_i - \theta}{T}\right) - 1$$

    Args:
        uncertainty: One number a completion; NaN for one without tokens.
        threshold: The θ in use, one for all or one a completion.
        scale: ``"relative"`` ($T = \max(\theta, 0.01)$), or $T$ in the unit of the uncertainty.

    Returns:
        ω, within ``[-1, 1]``; 0 for a completion without tokens.

    Raises:
        ValueError: As `tanh_factor`.

    Example:
        >>> sigmoid_factor(torch.tensor([2.0]), 1.0)  # 2 / (1 + 1/e) - 1
        tensor([0.4621])
    """
    return _neutral(2.0 * _distance(uncertainty, threshold, scale).sigmoid() - 1.0)


def step_factor(uncertainty: PerSequence, threshold: float | PerSequence) -> PerSequence:
    r"""Above or below, and nothing in between.

    $$\omega_i = \mathrm{sign}(U_i - \theta)$$

    Args:
        uncertainty: One number a completion; NaN for one without tokens.
        threshold: The θ in use, one for all or one a completion.

    Returns:
        −1, 0 (at the threshold, or without tokens) or 1.

    Raises:
        ValueError: If the shapes differ, or an uncertainty meets a threshold that is not finite.

    Example:
        >>> step_factor(torch.tensor([0.9, 1.0, 1.1]), 1.0)
        tensor([-1.,  0.,  1.])
    """
    return _neutral(_distance(uncertainty, threshold, 1.0).sign())


def shape_advantage(
    advantage: Advantage,
    factor: PerSequence,
    *,
    strength: float | None,
    sign_policy: SignPolicy = "explore",
) -> Advantage:
    r"""Shape the advantages of one step by the uncertainty of each completion.

    $$A'_i = A_i + \lambda \, \omega_i \, |A_i|$$

    for the default ``"explore"``. What each policy adds to $A$, and what becomes of $|A|$ (↑
    larger, ↓ smaller) for a completion that is

    | policy | adds | right, uncertain | right, certain | wrong, uncertain | wrong, certain |
    |---|---|---|---|---|---|
    | ``explore`` | $+\lambda\omega\lvert A\rvert$ | ↑ | ↓ | ↓ | ↑ |
    | ``exploit`` | $-\lambda\omega\lvert A\rvert$ | ↓ | ↑ | ↑ | ↓ |
    | ``symmetric`` | $+\lambda\omega A$ | ↑ | ↓ | ↑ | ↓ |
    | ``symmetric_inverted`` | $-\lambda\omega A$ | ↓ | ↑ | ↓ | ↑ |
    | ``additive`` | $+\lambda\omega$ | ↑ | ↓ | ↓ | ↑ |

    Right means $A > 0$, uncertain $\omega > 0$. ``explore`` learns more from right answers that
    were found in doubt, and punishes doubt that went wrong less; ``symmetric_inverted`` is the
    direction of SEED and EDGE. All but ``additive`` leave $A = 0$ as it is, keep the sign, and
    change $A$ by at most $\lambda |A|$; ``additive`` may flip a sign. $\omega = 0$ or
    $\lambda = 0$ is the identity. The sum over a group need not stay 0, and is not re-centred.

    Args:
        advantage: One number a completion, or one a token.
        factor: ω, within ``[-1, 1]``.
        strength: λ, within ``[0, 1)``; ``None`` for a factor that carries its strength inside
            (`tanh_factor`'s ``slope``), which is then applied whole.
        sign_policy: One of the rows above.

    Returns:
        The shaped advantages, in the shape and dtype that came in, without gradient.

    Raises:
        ValueError: If ``strength`` is outside ``[0, 1)``, the policy is unknown, the shapes do
            not fit, an advantage is not finite, or a factor is outside ``[-1, 1]``.

    Example:
        >>> advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
        >>> factor = torch.tensor([0.5, -0.5, 0.5, -0.5])
        >>> shape_advantage(advantage, factor, strength=0.5)
        tensor([ 1.2500,  0.7500, -0.7500, -1.2500])

    References:
        OphthaReason, "a shaped advantage mechanism" (abstract of arXiv:2508.16129): *stated*;
        that the sign of the advantage matters: *figure* (weak evidence); this formula: *ours*.
    """
    if strength is not None and not 0.0 <= strength < 1.0:
        raise ValueError(f"strength must be within [0, 1), got {strength}")
    if sign_policy not in SIGN_POLICIES:
        raise ValueError(f"sign_policy must be one of {SIGN_POLICIES}, got {sign_policy!r}")
    if advantage.ndim not in (1, 2) or factor.shape != advantage.shape[:1] or len(factor) == 0:
        raise ValueError(
            "advantage must have shape (B,) or (B, T) and factor (B,) with B > 0, "
            f"got {tuple(advantage.shape)} and {tuple(factor.shape)}"
        )
    rows = [] if all_finite(advantage) else row_numbers(~advantage.isfinite())
    if rows:
        raise ValueError(
            f"advantage must be finite, got {advantage[rows[0]].tolist()} in row "
            f"{rows[0]} (rows {rows})"
        )
    rows = row_numbers(~(factor.abs() <= 1.0))
    if rows:
        raise ValueError(
            f"factor must be within [-1, 1], got {factor[rows].tolist()} in rows {rows}"
        )
    dtype = torch.promote_types(advantage.dtype, torch.float32)
    a = advantage.detach().to(dtype)
    push = (1.0 if strength is None else strength) * factor.detach().to(dtype)
    push = push if a.ndim == 1 else push.unsqueeze(-1)
    match sign_policy:
        case "explore":
            shaped = a.abs().mul_(push).add_(a)
        case "exploit":
            shaped = a.abs().mul_(-push).add_(a)
        case "symmetric":
            shaped = a + push * a
        case "symmetric_inverted":
            shaped = a - push * a
        case "additive":
            shaped = a + push
    return shaped.to(advantage.dtype)


def _distance(uncertainty: Tensor, threshold: float | Tensor, scale: Scale) -> Tensor:
    u = uncertainty.detach().to(torch.promote_types(uncertainty.dtype, torch.float32))
    theta = threshold if isinstance(threshold, Tensor) else u.new_full(u.shape, threshold)
    if u.ndim != 1 or len(u) == 0 or theta.shape != u.shape:
        raise ValueError(
            "uncertainty must have shape (B,) with B > 0, and threshold be a number or have the "
            f"same, got {tuple(u.shape)} and {tuple(theta.shape)}"
        )
    theta = theta.to(u)
    rows = row_numbers(~theta.isfinite() & ~u.isnan())
    if rows:
        raise ValueError(
            f"threshold must be finite where there are tokens, got {theta[rows].tolist()} "
            f"in rows {rows}"
        )
    if isinstance(scale, str):
        if scale != "relative":
            raise ValueError(f"scale must be 'relative' or a number, got {scale!r}")
        return (u - theta) / theta.clamp(min=_FLOOR)
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    return (u - theta) / scale


def _neutral(factor: Tensor) -> Tensor:
    return factor.masked_fill(factor.isnan(), 0.0)  # no tokens, so no reason to shape
