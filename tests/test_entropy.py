"""Logits, hidden states and top-k log-probabilities → statistics a token."""

import math
import random
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import oracle
from uadt.entropy import (
    linear_token_statistics,
    surprisal,
    token_entropy,
    token_statistics,
    topk_entropy,
)

INF = math.inf
NAN = math.nan

finite = st.floats(-60, 60, width=32)
rows = st.lists(finite | st.just(-INF), min_size=1, max_size=12).filter(lambda row: max(row) > -INF)
temperatures = st.floats(0.1, 10.0)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([0.0, 0.0], math.log(2)),  # a fair coin
        ([math.log(3.0), 0.0], 0.562335),  # p = (3/4, 1/4): 3/4 ln 4/3 + 1/4 ln 4
        ([50.0, -50.0], 0.0),  # certain
        ([0.0, 0.0, -INF], math.log(2)),  # a forbidden token is not a choice
        ([3.0], 0.0),  # no choice
        ([-INF, 5.0], 0.0),  # the only token left
        ([0.0] * 8, math.log(8)),  # the most uncertain of all
    ],
)
def test_entropy_by_hand(logits: list[float], expected: float) -> None:
    entropy = token_entropy(torch.tensor(logits))
    torch.testing.assert_close(entropy, torch.tensor(expected), atol=1e-6, rtol=0)


def test_every_statistic_by_hand() -> None:
    # p = (1/2, 1/4, 1/4), surprisals (1, 2, 2) ln 2.
    s = token_statistics(torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor(1))
    ln2 = math.log(2)
    assert s.logprob is not None
    assert s.entropy.item() == pytest.approx(1.5 * ln2, abs=1e-6)
    assert s.logprob.item() == pytest.approx(-2 * ln2, abs=1e-6)
    # 1/2 (1 - 1.5)² + 1/2 (2 - 1.5)² = 1/4, in squared ln 2
    assert s.varentropy.item() == pytest.approx(0.25 * ln2**2, abs=1e-6)
    assert s.renyi2.item() == pytest.approx(-math.log(3 / 8), abs=1e-6)  # 1/4 + 1/16 + 1/16
    assert s.min_entropy.item() == pytest.approx(ln2, abs=1e-6)
    # KL(u || p) = 1/3 (ln 2/3 + 2 ln 4/3)
    assert s.self_certainty.item() == pytest.approx(
        (math.log(2 / 3) + 2 * math.log(4 / 3)) / 3, abs=1e-6
    )


@given(row=rows, temperature=temperatures, data=st.data())
@example(row=[0.0, -INF, 60.0], temperature=0.1, data=None)
@settings(max_examples=150, deadline=None)
def test_every_statistic_equals_the_oracle(
    row: list[float], temperature: float, data: st.DataObject | None
) -> None:
    token = data.draw(st.integers(0, len(row) - 1)) if data else 0
    expected = oracle.row(row, temperature)
    s = token_statistics(torch.tensor(row), torch.tensor(token), temperature=temperature)
    assert s.logprob is not None
    for got, wanted in [
        (s.entropy, expected.entropy),
        (s.logprob, expected.logprobs[token]),
        (s.varentropy, expected.varentropy),
        (s.renyi2, expected.renyi2),
        (s.min_entropy, expected.min_entropy),
        (s.self_certainty, expected.self_certainty),
    ]:
        # float32 carries seven digits, of log-probabilities and their squares too.
        assert got.item() == pytest.approx(wanted, abs=2e-6, rel=2e-6)


@given(row=rows, temperature=temperatures)
@settings(max_examples=60, deadline=None)
def test_the_entropies_are_ordered_and_bounded(row: list[float], temperature: float) -> None:
    s = token_statistics(torch.tensor(row), temperature=temperature)
    assert 0 <= s.entropy.item() <= math.log(len(row)) + 1e-6
    assert s.min_entropy.item() <= s.renyi2.item() + 2e-6
    assert s.renyi2.item() <= s.entropy.item() + 2e-6
    assert s.varentropy.item() >= 0
    assert s.logprob is None


