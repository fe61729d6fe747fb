"""What one pass over the logits gives; apart, so that every path can return it."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["TokenStatistics"]


class TokenStatistics(NamedTuple):
    """Statistics of the next-token distribution $p$, one number a token, in nats.

    Float32 whatever the logits were (float64 for float64). NaN in every field for a row that
    is no distribution: without a finite logit, or with one that is NaN or ``+inf``.
    """

    entropy: Tensor
    r"""Shannon entropy $H = -\sum_v p_v \log p_v$, within $[0, \log V]$."""
    logprob: Tensor | None
    r"""$\log p_y$ of the given token $y$; ``None`` if no tokens were given. ``-inf`` for a token
    that cannot be sampled, NaN for an id outside $[0, V)$ such as the ``-100`` of padding."""
    varentropy: Tensor
    r"""Variance of the surprisal, $\sum_v p_v (\log p_v + H)^2$, in squared nats: the variance
    of $-\log p_y$ as an estimate of $H$ from one sampled token."""
    renyi2: Tensor
    r"""Rényi entropy of order two, $-\log \sum_v p_v^2$, at most $H$."""
    min_entropy: Tensor
    r"""Rényi entropy of order infinity, $-\log \max_v p_v$, at most ``renyi2``."""
    self_certainty: Tensor
    r"""$\mathrm{KL}(u \,\|\, p)$ from the uniform distribution $u$ over the tokens that can be
    sampled (finite logits), without an offset: 0 is least certain."""
