"""(state, uncertainties) → state."""

import json
import math
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uadt.threshold import (
    EmaState,
    ema_threshold,
    fixed_threshold,
    per_task,
    quantile_threshold,
    target_threshold,
    task_thresholds,
)

NAN = math.nan
Update = Callable[[EmaState | None, Tensor], EmaState]

SIBLINGS: list[Update] = [
    partial(ema_threshold, decay=0.9),
    partial(fixed_threshold, threshold=0.3),
    partial(quantile_threshold, quantile=0.7),
    partial(target_threshold, share=0.4, rate=0.05),
]


def test_three_steps_by_hand() -> None:
    state = ema_threshold(None, torch.tensor([1.0, 3.0]), decay=0.5)
    assert state == EmaState(2.0, 1)  # the first batch sets it: (1 + 3) / 2
    state = ema_threshold(state, torch.tensor([4.0, NAN, 8.0]), decay=0.5)
    assert state == EmaState(4.0, 2)  # 1/2 * 2 + 1/2 * 6
    state = ema_threshold(state, torch.tensor([0.0]), decay=0.5)
    assert state == EmaState(2.0, 3)  # 1/2 * 4 + 1/2 * 0


def test_a_state_at_step_zero_is_no_past() -> None:
    started = ema_threshold(EmaState(threshold=99.0, step=0), torch.tensor([2.0]), decay=0.9)
    assert started == EmaState(2.0, 1)


def test_without_decay_it_is_the_mean_of_the_batch() -> None:
    state = ema_threshold(EmaState(5.0, 7), torch.tensor([1.0, 2.0]), decay=0.0)
    assert state == EmaState(1.5, 8)


def test_a_quantile_is_one_of_the_values() -> None:
    batch = torch.tensor([4.0, NAN, 1.0, 3.0, 2.0])  # 1 2 3 4
    for quantile, expected in [(0.0, 1.0), (0.25, 1.0), (0.26, 2.0), (0.75, 3.0), (1.0, 4.0)]:
        state = quantile_threshold(EmaState(9.0, 4), batch, quantile=quantile)
        assert state == EmaState(expected, 5), quantile


@pytest.mark.parametrize(("quantile", "count"), [(0.07, 100), (0.14, 50)])
def test_seven_hundredths_of_a_hundred_values_is_the_seventh(quantile: float, count: int) -> None:
    assert quantile * count == 7.000000000000001  # in floating point: it must not be the eighth
    values = torch.arange(1.0, count + 1.0)
    assert quantile_threshold(None, values, quantile=quantile).threshold == 7.0


def test_thresholds_by_task_want_a_completion() -> None:
    with pytest.raises(ValueError, match="must hold at least one completion, got B = 0"):
        per_task({"a": EmaState(0.4, 3)}, torch.zeros(0), [], SIBLINGS[0])


def test_the_target_is_reached_in_a_steady_stream() -> None:
    rng = random.Random(0)
    state = None
    for _ in range(400):
        batch = torch.tensor([rng.gauss(2.0, 0.5) for _ in range(64)])
        state = target_threshold(state, batch, share=0.2, rate=0.05)
    # 20% of a normal distribution lie above mean + 0.8416 sd = 2.4208.
    assert state is not None
    assert state.threshold == pytest.approx(2.4208, abs=0.05)


def test_the_target_starts_at_its_own_quantile() -> None:
    batch = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert target_threshold(None, batch, share=0.25, rate=0.1) == EmaState(3.0, 1)


@pytest.mark.parametrize("update", SIBLINGS)
def test_rows_without_tokens_do_not_vote(update: Update) -> None:
    batch = torch.tensor([0.2, 0.5, 0.9])
    padded = torch.tensor([NAN, 0.2, 0.5, NAN, 0.9, NAN])
    for before in (None, EmaState(0.4, 3)):
        assert update(before, padded) == update(before, batch)


@pytest.mark.parametrize("update", SIBLINGS[:1] + SIBLINGS[2:])
def test_a_batch_of_nothing_changes_nothing(update: Update) -> None:
    nothing = torch.tensor([NAN, NAN])
    assert update(EmaState(0.4, 3), nothing) == EmaState(0.4, 3)
    assert update(None, nothing).step == 0
    # And the next batch is still the first.
    assert update(update(None, nothing), torch.tensor([0.5])) == update(None, torch.tensor([0.5]))


def test_a_fixed_threshold_does_not_count_a_batch_of_nothing() -> None:
    state = fixed_threshold(EmaState(0.3, 3), torch.tensor([NAN]), threshold=0.3)
    assert state == EmaState(0.3, 3)


@pytest.mark.parametrize("update", SIBLINGS)
@given(
    batch=st.lists(st.floats(0, 20, width=32), min_size=1, max_size=20),
    data=st.data(),
)
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_rows_changes_no_bit(
    update: Update, batch: list[float], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(batch))
    for before in (None, EmaState(0.37, 2)):
        assert update(before, torch.tensor(batch)) == update(before, torch.tensor(shuffled))


