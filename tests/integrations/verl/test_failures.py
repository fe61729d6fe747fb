"""What fails in the middle of a real run: a clear error or a defined step, never a hang.

Every run is under a timeout, which counts as a hang.
"""

import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("ray", reason="Ray is not installed")

from verl_between import SECONDS
from verl_runs import BESIDE_TESTS, Run, diagnosed, overrides, run, saved_and

pytestmark = pytest.mark.timeout(2400)

Tell = Callable[[str], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failures")


def rewarded_by(name: str) -> str:
    return f"reward.custom_reward_function.name={name}"


def test_a_reward_that_always_raises_ends_the_run(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / "raises"
    arguments = [*overrides(text_assets, where, steps=2), rewarded_by("raise_always")]
    ran = run(where, arguments, tell=tell)
    ran.failed_with("this reward always fails", "no materializable trajectories")


@pytest.mark.matrix
def test_groups_that_failed_and_completions_without_tokens_are_a_defined_step(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    # Of the prompts, every fourth fails in its reward; the model says nothing to another fourth.
    where = folder / "defined"
    where.mkdir()
    loops = where / "loops.yaml"
    loops.write_text("- name: sometimes_empty\n  _target_: verl_empty_loop.SometimesEmpty\n")
    arguments = [
        *overrides(text_assets, where, steps=4),
        *diagnosed(where),
        rewarded_by("raise_for_one"),
        "actor_rollout_ref.rollout.agent.default_agent_loop=sometimes_empty",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}",
    ]
    ran = run(where, arguments, tell=tell, environment=BESIDE_TESTS)
    assert ran.returncode == 0, ran.tail()
    assert sorted(ran.diagnostics) == [1, 2, 3, 4]
    assert "this reward fails for every fourth prompt" in ran.log
    # verl puts the reward on the last token; without one, the completion fails as well.
    assert "index -1 is out of bounds" in ran.log
    for step, records in ran.diagnostics.items():
        # Whole groups are left, with GRPO's baseline; no padding row of verl's was shaped.
        assert ran.metrics[step]["uadt/rows_without_tokens"] == 0
        assert len(records) in (4, 8, 12, 16)
        for group in {record["group"] for record in records}:
            members = [record for record in records if record["group"] == group]
            assert len(members) == 4
            assert sum(m["advantages"][0] for m in members) == pytest.approx(0, abs=1e-5)
    assert any(len(records) < 16 for records in ran.diagnostics.values())


def interrupted(
    text_assets: Path, where: Path, tell: Tell, title: str, sent: signal.Signals, seconds: int
) -> Run:
    """Run; during the first step, after its advantages, signal the processes with this title."""
    signalled: list[int] = []

    def once(place: Path) -> bool:
        if not signalled and (place / "diagnostics" / "step_000001_00.jsonl").exists():
            for process in processes_of(place, title):
                signalled.append(process.pid)
                process.send_signal(sent)
        return False

    arguments = [*overrides(text_assets, where, steps=12), *diagnosed(where)]
    environment = {"UADT_CPU_TIMEOUT": str(seconds)}
    ran = run(where, arguments, tell=tell, interrupt=once, environment=environment)
    assert signalled, f"no process with the title {title} was found:\n{ran.tail()}"
    return ran


def processes_of(place: Path, title: str) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("VERL_FILE_LOGGER_PATH") == str(place / "metrics.jsonl")
            if ours and title in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_worker_that_is_killed_ends_the_run(text_assets: Path, folder: Path, tell: Tell) -> None:
    ran = interrupted(text_assets, folder / "worker", tell, "WorkerDict", signal.SIGKILL, 300)
    ran.failed_with("ActorDiedError")


@pytest.mark.matrix
def test_a_rollout_server_that_is_killed_ends_the_run(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / "server"
    ran = interrupted(text_assets, where, tell, "TransformersServer", signal.SIGKILL, 300)
    ran.failed_with("ActorDiedError")


def test_a_weight_sync_that_gets_no_answer_ends_the_run(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / "stopped"
    arguments = [*overrides(text_assets, where, steps=3), *saved_and("Stop")]
    ran = run(where, arguments, tell=tell, environment=BESIDE_TESTS)
    assert "sent SIGSTOP to TransformersServer" in ran.log, ran.tail()
    ran.failed_with(
        "on_step_end", f"no answer within UADT_CPU_TIMEOUT={SECONDS} s: ", "was sent new weights"
    )


@pytest.mark.matrix
def test_a_weight_sync_to_a_server_that_is_gone_ends_the_run(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / "gone"
    arguments = [*overrides(text_assets, where, steps=3), *saved_and("Kill")]
    ran = run(where, arguments, tell=tell, environment=BESIDE_TESTS)
    assert "sent SIGKILL to TransformersServer" in ran.log, ran.tail()
    ran.failed_with("on_step_end", "update_weights", "ActorDiedError")


def test_weights_that_the_server_refuses_end_the_run(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    # The actor has one layer; the server loads the checkpoint as it lies there, with two.
    where = folder / "refused"
    layers = "+actor_rollout_ref.model.override_config.num_hidden_layers=1"
    ran = run(where, [*overrides(text_assets, where, steps=1), layers], tell=tell)
    ran.failed_with(
        "the weights must be those of the rollout's model, got unknown [] (0), "
        "missing ['model.layers.1.input_layernorm.weight', "
    )
    assert not ran.metrics, "it has trained"
