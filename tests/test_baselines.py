"""Rewards and groups → advantages."""

import math
import random
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import oracle
from uadt.baselines import (
    group_advantage,
    maxrl_advantage,
    quantile_advantage,
    rloo_advantage,
    weighted_reinforce,
)

NAN = math.nan
ONE = torch.zeros(4, dtype=torch.int64)


def _w_reinforce(reward: Tensor, group: Tensor, *, keep: Tensor | None = None) -> Tensor:
    del group
    return weighted_reinforce(reward, positive=0.1, keep=keep)


ALL: list[Callable[..., Tensor]] = [
    group_advantage,
    partial(group_advantage, scale="none"),
    partial(group_advantage, singleton="raw"),
    rloo_advantage,
    partial(rloo_advantage, singleton="raw"),
    partial(quantile_advantage, quantile=0.4),
    partial(quantile_advantage, quantile=0.4, scale="std"),
    maxrl_advantage,
    _w_reinforce,
]

rewards = st.floats(0, 1, width=32) | st.sampled_from([0.0, 1.0])
steps = st.lists(st.tuples(rewards, st.integers(-3, 3)), min_size=1, max_size=24)


def _by_group(
    rows: list[tuple[float, int]], one_group: Callable[[Sequence[float]], list[float]]
) -> list[float]:
    """Apply a function to each group of a list, in a loop."""
    result = [NAN] * len(rows)
    for label in {g for _, g in rows}:
        places = [i for i, (_, g) in enumerate(rows) if g == label]
        for i, a in zip(places, one_group([rows[i][0] for i in places]), strict=True):
            result[i] = a
    return result


# --- by hand --------------------------------------------------------------------------------


def test_grpo_by_hand() -> None:
    # Group 3: rewards 1, 0, 0: mean 1/3, squared deviations 4/9 + 1/9 + 1/9 = 2/3, over n - 1 = 2:
    # std = sqrt(1/3). Group 0: 2, 4: mean 3, std sqrt 2.
    reward = torch.tensor([1.0, 2.0, 0.0, 4.0, 0.0])
    group = torch.tensor([3, 0, 3, 0, 3])
    s3, s2 = math.sqrt(1 / 3), math.sqrt(2)
    expected = [2 / 3 / s3, -1 / s2, -1 / 3 / s3, 1 / s2, -1 / 3 / s3]
    assert group_advantage(reward, group, eps=0.0).tolist() == pytest.approx(expected, abs=1e-6)
    # ε adds to the standard deviation: 2/3 / (0.577 + 0.1)
    with_eps = group_advantage(reward, group, eps=0.1)
    assert with_eps[0].item() == pytest.approx(2 / 3 / (s3 + 0.1), abs=1e-6)
    dr = group_advantage(reward, group, scale="none")
    assert dr.tolist() == pytest.approx([2 / 3, -1, -1 / 3, 1, -1 / 3], abs=1e-6)


def test_rloo_by_hand() -> None:
    # 6 - (1 + 2) / 2, 1 - (6 + 2) / 2, 2 - (6 + 1) / 2
    advantage = rloo_advantage(torch.tensor([6.0, 1.0, 2.0]), ONE[:3])
    assert advantage.tolist() == pytest.approx([4.5, -3.0, -1.5])


@pytest.mark.parametrize(
    ("right", "baseline"),
    [  # of five, K = 0.4, so 1 - K = 0.6 of successes is the border
        (0, 0.0),
        (1, 0.0),
        (3, 0.0),  # p = 0.6 exactly: still the hard side; interpolating would say 0.6
        (4, 1.0),  # above: the baseline is 1 and only the failure counts
        (5, 1.0),
    ],
)
def test_the_quantile_is_a_gate_for_binary_rewards(right: int, baseline: float) -> None:
    reward = torch.tensor([1.0] * right + [0.0] * (5 - right))
    group = torch.zeros(5, dtype=torch.int64)
    advantage = quantile_advantage(reward, group, quantile=0.4)
    assert torch.equal(advantage, reward - baseline)


@pytest.mark.parametrize("quantile", [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.9])
def test_the_border_is_exact_at_every_tenth(quantile: float) -> None:
    # Ten rewards, a share of exactly 1 - K successes, which floating point does not hit.
    right = 10 - round(10 * quantile)
    reward = torch.tensor([1.0] * right + [0.0] * (10 - right))
    group = torch.zeros(10, dtype=torch.int64)
    assert torch.equal(quantile_advantage(reward, group, quantile=quantile), reward)


