"""TRL: real trainings of tiny models, in processes of their own; see trl_runs.py."""

import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.environments import environment
from tests.scripts import ROOT, run_script

Found = dict[str, Any]

RUNS = (
    "stock strength_zero stock_with_dropout strength_zero_with_dropout shaped hot_policy "
    "accumulated stock_out_of_step out_of_step several_iterations all_truncated "
    "adapter_own_pass adapter_old_pass evaluated resumed environment_tokens cooperative "
    "unscorable per_task per_token chat"
)


@pytest.fixture(
    scope="module",
    # The version that is installed, and the oldest that we say we serve.
    params=["installed", pytest.param("1.7.0", marks=pytest.mark.matrix)],
)
def python(request: pytest.FixtureRequest) -> Path:
    if request.param == "installed":
        return Path(sys.executable)
    return environment(f"trl-{request.param}", alone=(f"trl=={request.param}",))


def run(python: Path, folder: Path, names: str, *launcher: str) -> Path:
    """Run trainings in a process, or in those that a launcher starts; return where they wrote."""
    out = folder / "found.json"
    module = [*launcher, "--module"] if launcher else ["-m"]
    done = subprocess.run(
        [str(python), *module, "tests.integrations.trl_runs", str(out), *names.split()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def found(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return json.loads(run(python, tmp_path_factory.mktemp("trl"), RUNS).read_text())


def means(values: list[list[float]]) -> list[float]:
    """Return the mean of each list that holds something."""
    return [sum(row) / len(row) for row in values if row]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def threshold(one: Found) -> float:
    return one["state"]["EmaState"]["threshold"]


def steps(one: Found) -> int:
    return one["state"]["EmaState"]["step"]


def test_strength_zero_is_the_stock_trainer_bit_for_bit(found: Found) -> None:
    zero, stock = found["strength_zero"], found["stock"]
    assert zero["grad_norm"] == stock["grad_norm"]
    assert zero["loss"] == stock["loss"]
    assert steps(zero) == 2  # and yet it shaped


def test_our_own_pass_draws_nothing_from_the_stock_trainers_random_numbers(found: Found) -> None:
    # With dropout a further pass would shift every later draw, were it not kept apart.
    zero, stock = found["strength_zero_with_dropout"], found["stock_with_dropout"]
    assert zero["grad_norm"] == stock["grad_norm"]


def test_shaping_changes_the_gradient(found: Found) -> None:
    assert found["shaped"]["grad_norm"][0] != found["stock"]["grad_norm"][0]


def test_entropy_is_the_sampling_policys_at_its_temperature(found: Found) -> None:
    # A copy of the policy, asked again in float64 at the temperature of 0.7, one token at a time.
    one = found["hot_policy"]
    for ours, again in zip(one["rows"][0]["entropy"], one["oracle"], strict=True):
        assert ours == pytest.approx(again, abs=1e-4)
    # The first batch sets the threshold to the mean over completions of their mean over tokens.
    assert threshold(one) == pytest.approx(mean(means(one["oracle"])), abs=1e-5)


def test_the_second_batch_moves_the_threshold_by_the_decay(found: Found) -> None:
    first, second = (mean(means(rows["entropy"])) for rows in found["shaped"]["rows"])
    assert threshold(found["shaped"]) == pytest.approx(0.9 * first + 0.1 * second, abs=1e-5)


def test_gradient_accumulation_changes_nothing(found: Found) -> None:
    whole, parts = found["shaped"], found["accumulated"]
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    assert threshold(parts) == pytest.approx(threshold(whole), rel=1e-5)
    assert steps(parts) == steps(whole) == 2  # one step a generation batch, not a micro-batch


def test_trls_own_pass_is_used_where_there_is_one(found: Found) -> None:
    # Out of step TRL asks the old policy anyway: not one pass more than the stock trainer.
    assert found["out_of_step"]["passes"] == found["stock_out_of_step"]["passes"]
    # In step it does not: one pass a generation batch, of which there are two.
    assert found["strength_zero"]["passes"] == found["stock"]["passes"] + 2


def test_both_passes_give_the_same_shaping(found: Found) -> None:
    first = found["out_of_step"]["rows"][0]["entropy"]
    assert threshold(found["out_of_step"]) == pytest.approx(mean(means(first)), abs=1e-5)
    assert first == [pytest.approx(row, abs=1e-4) for row in found["shaped"]["rows"][0]["entropy"]]


def test_several_iterations_are_one_step_of_the_state(found: Found) -> None:
    assert len(found["several_iterations"]["grad_norm"]) == 4  # optimiser steps
    assert steps(found["several_iterations"]) == 2


def test_completions_that_were_cut_off_and_emptied_do_not_vote(found: Found) -> None:
    one = found["all_truncated"]
    assert one["rows"][0]["tokens"] == [0] * 8
    assert steps(one) == 0
    assert one["log"][0]["uadt/rows_without_tokens"] == 8
    # What is not defined for want of a token is left out of the log.
    assert "uadt/uncertainty/mean" not in one["log"][0]


def test_the_references_pass_is_not_taken_for_that_of_the_policy(found: Found) -> None:
    # With an adapter both run through the same model. The old-policy pass and the reference's
    # are both seen in the one run; in the other only our own pass, which is surely the policy's.
    ours, trls = found["adapter_own_pass"], found["adapter_old_pass"]
    assert threshold(trls) == pytest.approx(threshold(ours), rel=1e-5)


def test_an_evaluation_neither_shapes_nor_moves_the_threshold(found: Found) -> None:
    one = found["evaluated"]
    assert one["before"] == one["state"]
    assert math.isfinite(one["evaluation"]["eval_loss"])
    assert not any("uadt" in name for name in one["evaluation"])


def test_a_resumed_run_equals_an_unbroken_one(found: Found) -> None:
    unbroken, resumed = found["resumed"]["unbroken"], found["resumed"]["resumed"]
    assert steps(unbroken) == 4
    assert len(resumed["rows"]) == 2  # it really trained the second half only
    assert resumed["state"] == unbroken["state"]
    assert resumed["grad_norm"] == unbroken["grad_norm"]


def test_the_state_of_another_shaping_is_refused(found: Found) -> None:
    assert "decay=0.9 there, decay=0.5 here" in found["resumed"]["other"]


def test_what_an_environment_wrote_does_not_count(found: Found) -> None:
    # Six tokens, two of them the environment's.
    assert found["environment_tokens"]["rows"][0]["tokens"] == [4] * 8


def test_subclasses_of_grpo_are_served_too(found: Found) -> None:
    one = found["cooperative"]
    assert one["zero"]["grad_norm"] == one["stock"]["grad_norm"]
    assert one["shaped"]["grad_norm"] != one["stock"]["grad_norm"]


def test_groups_and_rewards_reach_a_shaping_that_reads_them(found: Found) -> None:
    rows = found["unscorable"]["rows"][0]
    assert rows["group"] == [0, 0, 0, 0, 1, 1, 1, 1]
    # The second completion could not be scored: its advantage is 0, and it has no vote.
    assert rows["advantage"][1] == 0
    assert rows["tokens"][1] == 0
    assert rows["tokens"][0] > 0


def test_a_threshold_for_each_task(found: Found) -> None:
    states = found["per_task"]["state"]["TaskState"]["by_task"]
    assert set(states) == {"even", "odd"}
    seen = {task for rows in found["per_task"]["rows"] for task in rows["task"]}
    assert seen == {"even", "odd"}


def test_a_shaping_of_single_tokens_gets_an_advantage_for_each(found: Found) -> None:
    advantage = found["per_token"]["rows"][0]["advantage"]
    assert [len(advantage), len(advantage[0])] == found["per_token"]["shape"]
    assert math.isfinite(found["per_token"]["grad_norm"][0])


def test_the_metrics_are_in_trls_log(found: Found) -> None:
    first, second = found["shaped"]["log"]
    # Each batch is judged by the threshold before it, so the second by what the first left.
    after_first = mean(means(found["shaped"]["rows"][0]["entropy"]))
    assert first["uadt/threshold/mean"] == pytest.approx(after_first, abs=1e-5)
    assert second["uadt/threshold/mean"] == pytest.approx(after_first, abs=1e-5)
    assert 0 < first["uadt/advantage/moved_share"] < 0.5  # at most the strength


def test_two_processes_shape_as_one(python: Path, tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    out = run(python, tmp_path, "two_processes", "-m", *launcher)
    ranks = [json.loads(Path(f"{out}.{rank}").read_text())["two_processes"] for rank in (0, 1)]
    assert ranks[0]["state"] == ranks[1]["state"]
    for step in (0, 1):
        parts = [one["rows"][step] for one in ranks]
        assert [rows["group"] for rows in parts] == [[0, 0, 1], [1, 2, 2]]  # group 1 lies on both
    # The first threshold of a task is the mean over its completions, wherever they lie.
    parts = [one["rows"][0] for one in ranks]
    by_task: dict[str, list[float]] = {}
    for rows in parts:
        for task, entropy in zip(rows["task"], rows["entropy"], strict=True):
            if entropy:
                by_task.setdefault(task, []).append(mean(entropy))
    logged = ranks[0]["log"][0]
    for task, values in by_task.items():
        assert logged[f"uadt/threshold/mean/{task}"] == pytest.approx(mean(values), abs=1e-5)


def test_images(python: Path, tmp_path: Path) -> None:
    found = json.loads(run(python, tmp_path, "images").read_text())["images"]
    assert found["zero"]["grad_norm"] == found["stock"]["grad_norm"]
    assert found["shaped"]["grad_norm"] != found["stock"]["grad_norm"]
    assert found["out_of_step"]["passes"] == found["stock_out_of_step"]["passes"]
    # Our own pass saw the images as TRL's own did: the same entropies for the same completions.
    ours, trls = (found[name]["rows"][0]["entropy"] for name in ("shaped", "out_of_step"))
    assert ours == [pytest.approx(row, abs=1e-4) for row in trls]


def test_rewards_of_uadt_are_rewards_of_trl_and_messages_are_completions(found: Found) -> None:
    log = found["chat"]["log"]
    # A model of random bytes never writes the form, and both reward functions are logged.
    assert [row["rewards/uadt_format/mean"] for row in log] == [0.0, 0.0]
    assert log[0]["rewards/checksum/mean"] > 0
    assert steps(found["chat"]) == 2


def test_the_example_is_short_and_learns() -> None:
    assert len((ROOT / "examples" / "trl_uadt.py").read_text("utf-8").splitlines()) <= 60
    printed = run_script("examples/trl_uadt.py")
    rewards = [float(reward) for reward in re.findall(r"step +\d+ reward ([\d.]+)", printed)]
    assert len(rewards) == 6
    # Ten of 256 bytes are digits.
    assert rewards[0] < 0.3
    assert rewards[-1] > 0.8


@pytest.mark.matrix
def test_strength_zero_is_the_stock_trainer_under_every_loss(python: Path, tmp_path: Path) -> None:
    found = json.loads(run(python, tmp_path, "every_loss").read_text())["every_loss"]
    for loss, one in found.items():
        assert one["zero"]["grad_norm"] == one["stock"]["grad_norm"], loss
