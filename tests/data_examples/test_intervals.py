"""Bootstrap intervals against hand computation, an oracle and scipy's own."""

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from examples.ophthareason.intervals import bootstrap_mean


def test_a_mean_of_equal_successes_is_not_certain() -> None:
    # Wilson at 3 of 3, z = 1.959964: low = n / (n + z^2) = 3 / 6.8415 = 0.43850
    interval = bootstrap_mean([1.0, 1.0, 1.0], ["a", "b", "c"])
    assert interval.low == pytest.approx(0.43850, abs=1e-5)
    assert interval.high == 1.0
    assert bootstrap_mean([0.0] * 3, "abc").high == pytest.approx(1 - 0.43850, abs=1e-5)


def test_repeated_questions_about_one_picture_are_one_piece_of_evidence() -> None:
    # Two pictures, ten questions each: as uncertain as two of two, n / (n + z^2) = 2 / 5.8415.
    interval = bootstrap_mean([1.0] * 20, ["a"] * 10 + ["b"] * 10)
    assert (interval.n, interval.groups) == (20, 2)
    assert interval.low == pytest.approx(0.34238, abs=1e-5)


def test_two_groups_by_hand() -> None:
    # Means of two draws from {0, 1}: 0, 1/2, 1 with 1/4, 1/2, 1/4; 2.5 % and 97.5 % are 0 and 1.
    interval = bootstrap_mean([0.0, 1.0], ["a", "b"])
    assert interval == (0.5, 0.0, 1.0, 2, 2)


def test_groups_of_different_sizes_are_weighed_by_their_items() -> None:
    # Group a: three zeros, group b: one 1. The mean over items is 1/4, not 1/2.
    assert bootstrap_mean([0.0, 0.0, 0.0, 1.0], "aaab").mean == 0.25


def test_one_group_cannot_tell() -> None:
    assert bootstrap_mean([1.0, 2.0], ["a", "a"]) == (1.5, None, None, 2, 1)


def test_without_groups_it_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).normal(size=200)
    ours = bootstrap_mean(values.tolist(), range(200), resamples=5000)
    theirs = (
        cast(Any, stats)
        .bootstrap(
            (values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(1)
        )
        .confidence_interval
    )
    # The ends have a simulation error of about 0.0717 * 0.0375 = 0.003 each at 5000 draws.
    assert ours.low == pytest.approx(float(theirs.low), abs=0.015)
    assert ours.high == pytest.approx(float(theirs.high), abs=0.015)


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 4)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_interval_lies_among_the_values_whatever_groups_are_called(
    pairs: list[tuple[float, int]],
) -> None:
    values, groups = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    interval = bootstrap_mean(values, groups, resamples=300)
    assert interval.mean == pytest.approx(sum(values) / len(values))
    assert interval.groups == len(set(groups))
    if interval.low is not None and interval.high is not None:
        assert interval.low <= interval.high
        if set(values) not in ({0.0}, {1.0}):  # Wilson's reaches beyond the values
            assert min(values) - 1e-9 <= interval.low
            assert interval.high <= max(values) + 1e-9
    renamed = bootstrap_mean(values, [f"group {group}" for group in groups], resamples=300)
    assert renamed == interval  # names of groups do not matter, and equal seeds are equal


@pytest.mark.parametrize(
    ("values", "groups", "words"),
    [
        ([], [], "values must be finite and at least one"),
        ([float("nan")], ["a"], "values must be finite"),
        ([1.0], ["a", "b"], r"groups must be one a value \(1\), got 2"),
    ],
)
def test_bad_input(values: list[float], groups: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bootstrap_mean(values, groups)
    with pytest.raises(ValueError, match=r"confidence must be within \(0, 1\), got 95"):
        bootstrap_mean([1.0], ["a"], confidence=95)
