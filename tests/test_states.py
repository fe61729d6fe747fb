import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uadt.shaping import STARE, UADT, Clip, KeepSign, StareState, TaskState, chain
from uadt.states import state_from_dict, state_to_dict
from uadt.threshold import EmaState
from uadt.types import EmptyState, Rollout, Shaped, Shaping, State


class Odd(NamedTuple):
    """A user's state with one of everything."""

    number: float
    steps: int
    name: str
    open: bool
    anchor: float | None
    history: tuple[float, ...]


@dataclass(frozen=True)
class Remember:
    """A user's own shaping."""

    def init(self) -> Odd:
        return Odd(0.0, 0, "", False, None, ())

    def __call__(self, advantage: Tensor, rollout: Rollout, state: Odd) -> Shaped:
        return Shaped(advantage, state, {})


def _through_json(shaping: Shaping, state: State) -> State:
    written = json.dumps(state_to_dict(state, shaping=shaping), allow_nan=False)
    return state_from_dict(shaping, json.loads(written))


@pytest.mark.parametrize(
    ("shaping", "state"),
    [
        (UADT(), EmaState(0.1 + 0.2, 7)),  # 0.30000000000000004
        (UADT(threshold=0.5), EmptyState()),
        (UADT(per_task=True), TaskState({"basic": EmaState(1 / 3, 2), "rare": EmaState(0.0, 0)})),
        (STARE(), StareState(up=1.13, down=0.87)),
        (KeepSign(shaping=UADT()), EmaState(5e-324, 1)),  # the smallest number there is
        (chain(UADT(), Clip(low=-1.0, high=1.0)), (EmaState(-0.0, 1), EmptyState())),
        (chain(), ()),
        (KeepSign(shaping=chain(UADT(), STARE())), (EmaState(0.25, 1), StareState(1.0, 1.0))),
        (Remember(), Odd(math.pi, 3, "sticky", True, None, (0.1, 0.2))),
        (Remember(), Odd(math.inf, 3, "nan", False, -math.inf, ())),
    ],
)
def test_states_survive_json_bit_for_bit(shaping: Shaping, state: State) -> None:
    again = _through_json(shaping, state)
    assert again == state
    assert repr(again) == repr(state)  # -0.0 == 0.0, but not in print; and the types agree


def test_nan_survives_json() -> None:
    again = _through_json(Remember(), Odd(math.nan, 0, "", False, None, ()))
    assert math.isnan(again.number)


@given(st.floats(allow_nan=False))
def test_every_float_survives_json(value: float) -> None:
    assert _through_json(UADT(), EmaState(value, 1)) == EmaState(value, 1)


def test_the_form_is_what_the_docstring_says() -> None:
    written = state_to_dict((EmaState(0.25, 3), EmptyState()), shaping=chain(UADT()))
    assert written["schema"] == 1
    assert written["shaping"].startswith("chain(UADT(decay=0.9, strength=0.5, ")
    assert written["state"] == [{"EmaState": {"threshold": 0.25, "step": 3}}, {"EmptyState": {}}]


def test_another_number_is_an_error_that_names_it_and_may_be_meant() -> None:
    written = state_to_dict(EmaState(0.25, 3), shaping=UADT(strength=0.5))
    with pytest.raises(ValueError, match=r"strength=0\.5 there, strength=0\.3 here"):
        state_from_dict(UADT(strength=0.3), written)
    restored = state_from_dict(UADT(strength=0.3), written, strict=False)
    assert restored == EmaState(0.25, 3)


def test_another_chain_is_an_error_that_names_both() -> None:
    before, now = chain(UADT(), STARE()), chain(UADT())
    written = state_to_dict(before.init(), shaping=before)
    with pytest.raises(ValueError, match=r"by another shaping: chain\(UADT\(.*STARE.* there, cha"):
        state_from_dict(now, written)
    with pytest.raises(ValueError, match="state must hold 1 states, got 2"):
        state_from_dict(now, written, strict=False)


def test_another_kind_of_state_is_an_error_even_if_not_strict() -> None:
    written = state_to_dict((EmaState(0.25, 3), StareState(1.1, 0.9)))
    with pytest.raises(ValueError, match=r"state\[1\] must be EmptyState, got StareState"):
        state_from_dict(chain(UADT(), Clip(low=0.0, high=1.0)), written, strict=False)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"state": {}}, "has the keys schema, shaping, state; got"),
        ([], "has the keys schema, shaping, state; got"),
        ({"schema": 2, "shaping": None, "state": {}}, "must have schema 1, got 2"),
        ({"schema": 1, "shaping": None, "state": []}, r"state must be a dict, got \[\]"),
        ({"schema": 1, "shaping": None, "state": {}}, "state must be EmaState, got nothing"),
        (
            {"schema": 1, "shaping": None, "state": {"EmaState": {"threshold": 1.0}}},
            r"must have the fields \['step', 'threshold'\], got \['threshold'\]",
        ),
        (
            {"schema": 1, "shaping": None, "state": {"EmaState": {"threshold": 1.0, "step": 1.5}}},
            r"state\.step must be int, got 1\.5",
        ),
        (
            {"schema": 1, "shaping": None, "state": {"EmaState": {"threshold": "1", "step": 1}}},
            r"state\.threshold must be float, got '1'",
        ),
        (
            {"schema": 1, "shaping": None, "state": {"EmaState": {"threshold": True, "step": 1}}},
            r"state\.threshold must be float, got True",
        ),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_a_spoilt_file_is_an_error_that_says_where(written: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        state_from_dict(UADT(), written)


def test_a_whole_number_is_read_as_a_float_where_one_is_meant() -> None:
    # Other languages write 1.0 as 1.
    written = {"schema": 1, "shaping": None, "state": {"EmaState": {"threshold": 1, "step": 1}}}
    restored = state_from_dict(UADT(), written)
    assert type(restored.threshold) is float


def test_what_json_cannot_carry_is_refused_with_its_place() -> None:
    with pytest.raises(TypeError, match=r"state\[0\]\.threshold must be made of .* got Tensor"):
        state_to_dict((EmaState(torch.tensor(1.0), 1),))  # pyright: ignore[reportArgumentType] - the mistake
    with pytest.raises(TypeError, match="state must have names as keys, got 3"):
        state_to_dict({3: 1.0})
