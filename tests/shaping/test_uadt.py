import json
import math
import random
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.shaping.batches import padded, pick, random_batch
from uadt.metrics import summarise
from uadt.shaping import UADT, TaskState
from uadt.states import state_from_dict, state_to_dict
from uadt.threshold import EmaState
from uadt.types import EmptyState, MissingSignalError, Rollout

ENTROPY = torch.tensor([[0.2, 0.4, 9.0], [0.9, 0.9, 0.9], [0.1, 9.0, 9.0], [9.0, 9.0, 9.0]])
MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False], [False] * 3])
ROLLOUT = Rollout(mask=MASK, entropy=ENTROPY)  # U = (.3, .9, .1, NaN)
ADVANTAGE = torch.tensor([1.0, -1.0, 2.0, 0.7])
SEEN = EmaState(threshold=0.5, step=3)


def test_a_step_by_hand() -> None:
    shaping = UADT(decay=0.75, strength=0.4)
    advantage, state, info = shaping(ADVANTAGE, ROLLOUT, SEEN)
    # ω = tanh((U − .5) / .5) = tanh(−.4), tanh(.8), tanh(−.8); the last has no token.
    omega = [math.tanh(-0.4), math.tanh(0.8), math.tanh(-0.8), 0.0]
    given_ = (1.0, -1.0, 2.0, 0.7)
    expected = [a + 0.4 * w * abs(a) for a, w in zip(given_, omega, strict=True)]
    torch.testing.assert_close(advantage, torch.tensor(expected))
    torch.testing.assert_close(info["uadt/factor"], torch.tensor(omega))
    torch.testing.assert_close(
        info["uadt/uncertainty"], torch.tensor([0.3, 0.9, 0.1, math.nan]), equal_nan=True
    )
    assert info["uadt/threshold"].tolist() == [0.5] * 4
    # |A| of a wrong and uncertain completion shrinks: 1 − .4 · tanh(.8)
    multipliers = [1 + 0.4 * omega[0], 1 - 0.4 * omega[1], 1 + 0.4 * omega[2], 1.0]
    torch.testing.assert_close(info["uadt/multiplier"], torch.tensor(multipliers))
    # The mean of three votes, (.3 + .9 + .1) / 3, moves it: .75 · .5 + .25 · .4333
    assert state.step == 4
    assert state.threshold == pytest.approx(0.375 + 0.25 * 1.3 / 3)


def test_the_first_batch_is_judged_by_its_own_mean_in_either_order() -> None:
    for update in ("after", "before"):
        shaping = UADT(update=update)
        _, state, info = shaping(ADVANTAGE, ROLLOUT, shaping.init())
        torch.testing.assert_close(info["uadt/threshold"], torch.full((4,), 1.3 / 3))
        assert state.threshold == pytest.approx(1.3 / 3)
        assert state.step == 1


def test_before_uses_the_threshold_that_holds_this_batch() -> None:
    info = UADT(update="before", decay=0.75)(ADVANTAGE, ROLLOUT, SEEN).info
    torch.testing.assert_close(info["uadt/threshold"], torch.full((4,), 0.375 + 0.25 * 1.3 / 3))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # A = (1, 1, −1, −1), ω = (w, −w, w, −w); λ = .5 and d = .5 · w
        ("explore", (1, -1, 1, -1)),
        ("exploit", (-1, 1, -1, 1)),
        ("symmetric", (1, -1, -1, 1)),
        ("symmetric_inverted", (-1, 1, 1, -1)),
        ("additive", (1, -1, 1, -1)),
    ],
)
def test_each_sign_policy_moves_each_quadrant_its_way(policy: Any, expected: tuple[int]) -> None:
    entropy = torch.tensor([[1.5], [0.5], [1.5], [0.5]])
    rollout = Rollout(mask=entropy > 0, entropy=entropy)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    shaped = UADT(sign_policy=policy)(advantage, rollout, EmaState(1.0, 1)).advantage
    d = 0.5 * math.tanh(0.5)
    torch.testing.assert_close(shaped - advantage, torch.tensor(expected) * d)


def test_additive_differs_in_that_it_acts_where_there_is_no_advantage() -> None:
    zero = torch.zeros(4)
    assert torch.equal(UADT()(zero, ROLLOUT, SEEN).advantage, zero)
    moved = UADT(sign_policy="additive")(zero, ROLLOUT, SEEN).advantage
    assert float(moved[1]) == pytest.approx(0.5 * math.tanh(0.8))
    assert float(moved[3]) == 0.0  # no token, so nothing is added


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [("mean", 0.3), ("max", 0.4), ("sum", 0.6), ("top_mean", 0.4)],  # tokens .2 and .4
)
def test_each_reduction(reduce: Any, expected: float) -> None:
    info = UADT(reduce=reduce)(ADVANTAGE, ROLLOUT, SEEN).info
    assert float(info["uadt/uncertainty"][0]) == pytest.approx(expected)


