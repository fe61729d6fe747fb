r"""What a row of logits, or a part of it, is reduced to; and all that follows from that.

With $z_v = (x_v - \max x) / \text{temperature}$ the sums below determine every statistic and,
with the row itself, every gradient. They combine: the parts of a row may be reduced apart (blocks
of the vocabulary, tiles of a product, the shards of a tensor-parallel lm-head) and merged after.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from uadt.kernels.statistics import TokenStatistics

__all__ = ["Coefficients", "Moments", "coefficients", "finish", "is_broken", "merge"]


class Moments(NamedTuple):
    """The sums of each row, float64, so that merging them adds no error; ``top`` is exact."""

    top: Tensor
    r"""$\max x$; ``-inf`` for a part without a finite logit. Where only entropy and log-probability
    are wanted, it may be a number near that: $z$ is taken from it, and it cancels in both."""
    total: Tensor
    r"""$s = \sum_v e^{z_v}$."""
    first: Tensor
    r"""$\sum_v z_v e^{z_v}$."""
    second: Tensor
    r"""$\sum_v z_v^2 e^{z_v}$."""
    squares: Tensor
    r"""$\sum_v e^{2 z_v}$."""
    drop: Tensor
    r"""$\sum_v z_v$ over the tokens that can be sampled ($x_v > -\infty$)."""
    possible: Tensor
    """Number of tokens that can be sampled."""

    def map(self, f: Callable[[Tensor], Tensor]) -> "Moments":
        """Apply a function to each."""
        return Moments(*(f(m) for m in self))


def merge(parts: Moments, temperature: float) -> Moments:
    r"""Combine the parts of each row, given on the last axis.

    With $M$ the largest top and $d_k = (\text{top}_k - M) / \text{temperature}$, a part weighs
    $w_k = e^{d_k}$ and its $z$ moves by $d_k$:

    $$s = \sum_k w_k s_k, \quad t = \sum_k w_k (t_k + d_k s_k), \quad
    t' = \sum_k w_k (t'_k + 2 d_k t_k + d_k^2 s_k), \quad
    q = \sum_k w_k^2 q_k, \quad u = \sum_k (u_k + n_k d_k), \quad n = \sum_k n_k$$

    A part without a finite logit weighs nothing. The rule is associative and commutative, so it
    may run across processes: gather the moments of the shards of a vocabulary, stack them on a
    new last axis, merge.

    Args:
        parts: Moments of the parts, each of shape ``(*N, K)``.
        temperature: What they were computed with.

    Returns:
        Moments of the whole rows, each of shape ``(*N)``.
    """
    top = parts.top.amax(dim=-1)
    dead = parts.top == -math.inf
    d = ((parts.top - top.unsqueeze(-1)) / temperature).masked_fill(dead, 0.0)
    w = d.exp().masked_fill(dead, 0.0)
    d = d.clamp(min=-1e30)  # where a weight is zero, so are its products: no 0 * inf
    s, t = parts.total, parts.first
    return Moments(
        top=top,
        total=(w * s).sum(dim=-1),
        first=(w * (t + d * s)).sum(dim=-1),
        second=(w * (parts.second + d * (2.0 * t + d * s))).sum(dim=-1),
        squares=(w * w * parts.squares).sum(dim=-1),
        drop=(parts.drop.masked_fill(dead, 0.0) + parts.possible * d).sum(dim=-1),
        possible=parts.possible.sum(dim=-1),
    )


def is_broken(moments: Moments) -> Tensor:
    """Return where a row is no distribution: NaN or ``+inf`` in it, or nothing but ``-inf``."""
    return ~(moments.top.isfinite() & moments.first.isfinite())


def finish(
    moments: Moments, chosen: Tensor | None, temperature: float, dtype: torch.dtype
) -> TokenStatistics:
    """Return the statistics that the moments amount to.

    Args:
        moments: Of whole rows, shape ``(*N)``.
        chosen: The logit of the token that was sampled, NaN for an id outside the vocabulary;
            or ``None``.
        temperature: What the moments were computed with.
        dtype: Of the result.

    Returns:
        The statistics, each of shape ``(*N)``.
    """
    broken = is_broken(moments)
    log_s = moments.total.log()
    mean = moments.first / moments.total
    varentropy = (moments.second / moments.total - mean.square()).clamp(min=0.0)

    def of(values: Tensor) -> Tensor:
        return values.masked_fill(broken, math.nan).to(dtype)

    logprob = None if chosen is None else of((chosen - moments.top) / temperature - log_s)
    return TokenStatistics(
        entropy=of(log_s - mean),
        logprob=logprob,
        varentropy=of(varentropy),
        renyi2=of(2.0 * log_s - moments.squares.log()),
        min_entropy=of(log_s),
        self_certainty=of(log_s - moments.drop / moments.possible - moments.possible.log()),
    )


class Coefficients(NamedTuple):
    r"""What the gradient of each row is made of; ``None`` is 0, which is usual and cheaper.

    $$g_v = e^{z_v} (k_0 + k_1 z_v + k_2 z_v^2 + k_3 e^{z_v}) + k_\text{possible} [x_v > -\infty]
    + k_\text{top} [x_v = \max x] + k_\text{token} [v = y]$$
    """

    k0: Tensor
    k1: Tensor
    k2: Tensor | None
    k3: Tensor | None
    at_token: Tensor | None
    at_possible: Tensor | None
    at_top: Tensor | None

    def map(self, f: Callable[[Tensor], Tensor]) -> "Coefficients":
        """Apply a function to each that is there."""
        rest = (None if k is None else f(k) for k in self[2:])
        return Coefficients(f(self.k0), f(self.k1), *rest)

    def moved(self, d: Tensor) -> "Coefficients":
        """Return those that make the same gradient of $z - d$."""
        w, k0, k1 = d.exp(), self.k0 + d * self.k1, self.k1
        if self.k2 is not None:
            k0, k1 = k0 + d.square() * self.k2, k1 + 2.0 * d * self.k2
        return self._replace(
            k0=w * k0,
            k1=w * k1,
            k2=None if self.k2 is None else w * self.k2,
            k3=None if self.k3 is None else w.square() * self.k3,
        )


def coefficients(
    moments: Moments,
    gradients: Sequence[Tensor | None],
    known: Tensor | None,
    ties: Tensor | None,
    temperature: float,
) -> Coefficients:
    r"""Return the coefficients of the gradient with respect to the logits.

    With $a_v = \log p_v + H = z_v - \bar z$, where $\bar z = t/s$, and $Q = \sum p^2$:

    $$\frac{\partial H}{\partial z_v} = -p_v a_v, \quad
    \frac{\partial \log p_y}{\partial z_v} = [v = y] - p_v, \quad
    \frac{\partial \mathrm{Var}}{\partial z_v} = p_v (a_v^2 + 2 a_v - \mathrm{Var}),$$
    $$\frac{\partial H_2}{\partial z_v} = 2 p_v - 2 p_v^2 / Q, \quad
    \frac{\partial H_\infty}{\partial z_v} = p_v - \frac{[x_v = \max x]}{\#\{x_v = \max x\}}, \quad
    \frac{\partial \mathrm{KL}}{\partial z_v} = p_v - \frac{[x_v > -\infty]}{n}$$

    A broken row has gradient 0, and so has the log-probability of an unknown token.

    Args:
        moments: Of whole rows.
        gradients: Of the loss with respect to each field of `TokenStatistics`, in their order;
            ``None`` where there is none.
        known: Where the token is within the vocabulary; ``None`` without tokens.
        ties: How many logits share the largest value; wanted with a gradient of ``min_entropy``.
        temperature: What the moments were computed with.

    Returns:
        The coefficients, float64.
    """
    broken = is_broken(moments)
    s, mean = moments.total, moments.first / moments.total
    g_h, g_l, g_v, g_r, g_m, g_s = (None if g is None else g.double() for g in gradients)
    if g_l is not None and known is not None:
        g_l = g_l.masked_fill(~known, 0.0)
    # p (c0 + c1 a + c2 a^2) + c3 e^2, then in powers of z = a + mean.
    c0 = torch.zeros_like(s)
    c1 = torch.zeros_like(s)
    if g_h is not None:
        c1 = c1 - g_h
    if g_l is not None:
        c0 = c0 - g_l
    if g_r is not None:
        c0 = c0 + 2.0 * g_r
    if g_m is not None:
        c0 = c0 + g_m
    if g_s is not None:
        c0 = c0 + g_s
    if g_v is not None:
        c0 = c0 - g_v * (moments.second / s - mean.square())
        c1 = c1 + 2.0 * g_v
    k0, k1 = c0 - c1 * mean, c1
    if g_v is not None:
        k0, k1 = k0 + g_v * mean.square(), k1 - 2.0 * g_v * mean

    def of(values: Tensor) -> Tensor:
        return values.masked_fill(broken, 0.0) / temperature

    return Coefficients(
        k0=of(k0 / s),
        k1=of(k1 / s),
        k2=None if g_v is None else of(g_v / s),
        k3=None if g_r is None else of(-2.0 * g_r / moments.squares),
        at_token=None if g_l is None else of(g_l),
        at_possible=None if g_s is None else of(-g_s / moments.possible),
        at_top=None if g_m is None or ties is None else of(-g_m / ties),
    )
