"""More real runs: the other mode, chains, and what fails in the middle of a run."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("ray", reason="Ray is not installed")

from verl_runs import HERE, diagnosed, overrides, run

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(2400)]

Tell = Callable[[str], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


def test_colocate_async_with_a_chain_and_a_checkpoint(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / "async"
    arguments = [
        *overrides(text_assets, where, steps=3),
        *diagnosed(where),
        "trainer.v1.trainer_mode=uadt_colocate_async",
        "trainer.save_freq=3",
        "uadt.chain=[{name:uadt,per_task:true},{name:clip,low:-1,high:1}]",
    ]
    ran = run(where, arguments, tell=tell)
    assert ran.returncode == 0, ran.tail()
    assert ran.metrics[3]["uadt/updates"] == 3
    assert "uadt/threshold/mean/tiny/sums" in ran.metrics[3]
    assert (where / "checkpoints" / "global_step_3" / "uadt_state.json").exists()
    for records in ran.diagnostics.values():
        assert {record["task"] for record in records} <= {"tiny/sums", "tiny/digits"}
        assert max(value for r in records for value in r["shaped_advantages"]) <= 1.0


def test_a_critic_trains_and_its_advantages_are_shaped(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / "gae"
    arguments = [
        *overrides(text_assets, where, steps=1),
        *diagnosed(where),
        "algorithm.adv_estimator=gae",
        f"critic.model.path={text_assets}/model",
        "critic.model.use_remove_padding=False",
        "critic.model.enable_gradient_checkpointing=False",
        "+critic.model.override_config.attn_implementation=sdpa",
        "critic.strategy=fsdp2",
        "critic.fsdp.strategy=fsdp2",
        "critic.ppo_micro_batch_size_per_gpu=8",
    ]
    ran = run(where, arguments, tell=tell)
    assert ran.returncode == 0, ran.tail()
    assert len({r["advantages"][0] for r in ran.diagnostics[1]}) > 1
    first = ran.diagnostics[1][0]
    assert len(set(first["advantages"])) > 1  # one a token
    assert first["advantages"] != first["shaped_advantages"]


def test_a_reward_that_always_raises_ends_the_run(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / "raises"
    arguments = [
        *overrides(text_assets, where, steps=2),
        "reward.custom_reward_function.name=raise_always",
    ]
    run(where, arguments, tell=tell).failed_with("this reward always fails")


def test_a_group_that_failed_is_left_out_of_the_step(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / "one_group"
    arguments = [
        *overrides(text_assets, where, steps=4),
        *diagnosed(where),
        "reward.custom_reward_function.name=raise_for_one",
    ]
    ran = run(where, arguments, tell=tell)
    assert ran.returncode == 0, ran.tail()
    groups = {step: {r["group"] for r in records} for step, records in ran.diagnostics.items()}
    assert sorted(groups) == [1, 2, 3, 4]
    assert any(len(found) < 4 for found in groups.values())  # verl filled the batch with padding
    for records in ran.diagnostics.values():
        assert all(record["tokens"] > 0 for record in records)  # no padding row was shaped


def test_completions_without_tokens_are_a_defined_step(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / "empty"
    (where).mkdir()
    loops = where / "loops.yaml"
    loops.write_text("- name: sometimes_empty\n  _target_: verl_empty_loop.SometimesEmpty\n")
    arguments = [
        *overrides(text_assets, where, steps=2),
        *diagnosed(where),
        "actor_rollout_ref.rollout.agent.default_agent_loop=sometimes_empty",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}",
    ]
    ran = run(where, arguments, tell=tell, environment={"PYTHONPATH": str(HERE)})
    assert ran.returncode == 0, ran.tail()
    for records in ran.diagnostics.values():
        for record in records:
            assert record["shaped_advantage"] is None or record["tokens"] > 0


@pytest.mark.parametrize("victim", ["WorkerDict", "TransformersServer"])
def test_a_process_that_is_killed_ends_the_run(
    victim: str, text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / victim
    done: list[int] = []

    def kill_after_the_first_step(place: Path) -> bool:
        if not done and (place / "diagnostics" / "step_000001_00.jsonl").exists():
            for process in processes_of(place, victim):
                done.append(process.pid)
                process.kill()
        return False

    arguments = [*overrides(text_assets, where, steps=12), *diagnosed(where)]
    ran = run(where, arguments, tell=tell, interrupt=kill_after_the_first_step)
    assert done, "no such process was found"
    ran.failed_with("Error")


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
