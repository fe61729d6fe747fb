"""Rows of logits through a path that computes moments and gradients, under autograd.

A path is a module with two functions, ``moments`` and ``gradient`` (see `Path`); what is here is
common to all: leading axes, token ids, the gradient at the chosen token, and the second
derivative, which is refused.
"""

import contextlib
import ctypes
import functools
import itertools
import math
import mmap
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from uadt.kernels import eager
from uadt.kernels.moments import Coefficients, Moments, coefficients, finish, is_broken
from uadt.kernels.statistics import TokenStatistics

__all__ = [
    "MIN_ENTROPY",
    "Path",
    "full_precision",
    "refuse_second_derivative",
    "slabs",
    "statistics",
]


@runtime_checkable
class Path(Protocol):
    """What a module must have to be a path."""

    def moments(self, logits: Tensor, temperature: float, *, full: bool) -> Moments:
        """Return the moments of each row of ``(N, V)`` logits, N at least 1, any strides."""
        ...

    def gradient(
        self, logits: Tensor, moments: Moments, k: Coefficients, temperature: float, out: Tensor
    ) -> None:
        """Write $e^z (k_0 + k_1 z + k_2 z^2 + k_3 e^z)$, and 0 in rows that are broken."""
        ...


def statistics(
    path: Path, logits: Tensor, token_ids: Tensor | None, temperature: float, *, full: bool
) -> TokenStatistics:
    """Return the statistics of ``(*N, V)`` logits; without ``full``, only two of them are right.

    Args:
        path: Which code computes the moments and the gradients.
        logits: Float32 or a half precision, at least one row.
        token_ids: Shape ``(*N)``, or ``None``.
        temperature: Positive.
        full: Whether more than ``entropy`` and ``logprob`` is wanted.
    """
    return TokenStatistics(*_Rows.apply(logits, token_ids, temperature, path, full))


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        token_ids: Tensor | None,
        temperature: float,
        path: Path,
        full: bool,
    ) -> tuple[Tensor | None, ...]:
        shape = logits.shape[:-1]
        parts = [path.moments(rows, temperature, full=full) for rows in slabs(logits)]
        moments = Moments(*(torch.cat(column).view(shape) for column in zip(*parts, strict=True)))
        chosen = known = index = None
        if token_ids is not None:
            known = (token_ids >= 0) & (token_ids < logits.shape[-1])
            index = token_ids.masked_fill(~known, 0).long()
            chosen = logits.gather(-1, index.unsqueeze(-1)).squeeze(-1).double()
            chosen = chosen.masked_fill(~known, math.nan)
        ctx.save_for_backward(logits, known, index, chosen, *moments)
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.path = temperature, path
        return tuple(finish(moments, chosen, temperature, torch.float32))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, known, index, chosen, *rest = ctx.saved_tensors
        moments, temperature = Moments(*rest), ctx.temperature
        with torch.no_grad(), full_precision(logits):
            views = slabs(logits)
            out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
            _huge_pages(out)
            tops = _like(views, moments.top.view(-1))
            ties = None
            if gradients[MIN_ENTROPY] is not None:
                counts = [eager.ties(x, top) for x, top in zip(views, tops, strict=True)]
                ties = torch.cat(counts).view_as(moments.top)
            k = coefficients(moments, gradients, known, ties, temperature)
            rare = k.at_possible is not None or k.at_top is not None
            gradient = eager.gradient if rare else ctx.path.gradient
            flat = moments.map(lambda m: m.view(-1))
            flat_k = k.map(lambda c: c.reshape(-1))
            start = 0
            for rows, into in zip(views, _like(views, out.view(-1, out.shape[-1])), strict=True):
                part = slice(start, start + len(rows))
                some = flat_k.map(lambda c, part=part: c[part])
                m = flat.map(lambda m, part=part: m[part])
                gradient(rows, m, some, temperature, into)
                start += len(rows)
            if k.at_token is not None:
                _set_token(out, moments, k, k.at_token, known, index, chosen, temperature)
        (found,) = refuse_second_derivative([out], [logits, *gradients])
        return found, None, None, None, None


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off: it would round dot products of float32 to half precision.

    Args:
        like: On the device that is computed on.
    """
    kind = like.device.type
    if not torch.amp.is_autocast_available(kind):
        return contextlib.nullcontext()
    return torch.autocast(device_type=kind, enabled=False)


def refuse_second_derivative(
    gradients: Sequence[Tensor | None], inputs: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Let gradients depend on what they were computed from, in a way that raises when used."""
    if not torch.is_grad_enabled():
        return list(gradients)  # without create_graph=True nobody can ask for it
    given = [x for x in inputs if x is not None]
    return [None if g is None else _Once.apply(g, *given) for g in gradients]


class _Once(torch.autograd.Function):
    """The identity, whose gradient is refused."""

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor, *_: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "the fast paths of uadt have no second derivative; set UADT_KERNELS=plain in the "
            "environment, whose gradients can be differentiated again"
        )


def _set_token(
    out: Tensor,
    moments: Moments,
    k: Coefficients,
    at_token: Tensor,
    known: Tensor,
    index: Tensor,
    chosen: Tensor,
    temperature: float,
) -> None:
    """Write the gradient at the chosen token in one piece, so that it is rounded once."""
    z = ((chosen - moments.top) / temperature).clamp(min=-1000.0)  # -inf: e^z = 0, without NaN
    e = z.exp()
    factor = k.k0 + k.k1 * z
    if k.k2 is not None:
        factor = factor + k.k2 * z.square()
    if k.k3 is not None:
        factor = factor + k.k3 * e
    value = e * factor + at_token
    if k.at_possible is not None:
        value = value + k.at_possible * (chosen > -math.inf)
    if k.at_top is not None:
        value = value + k.at_top * (chosen == moments.top)
    rows, index = out.view(-1, out.shape[-1]), index.reshape(-1)
    place = (torch.arange(len(rows), device=out.device), index)
    kept = (known & ~is_broken(moments)).reshape(-1)
    value = torch.where(kept, value.reshape(-1).to(out.dtype), rows[place])
    rows.index_put_(place, value)  # scatter_ would convert the whole of a half precision tensor


def slabs(x: Tensor) -> list[Tensor]:
    """Return views of shape ``(n, V)`` that make up the tensor in order; nothing is copied."""
    if x.ndim == 1:
        return [x.unsqueeze(0)]
    if x.ndim == 2:
        return [x]
    try:
        return [x.view(-1, x.shape[-1])]
    except RuntimeError:  # such as logits[:, :-1]: no one stride goes through all rows
        return [slab for part in x.unbind(0) for slab in slabs(part)]


def _like(views: list[Tensor], rows: Tensor) -> list[Tensor]:
    """Cut rows as the views are cut."""
    starts = itertools.accumulate((len(view) for view in views), initial=0)
    return [rows[start : start + len(view)] for start, view in zip(starts, views, strict=False)]


def _huge_pages(fresh: Tensor) -> None:
    """Ask Linux for large pages: a fresh gradient costs more in page faults than in arithmetic."""
    if sys.platform != "linux" or fresh.device.type != "cpu" or fresh.nbytes < 2**23:
        return
    first = -(-fresh.data_ptr() // _PAGE) * _PAGE
    last = (fresh.data_ptr() + fresh.nbytes) // _PAGE * _PAGE
    advice = 14  # MADV_HUGEPAGE; a hint, so that its refusal means nothing
    _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


_PAGE = mmap.PAGESIZE
MIN_ENTROPY = TokenStatistics._fields.index("min_entropy")
