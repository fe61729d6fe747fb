import math
import re
from pathlib import Path

import pytest
import torch

from tests.shaping.batches import random_batch
from uadt.metrics import summarise
from uadt.shaping import (
    EDGE,
    GRPOS,
    GTPO,
    SEED,
    STARE,
    UADT,
    UCAS,
    Clip,
    EntropyAdvantage,
    HighEntropyTokens,
    KeepSign,
    MeanOne,
    Scale,
    chain,
)
from uadt.threshold import EmaState
from uadt.types import EmptyState, Rollout, Shaped, Shaping

ENTROPY = torch.tensor([[0.2], [0.4], [0.6], [0.8], [9.0]])
ROLLOUT = Rollout(
    mask=torch.tensor([[True]] * 4 + [[False]]), entropy=ENTROPY, task=["a", "b", "a", "b", "b"]
)
ADVANTAGE = torch.tensor([1.0, -1.0, -2.0, 4.0, 5.0])
EVERY: tuple[Shaping, ...] = (
    UADT(),
    UADT(per_task=True),
    EntropyAdvantage(),
    HighEntropyTokens(),
    GTPO(),
    GRPOS(),
    UCAS(),
    EDGE(),
    SEED(),
    STARE(),
    KeepSign(shaping=Scale(by=-1.0)),
    MeanOne(shaping=UADT()),
    chain(UADT(), UADT(), Clip(low=-1.0, high=1.0)),
)


def _uadt() -> dict[str, float]:
    shaped = UADT(decay=0.5)(ADVANTAGE, ROLLOUT, EmaState(0.4, 1))
    return summarise(shaped, ADVANTAGE, ROLLOUT)


def test_each_scalar_of_uadt_by_hand() -> None:
    scalars = _uadt()
    # U = (.2, .4, .6, .8); the fifth has no token. θ = .4, so x = (−.5, 0, .5, 1).
    omega = [math.tanh(-0.5), 0.0, math.tanh(0.5), math.tanh(1.0)]
    moved = 0.5 * (abs(omega[0]) * 1 + 0 + omega[2] * 2 + omega[3] * 4)
    after = [1 + 0.5 * omega[0], 1, 2 - omega[2], 4 + 2 * omega[3]]  # |A′|
    expected = {
        "uadt/uncertainty/mean": 0.5,
        "uadt/uncertainty/std": math.sqrt((0.3**2 + 0.1**2) * 2 / 4),
        "uadt/uncertainty/p10": 0.26,  # place .3 between .2 and .4
        "uadt/uncertainty/p50": 0.5,
        "uadt/uncertainty/p90": 0.74,  # place 2.7 between .6 and .8
        "uadt/uncertainty/mean/a": 0.4,
        "uadt/uncertainty/mean/b": 0.6,
        "uadt/threshold/mean": 0.4,
        "uadt/threshold/mean/a": 0.4,
        "uadt/threshold/mean/b": 0.4,
        "uadt/factor/mean": sum(omega) / 4,
        "uadt/factor/share_above": 0.5,
        "uadt/factor/share_below": 0.25,
        "uadt/factor/mean/a": 0.0,
        "uadt/factor/mean/b": omega[3] / 2,  # the fifth has no token
        "uadt/multiplier/mean": 1 + 0.5 * (omega[0] - omega[2] + omega[3]) / 4,
        "uadt/multiplier/mean/a": (1 + 0.5 * omega[0] + 1 - 0.5 * omega[2]) / 2,
        "uadt/multiplier/mean/b": (1 + 1 + 0.5 * omega[3]) / 2,
        "uadt/quadrant/uncertain_correct": 1.0,  # the fourth
        "uadt/quadrant/uncertain_wrong": 1.0,  # the third
        "uadt/quadrant/certain_correct": 1.0,  # the first
        "uadt/quadrant/certain_wrong": 0.0,  # the second is at the threshold: neither
        "uadt/advantage/moved_share": moved / 8,
        "uadt/advantage/mass_ratio": sum(after) / 8,
        "uadt/advantage/turned_share": 0.0,
        "uadt/advantage/zero_share": 0.0,
        "uadt/rows_without_tokens": 1.0,
    }
    assert scalars == pytest.approx(expected, abs=1e-6)


def test_the_same_numbers_come_out_of_advantages_of_tokens() -> None:
    tokens = ADVANTAGE[:, None].clone()
    shaped = UADT(decay=0.5)(tokens, ROLLOUT, EmaState(0.4, 1))
    assert summarise(shaped, tokens, ROLLOUT) == pytest.approx(_uadt(), abs=1e-6)


