"""CPU, without a compiler: tiles that stay in the cache, and buffers that are used again.

Torch's operations pass over a tensor one after the other. Over a tile of a row or a few they pass
through the cache instead of the memory, so that the logits are read from memory once. ``exp2``
instead of ``exp``, because torch's vector library has the faster one.

If only entropy and log-probability are wanted, a row gets as few passes as can be. One for which
they are not good enough, such as one with ``-inf``, shows in its sums and is done again.
"""

import functools
import math

import torch
from torch import Tensor

from uadt.kernels.moments import Coefficients, Moments, is_broken, merge

__all__ = ["gradient", "moments", "ties"]

_TILE = 327_680
"""Numbers in a tile; the two float32 buffers of a tile take 2.5 MiB."""
_GROUP = 8
"""Tiles whose sums are looked at together."""
_LOG2E = math.log2(math.e)
_NOTHING = -1000.0
"""2 to the power of this is 0, and 0 times this is 0: where ``-inf`` would make a NaN."""


def moments(logits: Tensor, temperature: float, *, full: bool) -> Moments:
    """Return the moments of each row of ``(N, V)`` logits, of any strides.

    Args:
        logits: Float32, bfloat16 or float16.
        temperature: Positive.
        full: Whether all are wanted; else ``second``, ``squares``, ``drop`` and ``possible`` are
            zeros, and ``top`` is rounded.
    """
    tiles = _Tiles(logits, temperature, full=full)
    if full or not _rounds_once(logits.device):
        for place in tiles.places:
            tiles.reduce(*place)
        return tiles.merged()
    for k in range(len(tiles.columns)):
        tiles.reduce_fast(k)
    return tiles.merged()


