# Triton's language is untyped, and a kernel is not Python that a type checker follows.
# pyright: basic, reportCallIssue=false, reportOperatorIssue=false
"""GPU: one Triton program for each row and span of the vocabulary.

The logits are read once; float32 sums of a span are merged in float64. Blocks, temperature and
size of the vocabulary are arguments at run time, so that a new value of them compiles nothing
but what Triton specialises by itself (such as a size that is a multiple of 16).
Runs on a CPU in Triton's interpreter (``TRITON_INTERPRET=1`` before the import of triton), which
is how it is tested.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from uadt.kernels.moments import Coefficients, Moments, is_broken, merge

__all__ = ["gradient", "moments", "prepare"]

_BLOCK = 2048
_SPAN = 8 * _BLOCK


def moments(logits: Tensor, temperature: float, *, full: bool) -> Moments:
    """Return the moments of each row; see `uadt.kernels.eager.moments`."""
    del full  # what the others save by it is arithmetic, and this one waits for memory
    count, vocab = logits.shape
    spans = triton.cdiv(vocab, _SPAN)
    out = torch.empty(count, spans, 7, dtype=torch.float32, device=logits.device)
    _moments[(count, spans)](
        logits, out, vocab, *logits.stride(), 1.0 / temperature, SPAN=_SPAN, BLOCK=_BLOCK
    )
    return merge(Moments(*out.double().unbind(-1)), temperature)


def gradient(
    logits: Tensor, moments: Moments, k: Coefficients, temperature: float, out: Tensor
) -> None:
    """Write the gradient of each row; see `uadt.kernels.eager.gradient`."""
    count, vocab = logits.shape
    zero = torch.zeros_like(k.k0)
    k2 = zero if k.k2 is None else k.k2
    k3 = zero if k.k3 is None else k.k3
    broken = is_broken(moments).double()
    rows = torch.stack([moments.top, k.k0, k.k1, k2, k3, broken], dim=-1).float()
    _gradient[(count, triton.cdiv(vocab, _BLOCK))](
        logits, rows, out, vocab, *logits.stride(), *out.stride(), 1.0 / temperature, BLOCK=_BLOCK
    )


def prepare() -> None:
    """Nothing to be done before the first call."""


@triton.jit
def _moments(
    x_ptr,
    out_ptr,
    vocab,
    row_stride,
    column_stride,
    inverse,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # rows times vocabulary passes 2**31
    span = tl.program_id(1)
    top = -float("inf")
    s = 0.0
    t = 0.0
    tt = 0.0
    q = 0.0
    u = 0.0
    n = 0.0
    for block in range(0, SPAN, BLOCK):
        offset = span * SPAN + block + tl.arange(0, BLOCK)
        here = x_ptr + row * row_stride + offset.to(tl.int64) * column_stride
        x = tl.load(here, mask=offset < vocab, other=-float("inf")).to(tl.float32)
        possible = x != -float("inf")  # true for a NaN, which then reaches the sums
        new = tl.maximum(top, tl.max(x, 0))
        below = tl.where(possible, x - new, 0.0)
        z = below * inverse
        e = tl.where(possible, tl.exp(z), 0.0)
        z = tl.where(e == 0.0, 0.0, z)  # 0 log 0 = 0
        started = top > -float("inf")
        moved = tl.where(started, top - new, 0.0)
        d = moved * inverse
        w = tl.where(started, tl.exp(d), 0.0)
        d = tl.where(w == 0.0, 0.0, d)
        tt = (tt + d * (2.0 * t + d * s)) * w + tl.sum(e * z * z, 0)
        t = (t + s * d) * w + tl.sum(e * z, 0)
        s = s * w + tl.sum(e, 0)
        q = q * w * w + tl.sum(e * e, 0)
        u = u + n * moved * inverse + tl.sum(below * inverse, 0)
        n = n + tl.sum(tl.where(possible, 1.0, 0.0), 0)
        top = new
    to = out_ptr + (row * tl.num_programs(1) + span) * 7
    tl.store(to, top)
    tl.store(to + 1, s)
    tl.store(to + 2, t)
    tl.store(to + 3, tt)
    tl.store(to + 4, q)
    tl.store(to + 5, u)
    tl.store(to + 6, n)


@triton.jit
def _gradient(
    x_ptr,
    rows_ptr,
    out_ptr,
    vocab,
    row_stride,
    column_stride,
    out_row_stride,
    out_column_stride,
    inverse,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offset = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = offset < vocab
    x = tl.load(x_ptr + row * row_stride + offset * column_stride, mask=inside, other=0.0)
    k = rows_ptr + row * 6
    z = (x.to(tl.float32) - tl.load(k)) * inverse
    e = tl.exp(z)
    z = tl.where(e == 0.0, 0.0, z)
    g = e * ((tl.load(k + 3) * z + tl.load(k + 2)) * z + tl.load(k + 1) + tl.load(k + 4) * e)
    g = tl.where(tl.load(k + 5) != 0.0, 0.0, g)
    to = out_ptr + row * out_row_stride + offset * out_column_stride
    tl.store(to, g.to(out_ptr.dtype.element_ty), mask=inside)
