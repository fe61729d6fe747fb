import pickle
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from uadt.shaping import SEED, UADT, UCAS, Clip, KeepSign, MeanOne, Scale, chain
from uadt.types import (
    EmptyState,
    MissingSignalError,
    Rollout,
    Shaped,
    Shaping,
    State,
    reader_of,
    required_signals,
)

ENTROPY = torch.tensor([[0.2, 0.2], [0.8, 0.4], [0.5, 9.0]])
MASK = torch.tensor([[True, True], [True, True], [False, False]])
ROLLOUT = Rollout(mask=MASK, entropy=ENTROPY)
ADVANTAGE = torch.tensor([1.0, -2.0, 3.0])  # the third completion has no token


class Count(NamedTuple):
    """How many batches were seen."""

    seen: int


@dataclass(frozen=True)
class Shift:
    """A user's own shaping: it adds a number, counts, and says nothing of its signals."""

    by: float

    def init(self) -> Count:
        return Count(0)

    def __call__(self, advantage: Tensor, rollout: Rollout, state: Count) -> Shaped:
        return Shaped(
            advantage + self.by, Count(state.seen + 1), {"shift/by": torch.tensor(self.by)}
        )


def test_a_chain_applies_its_parts_in_order() -> None:
    # (1 + 1) * 3 = 6, and not 1 * 3 + 1; the state of each part comes back in its place.
    shaped = chain(Shift(1.0), Scale(by=3.0))(ADVANTAGE, ROLLOUT, (Count(4), EmptyState()))
    torch.testing.assert_close(shaped.advantage[:2], torch.tensor([6.0, -3.0]))
    assert shaped.state == (Count(5), EmptyState())


def test_a_chain_of_nothing_is_the_identity() -> None:
    nothing = chain()
    shaped = nothing(ADVANTAGE, ROLLOUT, nothing.init())
    assert torch.equal(shaped.advantage, ADVANTAGE)
    assert shaped.state == ()
    assert shaped.info == {}


def test_nesting_changes_nothing() -> None:
    flat = chain(UADT(), Scale(by=2.0), UADT(strength=0.3))
    nested = chain(UADT(), chain(Scale(by=2.0), chain(UADT(strength=0.3))))
    assert nested == flat
    assert hash(nested) == hash(flat)


def test_a_repeated_shaping_is_numbered_and_nothing_is_overwritten() -> None:
    twice = chain(UADT(), UADT(strength=0.2), Shift(0.0), UADT())
    info = twice(ADVANTAGE, ROLLOUT, twice.init()).info
    names = {key.split("/")[0] for key in info}
    assert names == {"uadt", "uadt_2", "uadt_3", "shift"}
    # A correct, certain completion: ω = -.4621, so 1 - .5 * .4621 and 1 - .2 * .4621.
    torch.testing.assert_close(info["uadt/multiplier"][0], torch.tensor(0.7689), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        info["uadt_2/multiplier"][0], torch.tensor(0.9076), atol=1e-4, rtol=0
    )


def test_chains_inside_of_other_shapings_are_numbered_on() -> None:
    # Two in the first, one plain, two in the last: five of them, none overwritten.
    inner = MeanOne(shaping=chain(UADT(), UADT()))
    five = chain(inner, UADT(), inner)
    info = five(ADVANTAGE, ROLLOUT, five.init()).info
    names = {key.split("/")[0] for key in info}
    assert names == {"uadt", "uadt_2", "uadt_3", "uadt_4", "uadt_5", "mean_one", "mean_one_2"}


def test_one_inside_of_its_like_is_numbered_and_nothing_is_overwritten() -> None:
    # (1, -2) - 1.5 = (-.5, -3.5): the inner turns one sign back, and nothing is left to the outer.
    twice = KeepSign(shaping=KeepSign(shaping=Shift(-1.5)))
    info = twice(ADVANTAGE, ROLLOUT, twice.init()).info
    assert set(info) == {"shift/by", "keep_sign/changed", "keep_sign_2/changed"}
    assert info["keep_sign/changed"].tolist() == [1.0, 0.0, 0.0]
    assert info["keep_sign_2/changed"].tolist() == [0.0, 0.0, 0.0]
    # The inner divides 3 out; to the outer the mean is 1 already. Also with a chain between.
    for inside in (MeanOne(shaping=Scale(by=3.0)), chain(MeanOne(shaping=Scale(by=3.0)))):
        means = MeanOne(shaping=inside)
        info = means(ADVANTAGE, ROLLOUT, means.init()).info
        assert {key: float(value) for key, value in info.items()} == {
            "mean_one/mean": 3.0,
            "mean_one_2/mean": 1.0,
        }


@pytest.mark.parametrize("state", [(), (EmptyState(),), (EmptyState(),) * 3])
def test_a_state_of_another_length_is_refused(state: State) -> None:
    two = chain(Scale(by=1.0), Scale(by=1.0))
    with pytest.raises(ValueError, match=f"a chain of 2 needs 2 states, got {len(state)}"):
        two(ADVANTAGE, ROLLOUT, state)


@pytest.mark.parametrize("state", [None, EmptyState(), Count(3), [EmptyState()]])
def test_a_state_that_is_no_tuple_is_refused(state: State) -> None:
    with pytest.raises(ValueError, match="a chain of 1 needs a tuple of 1 states"):
        chain(Scale(by=1.0))(ADVANTAGE, ROLLOUT, state)


def test_a_class_in_place_of_its_instance_is_refused() -> None:
    with pytest.raises(TypeError, match=r"chain needs shapings, got <class .*UADT'>"):
        chain(UADT)  # pyright: ignore[reportArgumentType] - the mistake in question
    with pytest.raises(TypeError, match="KeepSign needs shapings"):
        KeepSign(shaping=UADT)  # pyright: ignore[reportArgumentType] - the mistake in question


