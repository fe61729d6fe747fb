"""The paths behind `uadt.entropy`: which code computes the statistics of these logits.

Every path gives the numbers of `uadt.kernels.plain`.
"""

from torch import Tensor

from uadt.kernels import plain
from uadt.kernels.statistics import TokenStatistics

__all__ = ["TokenStatistics", "linear_statistics", "statistics"]


def statistics(logits: Tensor, token_ids: Tensor | None, temperature: float) -> TokenStatistics:
    """Return the statistics of logits of shape ``(*N, V)``, arguments already checked."""
    return plain.statistics(logits, token_ids, temperature)


def linear_statistics(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor | None,
    bias: Tensor | None,
    temperature: float,
) -> TokenStatistics:
    """Return the statistics of ``hidden @ weight.T + bias``, arguments already checked."""
    return plain.linear_statistics(hidden, weight, token_ids, bias, temperature)
