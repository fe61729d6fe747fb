"""Any device, through ``torch.compile``: blocks of 2,048, whose moments are merged after.

A flat formula would become one loop for the maximum and one for the sums, each over all rows;
of a block, the second loop reads what the first left in the cache.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from uadt.kernels.moments import Coefficients, Moments, is_broken, merge

__all__ = ["gradient", "moments", "prepare"]

_BLOCK = 2048
_ROWS = 64
"""Rows in a call: the sums of their blocks exist together; of all rows they would be 2 %."""
_LOG2E = math.log2(math.e)
_NOTHING = -1000.0
"""2 to the power of this is 0, and 0 times this is 0: where ``-inf`` would make a NaN."""


def moments(logits: Tensor, temperature: float, *, full: bool) -> Moments:
    """Return the moments of each row; see `uadt.kernels.eager.moments`."""
    scale = torch.tensor(_LOG2E / temperature, dtype=torch.float32, device=logits.device)
    ln2 = 1.0 / _LOG2E
    found: list[Moments] = []
    # Of nearly equal size: a rest of one row would be compiled for itself.
    for rows in logits.detach().tensor_split(-(-len(logits) // _ROWS)):
        sums = _compiled(_parts)(rows, scale, full)
        top, total, first, second, squares, drop, count = (s.double() for s in sums)
        parts = (top, total, first * ln2, second * ln2**2, squares, drop / temperature, count)
        found.append(merge(Moments(*parts), temperature))
    return Moments(*(torch.cat(m) for m in zip(*found, strict=True)))


def gradient(
    logits: Tensor, moments: Moments, k: Coefficients, temperature: float, out: Tensor
) -> None:
    """Write the gradient of each row; see `uadt.kernels.eager.gradient`."""
    scale = torch.tensor(_LOG2E / temperature, dtype=torch.float32, device=logits.device)
    ln2 = 1.0 / _LOG2E
    zero = torch.zeros_like(k.k0)
    k2 = zero if k.k2 is None else k.k2 * ln2**2
    k3 = zero if k.k3 is None else k.k3
    columns = torch.stack([moments.top, k.k0, k.k1 * ln2, k2, k3]).float().unsqueeze(-1)
    _compiled(_write)(logits, columns, is_broken(moments).unsqueeze(-1), scale, out)


def prepare() -> None:
    """Compile something small, to see whether there is a compiler."""
    _compiled(_parts)(torch.zeros(2, 3), torch.tensor(1.0), False)


def _partial(x: Tensor, scale: Tensor, full: bool) -> list[Tensor]:
    x = x.float()
    top = x.amax(dim=-1, keepdim=True)
    below = x - top.clamp(min=-3e38)  # finite even where the whole block is -inf
    z = (below * scale).clamp(min=_NOTHING)
    e = torch.exp2(z)
    sums = [top.squeeze(-1), e.sum(dim=-1), (e * z).sum(dim=-1)]
    if full:
        possible = x != -math.inf
        sums += [(e * z * z).sum(dim=-1), (e * e).sum(dim=-1)]
        sums += [torch.where(possible, below, 0.0).sum(dim=-1), possible.float().sum(dim=-1)]
    else:
        sums += [torch.zeros_like(sums[1])] * 4
    return sums


def _parts(x: Tensor, scale: Tensor, full: bool) -> list[Tensor]:
    whole = x.shape[-1] // _BLOCK * _BLOCK
    if whole == 0:
        return [s.unsqueeze(-1) for s in _partial(x, scale, full)]
    blocks = cast("Tensor", x[:, :whole].unflatten(-1, (-1, _BLOCK)))
    sums = _partial(blocks, scale, full)
    if whole < x.shape[-1]:
        rest = _partial(x[:, whole:], scale, full)
        sums = [torch.cat([s, r.unsqueeze(-1)], dim=-1) for s, r in zip(sums, rest, strict=True)]
    return sums


def _write(x: Tensor, columns: Tensor, broken: Tensor, scale: Tensor, out: Tensor) -> None:
    top, k0, k1, k2, k3 = columns.unbind(0)
    z = ((x.float() - top) * scale).clamp(min=_NOTHING)
    e = torch.exp2(z)
    g = e * ((k2 * z + k1) * z + k0 + k3 * e)
    out.copy_(torch.where(broken, 0.0, g))


@functools.cache
def _compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(f, dynamic=True)
