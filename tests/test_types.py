"""What a rollout holds, and how it refuses what it cannot."""

import pickle

import pytest
import torch
from torch import Tensor

from uadt.types import EmptyState, MissingSignalError, Rollout, Shaped, Shaping, required_signals

MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_it_returns_each_signal_by_name() -> None:
    entropy = torch.rand(2, 3)
    logprob = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, 0.0, 0.0]])
    certainty = torch.rand(2, 3)
    rollout = Rollout(
        mask=MASK,
        entropy=entropy,
        logprob=logprob,
        reward=torch.tensor([1.0, 0.0]),
        group=torch.tensor([4, 4]),
        task=["basic", "complex"],
        extra={"self_certainty": certainty},
    )
    assert torch.equal(rollout.signal("entropy", wanted_by="x"), entropy)
    assert torch.equal(rollout.signal("surprisal", wanted_by="x"), -logprob)
    assert torch.equal(rollout.signal("self_certainty", wanted_by="x"), certainty)
    assert rollout.signal("group", wanted_by="x").tolist() == [4, 4]
    assert rollout.tasks(wanted_by="x") == ("basic", "complex")


@pytest.mark.parametrize(
    ("signal", "remedy"),
    [
        ("entropy", r"pass Rollout\(entropy=\.\.\.\)"),
        ("logprob", r"uadt\.token_statistics\(logits, token_ids\)"),
        ("reward", "one number a completion"),
        ("group", "one integer label a completion"),
        ("clusters", r'pass Rollout\(extra=\{"clusters": \.\.\.\}\)'),
    ],
)
def test_a_missing_signal_says_who_wanted_it_and_how_to_get_it(signal: str, remedy: str) -> None:
    with pytest.raises(
        MissingSignalError, match=f"SEED needs the signal '{signal}', got None: .*{remedy}"
    ):
        Rollout(mask=MASK).signal(signal, wanted_by="SEED")


def test_surprisal_is_never_taken_for_entropy() -> None:
    rollout = Rollout(mask=MASK, logprob=torch.zeros(2, 3))
    with pytest.raises(MissingSignalError, match="'entropy'"):
        rollout.signal("entropy", wanted_by="UADT")
    with pytest.raises(MissingSignalError, match="'logprob'"):
        Rollout(mask=MASK, entropy=torch.zeros(2, 3)).signal("surprisal", wanted_by="UADT")


def test_missing_tasks() -> None:
    with pytest.raises(MissingSignalError, match="needs the signal 'task'"):
        Rollout(mask=MASK).tasks(wanted_by="UADT")


def test_no_gradient_enters() -> None:
    entropy = torch.zeros(2, 3, requires_grad=True)
    reward = torch.zeros(2, requires_grad=True)
    rollout = Rollout(mask=MASK, entropy=entropy, reward=reward, extra={"x": entropy})
    for name in ("entropy", "reward", "x"):
        assert not rollout.signal(name, wanted_by="x").requires_grad


def test_it_survives_pickling() -> None:
    before = Rollout(
        mask=MASK, entropy=torch.ones(2, 3), task=("a", "b"), extra={"x": torch.ones(2)}
    )
    after: Rollout = pickle.loads(pickle.dumps(before))
    assert torch.equal(after.mask, before.mask)
    assert torch.equal(after.signal("x", wanted_by="t"), torch.ones(2))
    assert after.task == ("a", "b")
    assert after.reward is None


def test_the_error_survives_pickling() -> None:
    after: MissingSignalError = pickle.loads(pickle.dumps(MissingSignalError("entropy", "UADT")))
    assert str(after) == str(MissingSignalError("entropy", "UADT"))


