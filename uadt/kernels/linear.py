"""Hidden states and the lm-head to statistics, a tile of logits at a time.

A tile of 256 × 2,048 logits is computed into one buffer and reduced to moments while it is in the
cache. The backward pass computes each tile again, turns it into its gradient in place, and adds
its two products to float32 sums. What exists beside the results does not grow with the tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uadt.kernels import eager
from uadt.kernels.moments import Moments, coefficients, finish, is_broken, merge
from uadt.kernels.rows import MIN_ENTROPY, Path, full_precision, refuse_second_derivative
from uadt.kernels.statistics import TokenStatistics

__all__ = ["Shards", "scratch_bytes", "statistics"]


@dataclass(frozen=True, kw_only=True)
class Shards:
    """One process's part of a vocabulary that is spread over several (tensor parallelism).

    Collectives are the caller's: this holds two functions that use them. Every process gets the
    same statistics; the gradient of ``hidden`` is summed over the processes here, those of
    ``weight`` and ``bias`` are of the own part.
    """

    first: int
    """Token id of the first row of this process's weight."""
    vocab_size: int
    """Rows of all processes' weights together."""
    gather: Callable[[Tensor], Tensor]
    """Stack a tensor of each process, all of one shape, on a new first axis."""
    add: Callable[[Tensor], Tensor]
    """Sum a tensor of each process, all of one shape."""


def statistics(
    path: Path,
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor | None,
    bias: Tensor | None,
    temperature: float,
    *,
    shards: Shards | None = None,
) -> TokenStatistics:
    """Return the statistics of ``hidden @ weight.T + bias``.

    Args:
        path: Which code reduces a tile.
        hidden: Shape ``(*N, D)``.
        weight: Shape ``(V, D)``; a part of the vocabulary with ``shards``.
        token_ids: Ids in the whole vocabulary, shape ``(*N)``, or ``None``.
        bias: Shape ``(V,)``, or ``None``.
        temperature: Positive.
        shards: Where the other parts of the vocabulary are; ``None`` if there are none.

    Returns:
        The statistics, each of shape ``(*N)``.
    """
    if shards is None:
        shards = Shards(
            first=0, vocab_size=len(weight), gather=lambda x: x.unsqueeze(0), add=lambda x: x
        )
    shape = hidden.shape[:-1]
    ids = None if token_ids is None else token_ids.reshape(-1)
    flat = hidden.reshape(-1, hidden.shape[-1])
    with full_precision(hidden):
        found = TokenStatistics(*_Linear.apply(flat, weight, bias, ids, temperature, path, shards))
    logprob = None if found.logprob is None else found.logprob.view(shape)
    return TokenStatistics(
        entropy=found.entropy.view(shape),
        logprob=logprob,
        varentropy=found.varentropy.view(shape),
        renyi2=found.renyi2.view(shape),
        min_entropy=found.min_entropy.view(shape),
        self_certainty=found.self_certainty.view(shape),
    )


