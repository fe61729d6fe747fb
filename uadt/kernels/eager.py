"""CPU, without a compiler: tiles that stay in the cache, and buffers that are used again.

Torch's operations pass over a tensor one after the other. Over a tile of a few rows they pass
through the cache instead of the memory, so that the logits are read from memory once. ``exp2``
instead of ``exp``, because torch's vector library has the faster one.
"""

import math

import torch
from torch import Tensor

from uadt.kernels.moments import Coefficients, Moments, merge

__all__ = ["gradient", "moments", "ties"]

_TILE = 524_288
"""Numbers in a tile; the two float32 buffers of a tile take 4 MiB."""
_LOG2E = math.log2(math.e)
_NOTHING = -1000.0
"""2 to the power of this is 0, and 0 times this is 0: where ``-inf`` would make a NaN."""


def moments(logits: Tensor, temperature: float, *, full: bool) -> Moments:
    """Return the moments of each row of ``(N, V)`` logits, of any strides.

    Args:
        logits: Float32, bfloat16 or float16.
        temperature: Positive.
        full: Whether ``second``, ``squares`` and ``drop`` are wanted; else they are zeros.
    """
    count, vocab = logits.shape
    rows, columns = _tile(vocab)
    starts = range(0, vocab, columns)
    scale = _LOG2E / temperature
    sums = torch.zeros(7, len(starts), count, dtype=torch.float32, device=logits.device)
    top, total, first, second, squares, drop, possible = sums
    buffers = _buffers(logits, rows * columns)
    clamp = False
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        for k, column in enumerate(starts):
            tile = logits[part, column : column + columns]
            z, e = (b[: tile.numel()].view(tile.shape) for b in buffers)
            if tile.dtype != torch.float32:
                tile = z.copy_(tile)
            m = tile.amax(dim=-1, keepdim=True)
            top[k, part] = m[:, 0]
            # Finite even where all is -inf; a difference from it is exact at any offset.
            torch.sub(tile, m.clamp_(min=-3e38), out=z)
            if full:
                below = z.sum(dim=-1)
                possible[k, part] = tile.shape[-1]
                if not bool(below.isfinite().all()):  # -inf: only the others count
                    torch.gt(logits[part, column : column + columns], -math.inf, out=e)
                    possible[k, part] = e.sum(dim=-1)
                    z.clamp_(min=torch.finfo(torch.float32).min)
                    below, clamp = e.mul_(z).sum(dim=-1), True
                drop[k, part] = below
            z.mul_(scale)
            while True:
                if clamp:
                    z.clamp_(min=_NOTHING)
                torch.exp2(z, out=e)
                total[k, part] = e.sum(dim=-1)
                if full:
                    squares[k, part] = torch.linalg.vecdot(e, e)
                weighted = e.mul_(z).sum(dim=-1)
                # 0 * -inf. Only logits with -inf pay for the clamp; the first tile pays twice.
                if clamp or bool(weighted.isfinite().all()):
                    break
                clamp = True
            first[k, part] = weighted
            if full:
                second[k, part] = e.mul_(z).sum(dim=-1)
    ln2 = 1.0 / _LOG2E
    parts = Moments(*sums.mT.double())
    parts = parts._replace(
        first=parts.first * ln2, second=parts.second * ln2**2, drop=parts.drop / temperature
    )
    return merge(parts, temperature) if len(starts) > 1 else parts.map(lambda m: m.squeeze(-1))


def gradient(
    logits: Tensor, moments: Moments, k: Coefficients, temperature: float, out: Tensor
) -> None:
    """Write the gradient of each row, but for ``at_token``.

    Args:
        logits: As they were in `moments`.
        moments: Of each row.
        k: Coefficients of each row.
        temperature: As it was in `moments`.
        out: Where to, in the shape of ``logits``.
    """
    count, vocab = logits.shape
    rows, columns = _tile(vocab)
    ln2 = 1.0 / _LOG2E
    broken = ~moments.top.isfinite() | ~moments.first.isfinite()
    top, k0, k1 = (c.float()[:, None] for c in (moments.top, k.k0, k.k1 * ln2))
    k2 = None if k.k2 is None else (k.k2 * ln2**2).float()[:, None]
    k3 = None if k.k3 is None else k.k3.float()[:, None]
    at_possible, at_top = (
        None if c is None else c.float()[:, None] for c in (k.at_possible, k.at_top)
    )
    buffers = _buffers(logits, rows * columns)
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        for column in range(0, vocab, columns):
            tile = logits[part, column : column + columns]
            z, e = (b[: tile.numel()].view(tile.shape) for b in buffers)
            if tile.dtype != torch.float32:
                tile = z.copy_(tile)
            torch.sub(tile, top[part], out=z).mul_(_LOG2E / temperature).clamp_(min=_NOTHING)
            torch.exp2(z, out=e)
            if k2 is None:
                z.mul_(k1[part]).add_(k0[part])
            else:
                square = (z * k2[part]).add_(k1[part])
                z.mul_(square).add_(k0[part])
            if k3 is not None:
                z.addcmul_(e, k3[part])
            into = out[part, column : column + columns]
            if into.dtype == torch.float32 and at_possible is None and at_top is None:
                torch.mul(e, z, out=into)
                continue
            e.mul_(z)
            tile = logits[part, column : column + columns]
            if at_possible is not None:
                e.addcmul_((tile > -math.inf).float(), at_possible[part])
            if at_top is not None:
                e.addcmul_((tile == top[part]).float(), at_top[part])
            into.copy_(e)
    if bool(broken.any()):
        out[broken] = 0.0


def ties(logits: Tensor, top: Tensor) -> Tensor:
    """Count the logits of each row that equal its largest, at least 1."""
    rows, columns = _tile(logits.shape[1])
    counts = torch.zeros_like(top)
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        for column in range(0, logits.shape[1], columns):
            tile = logits[part, column : column + columns]
            counts[part] += (tile == top[part].to(tile.dtype)[:, None]).sum(dim=-1)
    return counts.clamp_(min=1)


def _buffers(logits: Tensor, size: int) -> Tensor:
    return torch.empty(2, size, dtype=torch.float32, device=logits.device)


def _tile(vocab: int) -> tuple[int, int]:
    parts = -(-vocab // _TILE)
    columns = -(-vocab // (parts * 64)) * 64
    return max(1, _TILE // columns), columns
