# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportPrivateUsage=false, reportMissingTypeStubs=false
# transformers and TRL annotate loosely, and the recording trainers look behind TRL's underscores.
"""Short real trainings with TRL in a process of their own; what they saw goes to a JSON file.

``python -m tests.integrations.trl_runs FILE NAME…`` runs the functions of those names below.
"""

import copy
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uadt.integrations.verl.cpu import shims

# TRL imports vLLM if it finds it, which takes a while and is used in one run only; and torchvision
# may be a build for another torch.
if "colocated" not in sys.argv:
    sys.modules["vllm"] = None  # pyright: ignore[reportArgumentType]
shims.install()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import Qwen2ForCausalLM  # noqa: E402
from trl.trainer.grpo_config import GRPOConfig  # noqa: E402
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402

from tests.integrations import tiny_models  # noqa: E402
from uadt import UADT, Shaped, state_to_dict  # noqa: E402
from uadt.integrations.reward_functions import BatchReward  # noqa: E402
from uadt.integrations.rows import Rows  # noqa: E402
from uadt.integrations.trl import UADTGRPOTrainer  # noqa: E402
from uadt.rewards import Scorer  # noqa: E402
from uadt.types import EmptyState, Rollout  # noqa: E402

Found = dict[str, Any]


class Counting:
    """Counts the passes over the completions."""

    passes = 0

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        self.passes += 1
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)  # type: ignore[misc]


class Stock(Counting, GRPOTrainer):
    """TRL as it is."""


