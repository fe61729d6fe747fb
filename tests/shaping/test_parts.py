import math
from collections import defaultdict
from random import Random
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uadt.shaping.parts import (
    check_advantage,
    check_between,
    entropy_of,
    exponential_gain,
    minmax_within,
    quantile_within,
    share_within,
    token_labels,
    top_within,
    zscore_within,
)
from uadt.types import MissingSignalError, Rollout

MASK = torch.tensor([[True, True, False], [False, False, False]])
LABELLED = st.lists(
    st.tuples(st.floats(0, 100, width=32), st.integers(-2, 2)), min_size=1, max_size=30
)


def _tensors(pairs: list[tuple[float, int]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([x for x, _ in pairs]), torch.tensor([label for _, label in pairs])


def _by_label(pairs: list[tuple[float, int]]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = defaultdict(list)
    for x, label in pairs:
        found[label].append(x)
    return found


def test_zscore_by_hand() -> None:
    # 1, 2, 6: mean 3, sample variance (4 + 1 + 9) / 2 = 7; 5 is alone in its label.
    z = zscore_within(
        torch.tensor([1.0, 5.0, 2.0, 6.0]), torch.tensor([7, -1, 7, 7]), eps=0.0, correction=1
    )
    expected = torch.tensor([-2.0, 0.0, -1.0, 3.0]) / math.sqrt(7)
    torch.testing.assert_close(z, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("correction", [0, 1])
def test_equal_numbers_have_zscore_zero_without_epsilon(
    dtype: torch.dtype, correction: int
) -> None:
    # (.1 + .1 + .1) / 3 must not leave a rounding error that a deviation near 0 blows up.
    assert (0.1 + 0.1 + 0.1) / 3 != 0.1
    x = torch.full((3,), 0.1, dtype=dtype)
    z = zscore_within(x, torch.zeros(3, dtype=torch.int64), eps=0.0, correction=correction)
    assert torch.equal(z, torch.zeros(3, dtype=dtype))


@settings(max_examples=40)
@given(LABELLED)
def test_zscore_has_mean_zero_in_each_label(pairs: list[tuple[float, int]]) -> None:
    values, labels = _tensors(pairs)
    z = zscore_within(values, labels, eps=1e-6, correction=0)
    for label in {label for _, label in pairs}:
        assert abs(float(z[labels == label].double().mean())) < 1e-4


@settings(max_examples=40)
@given(LABELLED, st.floats(0, 1))
def test_quantile_is_what_sorting_by_hand_gives(pairs: list[tuple[float, int]], q: float) -> None:
    values, labels = _tensors(pairs)
    ours = quantile_within(values, labels, q)
    quantiles = cast("list[float]", ours.tolist())
    for (_, label), found in zip(pairs, quantiles, strict=True):
        ordered = sorted(_by_label(pairs)[label])
        place = q * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        assert found == pytest.approx(low + (high - low) * (place - math.floor(place)), abs=1e-4)


def test_quantile_equals_torchs_where_torch_can() -> None:
    values = torch.rand(1001, generator=torch.Generator().manual_seed(0))
    ours = quantile_within(values, torch.zeros(1001, dtype=torch.int64), 0.8)
    torch.testing.assert_close(ours[0], torch.quantile(values, 0.8))


def test_quantile_has_no_limit_where_torch_has() -> None:
    too_many = 2**24 + 1
    values = torch.arange(too_many, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values, 0.5)
    ours = quantile_within(values, torch.zeros(too_many, dtype=torch.int64), 0.5)
    assert float(ours[0]) == 2**23  # the middle of 0 … 2**24


@settings(max_examples=40)
@given(LABELLED)
def test_shares_are_what_dividing_by_hand_gives(pairs: list[tuple[float, int]]) -> None:
    shares = cast("list[float]", share_within(*_tensors(pairs)).tolist())
    for (x, label), share in zip(pairs, shares, strict=True):
        members = _by_label(pairs)[label]
        whole = sum(members)
        assert share == pytest.approx(x / whole if whole else 1 / len(members), rel=1e-4, abs=1e-6)


@settings(max_examples=40)
@given(LABELLED, st.floats(0, 1))
def test_top_takes_exactly_the_quota_and_nothing_greater_is_left(
    pairs: list[tuple[float, int]], fraction: float
) -> None:
    values, labels = _tensors(pairs)
    chosen = top_within(values, labels, fraction)
    for label, members in _by_label(pairs).items():
        here = labels == label
        quota = max(math.ceil(fraction * len(members) - 1e-9), 0)
        assert float(chosen[here].double().sum()) == pytest.approx(quota, abs=1e-4)
        taken, left = values[here & (chosen > 0)], values[here & (chosen < 1)]
        if len(taken) and len(left):
            assert float(taken.min()) >= float(left.max())  # only equal ones are in both
        shared = values[here & (chosen > 0) & (chosen < 1)]
        assert torch.equal(shared, shared[:1].expand_as(shared))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.floats(0, 1), st.randoms())
def test_top_does_not_depend_on_the_order(numbers: list[int], fraction: float, rng: Random) -> None:
    order = list(range(len(numbers)))
    rng.shuffle(order)
    values, labels = torch.tensor(numbers).float(), torch.zeros(len(numbers), dtype=torch.int64)
    chosen = top_within(values, labels, fraction)
    assert torch.equal(top_within(values[order], labels, fraction), chosen[order])


def test_top_of_nothing_is_nothing() -> None:
    nothing = torch.zeros(0)
    assert len(top_within(nothing, nothing.long(), 0.5)) == 0
    assert len(quantile_within(nothing, nothing.long(), 0.5)) == 0


@pytest.mark.parametrize(("fraction", "count"), [(0.07, 100), (0.14, 50)])
def test_top_seven_hundredths_of_a_hundred_are_seven(fraction: float, count: int) -> None:
    assert fraction * count == 7.000000000000001  # in floating point, and still 7 are meant
    values = torch.arange(float(count))
    chosen = top_within(values, torch.zeros(count, dtype=torch.int64), fraction)
    assert torch.equal(chosen, (values >= count - 7).float())


def test_minmax_by_hand() -> None:
    values, labels = torch.tensor([1.0, 3.0, 2.0, 8.0]), torch.tensor([0, 0, 0, 1])
    # (1, 3, 2) -> (0, 1, .5); 8 is alone, so nothing can be told: .5
    expected = torch.tensor([0.0, 1.0, 0.5, 0.5])
    torch.testing.assert_close(minmax_within(values, labels, eps=0.0), expected)


def test_exponential_gain_counts_zero_as_not_positive() -> None:
    gain = exponential_gain(
        torch.ones(3), torch.tensor([1.0, 0.0, -1.0]), positive=1.0, negative=2.0
    )
    torch.testing.assert_close(gain, torch.tensor([math.e, math.e**2, math.e**2]))


@pytest.mark.parametrize(
    ("scope", "expected"),
    [("batch", [0, 0, 0]), ("sequence", [0, 0, 1]), ("group", [5, 5, -3])],
)
def test_labels_of_each_scope(scope: str, expected: list[int]) -> None:
    mask = torch.tensor([[True, True], [False, True]])
    rollout = Rollout(mask=mask, group=torch.tensor([5, -3]))
    assert token_labels(rollout, scope, wanted_by="test").tolist() == expected  # pyright: ignore[reportArgumentType] - parametrised


def test_a_missing_group_is_named_with_who_wants_it() -> None:
    with pytest.raises(MissingSignalError, match=r"GTPO needs the signal 'group', got None"):
        token_labels(Rollout(mask=MASK), "group", wanted_by="GTPO")


def test_advantages_of_another_shape_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"UADT needs advantages of shape \(2,\) or \(2, 3\) .*got"
    ):
        check_advantage(torch.ones(3), Rollout(mask=MASK), wanted_by="UADT")


def test_advantages_that_belong_come_back_without_gradient() -> None:
    advantage = torch.ones(2, requires_grad=True)
    checked = check_advantage(advantage, Rollout(mask=MASK), wanted_by="UADT")
    assert torch.equal(checked, advantage)
    assert not checked.requires_grad
    assert advantage.requires_grad  # the caller's own is left as it was


def test_an_entropy_that_rounding_pushed_below_zero_counts_as_zero() -> None:
    entropy = torch.tensor([[-0.125, 0.25, float("nan")], [float("nan")] * 3])
    found = entropy_of(Rollout(mask=MASK, entropy=entropy), wanted_by="UADT")
    assert found[MASK].tolist() == [0.0, 0.25]


def test_a_token_method_says_how_to_expand() -> None:
    with pytest.raises(ValueError, match=r"pass advantage\[:, None\]\.expand\(2, 3\)"):
        check_advantage(torch.ones(2), Rollout(mask=MASK), wanted_by="GTPO", per_token=True)


def test_integers_are_no_advantages() -> None:
    with pytest.raises(ValueError, match="UADT needs floating advantages, got int64"):
        check_advantage(torch.ones(2).long(), Rollout(mask=MASK), wanted_by="UADT")


def test_rows_that_are_not_finite_are_named_and_padding_is_not_looked_at() -> None:
    nan, inf = float("nan"), float("inf")
    rollout = Rollout(mask=MASK)
    check_advantage(torch.tensor([[1.0, 1.0, nan], [inf] * 3]), rollout, wanted_by="UADT")
    check_advantage(torch.tensor([1.0, nan]), rollout, wanted_by="UADT")  # row 1 has no token
    with pytest.raises(ValueError, match=r"finite advantages, got NaN or infinity in rows \[0\]"):
        check_advantage(torch.tensor([[1.0, inf, 1.0], [1.0] * 3]), rollout, wanted_by="UADT")


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_numbers_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got"):
        check_between("decay", value, 0.0, 1.0, open_high=True)