class _Tiles:
    """The cut of logits into tiles, two buffers, and the sums of each tile."""

    def __init__(self, logits: Tensor, temperature: float, *, full: bool) -> None:
        count, vocab = logits.shape
        self.logits, self.temperature, self.full = logits, temperature, full
        self.scale = _LOG2E / temperature
        self.rows, wide = _tile(vocab)
        self.columns = [slice(i, min(i + wide, vocab)) for i in range(0, vocab, wide)]
        parts = [slice(i, i + self.rows) for i in range(0, count, self.rows)]
        self.places = [(part, k) for part in parts for k in range(len(self.columns))]
        self.buffers = _buffers(logits, self.rows * wide)
        self.clamp = False  # only logits with -inf pay for it
        shape = (8, len(self.columns), count)
        self.sums = torch.zeros(shape, dtype=torch.float32, device=logits.device)
        self.sums[7] = math.nan

    def reduce(self, part: slice, k: int) -> None:
        """Compute the sums of a tile, whatever the logits are."""
        self.sums[:7, k, part] = self._exact(self.logits[part, self.columns[k]])

    def reduce_fast(self, k: int) -> None:
        """Compute what the entropy needs of all tiles of some columns."""
        x = self.logits[:, self.columns[k]]
        # Cut at once: a view costs as much as a tenth of a tile.
        sums = [torch.split(self.sums[i, k].unsqueeze(-1), self.rows) for i in (7, 1, 2)]
        tiles = list(zip(torch.split(x, self.rows), *sums, strict=True))
        wide = x.shape[-1]
        z, e = (b[: self.rows * wide].view(self.rows, wide) for b in self.buffers)
        for start in range(0, len(tiles), _GROUP):
            for tile, shift, total, first in tiles[start : start + _GROUP]:
                if len(tile) < self.rows:
                    z, e = z[: len(tile)], e[: len(tile)]
                self._fast(tile, z, e, shift, total, first)
            group = slice(start * self.rows, (start + _GROUP) * self.rows)
            total, first = self.sums[1:3, k, group].unbind(0)
            wrong = ~((total > 0.5) & first.isfinite())  # -inf: 0 * -inf is NaN
            if bool(wrong.any()):
                self.clamp = True  # for all to come: who masks a token in one row does so in most
                self._mend(k, start * self.rows + wrong.nonzero().flatten())

    def _mend(self, k: int, rows: Tensor) -> None:
        """Compute some rows again that went wrong, and these alone."""
        for some in torch.split(rows, self.rows):
            self.sums[:7, k, some] = self._exact(self.logits[some, self.columns[k]])
        self.sums[7, k, rows] = math.nan

    def _fast(
        self, x: Tensor, z: Tensor, e: Tensor, shift: Tensor, total: Tensor, first: Tensor
    ) -> None:
        if x.dtype != torch.float32 or x.stride(-1) != 1:
            x = z.copy_(x)
        torch.amax(x, dim=-1, keepdim=True, out=shift).mul_(-self.scale)
        # Rounded once, so that z is exact at any offset, but for the rounding of the shift, which
        # moves all z of the row alike and is made good in `merged`.
        torch.add(shift, x, alpha=self.scale, out=z)
        if self.clamp:
            z.clamp_(min=_NOTHING)
        torch.exp2(z, out=e)
        torch.sum(e, dim=-1, keepdim=True, out=total)
        torch.sum(e.mul_(z), dim=-1, keepdim=True, out=first)

    def _exact(self, given: Tensor) -> Tensor:
        z, e = (b[: given.numel()].view(given.shape) for b in self.buffers)
        x = given
        if x.dtype != torch.float32 or x.stride(-1) != 1:
            x = z.copy_(x)
        sums = torch.zeros(7, len(x), dtype=torch.float32, device=x.device)
        top, total, first, second, squares, drop, possible = sums
        m = x.amax(dim=-1, keepdim=True)
        top.copy_(m[:, 0])
        # Finite even where all is -inf; a difference from it is exact at any offset.
        torch.sub(x, m.clamp_(min=torch.finfo(torch.float32).min), out=z)
        if self.full:
            torch.sum(z, dim=-1, out=drop)
            possible.fill_(x.shape[-1])
            if not bool(drop.isfinite().all()):  # -inf: only the others count
                torch.gt(given, -math.inf, out=e)
                torch.sum(e, dim=-1, out=possible)
                z.clamp_(min=torch.finfo(torch.float32).min)
                torch.sum(e.mul_(z), dim=-1, out=drop)
                self.clamp = True
        z.mul_(self.scale)
        while True:
            if self.clamp:
                z.clamp_(min=_NOTHING)
            torch.exp2(z, out=e)
            torch.sum(e, dim=-1, out=total)
            if self.full:
                torch.linalg.vecdot(e, e, out=squares)
            torch.sum(e.mul_(z), dim=-1, out=first)
            if self.clamp or bool(first.isfinite().all()):
                break
            self.clamp = True
        if self.full:
            torch.sum(e.mul_(z), dim=-1, out=second)
        return sums

    def merged(self) -> Moments:
        """Return the moments of the whole rows."""
        top, total, first, second, squares, drop, possible, shift = self.sums.mT.double()
        ln2 = 1.0 / _LOG2E
        parts = Moments(
            # What z was taken from is known to all digits, and so costs none.
            top=torch.where(shift.isnan(), top, shift / -_float32(self.scale)),
            total=total,
            first=first * ln2,
            second=second * ln2**2,
            squares=squares,
            drop=drop / self.temperature,
            possible=possible,
        )
        if len(self.columns) > 1:
            return merge(parts, self.temperature)
        return parts.map(lambda m: m.squeeze(-1))


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
    scale = _LOG2E / temperature
    top, shift = moments.top, -moments.top
    rounded = (shift * scale).float()
    once = _rounds_once(logits.device) and bool(rounded.isfinite().all())
    if once:
        shift = rounded
        k = k.moved((shift.double() / -_float32(scale) - top) / temperature)
    top, shift, k0, k1 = (c.float()[:, None] for c in (top, shift, k.k0, k.k1 * ln2))
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
            if tile.dtype != torch.float32 or tile.stride(-1) != 1:
                tile = z.copy_(tile)
            if once:
                torch.add(shift[part], tile, alpha=scale, out=z).clamp_(min=_NOTHING)
            else:
                torch.add(tile, shift[part], out=z).mul_(scale).clamp_(min=_NOTHING)
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
    broken = is_broken(moments)
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


def _float32(number: float) -> float:
    """Return what torch makes of a number that it combines with float32."""
    return float(torch.tensor(number, dtype=torch.float32, device="cpu"))


@functools.cache
def _rounds_once(device: torch.device) -> bool:
    """Whether ``add`` with ``alpha`` is a fused multiply-add, as on every recent processor."""
    x = torch.full((2, 67), 1 + 2**-12, dtype=torch.float32, device=device)
    first = torch.full((2, 1), -1 - 2**-11, dtype=torch.float32, device=device)
    # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24, of which a rounding between would lose the last.
    return bool((torch.add(first, x, alpha=1 + 2**-12) == 2.0**-24).all())