@given(row=st.lists(finite, min_size=1, max_size=8), shift=st.integers(-1000, 1000), data=st.data())
@settings(max_examples=60, deadline=None)
def test_neither_a_shift_nor_a_permutation_of_the_vocabulary_matters(
    row: list[float], shift: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(row))))
    x = torch.tensor(row, dtype=torch.float64)
    before = token_statistics(x)
    after = token_statistics(x[list(order)] + shift)
    for a, b in zip(before, after, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_rows_do_not_know_each_other() -> None:
    x = torch.randn(7, 33, generator=torch.Generator().manual_seed(1)) * 4
    alone = torch.stack([token_entropy(one) for one in x])
    torch.testing.assert_close(token_entropy(x), alone, atol=1e-6, rtol=0)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    assert torch.equal(token_entropy(x[order]), token_entropy(x)[order])
    assert token_entropy(x.reshape(7, 1, 33)).shape == (7, 1)


def test_temperature_divides_the_logits() -> None:
    # p = softmax((2 ln 3, 0) / 2) = (3/4, 1/4)
    entropy = token_entropy(torch.tensor([2 * math.log(3.0), 0.0]), temperature=2.0)
    assert entropy.item() == pytest.approx(0.562335, abs=1e-6)


@pytest.mark.parametrize(
    "broken",
    [[-INF, -INF, -INF], [0.0, NAN, 1.0], [0.0, INF, 1.0], [INF, INF, 0.0], [-INF, NAN, -INF]],
)
def test_a_row_that_is_no_distribution_is_nan_and_alone(broken: list[float]) -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], broken, [0.0, 0.0, -INF]], requires_grad=True)
    s = token_statistics(x, torch.tensor([0, 0, 0]))
    for values in s:
        assert values is not None
        assert values.isnan().tolist() == [False, True, False]
    # A mask takes such a row out, and no NaN comes back through the gradient.
    total = s.entropy.masked_fill(s.entropy.isnan(), 0.0).sum()
    total.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[1].tolist() == [0.0, 0.0, 0.0]


def test_an_id_outside_the_vocabulary_has_no_logprob() -> None:
    x = torch.zeros(4, 2)
    s = token_statistics(x, torch.tensor([-100, 2, 1, -1]))
    assert s.logprob is not None
    assert s.logprob.isnan().tolist() == [True, True, False, True]
    assert s.entropy.isfinite().all()


def test_a_forbidden_token_has_logprob_minus_infinity() -> None:
    s = token_statistics(torch.tensor([0.0, -INF]), torch.tensor(1))
    assert s.logprob is not None
    assert s.logprob.item() == -INF


def test_gradient_where_a_token_is_forbidden() -> None:
    row = [1.0, -INF, 0.5, -INF, -2.0]
    x = torch.tensor(row, dtype=torch.float64, requires_grad=True)
    token_entropy(x, temperature=0.7).backward()
    assert x.grad is not None
    assert x.grad[1].item() == 0.0
    assert x.grad.tolist() == pytest.approx(oracle.entropy_gradient(row, 0.7), abs=1e-12)