def scratch_bytes(hidden: Tensor, weight: Tensor) -> tuple[int, int]:
    """Return what a forward and a backward pass hold beside inputs and results, at most.

    Args:
        hidden: Shape ``(N, D)``.
        weight: Shape ``(V, D)``.
    """
    width = hidden.shape[1]
    found: list[int] = []
    for backward in (False, True):
        tiles = _Tiles(hidden, weight, None, backward=backward)
        tall, wide = tiles.tall, tiles.columns[0].stop
        # The tile and two buffers of the path; float32 copies of the factors; a sum.
        factors = tall * width + (2 if backward else 1) * wide * width
        found.append(4 * (3 * tall * wide + factors))
    return found[0], found[1]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor | None,
        temperature: float,
        path: Path,
        shards: Shards,
    ) -> tuple[Tensor | None, ...]:
        count = len(hidden)
        local = None if ids is None else ids.long() - shards.first
        # The moments of each row and the logit of its token.
        own = torch.zeros(8, count, dtype=torch.float64, device=hidden.device)
        own[0] = -torch.inf
        chosen = own[7]
        tiles = _Tiles(hidden, weight, bias, backward=False)
        for part in tiles.rows:
            h = tiles.tokens(hidden, part)
            for columns in tiles.columns:
                tile, _ = tiles.logits(h, columns)
                # Merged at once and in place: a small tensor kept for each tile would lie between
                # the large ones that come and go, and the process would grow with the vocabulary.
                both = [own[:7, part], torch.stack([*path.moments(tile, temperature, full=True)])]
                merged = merge(Moments(*torch.stack(both, dim=-1)), temperature)
                own[:7, part] = torch.stack([*merged])
                if local is not None:
                    index, inside = _within(local[part], columns)
                    here = tile.gather(1, index.unsqueeze(1)).squeeze(1).double()
                    chosen[part] = torch.where(inside, here, chosen[part])
        everywhere = shards.gather(own)  # (shards, 8, N)
        moments = merge(Moments(*everywhere[:, :7].movedim(0, -1)), temperature)
        known = None
        if ids is not None:
            known = (ids >= 0) & (ids < shards.vocab_size)
            chosen = everywhere[:, 7].sum(dim=0).masked_fill(~known, torch.nan)
        ctx.save_for_backward(hidden, weight, bias, local, known, *moments)
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.path, ctx.shards = temperature, path, shards
        dtype = torch.float32
        return tuple(finish(moments, None if ids is None else chosen, temperature, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given, weight, bias, local, known, *rest = ctx.saved_tensors
        moments, temperature, shards = Moments(*rest), ctx.temperature, ctx.shards
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        with torch.no_grad(), full_precision(given):
            hidden = given
            broken = is_broken(moments).unsqueeze(-1)
            if bool(broken.any()):  # 0 * NaN would carry a NaN to the weight, and so to all rows
                hidden = hidden.masked_fill(broken, 0.0)
            tiles = _Tiles(hidden, weight, bias, backward=True)
            ties = None
            if gradients[MIN_ENTROPY] is not None:
                ties = shards.add(tiles.ties(hidden, moments.top))
            k = coefficients(moments, gradients, known, ties, temperature)
            rare = k.at_possible is not None or k.at_top is not None
            gradient = eager.gradient if rare else ctx.path.gradient
            d_hidden = hidden.new_zeros(hidden.shape, dtype=torch.float32) if wants_hidden else None
            d_weight = torch.empty_like(weight) if wants_weight else None
            d_bias = None if bias is None or not wants_bias else torch.empty_like(bias)
            for columns in tiles.columns:
                sum_weight = tiles.sums(columns) if wants_weight else None
                sum_bias = weight.new_zeros(columns.stop - columns.start, dtype=torch.float32)
                for part in tiles.rows:
                    h = tiles.tokens(hidden, part)
                    tile, w = tiles.logits(h, columns)
                    m = moments.map(lambda m, part=part: m[part])
                    some = k.map(lambda c, part=part: c[part])
                    gradient(tile, m, some, temperature, tile)
                    if k.at_token is not None:
                        index, inside = _within(local[part], columns)
                        at_token = k.at_token[part].masked_fill(~inside, 0.0).float()
                        tile.scatter_add_(1, index.unsqueeze(1), at_token.unsqueeze(1))
                    if d_hidden is not None:
                        d_hidden[part].addmm_(tile, w)
                    if sum_weight is not None:
                        sum_weight.addmm_(tile.t(), h)
                    if d_bias is not None:
                        sum_bias += tile.sum(dim=0)
                if d_weight is not None and sum_weight is not None:
                    d_weight[columns] = sum_weight
                if d_bias is not None:
                    d_bias[columns] = sum_bias
            if d_hidden is not None:
                d_hidden = shards.add(d_hidden).to(hidden.dtype)
        inputs = [given, weight, bias, *gradients]
        found = refuse_second_derivative([d_hidden, d_weight, d_bias], inputs)
        return *found, None, None, None, None


class _Tiles:
    """The cut of (N, V) into tiles, and the buffers for one of them."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, *, backward: bool
    ) -> None:
        self.weight, self.bias = weight, bias
        count, width = hidden.shape
        on_gpu = hidden.device.type == "cuda"
        # The weight is read once for so many tokens.
        self.tall = tall = max(1, min(4096 if on_gpu else 256, count))
        exact = weight.dtype == torch.float32
        budget = 2**21 if exact and not backward else 2**20  # numbers of the weight
        wide = 8192 if on_gpu else max(256, min(2048, budget // width))
        self.rows = [slice(i, min(i + tall, count)) for i in range(0, count, tall)]
        vocab = len(weight)
        self.columns = [slice(i, min(i + wide, vocab)) for i in range(0, vocab, wide)]
        self._tile = hidden.new_empty(tall * min(wide, vocab), dtype=torch.float32)
        self._tokens = self._weight = None
        if hidden.dtype != torch.float32:
            self._tokens = hidden.new_empty(tall, width, dtype=torch.float32)
        if not exact:
            self._weight = weight.new_empty(min(wide, vocab), width, dtype=torch.float32)
        self._sums: Tensor | None = None

    def tokens(self, hidden: Tensor, part: slice) -> Tensor:
        """Return some rows in float32, in a buffer if they are not."""
        some = hidden[part]
        return some if self._tokens is None else self._tokens[: len(some)].copy_(some)

    def logits(self, h: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
        """Return a tile of logits, in the buffer, and the float32 rows of the weight."""
        w = self.weight[columns]
        if self._weight is not None:
            w = self._weight[: len(w)].copy_(w)
        tile = self._tile[: len(h) * len(w)].view(len(h), len(w))
        if self.bias is None:
            torch.mm(h, w.t(), out=tile)
        else:
            torch.addmm(self.bias[columns].float(), h, w.t(), out=tile)
        return tile, w

    def sums(self, columns: slice) -> Tensor:
        """Return zeros for the gradient of some rows of the weight, in a buffer."""
        count, width = columns.stop - columns.start, self.weight.shape[1]
        if self._sums is None:
            self._sums = self.weight.new_empty(count, width, dtype=torch.float32)
        return self._sums[:count].zero_()

    def ties(self, hidden: Tensor, top: Tensor) -> Tensor:
        """Count the logits of each row that equal the largest of the whole row."""
        counts = torch.zeros_like(top)
        for part in self.rows:
            h = self.tokens(hidden, part)
            for columns in self.columns:
                tile, _ = self.logits(h, columns)
                counts[part] += (tile == top[part].float().unsqueeze(1)).sum(dim=1)
        return counts


def _within(ids: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return the ids as indices into some columns, and whether they are among them."""
    index = ids - columns.start
    width = columns.stop - columns.start
    return index.clamp(0, width - 1), (index >= 0) & (index < width)
