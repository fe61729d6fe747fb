"""The path through ``torch.compile``, and the library inside a user's own compiled function."""

import pytest
import torch
from torch import Tensor

import uadt
from tests.kernels.cases import (
    adversarial,
    assert_autocast_changes_nothing,
    assert_same,
    by_the_oracle,
    gradients,
    tokens,
)
from uadt import kernels
from uadt.kernels import compiled, plain


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    try:
        compiled.prepare()
    except Exception as error:  # whatever a compiler raises: there is none that works
        pytest.skip(f"torch.compile does not work here: {error}")


def test_every_statistic_against_the_oracle() -> None:
    for vocab in (17, 5003):  # less than a block; blocks and a rest
        ids = tokens(vocab)
        for name, logits in adversarial(vocab).items():
            if name == "finfo.min as a mask":  # float32 cannot hold the sum of such logits
                continue
            got = kernels.statistics(logits, ids, 0.7, path="compiled")
            assert_same(got, by_the_oracle(logits, ids, 0.7))


def test_gradients_equal_those_of_the_plain_path_in_float64() -> None:
    ids = tokens(5003)
    weights = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double()
    cases = adversarial(5003)
    for name in ("plain", "broken rows"):
        expected = gradients(cases[name].double(), ids, 0.7, "plain", weights)
        got = gradients(cases[name], ids, 0.7, "compiled", weights)
        for a, b in zip(got, expected, strict=True):
            assert a.isfinite().all()
            scale = float(b.abs().max().clamp(min=1.0))
            torch.testing.assert_close(a.double(), b, atol=5e-6 * scale, rtol=1e-6)


def test_exactness_at_the_size_of_a_real_vocabulary() -> None:
    base = 3.0 * torch.randn(2, 151_936, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([5, 151_935])
    for logits in (base, base + 1e4, base.bfloat16()):
        exact = plain.statistics(logits.double(), ids, 1.0)
        entropy, logprob = kernels.entropy_and_logprob(logits, ids, 1.0, path="compiled")
        assert logprob is not None
        assert exact.logprob is not None
        assert (entropy - exact.entropy).abs().max() <= 1e-6
        assert (logprob - exact.logprob).abs().max() <= 1e-6


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_users_compiled_loss_traces_in_one_piece(backend: str) -> None:
    def loss(logits: Tensor, ids: Tensor) -> Tensor:
        s = uadt.token_statistics(logits * 1.5, ids)
        assert s.logprob is not None
        return (s.entropy - 0.3 * s.logprob).sum()

    x, y = torch.randn(3, 3000), torch.tensor([1, 2, 3])
    a, b = (x.clone().requires_grad_() for _ in range(2))
    value = torch.compile(loss, fullgraph=True, backend=backend)(a, y)
    expected = loss(b, y)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-6)
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5)


def test_autocast_changes_no_digit() -> None:
    assert_autocast_changes_nothing("compiled")


@pytest.mark.parametrize("autocast", [False, True])
def test_a_users_compiled_loss_of_hidden_states_traces_in_one_piece(autocast: bool) -> None:
    def loss(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            s = uadt.linear_token_statistics(hidden, weight, ids)
        assert s.logprob is not None
        return (s.entropy - 0.3 * s.logprob + s.renyi2).sum()

    hidden, weight, ids = torch.randn(70, 8), torch.randn(500, 8), torch.arange(70)
    a, b = ([x.clone().requires_grad_() for x in (hidden, weight)] for _ in range(2))
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(a[0], a[1], ids)
    expected = loss(b[0], b[1], ids)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, atol=1e-3, rtol=1e-6)
    for x, y in zip(a, b, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)


def test_rows_are_taken_some_at_a_time() -> None:
    logits = torch.randn(131, 2100, generator=torch.Generator().manual_seed(3))  # 44, 44 and 43
    ids = torch.arange(131)
    expected = plain.statistics(logits.double(), ids, 0.9)
    assert_same(kernels.statistics(logits, ids, 0.9, path="compiled"), expected)
