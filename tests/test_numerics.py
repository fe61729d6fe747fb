"""How exact the numbers are, at the size of a real vocabulary and at the edges of float32."""

import math

import pytest
import torch
from torch import Tensor

from uadt.entropy import linear_token_statistics, token_entropy, token_statistics

V = 151_936  # Qwen2.5's


@pytest.fixture(autouse=True, params=["auto", "plain"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """Ask for the path that a user gets, and for the one that the others are compared with."""
    monkeypatch.setenv("UADT_KERNELS", request.param)


def _logits(rows: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3


def _reference(logits: Tensor) -> tuple[Tensor, Tensor]:
    """H = lse - sum p x and log p, in float64, of the same rounded logits.

    Another formula than the library's, and exact enough: float64 loses six of its sixteen digits.
    """
    x = logits.double()
    log_p = x - torch.logsumexp(x, dim=-1, keepdim=True)
    p = log_p.exp()
    return -(p * torch.where(p > 0, log_p, 0.0)).sum(-1), log_p


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4, -1e4])
def test_float32_at_full_vocabulary_is_right_to_a_millionth(offset: float) -> None:
    logits = _logits() + offset
    ids = torch.tensor([0, 5, 70_000, V - 1])
    entropy, log_p = _reference(logits)
    s = token_statistics(logits, ids)
    assert s.logprob is not None
    # The entropies are about 7.4, where neighbouring float32 are 4.8e-7 apart.
    torch.testing.assert_close(s.entropy.double(), entropy, atol=1.5e-6, rtol=0)
    torch.testing.assert_close(
        s.logprob.double(), log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1), atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_at_full_vocabulary(dtype: torch.dtype) -> None:
    logits = _logits(seed=1).to(dtype)
    entropy, _ = _reference(logits)
    # Wanted: 1e-4. A formula that stays in bfloat16 is wrong by 0.04 to 0.09.
    torch.testing.assert_close(token_entropy(logits).double(), entropy, atol=2e-6, rtol=0)


def test_a_forbidden_half_of_the_vocabulary() -> None:
    logits = _logits(seed=2)
    logits[:, ::2] = -math.inf
    entropy, _ = _reference(logits[:, 1::2])
    torch.testing.assert_close(token_entropy(logits).double(), entropy, atol=1.5e-6, rtol=0)


def test_the_gradient_at_full_vocabulary() -> None:
    logits = _logits(rows=1, seed=3)
    logits[0, 7] = -math.inf
    exact = logits.double()
    exact[0, 7] = -1e4  # in float64 this is as good as forbidden, and differentiable
    exact.requires_grad_()
    log_p = exact.log_softmax(-1)
    torch.autograd.backward(-(log_p.exp() * log_p).sum())
    logits.requires_grad_()
    token_entropy(logits).sum().backward()
    assert exact.grad is not None
    assert logits.grad is not None
    assert logits.grad[0, 7] == 0
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=2e-7, rtol=0)


def test_a_token_that_is_almost_certain() -> None:
    # p = 1 / (1 + (V - 1) e^-40): H = 152k * 4e-18 * 40 = 2.6e-11, below what float32 sees beside 1
    logits = torch.zeros(1, V)
    logits[0, 3] = 40.0
    s = token_statistics(logits, torch.tensor([3]))
    assert s.logprob is not None
    assert 0 <= s.entropy.item() < 1e-7
    assert -1e-7 < s.logprob.item() <= 0


def test_the_most_uncertain_token() -> None:
    s = token_statistics(torch.full((1, V), -3.0))
    for values in (s.entropy, s.renyi2, s.min_entropy):
        assert values.item() == pytest.approx(math.log(V), abs=2e-6)
    assert s.varentropy.item() == pytest.approx(0, abs=1e-9)
    assert s.self_certainty.item() == pytest.approx(0, abs=2e-6)


def test_a_half_precision_head_is_not_rounded() -> None:
    g = torch.Generator().manual_seed(4)
    hidden = torch.randn(6, 64, generator=g).bfloat16()
    weight = (torch.randn(20_000, 64, generator=g) * 0.4).bfloat16()
    entropy, _ = _reference(hidden.double() @ weight.double().T)
    got = linear_token_statistics(hidden, weight).entropy
    # Rounding the logits to bfloat16 would be wrong in the third decimal.
    torch.testing.assert_close(got.double(), entropy, atol=3e-6, rtol=0)
    rounded = token_entropy(hidden @ weight.T)
    assert (rounded.double() - entropy).abs().max() > 1e-4
