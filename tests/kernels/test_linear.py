"""Hidden states × lm-head in tiles: numbers and gradients of logits that are never built."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.cases import assert_same
from uadt import kernels
from uadt.kernels import eager, linear, plain
from uadt.kernels.statistics import TokenStatistics

COUNT, WIDTH, VOCAB = 300, 24, 2500  # two blocks of tokens, two of the vocabulary


BROKEN = 3
"""A row of hidden states that are NaN."""


def inputs(*, bias: bool, dtype: torch.dtype = torch.float32) -> dict[str, Tensor | None]:
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(COUNT, WIDTH, generator=g)
    hidden[BROKEN] = math.nan
    b = torch.randn(VOCAB, generator=g)
    b[5:9] = -math.inf  # tokens that cannot be sampled
    ids = torch.randint(0, VOCAB, (COUNT,), generator=g)
    ids[7] = -100
    return {
        "hidden": hidden.to(dtype),
        "weight": torch.randn(VOCAB, WIDTH, generator=g).to(dtype),
        "token_ids": ids,
        "bias": b.to(dtype) if bias else None,
    }


def materialised(
    hidden: Tensor, weight: Tensor, token_ids: Tensor | None, bias: Tensor | None
) -> TokenStatistics:
    logits = hidden.double() @ weight.double().T
    logits = logits if bias is None else logits + bias.double()
    return plain.statistics(logits, token_ids, 0.8)


def loss(s: TokenStatistics, weights: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i, value in enumerate(s):
        if value is not None:
            kept = value.isfinite()
            total = total + (value[kept] * weights[i, kept].to(value.dtype)).sum()
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["eager", "native"])
@pytest.mark.parametrize("bias", [False, True])
def test_statistics_and_every_gradient(path: str, bias: bool, dtype: torch.dtype) -> None:
    given = inputs(bias=bias, dtype=dtype)
    fast = {
        k: v.clone().requires_grad_() if v is not None and v.is_floating_point() else v
        for k, v in given.items()
    }
    slow = {
        k: v.double().nan_to_num(0.0, neginf=-math.inf).requires_grad_()
        if v is not None and v.is_floating_point()
        else v
        for k, v in given.items()
    }
    s = kernels.linear_statistics(temperature=0.8, path=path, **fast)  # pyright: ignore
    e = materialised(**slow)  # pyright: ignore
    # The weights of half precision are exact in float32, and so is what is compared.
    assert all(value is not None and value[BROKEN].isnan() for value in s)
    sound = torch.arange(COUNT) != BROKEN
    assert_same(*(TokenStatistics(*(v[sound] for v in x)) for x in (s, e)), atol=2e-5)  # pyright: ignore
    weights = torch.randn(6, COUNT, generator=torch.Generator().manual_seed(4)).double()
    weights[:, BROKEN] = 0.0
    loss(s, weights).backward()
    loss(e, weights).backward()
    rounding = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype]
    for name in ("hidden", "weight", "bias"):
        a, b = fast[name], slow[name]
        if a is None or b is None:
            continue
        assert a.grad is not None
        assert b.grad is not None
        assert a.grad.isfinite().all()
        atol = 5 * rounding * float(b.grad.abs().max())
        torch.testing.assert_close(a.grad.double(), b.grad, atol=atol, rtol=2 * rounding)


def test_a_tied_weight_gets_the_sum_of_both_its_uses() -> None:
    g = torch.Generator().manual_seed(5)
    tied = torch.randn(40, 8, generator=g)
    ids = torch.arange(10)

    def total(weight: Tensor, path: str) -> Tensor:
        hidden = weight[ids] * 0.5  # as an embedding
        return kernels.linear_statistics(hidden, weight, ids, None, 1.0, path=path).entropy.sum()

    a, b = (tied.clone().to(d).requires_grad_() for d in (torch.float32, torch.float64))
    total(a, "eager").backward()
    total(b, "plain").backward()
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(a.grad.double(), b.grad, atol=1e-5, rtol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_costs_none() -> None:
    given = inputs(bias=True)
    hidden, weight = given["hidden"], given["weight"]
    assert hidden is not None
    assert weight is not None
    hidden.requires_grad_()
    s = kernels.linear_statistics(hidden, weight, None, given["bias"], 1.0, path="eager")
    s.entropy[s.entropy.isfinite()].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_leading_axes_and_nothing() -> None:
    hidden, weight = torch.randn(2, 3, 8), torch.randn(50, 8)
    ids = torch.randint(0, 50, (2, 3))
    got = kernels.linear_statistics(hidden, weight, ids, None, 1.0, path="eager")
    assert_same(got, plain.linear_statistics(hidden, weight, ids, None, 1.0), atol=1e-5)
    none = kernels.linear_statistics(hidden[:0], weight, ids[:0], None, 1.0)
    assert none.entropy.shape == (0, 3)


def test_the_second_derivative_is_refused() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    s = kernels.linear_statistics(hidden, torch.randn(50, 8), None, None, 1.0, path="eager")
    (grad,) = torch.autograd.grad(s.entropy.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_it_is_refused_whichever_input_asks(which: str) -> None:
    hidden, weight, bias = torch.randn(4, 8), torch.randn(50, 8), torch.randn(50)
    asked = {"weight": weight, "bias": bias}[which].requires_grad_()
    s = kernels.linear_statistics(hidden, weight, None, bias, 1.0, path="eager")
    (grad,) = torch.autograd.grad(s.entropy.sum(), asked, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()


def test_it_is_refused_beside_a_broken_row() -> None:
    hidden = torch.randn(4, 8)
    hidden[1] = math.nan
    hidden.requires_grad_()
    s = kernels.linear_statistics(hidden, torch.randn(50, 8), None, None, 1.0, path="eager")
    (grad,) = torch.autograd.grad(s.entropy[2], hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()


@pytest.mark.parametrize("path", ["eager", "native"])
def test_no_tokens_are_no_statistics_and_gradients_of_zero(path: str) -> None:
    hidden = torch.randn(0, 8, requires_grad=True)
    weight, bias = torch.randn(50, 8, requires_grad=True), torch.randn(50, requires_grad=True)
    ids = torch.zeros(0, dtype=torch.long)
    whole = kernels.linear_statistics(hidden, weight, ids, bias, 1.0, path=path)
    shards = linear.Shards(
        first=0, vocab_size=100, gather=lambda x: torch.stack([x, x]), add=lambda x: x + x
    )
    part = linear.statistics(eager, hidden, weight, ids, bias, 1.0, shards=shards)
    for s in (whole, part):
        assert all(v is not None and v.shape == (0,) for v in s)
        sum((v.sum() for v in s if v is not None), torch.zeros(())).backward()
        assert weight.grad is not None
        assert bias.grad is not None
        assert not weight.grad.any()
        assert not bias.grad.any()
    assert linear.scratch_bytes(hidden, weight)[0] > 0


def test_scratch_does_not_grow_with_the_tokens() -> None:
    sizes = {
        n: linear.scratch_bytes(torch.empty(n, 1024), torch.empty(151_936, 1024, device="meta"))
        for n in (256, 1024, 4096)
    }
    assert len(set(sizes.values())) == 1
    assert max(sizes[256]) <= 16 * 2**20


def test_parts_of_a_vocabulary_make_the_whole() -> None:
    # The combine rule without processes: each part is computed with the gathered moments of all.
    given = inputs(bias=True)
    hidden, weight, bias, ids = (given[k] for k in ("hidden", "weight", "bias", "token_ids"))
    assert hidden is not None
    assert weight is not None
    assert bias is not None
    expected = kernels.linear_statistics(hidden, weight, ids, bias, 0.8, path="eager")
    cuts = [slice(0, 900), slice(900, 1000), slice(1000, VOCAB)]
    sent: list[Tensor] = []

    def send(own: Tensor) -> Tensor:
        sent.append(own)
        return own.unsqueeze(0)

    def receive(_own: Tensor) -> Tensor:
        return torch.stack(sent)

    def part(cut: slice, gather: Callable[[Tensor], Tensor]) -> TokenStatistics:
        shards = linear.Shards(first=cut.start, vocab_size=VOCAB, gather=gather, add=lambda x: x)
        return linear.statistics(eager, hidden, weight[cut], ids, bias[cut], 0.8, shards=shards)

    for cut in cuts:
        part(cut, send)
    for cut in cuts:
        assert_same(part(cut, receive), expected, atol=1e-6)


def test_native_and_eager_agree_on_tiles() -> None:
    given = inputs(bias=False)
    hidden, weight, ids = given["hidden"], given["weight"], given["token_ids"]
    assert hidden is not None
    assert weight is not None
    a, b = (
        kernels.linear_statistics(hidden, weight, ids, None, 1.0, path=p)
        for p in ("eager", "native")
    )
    assert_same(a, b, atol=2e-6)