def test_a_span_asks_only_its_tokens() -> None:
    think = torch.tensor([[False, True, False], [True, True, True], [False] * 3, [False] * 3])
    rollout = Rollout(mask=MASK, entropy=ENTROPY, extra={"think": think})
    shaped = UADT(span="think")(ADVANTAGE, rollout, UADT().init())
    expected = torch.tensor([0.4, 0.9, math.nan, math.nan])
    torch.testing.assert_close(shaped.info["uadt/uncertainty"], expected, equal_nan=True)
    assert shaped.state.threshold == pytest.approx(0.65)  # the third has no thought: no vote
    assert float(shaped.advantage[2]) == 2.0  # and keeps its advantage
    assert UADT(span="think").signals == {"entropy", "think"}


def test_a_span_that_is_no_mask_is_refused() -> None:
    rollout = Rollout(mask=MASK, entropy=ENTROPY, extra={"think": MASK.float()})
    with pytest.raises(ValueError, match=r"span 'think' as bool of shape \(4, 3\), got float32"):
        UADT(span="think")(ADVANTAGE, rollout, SEEN)
    with pytest.raises(MissingSignalError, match="UADT needs the signal 'answer'"):
        UADT(span="answer")(ADVANTAGE, rollout, SEEN)


def test_surprisal_is_another_signal_and_never_a_fallback() -> None:
    rollout = Rollout(mask=MASK, logprob=-ENTROPY)
    with pytest.raises(MissingSignalError, match="UADT needs the signal 'entropy', got None"):
        UADT()(ADVANTAGE, rollout, SEEN)
    ours = UADT(signal="surprisal")(ADVANTAGE, rollout, SEEN)
    theirs = UADT()(ADVANTAGE, ROLLOUT, SEEN)
    torch.testing.assert_close(ours.advantage, theirs.advantage)
    # And what is shown says whose numbers they are.
    assert float(ours.info["uadt/of_surprisal"]) == 1.0
    assert set(ours.info) - set(theirs.info) == {"uadt/of_surprisal"}
    assert summarise(ours, ADVANTAGE, rollout)["uadt/of_surprisal"] == 1.0


def test_a_signal_of_another_shape_is_refused() -> None:
    rollout = Rollout(mask=MASK, extra={"mine": torch.ones(4)})
    with pytest.raises(ValueError, match=r"signal 'mine' of shape \(4, 3\), got \(4,\)"):
        UADT(signal="mine")(ADVANTAGE, rollout, SEEN)


def test_a_fixed_threshold_never_moves() -> None:
    shaping = UADT(threshold=0.5)
    shaped = shaping(ADVANTAGE, ROLLOUT, shaping.init())
    assert shaped.state == EmptyState()
    torch.testing.assert_close(shaped.advantage, UADT()(ADVANTAGE, ROLLOUT, SEEN).advantage)


def test_a_scale_in_nats() -> None:
    info = UADT(scale=2.0)(ADVANTAGE, ROLLOUT, SEEN).info
    assert float(info["uadt/factor"][1]) == pytest.approx(math.tanh(0.4 / 2))


def test_the_strength_may_sit_inside_the_tanh() -> None:
    shaped = UADT(strength=0.5, strength_in_tanh=True)(ADVANTAGE, ROLLOUT, SEEN)
    omega = math.tanh(0.5 * 0.4 / 0.5)
    assert float(shaped.info["uadt/factor"][1]) == pytest.approx(omega)
    assert float(shaped.advantage[1]) == pytest.approx(-1 + omega)
    none = UADT(strength=0.0, strength_in_tanh=True)(ADVANTAGE, ROLLOUT, SEEN)
    assert torch.equal(none.advantage, ADVANTAGE)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        # x = (.9 − .5) / .5 = .8
        ("linear", 0.8),
        ("exponential", 1 - math.exp(-0.8)),
        ("sigmoid", 2 / (1 + math.exp(-0.8)) - 1),
        ("step", 1.0),
    ],
)
def test_the_siblings_of_tanh(curve: Any, expected: float) -> None:
    info = UADT(curve=curve)(ADVANTAGE, ROLLOUT, SEEN).info
    assert float(info["uadt/factor"][1]) == pytest.approx(expected)


