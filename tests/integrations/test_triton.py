# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# Triton is untyped.
"""The Triton kernel, run on CPU tensors by Triton's interpreter: right here, fast on a GPU.

The interpreter proves the arithmetic, the masks and the strides; it proves nothing about speed,
and nothing about what only hardware does.
"""

import math
import os

os.environ["TRITON_INTERPRET"] = "1"  # must precede the import of triton

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tests.kernels.cases import (  # noqa: E402
    adversarial,
    assert_autocast_changes_nothing,
    assert_same,
    by_the_oracle,
    gradients,
    tokens,
)
from uadt import kernels  # noqa: E402
from uadt.kernels import linear, one_pass, plain  # noqa: E402


@pytest.mark.parametrize("vocab", [1, 17, 5003])
def test_every_statistic_against_the_oracle(vocab: int) -> None:
    ids = tokens(vocab)
    for name, logits in adversarial(vocab).items():
        if name == "finfo.min as a mask":  # float32 cannot hold the sum of such logits
            continue
        got = kernels.statistics(logits, ids, 0.7, path="one_pass")
        assert_same(got, by_the_oracle(logits, ids, 0.7))


def test_gradients_equal_those_of_the_plain_path_in_float64() -> None:
    ids = tokens(5003)
    weights = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double()
    cases = adversarial(5003)
    for name in ("plain", "broken rows", "bfloat16"):
        expected = gradients(cases[name].double(), ids, 0.7, "plain", weights)
        got = gradients(cases[name], ids, 0.7, "one_pass", weights)
        rounding = 4e-3 if name == "bfloat16" else 1e-6
        for a, b in zip(got, expected, strict=True):
            assert a.isfinite().all()
            scale = float(b.abs().max().clamp(min=1.0))
            torch.testing.assert_close(a.double(), b, atol=5 * rounding * scale, rtol=rounding)


def test_several_spans_at_the_size_of_a_real_vocabulary() -> None:
    logits = 3.0 * torch.randn(2, 151_936, generator=torch.Generator().manual_seed(0)) + 1e4
    logits[1, : 151_936 - 8] = -math.inf  # whole spans without a finite logit
    ids = torch.tensor([5, 151_935])
    exact = plain.statistics(logits.double(), ids, 1.0)
    entropy, logprob = kernels.entropy_and_logprob(logits, ids, 1.0, path="one_pass")
    assert logprob is not None
    assert exact.logprob is not None
    assert (entropy - exact.entropy).abs().max() <= 1e-6
    assert (logprob - exact.logprob).abs().max() <= 1e-6


def test_strides() -> None:
    whole = torch.randn(3, 4, 600)
    for logits in (whole[:, :-1], whole[..., ::2], whole.transpose(0, 1)):
        ids = torch.zeros(logits.shape[:-1], dtype=torch.long)
        got = kernels.statistics(logits, ids, 1.0, path="one_pass")
        assert_same(got, plain.statistics(logits.double(), ids, 1.0))


def test_tiles_of_a_product() -> None:
    hidden, weight = torch.randn(5, 16), torch.randn(700, 16)
    ids = torch.arange(5)
    got = linear.statistics(one_pass, hidden, weight, ids, None, 1.0)
    logits = hidden.double() @ weight.double().T
    assert_same(got, plain.statistics(logits, ids, 1.0), atol=1e-5)


def test_it_is_chosen_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UADT_KERNELS", "one_pass")
    assert kernels.choose(torch.zeros(2, 3)) == "one_pass"


def test_autocast_changes_no_digit() -> None:
    assert_autocast_changes_nothing("one_pass")