def test_gradients_of_every_statistic() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x.requires_grad_()

    def all_fields(x: Tensor) -> tuple[Tensor, ...]:
        s = token_statistics(x, torch.tensor([0, 4, 2]), temperature=1.3)
        return tuple(values for values in s if values is not None)

    assert torch.autograd.gradcheck(all_fields, (x,))
    assert torch.autograd.gradcheck(token_entropy, (x,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_result_is_float32_at_least(dtype: torch.dtype) -> None:
    entropy = token_entropy(torch.zeros(2, 3, dtype=dtype))
    assert entropy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_masking_by_the_smallest_number_is_harmless() -> None:
    smallest = torch.finfo(torch.float32).min
    s = token_statistics(torch.tensor([3.0, 3.0, smallest]), temperature=0.5)
    assert s.entropy.item() == pytest.approx(math.log(2), abs=1e-6)
    assert s.varentropy.item() == pytest.approx(0.0, abs=1e-6)


_TRACE = """
import torch
from uadt import token_entropy
x = torch.tensor([[0.0, 0.0, -torch.inf], [1.0, 2.0, 3.0]])
traced = torch.compile(token_entropy, fullgraph=True, backend="eager")(x, temperature=0.5)
torch.testing.assert_close(traced, token_entropy(x, temperature=0.5), atol=1e-6, rtol=0)
"""


def test_it_traces_without_a_graph_break() -> None:
    # In a process of its own: the enforced shapes of this one are decorators, which do not trace.
    # The back-end that runs the graph as it is needs no C++ compiler.
    done = subprocess.run(
        [sys.executable, "-c", _TRACE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- from hidden states ---------------------------------------------------------------------


def _head(tokens: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(4)
    return (
        torch.randn(tokens, width, generator=g, dtype=torch.float64),
        torch.randn(vocabulary, width, generator=g, dtype=torch.float64),
        torch.randn(vocabulary, generator=g, dtype=torch.float64),
        torch.randint(0, vocabulary, (tokens,), generator=g),
    )


@pytest.mark.parametrize("tokens", [0, 1, 64, 150])  # none, one, a tile, more than two
def test_the_linear_path_equals_the_logits(tokens: int) -> None:
    hidden, weight, bias, ids = _head(tokens, 5, 37)
    linear = linear_token_statistics(hidden, weight, ids, bias=bias, temperature=0.8)
    whole = token_statistics(hidden @ weight.T + bias, ids, temperature=0.8)
    for a, b in zip(linear, whole, strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_the_linear_path_has_the_same_gradients() -> None:
    hidden, weight, bias, ids = _head(130, 4, 19)
    grads: list[list[Tensor]] = []
    for linear in (True, False):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        h, w, b = leaves
        s = (
            linear_token_statistics(h.view(2, 65, 4), w, ids.view(2, 65), bias=b)
            if linear
            else token_statistics((h @ w.T + b).view(2, 65, 19), ids.view(2, 65))
        )
        assert s.logprob is not None
        (1.3 * s.entropy + s.logprob + s.varentropy).sum().backward()
        grads.append([x.grad for x in leaves if x.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_without_gradient_the_linear_path_is_the_same() -> None:
    hidden, weight, _, _ = _head(70, 4, 19)
    with torch.no_grad():
        inside = linear_token_statistics(hidden, weight)
    outside = linear_token_statistics(hidden, weight)
    assert inside.logprob is None
    assert torch.equal(inside.entropy, outside.entropy)


# --- from the top k -------------------------------------------------------------------------


def test_top_k_by_hand() -> None:
    # Head 1/2, 1/4 of V = 6: 1/4 left for four tokens, none above 1/4.
    bounds = topk_entropy(torch.tensor([0.25, 0.5], dtype=torch.float64).log(), 6, weight=0.5)
    ln2 = math.log(2)
    lower = 0.5 * ln2 + 0.25 * 2 * ln2 + 0.25 * 2 * ln2  # all of the tail on one token
    upper = 0.5 * ln2 + 0.25 * 2 * ln2 + 0.25 * 4 * ln2  # 1/16 on each of four
    assert bounds.lower.item() == pytest.approx(lower)
    assert bounds.upper.item() == pytest.approx(upper)
    assert bounds.estimate.item() == pytest.approx((lower + upper) / 2)


@given(row=st.lists(st.floats(-20, 20), min_size=1, max_size=30), data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_entropy_is_between_the_bounds(row: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(row)))
    truth = oracle.row(row)
    head = sorted(truth.logprobs, reverse=True)[:k]
    shuffled = data.draw(st.permutations(head))
    bounds = topk_entropy(torch.tensor(shuffled, dtype=torch.float64), len(row))
    # The mass of the tail is a difference to 1, so a 1e-16 of it may be missing: 1e-16 ln 1e16.
    assert bounds.lower.item() <= truth.entropy + 1e-12
    assert bounds.upper.item() >= truth.entropy - 1e-12
    assert bounds.lower.item() <= bounds.estimate.item() <= bounds.upper.item()


def test_more_of_the_head_narrows_the_bounds() -> None:
    logprobs = torch.randn(9, 500, generator=torch.Generator().manual_seed(5)).mul(3)
    logprobs = logprobs.log_softmax(-1).sort(descending=True).values
    width = [
        (bounds.upper - bounds.lower)
        for bounds in (topk_entropy(logprobs[:, :k], 500) for k in (1, 5, 20, 100, 500))
    ]
    for wide, narrow in pairwise(width):
        assert (narrow < wide).all()
    assert width[-1].max() == 0  # the whole vocabulary leaves nothing open


@pytest.mark.parametrize(
    ("logprobs", "why"),
    [
        ([-0.1, NAN], "a NaN"),
        ([0.5, -3.0], "a positive log-probability"),
        ([-0.1, -0.2], "a total of 1.7"),
    ],
)
def test_no_head_of_a_distribution_is_nan(logprobs: list[float], why: str) -> None:
    bounds = topk_entropy(torch.tensor([logprobs, [-0.7, -2.0]]), 10)
    for values in bounds:
        assert values.isnan().tolist() == [True, False], why


def test_forbidden_tokens_in_the_head() -> None:
    # Two tokens can be sampled, and the engine filled its list up: nothing is left for the tail.
    bounds = topk_entropy(torch.tensor([math.log(0.5), math.log(0.5), -INF]), 100)
    assert bounds.lower.item() == pytest.approx(math.log(2), abs=1e-6)
    assert bounds.upper.item() == pytest.approx(math.log(2), abs=1e-5)


def test_surprisal_is_the_entropy_on_average() -> None:
    # sum_y p(y) (-log p(y)) = H, over the whole vocabulary and without a sample.
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    s = token_statistics(logits.expand(4, 4), torch.arange(4))
    assert s.logprob is not None
    mean = (s.logprob.exp() * surprisal(s.logprob)).sum()
    torch.testing.assert_close(mean, s.entropy[0])


# --- what was wanted and what came ----------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF])
def test_temperature_must_be_positive(temperature: float) -> None:
    message = f"temperature must be positive and finite, got {temperature}"
    with pytest.raises(ValueError, match=message):
        token_entropy(torch.zeros(3), temperature=temperature)
    with pytest.raises(ValueError, match=message):
        linear_token_statistics(torch.zeros(1, 2), torch.zeros(3, 2), temperature=temperature)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("logits", "ids", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), None, "logits must be a floating tensor"),
        (torch.zeros(2, 0), None, r"last axis that is not empty, got torch.float32 of shape"),
        (torch.tensor(1.0), None, "logits must be a floating tensor"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), r"of shape \(2,\), the leading"),
        (torch.zeros(2, 3), torch.zeros(2), "token_ids must be integers"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool), "token_ids must be integers"),
    ],
)
def test_what_logits_and_ids_must_be(logits: Tensor, ids: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_statistics(logits, ids)


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_a_head_must_be() -> None:
    hidden = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"weight must have shape \(V, 2\) to fit hidden"):
        linear_token_statistics(hidden, torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"bias must have shape \(5,\), got \(2,\)"):
        linear_token_statistics(hidden, torch.zeros(5, 2), bias=torch.zeros(2))
    with pytest.raises(ValueError, match="the leading axes of hidden"):
        linear_token_statistics(hidden, torch.zeros(5, 2), torch.zeros(3, dtype=torch.int64))


def test_what_top_k_must_be() -> None:
    with pytest.raises(ValueError, match="number of log-probabilities a row, 3, got 2"):
        topk_entropy(torch.tensor([-1.0, -2.0, -3.0]), 2)
    with pytest.raises(ValueError, match=r"weight must be within \[0, 1\], got 2.0"):
        topk_entropy(torch.tensor([-1.0]), 2, weight=2.0)


def test_many_random_rows_equal_the_oracle() -> None:
    rng = random.Random(6)
    for spread in (0.01, 1.0, 10.0, 80.0):
        x = [[rng.gauss(0, spread) for _ in range(50)] for _ in range(20)]
        got = token_entropy(torch.tensor(x, dtype=torch.float64))
        expected = torch.tensor([oracle.row(one).entropy for one in x], dtype=torch.float64)
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_that_no_path_takes_is_named(shapes_unchecked: None) -> None:
    rows = [torch.zeros(2, 4), torch.zeros(3, 4)]
    strided = torch.nested.nested_tensor(rows)
    with pytest.raises(ValueError, match=r"logits must be nested with layout=torch\.jagged"):
        token_entropy(strided)
    jagged = torch.nested.nested_tensor(rows, layout=torch.jagged)
    foreign = torch.nested.nested_tensor(
        [torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)], layout=torch.jagged
    )
    with pytest.raises(ValueError, match="very offsets tensor of logits"):
        token_statistics(jagged, foreign)