def test_the_error_keeps_its_remedy_through_pickling() -> None:
    before = MissingSignalError("entropy", "UADT", how="ask the trainer for it")
    after: MissingSignalError = pickle.loads(pickle.dumps(before))
    assert str(after) == "UADT needs the signal 'entropy', got None: ask the trainer for it"
    assert (after.signal, after.wanted_by) == ("entropy", "UADT")
    assert after.how == "ask the trainer for it"


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("name", ["entropy", "logprob", "self_certainty"])
def test_a_nan_that_counts_names_the_shaping_the_signal_and_the_rows(name: str) -> None:
    value = torch.tensor([[1.0, 2.0, NAN], [NAN, 2.0, 3.0]])  # row 0 only at its padding
    more = {name: value} if name != "self_certainty" else {"extra": {name: value}}
    rollout = Rollout(mask=MASK, **more)  # pyright: ignore[reportArgumentType] - by name
    with pytest.raises(
        ValueError,
        match=rf"^SEED needs a finite '{name}' where mask is True, got NaN in rows \[1\]$",
    ):
        rollout.signal(name, wanted_by="SEED")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("self_certainty", r"uadt\.token_statistics\(logits\)\.self_certainty; .*UCAS\(certainty="),
        (
            "logit",
            r"logits\.gather\(-1, token_ids\[\.\.\., None\]\).*UCAS\(penalty=0\) does without",
        ),
        ("cluster", r"one integer a completion.*in verl, return it from the reward function"),
        ("mine", r'pass Rollout\(extra=\{"mine": \.\.\.\}\)$'),
    ],
)
def test_the_error_says_how_to_get_the_signals_of_single_methods(name: str, how: str) -> None:
    with pytest.raises(MissingSignalError, match=rf"UCAS needs the signal '{name}'.*{how}"):
        Rollout(mask=MASK).signal(name, wanted_by="UCAS")


def test_a_nan_of_surprisal_is_one_of_the_logprob() -> None:
    rollout = Rollout(mask=MASK, logprob=torch.full((2, 3), NAN))
    with pytest.raises(ValueError, match=r"needs a finite 'logprob' .*got NaN in rows \[0, 1\]"):
        rollout.signal("surprisal", wanted_by="UADT")


def test_an_entropy_is_finite_where_a_logprob_need_not_be() -> None:
    value = torch.tensor([[-INF, -1.0, NAN], [-1.0, NAN, INF]])
    rollout = Rollout(mask=MASK, entropy=value, logprob=value)
    assert torch.equal(rollout.signal("logprob", wanted_by="x").isinf(), value.isinf())
    with pytest.raises(ValueError, match=r"finite 'entropy' .*got infinity in rows \[0\]"):
        rollout.signal("entropy", wanted_by="x")


@pytest.mark.parametrize("filler", [NAN, INF])
def test_padding_may_hold_anything(filler: float) -> None:
    value = torch.ones(2, 3).masked_fill(~MASK, filler)
    rollout = Rollout(mask=MASK, entropy=value, extra={"x": value, "y": torch.tensor([NAN, 1.0])})
    for name in ("entropy", "x", "y"):  # y is one number a completion: the shaping's to judge
        rollout.signal(name, wanted_by="UADT")


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mask": MASK.long()},
            r"mask must be a bool tensor of shape \(B, T\), got int64 .*mask\.bool",
        ),
        (
            {"mask": MASK[0]},
            r"mask must be a bool tensor of shape \(B, T\), got bool of shape \(3,\)",
        ),
        ({"mask": MASK[:0]}, "at least one completion, got B = 0"),
        ({"entropy": torch.zeros(2, 4)}, r"entropy must be .* of shape \(2, 3\) .* got .*\(2, 4\)"),
        ({"logprob": MASK}, "logprob must be a floating tensor .* got bool"),
        (
            {"reward": torch.zeros(3)},
            r"reward must be a floating tensor of shape \(2,\), got .*\(3,\)",
        ),
        ({"reward": torch.tensor([0.0, float("nan")])}, r"finite, got \[nan\] in rows \[1\]"),
        ({"reward": torch.tensor([float("inf"), 0.0])}, r"finite, got \[inf\] in rows \[0\]"),
        ({"group": torch.zeros(3, dtype=torch.int64)}, r"group must be an integer .* \(2,\), got"),
        ({"group": torch.zeros(2)}, "group must be an integer tensor .* got float32"),
        ({"task": ["a"]}, "task must hold 2 names, got 1"),
        ({"task": "ab"}, "task must hold 2 names"),
        ({"extra": {"x": torch.zeros(3)}}, r"extra\['x'\] must have 2 rows like mask"),
    ],
)
def test_it_says_what_was_wanted_and_what_came(fields: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rollout(**{"mask": MASK, **fields})  # pyright: ignore[reportArgumentType] - it is the point


class _Silent:
    def init(self) -> EmptyState:
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        return Shaped(advantage, state, {})


class _Outspoken(_Silent):
    signals = frozenset({"surprisal", "group"})


def test_any_object_with_the_two_methods_is_a_shaping() -> None:
    assert isinstance(_Silent(), Shaping)
    assert not isinstance(object(), Shaping)


def test_a_shaping_may_name_what_it_reads() -> None:
    assert required_signals(_Silent()) is None
    assert required_signals(_Outspoken()) == {"logprob", "group"}
