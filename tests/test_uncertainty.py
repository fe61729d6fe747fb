"""One number a token → one number a completion."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import oracle
from uadt.uncertainty import (
    answer_entropy,
    semantic_entropy,
    sequence_max,
    sequence_mean,
    sequence_sum,
    sequence_top_mean,
)

NAN = math.nan
REDUCTIONS: list[Callable[[Tensor, Tensor], Tensor]] = [
    sequence_mean,
    sequence_top_mean,
    sequence_max,
    sequence_sum,
]

VALUES = torch.tensor([[2.0, 5.0, 1.0, 4.0, 3.0], [7.0, 9.0, 9.0, 9.0, 9.0]])
MASK = torch.tensor([[True] * 5, [True, False, False, False, False]])


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        (sequence_mean, [3.0, 7.0]),  # 15 / 5
        (sequence_sum, [15.0, 7.0]),
        (sequence_max, [5.0, 7.0]),
        (sequence_top_mean, [5.0, 7.0]),  # 20% of five is one token; of one, rounded up, one
    ],
)
def test_reductions_by_hand(
    reduce: Callable[[Tensor, Tensor], Tensor], expected: list[float]
) -> None:
    assert reduce(VALUES, MASK).tolist() == expected


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.2, 5.0),  # 1 token
        (0.21, 4.5),  # rounded up: 2 tokens, (5 + 4) / 2
        (0.6, 4.0),  # 3 tokens, (5 + 4 + 3) / 3
        (1.0, 3.0),  # the mean
        (1e-6, 5.0),  # never less than one
    ],
)
def test_the_top_fraction_is_rounded_up(fraction: float, expected: float) -> None:
    assert sequence_top_mean(VALUES, MASK, fraction=fraction)[0].item() == pytest.approx(expected)


@pytest.mark.parametrize(("fraction", "tokens"), [(0.07, 100), (0.14, 50)])
def test_seven_hundredths_of_a_hundred_are_seven(fraction: float, tokens: int) -> None:
    assert fraction * tokens == 7.000000000000001  # in floating point: it must not become eight
    values = torch.arange(float(tokens)).unsqueeze(0)
    top = sequence_top_mean(values, torch.ones(1, tokens, dtype=torch.bool), fraction=fraction)
    assert top.item() == tokens - 4  # the mean of the seven largest is the fourth of them


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_no_completion_at_all_is_refused(reduce: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"must hold at least one completion, got B = 0"):
        reduce(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_reductions_equal_the_oracle(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 9))
    row = st.lists(st.floats(-50, 50, width=32), min_size=width, max_size=width)
    values = data.draw(st.lists(row, min_size=1, max_size=4))
    picks = st.lists(st.booleans(), min_size=width, max_size=width)
    mask = [data.draw(picks) for _ in values]
    fraction = data.draw(st.floats(0.05, 1.0))
    v, m = torch.tensor(values), torch.tensor(mask)
    for i, (one, pick) in enumerate(zip(values, mask, strict=True)):
        counted = [x for x, p in zip(one, pick, strict=True) if p]
        top = max(1, math.ceil(fraction * len(counted) - 1e-9))
        expected = [
            oracle.mean(counted),
            max(counted, default=NAN),
            math.fsum(counted) if counted else NAN,
            oracle.top_mean(counted, top),
        ]
        got = [
            sequence_mean(v, m)[i].item(),
            sequence_max(v, m)[i].item(),
            sequence_sum(v, m)[i].item(),
            sequence_top_mean(v, m, fraction=fraction)[i].item(),
        ]
        assert got == pytest.approx(expected, abs=2e-5, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("poison", [NAN, math.inf, -math.inf, 1e30])
def test_padding_cannot_change_the_answer(
    reduce: Callable[[Tensor, Tensor], Tensor], poison: float
) -> None:
    poisoned = VALUES.masked_fill(~MASK, poison)
    assert torch.equal(reduce(poisoned, MASK), reduce(VALUES, MASK))
    wider = torch.nn.functional.pad(poisoned, (0, 3), value=poison)
    assert torch.equal(reduce(wider, torch.nn.functional.pad(MASK, (0, 3))), reduce(VALUES, MASK))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_a_row_without_tokens_is_nan_and_alone(
    reduce: Callable[[Tensor, Tensor], Tensor],
) -> None:
    mask = torch.tensor([[False] * 5, [True] * 5])
    result = reduce(VALUES, mask)
    assert result.isnan().tolist() == [True, False]
    assert result[1] == reduce(VALUES[1:], mask[1:])[0]
    assert reduce(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)).isnan().all()


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_rows_do_not_know_each_other(reduce: Callable[[Tensor, Tensor], Tensor]) -> None:
    g = torch.Generator().manual_seed(0)
    values, mask = torch.rand(20, 30, generator=g), torch.rand(20, 30, generator=g) > 0.3
    order = torch.randperm(20, generator=g)
    assert torch.equal(reduce(values[order], mask[order]), reduce(values, mask)[order])
    halves = torch.cat([reduce(values[:7], mask[:7]), reduce(values[7:], mask[7:])])
    assert torch.equal(halves, reduce(values, mask))


def test_the_mean_of_half_precision_is_taken_in_float32() -> None:
    # Summed in bfloat16, 1000 tokens of 1/3 nat stop growing at 128 and average 0.128.
    values = torch.full((1, 1000), 1 / 3).bfloat16()
    mean = sequence_mean(values, torch.ones(1, 1000, dtype=torch.bool))
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(values[0, 0].item(), rel=1e-6)


def test_a_span_restricts_the_mask() -> None:
    think = torch.tensor([[True, True, False, False, False], [False] * 5])
    mean = sequence_mean(VALUES, MASK & think)
    assert mean[0].item() == 3.5  # (2 + 5) / 2
    assert mean[1].isnan()  # it never began to think


# --- of a group -----------------------------------------------------------------------------


def test_semantic_entropy_by_hand() -> None:
    # Group 7: meanings (a, a, b, c): 1/2, 1/4, 1/4, so 3/2 ln 2. Group 8: all the same: 0.
    group = [7, 8, 7, 7, 8, 7]
    clusters = torch.tensor([5, 5, 5, 2, 5, 0])
    entropy = semantic_entropy(clusters, torch.tensor(group))
    expected = [1.5 * math.log(2) if g == 7 else 0.0 for g in group]
    assert entropy.tolist() == pytest.approx(expected, abs=1e-6)


def test_semantic_entropy_weighted_by_probability() -> None:
    # exp(logprob) = (.6, .2, .2) with meanings (a, b, b): .6 and .4.
    logprob = torch.tensor([0.6, 0.2, 0.2]).log() - 700.0  # far below the smallest float32
    entropy = semantic_entropy(
        torch.tensor([0, 1, 1]), torch.zeros(3, dtype=torch.int64), logprob=logprob
    )
    expected = -(0.6 * math.log(0.6) + 0.4 * math.log(0.4))
    assert entropy.tolist() == pytest.approx([expected] * 3, abs=1e-4)  # 700.0 costs four digits


def test_equal_probabilities_are_counts() -> None:
    g = torch.Generator().manual_seed(0)
    clusters = torch.randint(0, 4, (60,), generator=g)
    group = torch.randint(0, 7, (60,), generator=g)
    weighed = semantic_entropy(clusters, group, logprob=torch.full((60,), -3.0))
    torch.testing.assert_close(weighed, semantic_entropy(clusters, group))


def test_the_labels_of_meanings_are_read_within_the_group() -> None:
    group = torch.tensor([0, 0, 1, 1])
    same = semantic_entropy(torch.tensor([0, 1, 0, 1]), group)
    other = semantic_entropy(torch.tensor([0, 1, 8, -3]), group)
    assert torch.equal(same, other)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_semantic_entropy_is_bounded_and_knows_no_order(rows: list[tuple[int, int]]) -> None:
    clusters = torch.tensor([c for c, _ in rows])
    group = torch.tensor([g for _, g in rows])
    entropy = semantic_entropy(clusters, group)
    for i, (_, g) in enumerate(rows):
        size = sum(other == g for _, other in rows)
        assert 0 <= entropy[i].item() <= math.log(size) + 1e-6
    order = torch.arange(len(rows)).flip(0)
    torch.testing.assert_close(semantic_entropy(clusters[order], group[order]), entropy[order])


def test_an_impossible_completion_weighs_nothing() -> None:
    logprob = torch.tensor([-math.inf, -1.0, -1.0])
    entropy = semantic_entropy(
        torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64), logprob=logprob
    )
    assert entropy[0].item() == pytest.approx(math.log(2), abs=1e-6)


def test_answer_entropy_tells_none_from_empty() -> None:
    # Four kinds in a group of four.
    entropy = answer_entropy(["A", "B", "", None], torch.zeros(4, dtype=torch.int64))
    assert entropy.tolist() == pytest.approx([math.log(4)] * 4, abs=1e-6)


# --- what was wanted and what came ----------------------------------------------------------


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_the_mask_must_be_boolean_and_of_the_same_shape(
    reduce: Callable[[Tensor, Tensor], Tensor],
) -> None:
    with pytest.raises(ValueError, match=r"bool tensor of the shape \(B, T\).*got torch.int64"):
        reduce(VALUES, MASK.long())
    with pytest.raises(ValueError, match=r"values, \(2, 5\), got torch.bool of shape \(1, 5\)"):
        reduce(VALUES, MASK[:1])


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, NAN])
def test_the_fraction_must_be_one(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"fraction must be within \(0, 1\], got {fraction}"):
        sequence_top_mean(VALUES, MASK, fraction=fraction)


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_group_needs_a_label_for_each_row() -> None:
    with pytest.raises(ValueError, match=r"clusters and group must have the same shape \(B,\)"):
        semantic_entropy(torch.tensor([0, 1]), torch.tensor([0]))
    with pytest.raises(ValueError, match="the same shape"):
        answer_entropy(["A"], torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="B > 0"):
        answer_entropy([], torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_a_log_probability_must_be_one(bad: float) -> None:
    with pytest.raises(ValueError, match="logprob must be below"):
        semantic_entropy(
            torch.tensor([0, 1]), torch.tensor([0, 0]), logprob=torch.tensor([bad, -1.0])
        )
