"""The plain path: each formula as it is written, for any device, dtype and autograd.

Every other path gives the same numbers; this one is what they are compared with.
"""

import math
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    checkpoint,  # pyright: ignore[reportUnknownVariableType] - torch leaves it untyped
)

from uadt.kernels.statistics import TokenStatistics

__all__ = ["linear_statistics", "statistics"]

_TOKENS = 64
"""Tokens whose logits exist at the same time in `linear_statistics`."""
_VOCABULARY = 16_384
"""Rows of the weight that exist in float32 at the same time in `linear_statistics`."""


def statistics(logits: Tensor, token_ids: Tensor | None, temperature: float) -> TokenStatistics:
    r"""Every statistic from the logits $z_v = (x_v - \max x) / \text{temperature}$.

    With $s = \sum_v e^{z_v}$ and $t = \sum_v e^{z_v} z_v$: $\log p_v = z_v - \log s$ and
    $H = \log s - t/s$. Shifted before the product, so that no digit is lost to an offset; both
    terms of $H$ are non-negative, so that $H$ is.

    Args:
        logits: Checked by the caller, shape ``(*N, V)``.
        token_ids: Shape ``(*N)``, or ``None``.
        temperature: Positive.

    Returns:
        The statistics, each of shape ``(*N)``.
    """
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # NaN or +inf in the row, or nothing but -inf: no distribution. Such a row is computed as if
    # it were uniform and overwritten at the end, so that no NaN enters the backward pass.
    broken = ~x.detach().amax(dim=-1, keepdim=True).isfinite()
    x = x.masked_fill(broken, 0.0)
    z = (x - x.detach().amax(dim=-1, keepdim=True)) / temperature
    e = z.exp()
    # 0 log 0 = 0: where the weight is nothing, so is the product, whatever the logit.
    z_or_0 = z.masked_fill(e == 0, 0.0)
    s = e.sum(dim=-1)
    log_s = s.log()
    mean_z = (e * z_or_0).sum(dim=-1) / s
    varentropy = (e * (z_or_0 - mean_z.unsqueeze(-1)).square()).sum(dim=-1) / s
    possible = z > -math.inf
    count = possible.sum(dim=-1)
    mean_over_possible = z.masked_fill(~possible, 0.0).sum(dim=-1) / count
    broken = broken.squeeze(-1)

    def finish(values: Tensor) -> Tensor:
        return values.masked_fill(broken, math.nan)

    logprob = None
    if token_ids is not None:
        known = (token_ids >= 0) & (token_ids < logits.shape[-1])
        index = token_ids.masked_fill(~known, 0).long().unsqueeze(-1)
        z_y = z.gather(-1, index).squeeze(-1)
        logprob = finish((z_y - log_s).masked_fill(~known, math.nan))
    return TokenStatistics(
        entropy=finish(log_s - mean_z),
        logprob=logprob,
        varentropy=finish(varentropy),
        renyi2=finish(2 * log_s - e.square().sum(dim=-1).log()),
        min_entropy=finish(log_s - z.amax(dim=-1)),  # max z = 0: subtracted for its gradient
        self_certainty=finish(log_s - mean_over_possible - count.log()),
    )


def linear_statistics(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor | None,
    bias: Tensor | None,
    temperature: float,
) -> TokenStatistics:
    """`statistics` of ``hidden @ weight.T + bias``, a few tokens at a time.

    The product is taken in float32 at least, a block of the weight at a time. A backward pass
    computes the logits of each few tokens once more instead of keeping those of all.

    Args:
        hidden: Checked by the caller, shape ``(*N, D)``.
        weight: Shape ``(V, D)``.
        token_ids: Shape ``(*N)``, or ``None``.
        bias: Shape ``(V,)``, or ``None``.
        temperature: Positive.

    Returns:
        The statistics, each of shape ``(*N)``.
    """
    shape = hidden.shape[:-1]
    rows = hidden.reshape(-1, hidden.shape[-1])
    ids = None if token_ids is None else token_ids.reshape(-1)

    def tile(rows: Tensor, ids: Tensor | None) -> TokenStatistics:
        return statistics(_logits(rows, weight, bias), ids, temperature)

    tiles: list[TokenStatistics] = []
    for start in range(0, max(len(rows), 1), _TOKENS):
        some = slice(start, start + _TOKENS)
        few = rows[some], None if ids is None else ids[some]
        if torch.is_grad_enabled():
            # Called by its name: torch.compile knows no other name of it.
            again = checkpoint(tile, *few, use_reentrant=False)  # pyright: ignore
            tiles.append(cast("TokenStatistics", again))
        else:
            tiles.append(tile(*few))

    def join(values: list[Tensor]) -> Tensor:
        return torch.cat(values).reshape(shape)

    return TokenStatistics(
        entropy=join([t.entropy for t in tiles]),
        logprob=None if ids is None else join([t.logprob for t in tiles if t.logprob is not None]),
        varentropy=join([t.varentropy for t in tiles]),
        renyi2=join([t.renyi2 for t in tiles]),
        min_entropy=join([t.min_entropy for t in tiles]),
        self_certainty=join([t.self_certainty for t in tiles]),
    )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    hidden = hidden.to(dtype)
    blocks = [
        hidden @ weight[start : start + _VOCABULARY].to(dtype).T
        for start in range(0, len(weight), _VOCABULARY)
    ]
    logits = torch.cat(blocks, dim=-1)
    return logits if bias is None else logits + bias.to(dtype)
