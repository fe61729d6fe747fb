"""Logits that find mistakes, and what every path must make of them."""

import math
from typing import cast

import torch
from torch import Tensor

from tests import oracle
from uadt import kernels
from uadt.kernels.statistics import TokenStatistics

INF, NAN = math.inf, math.nan


def adversarial(vocab: int, rows: int = 6) -> dict[str, Tensor]:
    """Name → logits of shape ``(rows, vocab)``, rows at least 6."""
    base = 3.0 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab))
    holes = base.masked_fill(base > 1.0, -INF)
    holes[:, 0] = 0.5  # so that each row has one token at least
    broken = holes.clone()
    broken[1] = -INF
    broken[2, -1] = NAN
    broken[3, 0] = INF
    broken[4, : vocab // 2] = NAN
    late = torch.full_like(base, -INF)
    late[:, -1] = 2.0
    return {
        "plain": base,
        "offset of 1e4": base + 1e4,
        "offset of -1e4": base - 1e4,
        "even": torch.full_like(base, 7.0),
        "certain": base.index_fill(1, torch.tensor([vocab - 1]), 200.0),
        "some -inf": holes,
        "all -inf but the last": late,
        "broken rows": broken,
        "finfo.min as a mask": base.masked_fill(holes == -INF, torch.finfo(torch.float32).min),
        "rising": base.sort(dim=-1).values,
        "bfloat16": base.bfloat16(),
        "float16 with -inf": holes.half(),
    }


def tokens(vocab: int, rows: int = 6) -> Tensor:
    """Ids of which one is padding and one is beyond the vocabulary."""
    ids = torch.arange(rows) * 7 % vocab
    ids[-1] = vocab - 1
    ids[0] = -100
    if rows > 6:
        ids[6] = vocab
    return ids


def by_the_oracle(logits: Tensor, ids: Tensor, temperature: float) -> TokenStatistics:
    """The statistics of ``(N, V)`` logits, float64, with the conventions on rows that are none."""
    columns: list[list[float]] = [[] for _ in TokenStatistics._fields]
    all_logits = cast("list[list[float]]", logits.double().tolist())
    for x, y in zip(all_logits, cast("list[int]", ids.tolist()), strict=True):
        if any(math.isnan(v) or v == INF for v in x) or all(v == -INF for v in x):
            values = [NAN] * 6
        else:
            r = oracle.row(x, temperature)
            logprob = r.logprobs[y] if 0 <= y < len(x) else NAN
            rest = [r.varentropy, r.renyi2, r.min_entropy, r.self_certainty]
            values = [r.entropy, logprob, *rest]
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return TokenStatistics(*(torch.tensor(c, dtype=torch.float64) for c in columns))


def assert_same(got: TokenStatistics, expected: TokenStatistics, *, atol: float = 2e-6) -> None:
    """Compare every field; NaN and infinities must stand in the same places."""
    for name, a, b in zip(TokenStatistics._fields, got, expected, strict=True):
        assert a is not None
        assert b is not None
        rtol = 1e-5 if name == "varentropy" else 1e-6
        torch.testing.assert_close(
            a.double(),
            b.double(),
            atol=atol,
            rtol=rtol,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def gradients(
    logits: Tensor, ids: Tensor, temperature: float, path: str, weights: Tensor
) -> list[Tensor]:
    """The gradient of each field alone, and of all together; rows weighted, NaN left out."""
    found: list[Tensor] = []
    for chosen in [*range(6), None]:
        x = logits.detach().clone().requires_grad_()
        s = kernels.statistics(x, ids, temperature, path=path)
        loss = torch.zeros((), dtype=torch.float64)
        for i, value in enumerate(s):
            if value is not None and chosen in (i, None):
                kept = value.isfinite()
                loss = loss + (value[kept] * weights[i, kept].to(value.dtype)).sum()
        if loss.requires_grad:
            loss.backward()
        found.append(torch.zeros_like(x) if x.grad is None else x.grad)
    return found


def assert_autocast_changes_nothing(path: str) -> None:
    """Compare statistics and gradients of logits and of a product, inside autocast and outside."""
    g = torch.Generator().manual_seed(6)
    logits, ids = torch.randn(5, 400, generator=g), torch.arange(5)
    hidden, weight = torch.randn(5, 16, generator=g), torch.randn(400, 16, generator=g)
    found: list[list[Tensor]] = []
    for enabled in (False, True):
        leaves = [x.clone().requires_grad_() for x in (logits, hidden, weight)]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            s = kernels.statistics(leaves[0], ids, 0.7, path=path)
            few = kernels.entropy_and_logprob(leaves[0], ids, 0.7, path=path)
            product = kernels.linear_statistics(leaves[1], leaves[2], ids, None, 0.7, path=path)
            values = [v for v in (*s, *few, *product) if v is not None]
            if path != "plain":  # whose backward pass is torch's own
                torch.stack(values).sum().backward()
        if path == "plain":
            torch.stack(values).sum().backward()
        found.append([*values, *(x.grad for x in leaves if x.grad is not None)])
    assert len(found[0]) == 6 + 2 + 6 + 3
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
