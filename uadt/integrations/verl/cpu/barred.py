"""Tokens that stand for pixels are never a choice of the policy.

A vision-language model's vocabulary holds place-holders for images and videos. A policy that
samples one writes a text that its own processor refuses. The rollout server must therefore bar
them; and if only the server does, the log-probabilities of server and actor differ by the mass of
these tokens. So both bar them in the same way: in the logits, by one hook on the output layer.
"""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BARRED_LOGIT", "bar_tokens", "barred_ids"]

BARRED_LOGIT = -1e4
"""Finite, since verl's entropy multiplies probabilities with logits (0 · -inf is NaN), and low
enough that the probability is exactly 0 in float32."""

_FIELDS = ("image_token_id", "video_token_id")  # the tokens that verl bars in vLLM


def barred_ids(config: Any) -> list[int]:
    """Return the ids of a model's vision tokens.

    Args:
        config: A transformers configuration.

    Returns:
        Sorted ids; empty for a model of text.
    """
    ids = {getattr(config, field, None) for field in _FIELDS}
    return sorted(i for i in ids if isinstance(i, int))


def bar_tokens(model: nn.Module) -> None:
    """Let a causal model give its vision tokens no probability.

    Args:
        model: A transformers model with an output layer; a model of text is left as it is.
    """
    ids = barred_ids(getattr(model, "config", None))
    head: nn.Module | None = getattr(model, "lm_head", None)
    if ids and head is not None:
        head.register_forward_hook(_Bar(ids))


class _Bar:
    def __init__(self, ids: list[int]) -> None:
        self.ids = torch.tensor(ids)

    def __call__(self, module: nn.Module, args: Any, logits: Tensor) -> Tensor:
        return logits.index_fill(-1, self.ids.to(logits.device), BARRED_LOGIT)