def test_a_threshold_for_each_task() -> None:
    shaping = UADT(per_task=True, decay=0.5)
    rollout = Rollout(mask=MASK, entropy=ENTROPY, task=["basic", "complex", "basic", "rare"])
    _, state, info = shaping(ADVANTAGE, rollout, shaping.init())
    # basic: (.3 + .1) / 2; complex: .9, judged by itself; rare has no token, so nothing is known
    expected = torch.tensor([0.2, 0.9, 0.2, math.nan])
    torch.testing.assert_close(info["uadt/threshold"], expected, equal_nan=True)
    assert float(info["uadt/factor"][1]) == 0.0
    assert state.by_task["rare"].step == 0
    # Next step only complex ones come: basic keeps its threshold, complex moves half the way.
    again = Rollout(mask=MASK, entropy=torch.full((4, 3), 0.1), task=["complex"] * 4)
    _, state, info = shaping(ADVANTAGE, again, state)
    torch.testing.assert_close(info["uadt/threshold"], torch.full((4,), 0.9))
    assert state.by_task["basic"].threshold == pytest.approx(0.2)
    assert state.by_task["complex"].threshold == pytest.approx(0.5)


def test_a_state_of_the_other_kind_is_refused() -> None:
    rollout = Rollout(mask=MASK, entropy=ENTROPY, task=["a"] * 4)
    with pytest.raises(ValueError, match=r"UADT\(per_task=True\) needs a TaskState, got EmaState"):
        UADT(per_task=True)(ADVANTAGE, rollout, SEEN)
    with pytest.raises(ValueError, match=r"UADT needs an EmaState, got TaskState"):
        UADT()(ADVANTAGE, ROLLOUT, TaskState({}))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1\.0"),
        ({"decay": -0.1}, r"decay must be in \[0, 1\), got -0\.1"),
        ({"strength": 1.0}, r"strength must be in \[0, 1\), got 1\.0"),
        ({"strength": math.nan}, r"strength must be in \[0, 1\), got nan"),
        ({"scale": 0.0}, r'scale must be "relative" or a positive number, got 0\.0'),
        ({"threshold": math.inf}, "threshold must be finite or None, got inf"),
        ({"top_fraction": 0.0}, r"top_fraction must be above 0, got 0\.0"),
        ({"top_fraction": 1.5}, r"top_fraction must be in \[0, 1\], got 1\.5"),
        ({"strength_in_tanh": True, "curve": "step"}, 'strength_in_tanh needs curve="tanh"'),
        ({"per_task": True, "threshold": 0.5}, "per_task needs a moving threshold"),
    ],
)
def test_numbers_are_checked(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        UADT(**arguments)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": "absolute"}, r'scale must be "relative" or a positive number'),
        ({"reduce": "median"}, "reduce must be one of 'mean', 'top_mean', 'max', 'sum'"),
        ({"sign_policy": "invert"}, "sign_policy must be one of 'explore', 'exploit', .* 'invert'"),
        ({"update": "never"}, "update must be one of 'after', 'before', got 'never'"),
        ({"curve": "relu"}, "curve must be one of 'tanh', .*got 'relu'"),
    ],
)
def test_words_are_checked(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        UADT(**arguments)


def test_a_batch_without_tokens_changes_nothing() -> None:
    nothing = Rollout(mask=torch.zeros(2, 3, dtype=torch.bool), entropy=torch.ones(2, 3))
    for state in (SEEN, UADT().init()):
        shaped = UADT()(torch.tensor([1.0, -1.0]), nothing, state)
        assert shaped.state == state
        assert shaped.advantage.tolist() == [1.0, -1.0]
        assert shaped.info["uadt/factor"].tolist() == [0.0, 0.0]
    no_positions = Rollout(mask=torch.zeros(2, 0, dtype=torch.bool), entropy=torch.ones(2, 0))
    assert UADT()(torch.ones(2, 0), no_positions, SEEN).state == SEEN


def test_strength_zero_is_the_identity_to_the_bit() -> None:
    advantage, rollout = random_batch(0)
    assert torch.equal(UADT(strength=0.0)(advantage, rollout, SEEN).advantage, advantage)


def test_advantages_of_tokens_get_the_factor_of_their_completion() -> None:
    advantage, rollout = random_batch(1)
    tokens = UADT()(advantage, rollout, SEEN).advantage
    sequence = UADT()(advantage[:, 0].clone(), rollout, SEEN).advantage
    expected = torch.where(rollout.mask, sequence[:, None], advantage)
    torch.testing.assert_close(tokens, expected)


def _oracle(
    advantage: list[float], entropy: list[list[float]], threshold: float | None, decay: float
) -> tuple[list[float], float]:
    """Shape with λ = .5 by plain Python, one loop a formula."""
    means = [sum(tokens) / len(tokens) for tokens in entropy]
    mean = sum(means) / len(means)
    used = mean if threshold is None else threshold
    shaped: list[float] = []
    for a, u in zip(advantage, means, strict=True):
        distance = (u - used) / (used if used > 0.01 else 0.01)
        e = math.exp(2 * distance) if distance < 300 else math.inf
        omega = 1.0 if e == math.inf else (e - 1) / (e + 1)
        shaped.append(a * (1 + 0.5 * omega) if a > 0 else a * (1 - 0.5 * omega))
    return shaped, mean if threshold is None else decay * threshold + (1 - decay) * mean


def test_ten_random_steps_equal_the_oracle() -> None:
    dice = random.Random(7)
    shaping = UADT(decay=0.8)
    state, threshold = shaping.init(), None
    for _ in range(10):
        lengths = [dice.randint(1, 6) for _ in range(8)]
        entropy = [[dice.expovariate(3) for _ in range(n)] for n in lengths]
        advantage = [dice.gauss(0, 1) for _ in range(8)]
        values = torch.full((8, 6), math.nan, dtype=torch.float64)
        for row, tokens in enumerate(entropy):
            values[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.float64)
        rollout = Rollout(mask=~values.isnan(), entropy=values)
        given_ = torch.tensor(advantage, dtype=torch.float64)
        shaped = shaping(given_, rollout, state)
        expected, threshold = _oracle(advantage, entropy, threshold, 0.8)
        torch.testing.assert_close(
            shaped.advantage, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9
        )
        state = cast("EmaState", shaped.state)
        assert state.threshold == pytest.approx(threshold, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6),
    st.floats(0, 0.999),
    st.integers(0, 10_000),
)
def test_no_sign_turns_and_nothing_moves_more_than_the_strength(
    advantage: list[float], strength: float, seed: int
) -> None:
    _, rollout = random_batch(seed)
    before = torch.tensor(advantage, dtype=torch.float64)
    after = UADT(strength=strength)(before, rollout, SEEN).advantage
    assert torch.equal(after.sign(), before.sign())
    assert bool(((after - before).abs() <= strength * before.abs() * (1 + 1e-6) + 1e-300).all())