@given(
    batches=st.lists(st.lists(st.floats(0, 12), min_size=1, max_size=5), min_size=1, max_size=8),
    decay=st.floats(0, 0.999),
)
@settings(max_examples=60, deadline=None)
def test_the_threshold_stays_between_the_smallest_and_largest_mean(
    batches: list[list[float]], decay: float
) -> None:
    state = None
    means: list[float] = []
    for batch in batches:
        state = ema_threshold(state, torch.tensor(batch, dtype=torch.float64), decay=decay)
        means.append(math.fsum(batch) / len(batch))
    assert state is not None
    assert min(means) - 1e-9 <= state.threshold <= max(means) + 1e-9
    # Written out: g^n m_0 + (1 - g) sum_s g^(n-s) m_s
    n = len(means) - 1
    expected = decay**n * means[0] + sum(
        (1 - decay) * decay ** (n - s) * m for s, m in enumerate(means) if s
    )
    assert state.threshold == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("update", SIBLINGS)
def test_ten_steps_resumed_at_each_equal_ten_unbroken(update: Update) -> None:
    g = torch.Generator().manual_seed(1)
    batches = [torch.rand(7, generator=g) for _ in range(10)]
    unbroken = resumed = None
    for batch in batches:
        unbroken = update(unbroken, batch)
        resumed = update(resumed, batch)
        resumed = EmaState(**json.loads(json.dumps(resumed._asdict())))
        assert resumed == unbroken  # exactly: JSON writes what reads back as the same float


# --- per task -------------------------------------------------------------------------------


def test_each_task_moves_alone() -> None:
    update = partial(ema_threshold, decay=0.5)
    states = per_task({}, torch.tensor([1.0, 10.0, 3.0]), ["basic", "complex", "basic"], update)
    assert states == {"basic": EmaState(2.0, 1), "complex": EmaState(10.0, 1)}
    after = per_task(states, torch.tensor([4.0]), ["basic"], update)
    assert after == {"basic": EmaState(3.0, 2), "complex": EmaState(10.0, 1)}
    assert states["basic"] == EmaState(2.0, 1)  # what went in is left alone


def test_per_task_equals_the_tasks_apart() -> None:
    update = partial(ema_threshold, decay=0.9)
    g = torch.Generator().manual_seed(2)
    task = ["a", "b", "c", "a", "b", "a"]
    states: dict[str, EmaState] = {}
    alone: dict[str, EmaState | None] = dict.fromkeys("abc")
    for _ in range(4):
        batch = torch.rand(6, generator=g)
        states = per_task(states, batch, task, update)
        for name in alone:
            rows = torch.tensor([other == name for other in task])
            alone[name] = update(alone[name], batch[rows])
    assert states == alone
    assert list(states) == ["a", "b", "c"]


def test_thresholds_come_back_row_by_row() -> None:
    states = {"a": EmaState(0.2, 1), "b": EmaState(0.4, 1), "empty": EmaState(0.0, 0)}
    rows = task_thresholds(states, ["b", "a", "b", "empty", "new"])
    assert rows[:3].tolist() == [0.4, 0.2, 0.4]
    assert rows[3:].isnan().all()  # never seen with a token


# --- what was wanted and what came ----------------------------------------------------------


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1, NAN])
def test_decay_must_be_below_one(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"decay must be within \[0, 1\), got {decay}"):
        ema_threshold(None, torch.tensor([1.0]), decay=decay)


@pytest.mark.parametrize("update", SIBLINGS)
def test_an_infinite_uncertainty_names_its_rows(update: Update) -> None:
    with pytest.raises(ValueError, match=r"must be finite, or NaN .* got inf in rows \[1, 2\]"):
        update(None, torch.tensor([1.0, math.inf, -math.inf]))


@pytest.mark.parametrize("update", SIBLINGS)
def test_no_completion_is_an_error(update: Update) -> None:
    with pytest.raises(ValueError, match=r"shape \(B,\) with B > 0, got \(0,\)"):
        update(None, torch.zeros(0))


def test_the_numbers_of_the_siblings() -> None:
    batch = torch.tensor([1.0])
    with pytest.raises(ValueError, match="threshold must be finite, got nan"):
        fixed_threshold(None, batch, threshold=NAN)
    with pytest.raises(ValueError, match=r"quantile must be within \[0, 1\], got 40"):
        quantile_threshold(None, batch, quantile=40.0)
    with pytest.raises(ValueError, match=r"share must be within \[0, 1\], got 2.0"):
        target_threshold(None, batch, share=2.0, rate=0.1)
    with pytest.raises(ValueError, match=r"rate must be positive and finite, got 0.0"):
        target_threshold(None, batch, share=0.5, rate=0.0)


def test_a_name_for_each_completion() -> None:
    update = partial(ema_threshold, decay=0.5)
    with pytest.raises(ValueError, match="task must hold 2 names, one a completion, got 1"):
        per_task({}, torch.tensor([1.0, 2.0]), ["a"], update)
    with pytest.raises(ValueError, match="task must hold 2 names"):
        per_task({}, torch.tensor([1.0, 2.0]), "ab", update)
