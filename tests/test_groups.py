"""Sums over groups of rows."""

import random
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uadt.groups import Groups, renumber, row_numbers


def test_sums_means_and_maxima_by_hand() -> None:
    # Group 9 holds 1 and 4, group -2 holds 2, 3 and 10.
    groups = Groups.of(torch.tensor([9, -2, -2, 9, -2]))
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0])
    assert groups.count.tolist() == [3, 2]
    assert groups.total(values).tolist() == [15.0, 5.0]
    assert groups.mean(values).tolist() == [5.0, 2.5]
    assert groups.largest(-values).tolist() == [-2.0, -1.0]
    assert groups.spread(groups.mean(values)).tolist() == [2.5, 5.0, 5.0, 2.5, 5.0]


def test_random_groups_equal_a_loop() -> None:
    rng = random.Random(0)
    labels = [rng.randrange(-50, 50) for _ in range(500)]
    values = [rng.gauss(0, 1) for _ in labels]
    loop: dict[int, list[float]] = defaultdict(list)
    for label, value in zip(labels, values, strict=True):
        loop[label].append(value)
    groups = Groups.of(torch.tensor(labels))
    x = torch.tensor(values, dtype=torch.float64)
    expected = torch.tensor([sum(loop[label]) for label in labels], dtype=torch.float64)
    torch.testing.assert_close(groups.spread(groups.total(x)), expected)
    expected = torch.tensor([max(loop[label]) for label in labels], dtype=torch.float64)
    assert torch.equal(groups.spread(groups.largest(x)), expected)


def test_numbers_follow_the_order_of_the_labels() -> None:
    number, count = renumber(torch.tensor([5, -1, 5, 0]))
    assert number.tolist() == [2, 0, 2, 1]
    assert count.tolist() == [1, 1, 2]


def test_row_numbers() -> None:
    assert row_numbers(torch.tensor([False, True, False, True])) == [1, 3]
    assert row_numbers(torch.zeros(2, 3, dtype=torch.bool)) == []
    assert row_numbers(torch.zeros(2, 0, dtype=torch.bool)) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.integers(-4, 12) | st.sampled_from([1000, -(2**63), 2**63 - 1]), min_size=0, max_size=30
    )
)
def test_close_and_far_labels_are_numbered_alike(labels: list[int]) -> None:
    # Close ones are counted, others sorted; the oracle looks each label up in the sorted set.
    number, count = renumber(torch.tensor(labels, dtype=torch.int64))
    names = sorted(set(labels))
    assert number.tolist() == [names.index(label) for label in labels]
    assert count.tolist() == [labels.count(name) for name in names]
    assert number.dtype == count.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_of_a_small_dtype_do_not_overflow(dtype: torch.dtype) -> None:
    labels = torch.tensor([torch.iinfo(dtype).max, torch.iinfo(dtype).min, 1, 1], dtype=dtype)
    assert renumber(labels)[0].tolist() == [2, 0, 1, 1]


def test_a_member_is_one_of_the_group() -> None:
    groups = Groups.of(torch.tensor([9, -2, -2, 9]))
    members = groups.member(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert members[0] in (2.0, 3.0)
    assert members[1] in (1.0, 4.0)
