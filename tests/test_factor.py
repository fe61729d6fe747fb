"""(uncertainty, threshold) → ω, and (advantage, ω) → shaped advantage."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import oracle
from uadt.factor import (
    SIGN_POLICIES,
    SignPolicy,
    exponential_factor,
    linear_factor,
    shape_advantage,
    sigmoid_factor,
    step_factor,
    tanh_factor,
)

NAN = math.nan
Factor = Callable[[Tensor, float | Tensor], Tensor]
SIBLINGS: list[Factor] = [
    tanh_factor,
    linear_factor,
    exponential_factor,
    sigmoid_factor,
    step_factor,
]

advantages = st.floats(-5, 5, width=32)
factors = st.floats(-1, 1, width=32)


# --- the factor -----------------------------------------------------------------------------


def test_the_example_of_the_reconstruction() -> None:
    # H = 0.30 against θ = 0.25: relative tanh(0.05 / 0.25) = tanh 0.2 = 0.197; in nats
    # tanh 0.05 = 0.04996.
    u = torch.tensor([0.30])
    assert tanh_factor(u, 0.25).item() == pytest.approx(0.197375, abs=1e-6)
    assert tanh_factor(u, 0.25, scale=1.0).item() == pytest.approx(0.049958, abs=1e-6)


def test_the_floor_of_the_relative_scale() -> None:
    # θ = 0.001 would blow any noise up; T is 0.01: tanh((0.006 - 0.001) / 0.01) = tanh 0.5
    omega = tanh_factor(torch.tensor([0.006]), 0.001)
    assert omega.item() == pytest.approx(math.tanh(0.5), abs=1e-6)


def test_slope_is_inside_of_the_tanh() -> None:
    omega = tanh_factor(torch.tensor([3.0]), 2.0, slope=0.5)  # tanh(0.5 * (3 - 2) / 2)
    assert omega.item() == pytest.approx(math.tanh(0.25), abs=1e-6)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [  # x = (U - 2) / 2 = (-1, -0.25, 0, 0.5, 4)
        (tanh_factor, [math.tanh(x) for x in (-1, -0.25, 0, 0.5, 4)]),
        (linear_factor, [-1.0, -0.25, 0.0, 0.5, 1.0]),  # 4 is cut off
        (
            exponential_factor,
            [math.exp(-1) - 1, math.exp(-0.25) - 1, 0, 1 - math.exp(-0.5), 1 - math.exp(-4)],
        ),
        (sigmoid_factor, [math.tanh(x / 2) for x in (-1, -0.25, 0, 0.5, 4)]),  # 2σ(x) - 1
        (step_factor, [-1.0, -1.0, 0.0, 1.0, 1.0]),
    ],
)
def test_siblings_by_hand(factor: Factor, expected: list[float]) -> None:
    u = torch.tensor([0.0, 1.5, 2.0, 3.0, 10.0])
    assert factor(u, 2.0).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("factor", SIBLINGS)
@given(
    uncertainty=st.lists(st.floats(0, 100, width=32), min_size=1, max_size=8),
    threshold=st.floats(0, 12),
)
@settings(max_examples=40, deadline=None)
def test_every_factor_is_bounded_and_signed(
    factor: Factor, uncertainty: list[float], threshold: float
) -> None:
    u = torch.tensor(sorted(uncertainty))
    omega = factor(u, threshold)
    assert (omega.abs() <= 1).all()
    assert (omega.diff() >= 0).all()  # more uncertain is never less
    above = torch.tensor(threshold)
    assert (omega[u > above] >= 0).all()
    assert (omega[u < above] <= 0).all()
    assert (omega[u == above] == 0).all()


@pytest.mark.parametrize("factor", SIBLINGS)
def test_no_tokens_is_neutral(factor: Factor) -> None:
    omega = factor(torch.tensor([NAN, 3.0]), 1.0)
    assert omega[0] == 0
    assert omega[1] > 0
    # Even where the task has no threshold yet, for the same reason.
    omega = factor(torch.tensor([NAN, 3.0]), torch.tensor([NAN, 1.0]))
    assert omega[0] == 0


@pytest.mark.parametrize("factor", SIBLINGS)
def test_a_threshold_for_each_row(factor: Factor) -> None:
    u = torch.tensor([0.4, 0.4, 2.0])
    together = factor(u, torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64))
    apart = [factor(u[i : i + 1], theta).item() for i, theta in enumerate((0.2, 0.5, 1.0))]
    assert together.tolist() == pytest.approx(apart, abs=1e-7)
    assert together.dtype == torch.float32


def test_no_gradient_comes_back_through_the_factor() -> None:
    u = torch.tensor([0.5], requires_grad=True)
    assert not tanh_factor(u, 0.4).requires_grad


# --- the advantage --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "expected"),
    [  # (A, ω) = (2, ½), (2, -½), (-2, ½), (-2, -½) and λ = ½: λ|ω||A| = ½, λ|ω| = ¼
        ("explore", [2.5, 1.5, -1.5, -2.5]),
        ("exploit", [1.5, 2.5, -2.5, -1.5]),
        ("symmetric", [2.5, 1.5, -2.5, -1.5]),
        ("symmetric_inverted", [1.5, 2.5, -1.5, -2.5]),
        ("additive", [2.25, 1.75, -1.75, -2.25]),
    ],
)
def test_each_policy_by_hand(policy: SignPolicy, expected: list[float]) -> None:
    advantage = torch.tensor([2.0, 2.0, -2.0, -2.0])
    factor = torch.tensor([0.5, -0.5, 0.5, -0.5])
    shaped = shape_advantage(advantage, factor, strength=0.5, sign_policy=policy)
    assert shaped.tolist() == expected
    by_token = shape_advantage(
        advantage.unsqueeze(-1).expand(4, 3), factor, strength=0.5, sign_policy=policy
    )
    assert by_token.tolist() == [[x] * 3 for x in expected]


def test_every_policy_is_tested() -> None:
    assert set(SIGN_POLICIES) == {
        "explore",
        "exploit",
        "symmetric",
        "symmetric_inverted",
        "additive",
    }


def test_strength_inside_of_the_tanh() -> None:
    # ω = tanh(λ (U - θ) / T), A + ω|A|, with λ = 0.5, U = 3, θ = T = 2
    omega = tanh_factor(torch.tensor([3.0]), 2.0, slope=0.5)
    shaped = shape_advantage(torch.tensor([-2.0]), omega, strength=None)
    assert shaped.item() == pytest.approx(-2 + 2 * math.tanh(0.25), abs=1e-6)


@given(
    rows=st.lists(st.tuples(advantages, factors), min_size=1, max_size=12),
    strength=st.floats(0, 1, exclude_max=True),
    policy=st.sampled_from(["explore", "exploit", "symmetric", "symmetric_inverted"]),
)
@settings(max_examples=100, deadline=None)
def test_no_sign_flips_and_no_change_beyond_the_strength(
    rows: list[tuple[float, float]], strength: float, policy: SignPolicy
) -> None:
    a = torch.tensor([x for x, _ in rows])
    omega = torch.tensor([w for _, w in rows])
    shaped = shape_advantage(a, omega, strength=strength, sign_policy=policy)
    assert (shaped * a >= 0).all()
    assert ((shaped - a).abs() <= strength * a.abs() * (1 + 1e-5) + 1e-7).all()
    assert (shaped[a == 0] == 0).all()


@given(rows=st.lists(st.tuples(advantages, factors), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_without_strength_or_factor_it_is_the_identity(rows: list[tuple[float, float]]) -> None:
    a = torch.tensor([x for x, _ in rows])
    omega = torch.tensor([w for _, w in rows])
    for policy in ("explore", "exploit", "symmetric", "symmetric_inverted", "additive"):
        assert torch.equal(shape_advantage(a, omega, strength=0.0, sign_policy=policy), a)
        neutral = torch.zeros_like(omega)
        assert torch.equal(shape_advantage(a, neutral, strength=0.9, sign_policy=policy), a)


@given(
    advantage=advantages,
    uncertainty=st.floats(0, 12, width=32) | st.just(NAN),
    threshold=st.floats(0.0, 6.0),
    strength=st.floats(0, 0.999),
)
@settings(max_examples=100, deadline=None)
def test_the_adopted_formula_equals_the_oracle(
    advantage: float, uncertainty: float, threshold: float, strength: float
) -> None:
    omega = tanh_factor(torch.tensor([uncertainty]), threshold)
    shaped = shape_advantage(torch.tensor([advantage]), omega, strength=strength)
    expected = oracle.uadt(advantage, uncertainty, threshold, strength)
    # Near θ the distance is a difference of float32: an error of 1e-6 of θ over T = 0.01 at least.
    assert shaped.item() == pytest.approx(expected, abs=1e-5)


def test_the_range_of_the_multiplier() -> None:
    # λ = 0.5: ω within [tanh(-1), 1] = [-0.762, 1]; A > 0: [0.62, 1.5], A < 0: [0.5, 1.38]
    omega = tanh_factor(torch.tensor([0.0, 1e6]), 0.3)
    right = shape_advantage(torch.ones(2), omega, strength=0.5)
    wrong = -shape_advantage(-torch.ones(2), omega, strength=0.5)
    assert right.tolist() == pytest.approx([0.619203, 1.5], abs=1e-6)
    assert wrong.tolist() == pytest.approx([1.380797, 0.5], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_dtype_of_the_advantage_stays(dtype: torch.dtype) -> None:
    shaped = shape_advantage(torch.ones(2, dtype=dtype), torch.tensor([1.0, -1.0]), strength=0.5)
    assert shaped.dtype == dtype
    assert shaped.tolist() == [1.5, 0.5]


def test_no_gradient_enters_the_advantage() -> None:
    advantage = torch.ones(1, requires_grad=True)
    assert not shape_advantage(advantage, torch.zeros(1), strength=0.5).requires_grad


# --- what was wanted and what came ----------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 2.0, -0.1, NAN])
def test_strength_must_be_below_one(strength: float) -> None:
    with pytest.raises(ValueError, match=rf"strength must be within \[0, 1\), got {strength}"):
        shape_advantage(torch.ones(1), torch.zeros(1), strength=strength)


@pytest.mark.usefixtures("shapes_unchecked")
def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"one of \('explore', .*'additive'\), got 'bold'"):
        shape_advantage(torch.ones(1), torch.zeros(1), strength=0.5, sign_policy="bold")  # pyright: ignore[reportArgumentType] - it is the point


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("advantage", "factor", "message"),
    [
        (torch.ones(2), torch.zeros(3), r"factor \(B,\) with B > 0, got \(2,\) and \(3,\)"),
        (torch.ones(0), torch.zeros(0), r"B > 0, got \(0,\)"),
        (torch.ones(1, 1, 1), torch.zeros(1), r"shape \(B,\) or \(B, T\)"),
        (torch.tensor([0.0, NAN]), torch.zeros(2), r"advantage must be finite, got nan in row 1"),
        (torch.tensor([[0.0, math.inf]]), torch.zeros(1), r"rows \[0\]"),
        (torch.ones(2), torch.tensor([0.0, 1.5]), r"within \[-1, 1\], got \[1.5\] in rows \[1\]"),
        (torch.ones(2), torch.tensor([NAN, 0.0]), r"within \[-1, 1\], got \[nan\] in rows \[0\]"),
    ],
)
def test_what_advantage_and_factor_must_be(advantage: Tensor, factor: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shape_advantage(advantage, factor, strength=0.5)


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_uncertainty_threshold_and_scale_must_be() -> None:
    u = torch.tensor([0.5, NAN])
    with pytest.raises(ValueError, match=r"the same, got \(2,\) and \(3,\)"):
        tanh_factor(u, torch.zeros(3))
    with pytest.raises(ValueError, match=r"B > 0"):
        tanh_factor(torch.zeros(0), 0.5)
    with pytest.raises(ValueError, match=r"threshold must be finite .* got \[nan\] in rows \[0\]"):
        tanh_factor(u, NAN)
    for scale in (0.0, -1.0, NAN, math.inf):
        with pytest.raises(ValueError, match=f"scale must be positive and finite, got {scale}"):
            tanh_factor(u, 0.5, scale=scale)
    with pytest.raises(ValueError, match="scale must be 'relative' or a number, got 'absolute'"):
        tanh_factor(u, 0.5, scale="absolute")  # pyright: ignore[reportArgumentType] - the point
    with pytest.raises(ValueError, match=r"slope must be positive and finite, got 0.0"):
        tanh_factor(u, 0.5, slope=0.0)