@pytest.mark.parametrize(("quantile", "count"), [(0.07, 100), (0.14, 50)])
def test_seven_hundredths_of_a_hundred_is_the_seventh(quantile: float, count: int) -> None:
    assert quantile * count == 7.000000000000001  # in floating point: it must not be the eighth
    reward = torch.arange(float(count))
    group = torch.zeros(count, dtype=torch.int64)
    assert torch.equal(quantile_advantage(reward, group, quantile=quantile), reward - 6)


def test_quantiles_of_groups_of_different_sizes() -> None:
    # Group 1: 1 2 3 4, the median by count is 2; group 0: 5 9: 5; divided by sqrt(5/3) and sqrt 8.
    reward = torch.tensor([4.0, 9.0, 1.0, 2.0, 5.0, 3.0])
    group = torch.tensor([1, 0, 1, 1, 0, 1])
    advantage = quantile_advantage(reward, group, quantile=0.5)
    assert advantage.tolist() == [2.0, 4.0, -1.0, 0.0, 0.0, 1.0]
    scaled = quantile_advantage(reward, group, quantile=0.5, scale="std", eps=0.0)
    assert scaled[0].item() == pytest.approx(2 / math.sqrt(5 / 3), abs=1e-6)
    assert scaled[1].item() == pytest.approx(4 / math.sqrt(8), abs=1e-6)


def test_maxrl_by_hand() -> None:
    # p = 1/4: (1 - 1/4) / (1/4) = 3 and -1
    advantage = maxrl_advantage(torch.tensor([0.0, 1.0, 0.0, 0.0]), ONE, eps=0.0)
    assert advantage.tolist() == [-1.0, 3.0, -1.0, -1.0]
    nothing = maxrl_advantage(torch.zeros(4), ONE, eps=0.0)
    assert nothing.tolist() == [0.0] * 4


def test_weighted_reinforce_by_hand() -> None:
    reward = torch.tensor([1.0, 0.0, -1.0, 0.5])
    assert weighted_reinforce(reward, positive=0.25).tolist() == [0.25, -1.0, -1.0, -1.0]
    positive_only = weighted_reinforce(reward, positive=1.0, negative=0.0, correct_above=0.4)
    assert positive_only.tolist() == [1.0, 0.0, 0.0, 1.0]


# --- the numbers of the stacks --------------------------------------------------------------


def _verl(rows: list[tuple[float, int]]) -> list[float]:
    """verl 0.9.1's rule: std of n - 1 and ε = 1e-6; a group of one has mean 0 and std 1."""

    def one_group(r: Sequence[float]) -> list[float]:
        return [r[0] / (1 + 1e-6)] if len(r) == 1 else oracle.grpo(r, 1e-6)

    return _by_group(rows, one_group)


@given(rows=steps)
@settings(max_examples=80, deadline=None)
def test_grpo_equals_the_rule_of_verl(rows: list[tuple[float, int]]) -> None:
    reward = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    group = torch.tensor([g for _, g in rows])
    got = group_advantage(reward, group, singleton="raw")
    assert got.tolist() == pytest.approx(_verl(rows), abs=1e-6, rel=1e-6)


def test_grpo_equals_the_rule_of_trl() -> None:
    # TRL 1.16: equal groups, side by side; (r - mean) / (std + 1e-4), std of n - 1.
    reward = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    mean, std = reward.mean(1, keepdim=True), reward.std(1, keepdim=True)
    group = torch.arange(6).repeat_interleave(4)
    got = group_advantage(reward.flatten(), group, eps=1e-4)
    torch.testing.assert_close(got, ((reward - mean) / (std + 1e-4)).flatten())
    got = group_advantage(reward.flatten(), group, scale="none")
    torch.testing.assert_close(got, (reward - mean).flatten())


@given(rows=steps)
@settings(max_examples=60, deadline=None)
def test_rloo_equals_the_oracle(rows: list[tuple[float, int]]) -> None:
    reward = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    got = rloo_advantage(reward, torch.tensor([g for _, g in rows]))
    assert got.tolist() == pytest.approx(_by_group(rows, oracle.rloo), abs=1e-12)