class Recording(Counting, UADTGRPOTrainer):
    """Ours, keeping what the shaping was given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.batches: list[dict[str, Any]] = []
        self.rows: list[Rows] = []
        super().__init__(*args, **kwargs)

    def _rows(self, batch: Any, inputs: Any, captured: Any) -> Rows:
        rows = super()._rows(batch, inputs, captured)
        self.batches.append(dict(batch))
        self.rows.append(rows)
        return rows


def train(kind: type[GRPOTrainer] = Recording, *, resume: str | None = None, **config: Any) -> Any:
    """Train a tiny model for two steps, and return the trainer."""
    own = "model words data reward peft_config shaping per_token rollout_func"
    given = {name: config.pop(name) for name in own.split() if name in config}
    words = given.pop("words", None) or tiny_models.tokenizer()
    model = given.pop("model", None) or tiny_models.text_model(words)
    folder = config.pop("output_dir", None) or tempfile.mkdtemp()
    options: dict[str, Any] = {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "seed": 7,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    trainer = kind(
        model=model,
        reward_funcs=given.pop("reward", tiny_models.checksum),
        args=GRPOConfig(output_dir=folder, **(options | config)),
        train_dataset=given.pop("data", None) or tiny_models.sums(),
        processing_class=words,
        **given,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def seen(trainer: Any) -> Found:
    """Return what a run left behind."""
    log = [row for row in trainer.state.log_history if "grad_norm" in row]
    found: Found = {
        "grad_norm": [row["grad_norm"] for row in log],
        "loss": [row["loss"] for row in log],
        "log": log,
        "passes": trainer.passes,
    }
    if isinstance(trainer, Recording):
        found["state"] = state_to_dict(trainer.shaper.state)["state"]
        found["rows"] = [one_batch(rows) for rows in trainer.rows]
    return found


def one_batch(rows: Rows) -> Found:
    """Return what the shaping was given, without what lies outside the mask."""
    entropy = rows.entropy
    assert entropy is not None
    assert rows.group is not None
    return {
        "advantage": rows.advantage.tolist(),
        "tokens": rows.mask.sum(dim=1).tolist(),
        "entropy": [values[kept].tolist() for values, kept in zip(entropy, rows.mask, strict=True)],
        "group": rows.group.tolist(),
        "reward": None if rows.reward is None else rows.reward.tolist(),
        "task": None if rows.task is None else list(rows.task),
    }


def entropy_by_loop(model: Any, batch: dict[str, Any], temperature: float) -> list[list[float]]:
    """Compute the entropies again, from a copy of the policy: float64, one token at a time."""
    prompts, answers = batch["prompt_ids"], batch["completion_ids"]
    ids = torch.cat([prompts, answers], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=attention).logits
    out: list[list[float]] = []
    for row in range(len(ids)):
        values: list[float] = []
        for place in range(answers.shape[1]):
            if batch["completion_mask"][row, place]:
                scores = logits[row, prompts.shape[1] + place - 1].double() / temperature
                p = torch.softmax(scores, dim=0)
                values.append(-sum(float(q) * float(q.log()) for q in p if q > 0))
        out.append(values)
    return out


def stock() -> Found:
    return seen(train(Stock))


def strength_zero() -> Found:
    return seen(train(shaping=UADT(strength=0.0)))


def _with_dropout(kind: type[GRPOTrainer], **extra: Any) -> Found:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
    return seen(train(kind, peft_config=lora, beta=0.1, **extra))


def stock_with_dropout() -> Found:
    return _with_dropout(Stock)


def strength_zero_with_dropout() -> Found:
    return _with_dropout(Recording, shaping=UADT(strength=0.0))


def shaped() -> Found:
    return seen(train())


def hot_policy() -> Found:
    words = tiny_models.tokenizer()
    model = tiny_models.text_model(words)
    before = copy.deepcopy(model)
    trainer = train(words=words, model=model, temperature=0.7, max_steps=1)
    return seen(trainer) | {"oracle": entropy_by_loop(before, trainer.batches[0], 0.7)}


def accumulated() -> Found:
    return seen(train(gradient_accumulation_steps=2, per_device_train_batch_size=4))


_OUT_OF_STEP: dict[str, Any] = {
    "steps_per_generation": 2,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 4,
}


def stock_out_of_step() -> Found:
    return seen(train(Stock, **_OUT_OF_STEP))


def out_of_step() -> Found:
    return seen(train(**_OUT_OF_STEP))


def several_iterations() -> Found:
    return seen(train(num_iterations=2, max_steps=4))


def all_truncated() -> Found:
    # Every completion runs into the limit.
    never_ends = {"suppress_tokens": [tiny_models.EOS]}
    return seen(train(mask_truncated_completions=True, generation_kwargs=never_ends, max_steps=1))


def _adapter(**extra: Any) -> Found:
    from peft import LoraConfig

    # Not the usual start at zero: here the policy differs from its reference at once.
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return seen(train(peft_config=lora, beta=0.1, max_steps=1, **extra))


def adapter_own_pass() -> Found:
    return _adapter()


def adapter_old_pass() -> Found:
    return _adapter(**_OUT_OF_STEP)


def evaluated() -> Found:
    trainer = train()
    before = state_to_dict(trainer.shaper.state)["state"]
    result = trainer.evaluate(tiny_models.sums(8))
    return seen(trainer) | {"before": before, "evaluation": result}


def resumed() -> Found:
    folder = tempfile.mkdtemp()
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    unbroken = seen(train(output_dir=folder, **saving))
    checkpoint = Path(folder) / "checkpoint-2"
    written = json.loads((checkpoint / "uadt_state.json").read_text())
    again = seen(train(resume=str(checkpoint), **saving))
    other = ""
    try:
        train(resume=str(checkpoint), shaping=UADT(decay=0.5), **saving)
    except ValueError as error:
        other = str(error)
    return {"unbroken": unbroken, "resumed": again, "written": written, "other": other}


def environment_tokens() -> Found:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    words = tiny_models.tokenizer()

    def rollout(prompts: list[str], trainer: Any) -> Found:
        # Six tokens each; the middle two are what an environment answered.
        tokens = [[10 + i, 40, 50, 60 + i, 70, 80] for i in range(len(prompts))]
        return {
            "prompt_ids": [words(one)["input_ids"] for one in prompts],
            "completion_ids": tokens,
            "logprobs": [[-1.0] * 6 for _ in prompts],
            "env_mask": [[1, 1, 0, 0, 1, 1] for _ in prompts],
        }

    return seen(train(words=words, rollout_func=rollout, max_steps=1))


def cooperative() -> Found:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.gmpo.gmpo_config import GMPOConfig
    from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer

    class Both(Recording, GMPOTrainer):
        """Shaped advantages for another loss."""

    class Plain(Counting, GMPOTrainer):
        """That loss as it is."""

    options: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }

    def run(kind: Any, **extra: Any) -> Found:
        words = tiny_models.tokenizer()
        trainer = kind(
            tiny_models.text_model(words),
            tiny_models.checksum,
            args=GMPOConfig(**options),
            train_dataset=tiny_models.sums(),
            processing_class=words,
            **extra,
        )
        trainer.train()
        return seen(trainer)

    return {
        "stock": run(Plain),
        "zero": run(Both, shaping=UADT(strength=0.0)),
        "shaped": run(Both),
    }


class Nosy:
    """A shaping that does not say what it reads, and so is handed everything."""

    def init(self) -> EmptyState:
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        assert rollout.reward is not None
        assert rollout.logprob is not None
        return Shaped(advantage, state, {})


def unscorable() -> Found:
    def reward(completions: list[str], **columns: Any) -> list[float | None]:
        scores: list[float | None] = [*tiny_models.checksum(completions=completions)]
        scores[1] = None
        return scores

    return seen(train(shaping=Nosy(), reward=reward, max_steps=1))


def per_task() -> Found:
    return seen(train(shaping=UADT(per_task=True)))


def per_token() -> Found:
    from uadt.shaping import EntropyAdvantage

    trainer = train(shaping=EntropyAdvantage(), per_token=True, max_steps=1)
    return seen(trainer) | {"shape": list(trainer.batches[0]["completion_ids"].shape)}


def chat() -> Found:
    reward = BatchReward(scorer=Scorer(task="diagnosis"), part="format", task_column="")
    data = tiny_models.sums(conversational=True)
    return seen(train(data=data, reward=[tiny_models.checksum, reward]))


def every_loss() -> Found:
    losses = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
    found: Found = {}
    for loss in losses:
        extra: dict[str, Any] = {"loss_type": loss, "max_steps": 1}
        if loss == "luspo":
            extra["importance_sampling_level"] = "sequence"
        zero = seen(train(shaping=UADT(strength=0.0), **extra))
        found[loss] = {"stock": seen(train(Stock, **extra)), "zero": zero}
    return found


def images() -> Found:
    def run(kind: type[GRPOTrainer], **extra: Any) -> Found:
        processor = tiny_models.image_processor()
        return seen(
            train(
                kind,
                words=processor,
                model=tiny_models.image_model(processor),
                data=tiny_models.pictures(),
                **extra,
            )
        )

    return {
        "stock": run(Stock),
        "zero": run(Recording, shaping=UADT(strength=0.0)),
        "shaped": run(Recording),
        "stock_out_of_step": run(Stock, **_OUT_OF_STEP),
        "out_of_step": run(Recording, **_OUT_OF_STEP),
    }


def two_processes() -> Found:
    # Three rows a process in groups of two: the second group lies on both. Cut-off completions are
    # emptied, so the processes differ in how many rows have a vote.
    trainer = train(
        per_device_train_batch_size=3,
        num_generations=2,
        mask_truncated_completions=True,
        generation_kwargs={"sequence_bias": [[[tiny_models.EOS], 2.5]]},
        shaping=UADT(per_task=True),
        max_steps=2,
    )
    return seen(trainer) | {"rank": trainer.accelerator.process_index}


def colocated() -> Found:
    # vLLM in this process, on a CPU. No test runs this one: it is for the command line.
    os.environ |= {
        "VERL_PLATFORM": "cpu",  # our plug-in of vLLM keeps its weights writable
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # TRL writes into them, so in this process
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    words = tiny_models.tokenizer()
    folder = tempfile.mkdtemp()
    # vLLM's attention for CPUs knows heads of 32, and not of 16.
    tiny_models.text_model(words, heads=2).save_pretrained(folder)
    words.save_pretrained(folder)
    trainer = train(
        words=words,
        model=Qwen2ForCausalLM.from_pretrained(folder),
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=128,
        vllm_gpu_memory_utilization=0.1,
    )
    return seen(trainer) | {
        "sampled": [one["sampling_per_token_logps"].tolist() for one in trainer.batches],
        "trained": [one["old_per_token_logps"].tolist() for one in trainer.batches],
        "mask": [one["completion_mask"].tolist() for one in trainer.batches],
    }


def main(path: str, names: list[str]) -> None:
    rank = os.environ.get("RANK")  # now: with vLLM, TRL sets it
    found = {name: _RUNS[name]() for name in names}
    Path(path if rank is None else f"{path}.{rank}").write_text(json.dumps(found))


_RUNS: dict[str, Callable[[], Found]] = {
    run.__name__: run
    for run in (
        stock,
        strength_zero,
        stock_with_dropout,
        strength_zero_with_dropout,
        shaped,
        hot_policy,
        accumulated,
        stock_out_of_step,
        out_of_step,
        several_iterations,
        all_truncated,
        adapter_own_pass,
        adapter_old_pass,
        evaluated,
        resumed,
        environment_tokens,
        cooperative,
        unscorable,
        per_task,
        per_token,
        chat,
        every_loss,
        images,
        two_processes,
        colocated,
    )
}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