@pytest.mark.parametrize("seed", range(3))
def test_padding_and_its_nan_change_nothing(seed: int) -> None:
    advantage, rollout = random_batch(seed)
    wide = torch.cat([advantage, torch.full((len(advantage), 2), math.nan)], dim=1)
    ours = UADT()(wide, padded(rollout, 2), SEEN)
    expected = UADT()(advantage, rollout, SEEN)
    assert ours.state == expected.state
    assert torch.equal(ours.advantage[:, :-2], expected.advantage)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_rows_changes_nothing(seed: int) -> None:
    advantage, rollout = random_batch(seed)
    order = torch.randperm(len(advantage), generator=torch.Generator().manual_seed(seed))
    ours = UADT(per_task=True)(advantage[order], pick(rollout, order), TaskState({}))
    expected = UADT(per_task=True)(advantage, rollout, TaskState({}))
    assert ours.state == expected.state
    assert torch.equal(ours.advantage, expected.advantage[order])


@pytest.mark.parametrize("shaping", [UADT(), UADT(per_task=True), UADT(update="before")])
def test_ten_steps_saved_and_restored_at_each_equal_ten_unbroken(shaping: UADT) -> None:
    unbroken, resumed = shaping.init(), shaping.init()
    for step in range(10):
        advantage, rollout = random_batch(step)
        written = json.dumps(state_to_dict(resumed, shaping=shaping))
        resumed = state_from_dict(shaping, json.loads(written))
        one, unbroken, _ = shaping(advantage, rollout, unbroken)
        two, resumed, _ = shaping(advantage, rollout, resumed)
        assert torch.equal(one, two)
        assert unbroken == resumed


def test_no_gradient_flows_from_the_advantage_to_the_rollout() -> None:
    entropy: Tensor = ENTROPY.clone().requires_grad_()
    shaped = UADT()(ADVANTAGE, Rollout(mask=MASK, entropy=entropy), SEEN)
    assert not shaped.advantage.requires_grad


def test_half_precision_advantages_come_back_as_such() -> None:
    shaped = UADT()(ADVANTAGE.bfloat16(), ROLLOUT, SEEN)
    assert shaped.advantage.dtype == torch.bfloat16
    exact = UADT()(ADVANTAGE, ROLLOUT, SEEN).advantage
    torch.testing.assert_close(shaped.advantage.float(), exact, rtol=0.005, atol=0)
