"""One batched generation in which every row has its own random numbers and its own budget.

`transformers` draws all rows of a batch from one generator, so that a completion depends on who
happens to be in its batch. Here a row's draws depend on its seed alone: a run that is killed and
resumed writes the same completions as an unbroken one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

__all__ = ["Budget", "Draw", "truncate"]


def truncate(probability: Tensor, *, top_p: float, top_k: int) -> Tensor:
    """Keep the likeliest tokens of each row and set the others to zero.

    Args:
        probability: Shape ``(B, V)``.
        top_p: The smallest set whose mass reaches this share, within ``(0, 1]``; 1 keeps all.
        top_k: How many tokens at most; 0 or less keeps all.

    Returns:
        The kept probabilities, not normalised; at least one a row.
    """
    if top_p >= 1 and top_k <= 0:
        return probability
    values, order = probability.sort(dim=-1, descending=True)
    keep = values.cumsum(-1) - values < top_p
    if top_k > 0:
        keep[:, top_k:] = False
    keep[:, 0] = True
    return torch.zeros_like(probability).scatter(-1, order, values * keep)


@dataclass
class Draw(LogitsProcessor):
    """Choose each row's next token and note its log-probability.

    `transformers` calls it with the logits of the next token and then takes the largest; so it
    returns scores in which only the chosen token is finite.
    """

    seeds: Sequence[int]
    """One seed a row."""
    temperature: float
    """0 takes the likeliest token; its log-probability is then the one at temperature 1."""
    top_p: float = 1.0
    """See `truncate`."""
    top_k: int = 0
    """See `truncate`."""
    logprobs: list[Tensor] = field(default_factory=list[Tensor])
    """One entry a step, shape ``(B,)``: of the whole distribution at this temperature, as the
    actor recomputes it, whatever ``top_p`` and ``top_k`` cut off."""

    def __post_init__(self) -> None:
        """Start one generator a row."""
        self.generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        """Choose, note, and leave nothing else to choose."""
        logprob = torch.log_softmax(scores.float() / (self.temperature or 1.0), dim=-1)
        if self.temperature == 0:
            chosen = logprob.argmax(-1)
        else:
            probability = truncate(logprob.double().exp(), top_p=self.top_p, top_k=self.top_k)
            reached = probability.cumsum(-1)
            draws = [torch.rand((), generator=g, dtype=torch.float64) for g in self.generators]
            # The first token whose cumulative mass exceeds the draw: never one of probability 0.
            level = torch.stack(draws).unsqueeze(-1) * reached[:, -1:]
            chosen = torch.searchsorted(reached, level, right=True).squeeze(-1)
        index = chosen.unsqueeze(-1)
        self.logprobs.append(logprob.gather(-1, index).squeeze(-1))
        return torch.full_like(scores, float("-inf")).scatter(-1, index, 0.0)


@dataclass
class Budget(StoppingCriteria):
    """Stop a row when it has spent its tokens, and all rows when the server is told to stop."""

    start: int
    """Length of the padded prompts."""
    tokens: Tensor
    """How many new tokens each row may have, shape ``(B,)``."""
    stopped: Callable[[], bool]
    """Asked before each token."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Return which rows are done."""
        if self.stopped():
            return torch.ones(len(input_ids), dtype=torch.bool)
        return self.tokens <= input_ids.shape[1] - self.start
