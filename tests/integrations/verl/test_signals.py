# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAbstractUsage=false, reportCallIssue=false
# TensorDict is only partly typed.
"""Rows as TransferQueue returns them → a rollout, and → diagnostics."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="verl is not installed")

import torch
from tensordict import NonTensorStack, TensorDict
from torch import Tensor

from uadt import UADT, MissingSignalError, Rollout, Shaped
from uadt.integrations.verl.diagnostics import records, write_records
from uadt.integrations.verl.settings import Diagnostics
from uadt.integrations.verl.signals import (
    check_finite,
    fields_for,
    padded,
    rollout_from,
    unscorable,
)
from uadt.types import EmptyState

KEYS = ["a_0_0", "a_1_0", "b_0_0"]


@dataclass(frozen=True)
class Mine:
    """A shaping that reads what it is told to, and changes nothing."""

    signals: frozenset[str] | None

    def init(self) -> EmptyState:
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        return Shaped(advantage, state, {})


def jagged(*rows: list[float]) -> Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nested.as_nested_tensor(tensors, layout=torch.jagged)


def rows(**more: Any) -> TensorDict:
    """Three completions of two prompts: two tokens, three (the second not the policy's), one."""
    fields: dict[str, Any] = {
        "uid": NonTensorStack("a", "a", "b"),
        "response_mask": jagged([1, 1], [1, 0, 1], [1]).to(torch.int64),
        "rm_scores": jagged([0.0, 1.0], [0.0, 0.0, 0.5], [0.25]),
        "advantages": jagged([1.0, 1.0], [-1.0, 0.0, -1.0], [0.0]),
        "entropy": jagged([2.0, 4.0], [1.0, 99.0, 3.0], [5.0]),
        "old_log_probs": jagged([-1.0, -2.0], [-3.0, -4.0, -5.0], [-6.0]),
        "data_source": NonTensorStack("x", "x", "y"),
        "extra_info": NonTensorStack({"task": "p"}, {"task": "p"}, {"task": "q"}),
        "extra_fields": NonTensorStack(
            *({"reward_extra_info": {"cluster": value}} for value in (0, 1, 0))
        ),
        **more,
    }
    return TensorDict(fields, batch_size=3)


def test_only_what_the_shaping_reads_is_fetched() -> None:
    always = ["response_mask", "advantages", "extra_fields"]
    assert fields_for(frozenset({"entropy"}), "data_source") == [*always, "entropy"]
    assert fields_for(frozenset({"task"}), "extra_info.task") == [*always, "extra_info"]
    assert fields_for(frozenset({"cluster"}), "data_source") == always
    assert fields_for(frozenset({"reward", "group"}), "x") == [*always, "rm_scores", "uid"]
    everything = fields_for(None, "data_source")
    assert {"entropy", "old_log_probs", "ref_log_prob", "data_source", "uid"} <= set(everything)


def test_rows_become_a_rollout() -> None:
    signals = frozenset({"entropy", "logprob", "task", "cluster", "reward", "group"})
    rollout = rollout_from(rows(), Mine(signals), "extra_info.task")
    mask = [[True, True, False], [True, False, True], [True, False, False]]
    assert rollout.mask.tolist() == mask
    assert rollout.entropy is not None
    assert rollout.entropy[0, :2].tolist() == [2.0, 4.0]
    assert rollout.reward is not None
    assert rollout.reward.tolist() == [1.0, 0.5, 0.25]  # the score lies on the last token
    assert rollout.group is not None
    assert rollout.group.tolist() == [0, 0, 1]
    assert rollout.task == ("p", "p", "q")
    assert rollout.extra["cluster"].tolist() == [0.0, 1.0, 0.0]


def test_a_shaping_that_does_not_say_is_offered_all() -> None:
    offered = rows(ref_log_prob=jagged([0, 0.0], [0, 0, 0.0], [0.0]))
    rollout = rollout_from(offered, Mine(None), "data_source")
    assert rollout.logprob is not None
    assert rollout.task == ("x", "x", "y")
    assert set(rollout.extra) == {"ref_logprob"}


def test_the_shaping_of_the_rows_by_hand() -> None:
    # U = (2 + 4) / 2 = 3, (1 + 3) / 2 = 2, 5; the first batch is compared with its own mean, 10/3.
    # ω = tanh((U - 10/3) / (10/3)) = tanh(-0.1), tanh(-0.4), tanh(0.5); A' = A + ω |A| / 2.
    data = rows()
    shaping = UADT(strength=0.5)
    rollout = rollout_from(data, shaping, "data_source")
    shaped = shaping(padded(data["advantages"]), rollout, shaping.init())
    omega = torch.tensor([-0.1, -0.4]).tanh()
    expected = torch.stack([1 + omega[0] / 2, -1 + omega[1] / 2])
    torch.testing.assert_close(shaped.advantage[:2, 0], expected)
    assert shaped.advantage[2].tolist() == [0.0, 0.0, 0.0]
    assert shaped.state.threshold == pytest.approx(10 / 3)


def test_unscorable_completions_are_counted() -> None:
    told = [{"reward_extra_info": {"unscorable": value}} for value in (1.0, 0.0, 1.0)]
    assert unscorable(rows(extra_fields=NonTensorStack(*told))) == 2
    assert unscorable(rows()) is None  # a reward function that says nothing of it
    assert unscorable(rows(extra_fields=NonTensorStack({}, {}, {}))) is None


def test_a_reward_that_is_no_number_names_its_rows() -> None:
    broken = rows(rm_scores=jagged([0.0, 1.0], [0.0, 0.0, float("nan")], [0.25]))
    with pytest.raises(ValueError, match=r"must be a finite number, got 1 of 3 .*a_1_0: nan"):
        check_finite(broken["rm_scores"], KEYS)
    check_finite(rows()["rm_scores"], KEYS)


@pytest.mark.parametrize(
    ("signal", "field", "words"),
    [
        ("entropy", "entropy", "bypass_mode must be False"),
        ("ref_logprob", "", "use_kl_loss=True"),
        ("rollout_logprob", "", "calculate_log_probs=True"),
        ("self_certainty", "", "let the reward function return"),
    ],
)
def test_a_missing_signal_names_the_setting(signal: str, field: str, words: str) -> None:
    data = rows().exclude(field) if field else rows()
    who = f"Mine needs the signal '{signal}', got None: .*{words}"
    with pytest.raises(MissingSignalError, match=who):
        rollout_from(data, Mine(frozenset({signal})), "data_source")


def test_a_task_key_that_leads_nowhere_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"uadt\.task_key=extra_info\.kind must lead to a name"):
        rollout_from(rows(), Mine(frozenset({"task"})), "extra_info.kind")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_diagnostics_hold_one_record_a_completion(kind: str, tmp_path: Path) -> None:
    data = rows()
    shaping = UADT()
    rollout = rollout_from(data, shaping, "data_source")
    advantage = padded(data["advantages"])
    shaped = shaping(advantage, rollout, shaping.init())
    labels = [{"step": 7, "key": key} for key in KEYS]
    found = records(shaped, advantage, rollout, labels=labels, tokens=True)
    settings = Diagnostics(path=tmp_path / "new", format=kind)
    path = write_records(found, settings, "step_000007_00")
    assert path is not None
    if kind == "jsonl":
        read = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        import pyarrow.parquet as pq

        read = pq.read_table(path).to_pylist()
    assert read == found
    assert [row["key"] for row in read] == KEYS
    assert read[1]["tokens"] == 2
    assert read[1]["entropies"] == [1.0, 3.0]  # the middle token was not the policy's
    assert read[1]["uadt/uncertainty"] == 2.0
    assert read[0]["uadt/threshold"] == pytest.approx(10 / 3)
    assert read[0]["reward"] == 1.0
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