@given(rows=steps, quantile=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_quantile_equals_a_loop(rows: list[tuple[float, int]], quantile: float) -> None:
    def one_group(r: Sequence[float]) -> list[float]:
        # the smallest x with F(x) >= K
        baseline = next(x for x in sorted(r) if sum(y <= x for y in r) / len(r) >= quantile - 1e-10)
        return [x - baseline for x in r]

    reward = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    got = quantile_advantage(reward, torch.tensor([g for _, g in rows]), quantile=quantile)
    assert got.tolist() == pytest.approx(_by_group(rows, one_group), abs=1e-12)


# --- what every baseline does ---------------------------------------------------------------


@pytest.mark.parametrize("baseline", ALL)
def test_the_order_of_the_rows_does_not_matter(baseline: Callable[..., Tensor]) -> None:
    g = torch.Generator().manual_seed(0)
    reward = torch.rand(200, generator=g)
    group = torch.randint(0, 30, (200,), generator=g)
    order = torch.randperm(200, generator=g)
    torch.testing.assert_close(
        baseline(reward[order], group[order]), baseline(reward, group)[order], atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("baseline", ALL)
def test_other_prompts_and_labels_do_not_matter(baseline: Callable[..., Tensor]) -> None:
    g = torch.Generator().manual_seed(1)
    reward = torch.rand(40, generator=g)
    group = torch.randint(0, 6, (40,), generator=g)
    mine = group == group[0]
    alone = baseline(reward[mine], group[mine])
    torch.testing.assert_close(alone, baseline(reward, group)[mine])
    relabelled = baseline(reward, -1000 * group + 7)
    torch.testing.assert_close(relabelled, baseline(reward, group))


@pytest.mark.parametrize("baseline", ALL)
def test_rows_left_out_count_nowhere(baseline: Callable[..., Tensor]) -> None:
    reward = torch.tensor([1.0, NAN, 0.0, 1.0, math.inf, 0.0])
    group = torch.tensor([0, 0, 0, 1, 7, 1])  # a padding row in a group, and a padding group
    keep = torch.tensor([True, False, True, True, False, True])
    got = baseline(reward, group, keep=keep)
    torch.testing.assert_close(got[keep], baseline(reward[keep], group[keep]))
    assert got[~keep].tolist() == [0.0, 0.0]
    nothing = baseline(reward, group, keep=torch.zeros(6, dtype=torch.bool))
    assert nothing.tolist() == [0.0] * 6


@pytest.mark.parametrize("baseline", ALL[:-1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_exactly_nothing(
    baseline: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    # The mean of three 0.1 is not 0.1 in floating point, and the rest over ε = 1e-6 is not small.
    reward = torch.full((3,), 0.1, dtype=dtype)
    assert baseline(reward, torch.zeros(3, dtype=torch.int64)).tolist() == [0.0, 0.0, 0.0]


def test_groups_of_one() -> None:
    reward, group = torch.tensor([0.5, 0.25]), torch.tensor([0, 1])
    for baseline in (
        group_advantage,
        rloo_advantage,
        maxrl_advantage,
        partial(quantile_advantage, quantile=0.4),
    ):
        assert baseline(reward, group).tolist() == [0.0, 0.0]
    raw = group_advantage(reward, group, scale="none", singleton="raw")
    assert raw.tolist() == [0.5, 0.25]
    assert rloo_advantage(reward, group, singleton="raw").tolist() == [0.5, 0.25]
    scaled = group_advantage(reward, group, singleton="raw", eps=1.0)
    assert scaled.tolist() == [0.25, 0.125]  # mean 0, std 1: r / (1 + ε)


def test_sums_over_a_group_are_nothing() -> None:
    g = torch.Generator().manual_seed(2)
    reward = torch.rand(64, generator=g, dtype=torch.float64)
    group = torch.arange(8).repeat_interleave(8)
    for baseline in (group_advantage, rloo_advantage, maxrl_advantage):
        sums = baseline(reward, group).view(8, 8).sum(1)
        torch.testing.assert_close(sums, torch.zeros(8, dtype=torch.float64), atol=1e-9, rtol=0)


def test_nearly_equal_rewards_keep_their_digits() -> None:
    # In float32 the mean of these is off by more than they differ.
    reward = torch.tensor([1e4, 1e4 + 0.001953125, 1e4, 1e4 + 0.001953125])
    got = group_advantage(reward, ONE, eps=0.0)
    expected = oracle.grpo([0.0, 1.0, 0.0, 1.0], 0.0)
    assert got.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("baseline", ALL)
def test_the_dtype_is_float32_at_least_and_no_gradient(baseline: Callable[..., Tensor]) -> None:
    for dtype, result in [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        reward = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=dtype, requires_grad=True)
        advantage = baseline(reward, ONE)
        assert advantage.dtype == result
        assert not advantage.requires_grad


def test_many_groups_of_many_sizes() -> None:
    rng = random.Random(3)
    rows = [(rng.random(), rng.randrange(700)) for _ in range(3000)]
    reward = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    got = group_advantage(reward, torch.tensor([g for _, g in rows]))
    expected = _by_group(rows, partial(oracle.grpo, eps=1e-6))
    assert got.tolist() == pytest.approx(expected, abs=1e-7)


# --- what was wanted and what came ----------------------------------------------------------


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("baseline", ALL)
@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_names_its_row(
    baseline: Callable[..., Tensor], bad: float
) -> None:
    with pytest.raises(ValueError, match=rf"reward must be finite, got \[{bad}\] in rows \[2\]"):
        baseline(torch.tensor([0.0, 1.0, bad, 1.0]), ONE)


def test_equal_rewards_without_an_epsilon_are_nothing_over_nothing() -> None:
    # Group 0 is equal, group 1 has std sqrt 2 and mean 3, group 2 is alone.
    reward, group = torch.tensor([0.1, 0.1, 2.0, 4.0, 9.0]), torch.tensor([0, 0, 1, 1, 2])
    got = group_advantage(reward, group, eps=0.0)
    assert got.tolist() == pytest.approx([0.0, 0.0, -1 / math.sqrt(2), 1 / math.sqrt(2), 0.0])
    gate = quantile_advantage(reward, group, quantile=0.5, scale="std", eps=0.0)
    # The lower of each pair is the baseline: (4 - 2) / sqrt 2.
    assert gate.tolist() == pytest.approx([0.0, 0.0, 0.0, math.sqrt(2), 0.0])


def test_finite_rewards_whose_sum_is_not_are_no_error() -> None:
    reward = torch.full((4,), 1e308, dtype=torch.float64)  # the sum of two is infinite
    assert group_advantage(reward, torch.tensor([0, 0, 1, 1])).tolist() == [0.0] * 4


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("baseline", ALL[:-1])
def test_a_label_for_each_reward(baseline: Callable[..., Tensor]) -> None:
    reward = torch.zeros(4)
    with pytest.raises(
        ValueError, match=r"integer tensor of shape \(4,\) like reward, got .*\(3,\)"
    ):
        baseline(reward, ONE[:3])
    with pytest.raises(ValueError, match=r"group must be an integer tensor .* got torch.float32"):
        baseline(reward, torch.zeros(4))
    with pytest.raises(ValueError, match=r"keep must be a bool tensor .* got torch.int64"):
        baseline(reward, ONE, keep=ONE)
    with pytest.raises(ValueError, match=r"\(B,\) with B > 0, got torch.float32 of shape \(0,\)"):
        baseline(torch.zeros(0), ONE[:0])
    with pytest.raises(ValueError, match=r"floating tensor .* got torch.int64"):
        baseline(ONE, ONE)


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_the_numbers_and_names_must_be() -> None:
    reward = torch.zeros(4)
    with pytest.raises(ValueError, match=r"scale must be one of \('std', 'none'\), got 'batch'"):
        group_advantage(reward, ONE, scale="batch")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"singleton must be one of \('zero', 'raw'\), got 'one'"):
        rloo_advantage(reward, ONE, singleton="one")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"eps must be finite and not negative, got -1.0"):
        maxrl_advantage(reward, ONE, eps=-1.0)
    with pytest.raises(ValueError, match=r"quantile must be within \[0, 1\], got 1.5"):
        quantile_advantage(reward, ONE, quantile=1.5)
    with pytest.raises(ValueError, match=r"positive must be finite and not negative, got -0.1"):
        weighted_reinforce(reward, positive=-0.1)
    with pytest.raises(ValueError, match=r"within \[0, 1\] for a success rate, got \[-1.0\]"):
        maxrl_advantage(torch.tensor([0.0, -1.0, 0.0, 1.0]), ONE)