@pytest.mark.parametrize("shaping", EVERY, ids=repr)
def test_no_name_holds_a_word_that_verl_aggregates_by(shaping: Shaping) -> None:
    advantage, rollout = random_batch(0)
    shaped = shaping(advantage, rollout, shaping.init())
    scalars = summarise(shaped, advantage, rollout)
    for name, value in scalars.items():
        assert not re.search("max|min|sum|total", name), name
        assert name.startswith("uadt/")
        assert name.count("uadt/uadt/") == 0
        assert isinstance(value, float)  # pyright: ignore[reportUnnecessaryIsInstance] - a tensor would be one line further
        assert not math.isnan(value), name


@pytest.mark.parametrize("shaping", [*EVERY, UADT(signal="surprisal")], ids=repr)
def test_every_quantity_is_explained_on_the_page(shaping: Shaping) -> None:
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    advantage, rollout = random_batch(0)
    for key in shaping(advantage, rollout, shaping.init()).info:
        name = re.sub(r"_\d+/", "/", key)  # a repeated shaping is numbered
        known = re.sub(r".*/multiplier", "‹method›/multiplier", name)
        assert f"{known}`" in page or f"{known}/mean`" in page, key


def test_a_chain_keeps_its_shapings_apart() -> None:
    both = chain(UADT(), Clip(low=-1.0, high=1.0), UADT(strength=0.0))
    shaped = both(ADVANTAGE, ROLLOUT, both.init())
    scalars = summarise(shaped, ADVANTAGE, ROLLOUT)
    # ±1, 2 and 4 scaled by at most .23: three of four leave [−1, 1] or not? θ = .5,
    # ω = tanh(−.6), tanh(−.2), tanh(.2), tanh(.6): |A′| = .73, 1.1, 1.8, 5.07: three do.
    assert scalars["uadt/clip/changed/mean"] == 0.75
    assert scalars["uadt/uadt_2/multiplier/mean"] == 1.0
    assert scalars["uadt/uadt_2/quadrant/uncertain_correct"] == 1.0


def test_padding_enters_nothing() -> None:
    nan = float("nan")
    mask = torch.tensor([[True, False], [True, True]])
    advantage = torch.tensor([[1.0, nan], [-1.0, -1.0]])
    rollout = Rollout(mask=mask, entropy=torch.tensor([[0.1, nan], [0.1, 2.0]]))
    shaped = EntropyAdvantage()(advantage, rollout, EmptyState())
    scalars = summarise(shaped, advantage, rollout)
    # .4 · .1 = .04 twice, and at most 1/2 for the token of 2 nats: .58 of 3
    assert scalars["uadt/advantage/moved_share"] == pytest.approx(0.58 / 3)
    assert scalars["uadt/entropy_advantage/bonus/mean"] == pytest.approx(0.58 / 3)


def test_a_task_averages_over_its_tokens() -> None:
    # Task a has the token .1 and, of a longer completion, .3 and .5: (.1 + .3 + .5) / 3, and not
    # (.1 + .4) / 2. Task b has no value that is known.
    nan = float("nan")
    mask = torch.tensor([[True, False], [True, True], [True, False]])
    rollout = Rollout(mask=mask, task=["a", "a", "b"])
    value = torch.tensor([[0.1, 7.0], [0.3, 0.5], [nan, nan]])
    shaped = Shaped(torch.ones(3), EmptyState(), {"mine/bonus": value})
    scalars = summarise(shaped, torch.ones(3), rollout)
    assert scalars["uadt/mine/bonus/mean"] == pytest.approx(0.3)
    assert scalars["uadt/mine/bonus/mean/a"] == pytest.approx(0.3)
    assert math.isnan(scalars["uadt/mine/bonus/mean/b"])


def test_what_is_made_of_nothing_is_an_infinite_share() -> None:
    zero = torch.zeros(5)
    shaped = UADT(sign_policy="additive")(zero, ROLLOUT, EmaState(0.4, 1))
    assert summarise(shaped, zero, ROLLOUT)["uadt/advantage/moved_share"] == math.inf
    still = UADT()(zero, ROLLOUT, EmaState(0.4, 1))
    assert summarise(still, zero, ROLLOUT)["uadt/advantage/moved_share"] == 0.0


def test_a_batch_without_tokens_has_scalars_that_say_so() -> None:
    nothing = Rollout(mask=torch.zeros(2, 1, dtype=torch.bool), entropy=torch.ones(2, 1))
    advantage = torch.ones(2)
    scalars = summarise(UADT()(advantage, nothing, EmaState(0.4, 1)), advantage, nothing)
    assert scalars["uadt/rows_without_tokens"] == 2.0
    assert math.isnan(scalars["uadt/uncertainty/mean"])
    assert math.isnan(scalars["uadt/uncertainty/p50"])
    assert scalars["uadt/quadrant/uncertain_correct"] == 0.0


def test_another_shape_is_refused() -> None:
    shaped = Shaped(torch.ones(5, 1), EmptyState(), {})
    with pytest.raises(ValueError, match=r"shape of the shaped one, \(5, 1\), got \(5,\)"):
        summarise(shaped, ADVANTAGE, ROLLOUT)
