"""Logits or hidden states → what the policy was unsure about, one number a token.

All in nats. How the numbers are computed fast is `uadt.kernels`; what they are is here.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from uadt import kernels
from uadt.kernels.statistics import TokenStatistics
from uadt.types import Logits, TokenIds, TokenValues

__all__ = [
    "EntropyBounds",
    "TokenStatistics",
    "linear_token_statistics",
    "surprisal",
    "token_entropy",
    "token_statistics",
    "topk_entropy",
]


def token_entropy(logits: Logits, *, temperature: float = 1.0) -> TokenValues:
    r"""Shannon entropy of the next-token distribution at every position.

    $$H_t = -\sum_{v} p_t(v) \log p_t(v), \qquad p_t = \mathrm{softmax}(z_t / \text{temperature})$$

    Computed in float32 whatever the dtype of ``logits``: at a vocabulary of 150k, bfloat16
    alone is wrong in the second decimal. A ``-inf`` logit is a token that cannot be sampled; it
    adds nothing ($0 \log 0 = 0$) and receives zero gradient. A row that is no distribution
    (nothing but ``-inf``, or a NaN or ``+inf`` logit) has entropy NaN and zero gradient, and
    does not touch its neighbours.

    Args:
        logits: Unnormalised scores, vocabulary last.
        temperature: What the completions were sampled with. Entropy at any other describes a
            policy that did not produce them.

    Returns:
        Entropy in nats, within ``[0, log V]``; float64 for float64 logits, else float32.
        Padding is not known here and not removed; that is `sequence_mean`'s part.

    Raises:
        ValueError: If ``logits`` is not a floating tensor with a vocabulary, or ``temperature``
            is not positive and finite.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, float("-inf")]])  # two equal choices
        >>> token_entropy(logits)
        tensor([0.6931])

    References:
        OphthaReason, figure "Stage 3", "1. Compute Entropy" (arXiv:2508.16129): *figure*. At the
        sampling temperature: *ours*.
    """
    _check_temperature(temperature)
    kernels.check_nested("logits", logits, None)
    _check_scores("logits", logits)
    return kernels.entropy_and_logprob(logits, None, temperature)[0]


def token_statistics(
    logits: Logits, token_ids: TokenIds | None = None, *, temperature: float = 1.0
) -> TokenStatistics:
    r"""Entropy and its relatives from one look at the logits.

    $$H = \log s - \frac{1}{s} \sum_v e^{z_v} z_v, \qquad
    z_v = \frac{x_v - \max x}{\text{temperature}}, \quad s = \sum_v e^{z_v}$$

    The fields of `TokenStatistics` define each statistic. The conventions on ``-inf``, NaN and
    dtype are those of `token_entropy`. Gradients flow to the logits through every field.

    Args:
        logits: Unnormalised scores, vocabulary last.
        token_ids: The sampled tokens, for ``logprob``; without them it is ``None``.
        temperature: What the completions were sampled with.

    Returns:
        The statistics, each with the leading axes of ``logits``.

    Raises:
        ValueError: If ``logits`` is not a floating tensor with a vocabulary, ``token_ids`` are
            not integers with its leading axes, or ``temperature`` is not positive and finite.

    Example:
        >>> p = torch.tensor([0.5, 0.25, 0.25])
        >>> s = token_statistics(p.log(), torch.tensor(0))
        >>> s.entropy, s.logprob  # 3/2 ln 2, ln 1/2
        (tensor(1.0397), tensor(-0.6931))
        >>> s.renyi2, s.min_entropy  # -ln 3/8, ln 2
        (tensor(0.9808), tensor(0.6931))

    References:
        Self-certainty: Intuitor (arXiv:2505.19590), there up to the constant $\log V$ and over
        the whole vocabulary; that forbidden tokens are left out is *ours*.
    """
    _check_temperature(temperature)
    kernels.check_nested("logits", logits, token_ids)
    _check_scores("logits", logits)
    _check_ids(token_ids, logits.shape[:-1], "the leading axes of logits")
    return kernels.statistics(logits, token_ids, temperature)


def linear_token_statistics(
    hidden: Float[Tensor, "*N D"],
    weight: Float[Tensor, "V D"],
    token_ids: TokenIds | None = None,
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
) -> TokenStatistics:
    r"""`token_statistics` of the logits ``hidden @ weight.T + bias``, which are never all built.

    The logits of 8,192 tokens over a vocabulary of 152k take 5 GB in float32; the statistics
    take 200 kB. Only those of a few tokens exist at a time, in the backward pass too, which
    computes them once more.

    The product is taken in float32 at least, so half-precision models get logits that their own
    lm-head would have rounded: entropies differ from `token_entropy` of such rounded logits in
    about the second decimal of a nat for bfloat16, and these are the more exact ones.

    Args:
        hidden: The last hidden states, after the final norm.
        weight: The lm-head, one row a token of the vocabulary.
        token_ids: The sampled tokens, for ``logprob``; without them it is ``None``.
        bias: Of the lm-head, if it has one.
        temperature: What the completions were sampled with.

    Returns:
        The statistics, each with the leading axes of ``hidden``.

    Raises:
        ValueError: If the shapes do not fit each other, a tensor is not floating (``token_ids``:
            not integers), or ``temperature`` is not positive and finite.

    Example:
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> weight = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])
        >>> linear_token_statistics(hidden, weight).entropy  # p = (1/2, 1/2) and (1/4, 3/4)
        tensor([0.6931, 0.5623])
    """
    _check_temperature(temperature)
    kernels.check_nested("hidden", hidden, token_ids)
    _check_scores("hidden", hidden)
    _check_scores("weight", weight)
    if weight.ndim != 2 or weight.shape[-1] != hidden.shape[-1]:
        raise ValueError(
            f"weight must have shape (V, {hidden.shape[-1]}) to fit hidden, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({len(weight)},), got {tuple(bias.shape)}")
    _check_ids(token_ids, hidden.shape[:-1], "the leading axes of hidden")
    return kernels.linear_statistics(hidden, weight, token_ids, bias, temperature)


def surprisal(logprob: TokenValues) -> TokenValues:
    r"""Minus the log-probability of the sampled token.

    $$s_t = -\log p_t(y_t), \qquad \mathbb{E}_{y_t \sim p_t}[s_t] = H_t$$

    An unbiased estimate of the entropy, and another statistic: its variance is the varentropy,
    and it depends on the token that was drawn, so a weight made of it is tied to the action.

    Args:
        logprob: Log-probabilities of sampled tokens in nats, at the sampling temperature.

    Returns:
        Surprisal in nats.

    Example:
        >>> surprisal(torch.tensor([0.5, 1.0]).log())
        tensor([0.6931, -0.0000])
    """
    return -logprob


class EntropyBounds(NamedTuple):
    """What the top-k log-probabilities say about the entropy, in nats."""

    lower: Tensor
    """The entropy is at least this."""
    upper: Tensor
    """The entropy is at most this."""
    estimate: Tensor
    """A point between the bounds."""


def topk_entropy(
    logprobs: Float[Tensor, "*N K"], vocab_size: int, *, weight: float = 0.32
) -> EntropyBounds:
    r"""Bounds on the entropy from the k largest log-probabilities, such as an engine returns.

    With the head $h = -\sum_{j \le k} p_j \log p_j$, the mass of the tail $t = 1 - \sum_j p_j$,
    the smallest of the head $p_k$, $n = \lfloor t / p_k \rfloor$ and $r = t - n p_k$:

    $$h - n\,p_k \log p_k - r \log r \;\le\; H \;\le\; h - t \log \frac{t}{V - k}$$

    Below, the tail is as uneven as it can be, for none of its tokens exceeds $p_k$; above, it is
    even. Dropping the tail, or renormalising the head, is lower than the lower bound. The
    estimate is $\text{lower} + w\,(\text{upper} - \text{lower})$.

    Engines differ in what they return: the values must be of the whole distribution at the
    sampling temperature (vLLM's ``logprobs_mode`` defaults to that of temperature 1), not
    renormalised after a top-p or top-k filter, and only the k largest, in any order: leave out a
    sampled token that an engine appends to them.

    Args:
        logprobs: The k largest log-probabilities in nats, last axis, in any order.
        vocab_size: The size V of the vocabulary.
        weight: The place $w$ of the estimate between the bounds, within ``[0, 1]``. *Ours*: no
            value is right for every model; calibrate it on logits where it matters.

    Returns:
        The bounds and the estimate. NaN for a row that is not the head of a distribution: a NaN
        or positive log-probability, or a total above 1 by more than rounding.

    Raises:
        ValueError: If there is no log-probability or more than ``vocab_size``, or ``weight`` is
            outside ``[0, 1]``.

    Example:
        >>> bounds = topk_entropy(torch.tensor([0.5, 0.25]).log(), 4)  # 1/4 left for two tokens
        >>> bounds.lower, bounds.upper  # all to one: 3/2 ln 2; 1/8 to each: 7/4 ln 2
        (tensor(1.0397), tensor(1.2130))
    """
    _check_scores("logprobs", logprobs)
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight must be within [0, 1], got {weight}")
    rest = vocab_size - logprobs.shape[-1]
    if rest < 0:
        raise ValueError(
            f"vocab_size must be at least the number of log-probabilities a row, "
            f"{logprobs.shape[-1]}, got {vocab_size}"
        )
    log_p = logprobs.detach().double()
    p = log_p.exp()
    total = p.sum(dim=-1)
    head = _p_log_1_over_p(p).sum(dim=-1)
    tail = (1.0 - total).clamp(min=0.0) if rest else torch.zeros_like(total)
    smallest = p.amin(dim=-1)
    # A head that ends in p = 0 bounds nothing: the whole tail may then be one token.
    full = (tail / smallest).floor().nan_to_num(nan=0.0, posinf=0.0)
    remainder = (tail - full * smallest).clamp(min=0.0)
    lower = head + full * _p_log_1_over_p(smallest) + _p_log_1_over_p(remainder)
    upper = head + _p_log_1_over_p(tail) + tail * math.log(max(rest, 1))
    upper = torch.maximum(lower, upper)  # they may meet, and rounding must not cross them
    estimate = lower + weight * (upper - lower)
    wrong = (log_p > 0).any(dim=-1) | ~(total <= 1.0 + _ROUNDING)
    dtype = torch.promote_types(logprobs.dtype, torch.float32)

    def finish(values: Tensor) -> Tensor:
        return values.masked_fill(wrong, math.nan).to(dtype)

    return EntropyBounds(finish(lower), finish(upper), finish(estimate))


def _p_log_1_over_p(p: Tensor) -> Tensor:
    return -p * p.log().masked_fill(p == 0, 0.0)  # 0 log 0 = 0


_ROUNDING = 1e-2
"""By how much bfloat16 log-probabilities of a whole vocabulary may exceed a total of 1."""


def _check_temperature(temperature: float) -> None:
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _check_scores(name: str, values: Tensor) -> None:
    if values.ndim == 0 or values.shape[-1] == 0 or not values.is_floating_point():
        raise ValueError(
            f"{name} must be a floating tensor with a last axis that is not empty, "
            f"got {values.dtype} of shape {tuple(values.shape)}"
        )


def _check_ids(token_ids: Tensor | None, shape: torch.Size, which: str) -> None:
    if token_ids is None:
        return
    integer = not (token_ids.is_floating_point() or token_ids.dtype == torch.bool)
    if token_ids.shape != shape or not integer:
        raise ValueError(
            f"token_ids must be integers of shape {tuple(shape)}, {which}, "
            f"got {token_ids.dtype} of shape {tuple(token_ids.shape)}"
        )
