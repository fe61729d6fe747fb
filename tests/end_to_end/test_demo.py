"""``make demo``, shortened: from the shipped checkpoint through verl, Ray and real rollouts.

One run is killed in the middle of stage 3 and started again; everything is asked of what it left.
"""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from examples.ophthareason.demo import CHECKPOINT
from examples.ophthareason.progress import usage
from examples.ophthareason.reinforce import (
    command,
    diagnostics,
    metrics,
    reinforce,
    trained_model,
)
from examples.ophthareason.settings import Reinforcement
from tests.end_to_end.demo_runs import PATIENCE, finish, start, wait_for

STEPS = 3
pytestmark = [
    pytest.mark.timeout(2 * PATIENCE),
    pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="the stage-2 checkpoint is not there"),
]


def demo(run: Path, log: Path) -> "subprocess.Popen[bytes]":
    words = ["examples.ophthareason.demo", "--run", str(run)]
    words += ["--steps", str(STEPS), "rl_items=8", "test_items=9"]
    words += ["reinforcement.prompts=2", "reinforcement.group=2"]
    words += ["reinforcement.checkpoint_every=1", "reinforcement.warmup=1"]
    return start(words, log)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    run, log = folder / "run", folder / "log"
    tracker = run / "reinforcement" / "checkpoints" / "latest_checkpointed_iteration.txt"
    process = demo(run, log)
    wait_for(tracker.is_file, process, log)
    process.send_signal(signal.SIGKILL)  # no chance to tidy up
    process.wait()
    verl = int((run / "reinforcement" / "process").read_text())
    os.killpg(verl, signal.SIGKILL)
    finish(demo(run, log), log)
    return run


def test_the_run_went_on_where_it_was_killed(run: Path) -> None:
    folder = run / "reinforcement"
    assert list(metrics(folder)) == list(range(1, STEPS + 1))
    attempts = sorted(folder.glob("metrics-*.jsonl"))
    assert len(attempts) == 2
    first = json.loads(attempts[1].read_text().splitlines()[0])
    assert first["step"] > 1
    assert (trained_model(folder, STEPS) / "model.safetensors").is_file()


def test_every_completion_is_accounted_for(run: Path) -> None:
    rows = diagnostics(run / "reinforcement")
    assert [row["step"] for row in rows] == [step for step in (1, 2, 3) for _ in range(4)]
    for row in rows:
        assert row["reward"] in (0.0, 1.0, 2.0)
        assert -1 <= row["uadt/factor"] <= 1
        # A' = A + λ ω |A| with λ = 0.5, the shipped strength
        expected = row["advantage"] + 0.5 * row["uadt/factor"] * abs(row["advantage"])
        assert row["shaped_advantage"] == pytest.approx(expected, abs=1e-5)


def test_the_threshold_follows_the_uncertainty_across_the_interruption(run: Path) -> None:
    # τ is used before it is moved: τ_1 = U_1, τ_{s+1} = 0.9 τ_s + 0.1 U_s.
    rows = diagnostics(run / "reinforcement")
    means = {
        step: sum(row["uadt/uncertainty"] for row in rows if row["step"] == step) / 4
        for step in range(1, STEPS + 1)
    }
    used = {row["step"]: row["uadt/threshold"] for row in rows}
    assert used[1] == pytest.approx(means[1], rel=1e-4)
    tau = means[1]
    for step in range(2, STEPS + 1):
        assert used[step] == pytest.approx(tau, rel=1e-4)
        tau = 0.9 * tau + 0.1 * means[step]


def test_the_folder_holds_what_a_reader_needs(run: Path) -> None:
    for name in ("settings.yaml", "environment.json", "metrics.jsonl", "report.html"):
        assert (run / name).is_file()
    answers = json.loads((run / "predictions" / "after-greedy.json").read_text())
    assert len(answers) == 9
    page = (run / "report.html").read_text()
    for words in ("Before and after stage 3", "The four quadrants", "synthetic", "clinical"):
        assert words in page
    assert "Stages 1 and 2 were not part of this run" in page
    assert re.search(r"memory at most</dt><dd>[\d.]+ GiB", page)
    # The goal is 8 GiB for the whole demo; this small one must be far from it.
    assert usage(run / "metrics.jsonl")[1] < 8
    assert page.count('class="card"') >= 3


def test_the_command_can_be_run_by_hand(run: Path) -> None:
    words = (run / "reinforcement" / "command.txt").read_text()
    assert words.startswith("VERL_PLATFORM=cpu ")
    assert "uadt.strength=0.5" in words


def test_an_unknown_rollout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rollout must be one of"):
        command(Reinforcement(), model=tmp_path, folder=tmp_path, rollout="telepathy")


def test_a_finished_stage_3_is_not_run_again(run: Path) -> None:
    told: list[str] = []

    def tell(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        told.append(stage)

    folder = run / "reinforcement"
    again = reinforce(
        Reinforcement(steps=STEPS), model=run, practice=[], test=[], folder=folder, tell=tell
    )
    assert again == trained_model(folder.resolve(), STEPS)
    assert told == []


@pytest.mark.parametrize(
    ("prompts", "group", "limit", "part"),
    [(16, 8, 64, 64), (2, 2, 64, 4), (3, 5, 8, 5), (7, 1, 4, 1)],  # divisors of 128, 4, 15 and 7
)
def test_a_batch_is_cut_into_equal_parts(
    prompts: int, group: int, limit: int, part: int, tmp_path: Path
) -> None:
    sizes = Reinforcement(prompts=prompts, group=group, micro_batch=limit)
    words = command(sizes, model=tmp_path, folder=tmp_path)
    assert f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={part}" in words