def test_a_chain_reads_what_its_parts_read_and_is_silent_if_one_is() -> None:
    parts = chain(UADT(), UADT(signal="surprisal", per_task=True), Clip(low=0.0, high=1.0))
    assert required_signals(parts) == {"entropy", "logprob", "task"}
    assert required_signals(KeepSign(shaping=parts)) == {"entropy", "logprob", "task"}
    assert required_signals(MeanOne(shaping=parts)) == {"entropy", "logprob", "task"}
    assert required_signals(chain(UADT(), Shift(1.0))) is None


def test_what_a_chain_misses_is_named_with_the_member_that_wants_it() -> None:
    parts = chain(UADT(), KeepSign(shaping=chain(Scale(by=2.0), SEED())))
    grouped = Rollout(mask=MASK, entropy=ENTROPY, group=torch.tensor([0, 0, 1]))
    with pytest.raises(MissingSignalError, match=r"^SEED needs the signal 'cluster', got None"):
        parts(ADVANTAGE, grouped, parts.init())
    # An adapter that refuses it before the first step names the same.
    assert reader_of(parts, "cluster") == "SEED"
    assert reader_of(parts, "entropy") == "UADT"
    assert reader_of(MeanOne(shaping=UADT(signal="surprisal")), "logprob") == "UADT"
    assert reader_of(UCAS(), "logit") == "UCAS"
    # A part that says nothing may be the one; the chain is the most that can be said.
    assert reader_of(chain(UADT(), Shift(1.0)), "cluster") == "Chain"


def test_a_chain_prints_every_number() -> None:
    printed = repr(chain(Scale(by=2.0), Clip(low=-1.0, high=3.0)))
    assert printed == "chain(Scale(by=2.0), Clip(low=-1.0, high=3.0))"


@pytest.mark.parametrize(
    "shaping",
    [
        UADT(),
        chain(UADT(), Clip(low=-1.0, high=1.0)),
        KeepSign(shaping=Scale(by=2.0)),
        MeanOne(shaping=chain(UADT(), Scale(by=2.0))),
    ],
)
def test_shapings_pickle_compare_and_hash(shaping: Shaping) -> None:
    again = pickle.loads(pickle.dumps(shaping))
    assert again == shaping
    assert hash(again) == hash(shaping)
    assert isinstance(shaping, Shaping)


def test_clip_by_hand_and_rows_without_tokens_are_let_be() -> None:
    clip = Clip(low=-1.0, high=0.5)
    shaped = clip(ADVANTAGE, ROLLOUT, clip.init())
    assert shaped.advantage.tolist() == [0.5, -1.0, 3.0]
    assert shaped.info["clip/changed"].tolist() == [1.0, 1.0, 0.0]


def test_clip_wants_an_order() -> None:
    with pytest.raises(ValueError, match=r"low must be at most high, got low=2\.0, high=1\.0"):
        Clip(low=2.0, high=1.0)


def test_scale_wants_a_finite_number() -> None:
    with pytest.raises(ValueError, match="by must be finite, got nan"):
        Scale(by=float("nan"))


def test_keep_sign_by_hand() -> None:
    # (1, -2) + 1.5 = (2.5, -.5): both keep their sign. (1, -2) - 1.5 = (-.5, -3.5): one turns.
    keeps = KeepSign(shaping=Shift(1.5))
    assert keeps(ADVANTAGE, ROLLOUT, Count(0)).advantage[:2].tolist() == [2.5, -0.5]
    turns = KeepSign(shaping=Shift(-1.5))
    shaped = turns(ADVANTAGE, ROLLOUT, Count(0))
    assert shaped.advantage[:2].tolist() == [0.0, -3.5]
    assert shaped.state == Count(1)
    assert shaped.info["keep_sign/changed"].tolist() == [1.0, 0.0, 0.0]
    assert float(shaped.info["shift/by"]) == -1.5


def test_keep_sign_makes_nothing_of_nothing() -> None:
    shaped = KeepSign(shaping=Shift(1.0))(torch.zeros(3), ROLLOUT, Count(0))
    assert shaped.advantage[:2].tolist() == [0.0, 0.0]


def test_mean_one_by_hand() -> None:
    # Multipliers (1 + 1) / 1 = 2 and (-2 + 1) / -2 = .5, mean 1.25: (2 / 1.25, -1 / 1.25).
    shaped = MeanOne(shaping=Shift(1.0))(ADVANTAGE, ROLLOUT, Count(0))
    torch.testing.assert_close(shaped.advantage[:2], torch.tensor([1.6, -0.8]))
    assert float(shaped.info["mean_one/mean"]) == 1.25
    multipliers = shaped.advantage[:2] / ADVANTAGE[:2]
    torch.testing.assert_close(multipliers.mean(), torch.tensor(1.0))


def test_mean_one_of_tokens_leaves_padding_out() -> None:
    advantage = torch.tensor([[1.0, 1.0], [2.0, 2.0], [float("nan"), 5.0]])
    shaped = MeanOne(shaping=Scale(by=7.0))(advantage, ROLLOUT, EmptyState())
    torch.testing.assert_close(shaped.advantage[:2], advantage[:2])


def test_mean_one_refuses_to_turn_signs_back() -> None:
    turned = MeanOne(shaping=Scale(by=-1.0))
    with pytest.raises(ValueError, match=r"positive mean multiplier, got -1\.0"):
        turned(ADVANTAGE, ROLLOUT, EmptyState())


def test_mean_one_of_zeros_is_the_identity() -> None:
    shaped = MeanOne(shaping=Scale(by=2.0))(torch.zeros(3), ROLLOUT, EmptyState())
    assert torch.equal(shaped.advantage, torch.zeros(3))
