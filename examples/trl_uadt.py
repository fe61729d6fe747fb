"""The smallest complete training with TRL and `uadt`: on a CPU, in seconds, nothing to download.

    python examples/trl_uadt.py

A Qwen2 with random weights that writes bytes learns to write digits: the reward is the part of the
answer that is a digit. It prints reward, threshold and factor of some steps; the reward rises from
below 0.1 to 1.0 in 60 steps. Needs TRL: ``pip install "uadt[trl]"``.
"""

import sys
import tempfile
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl.trainer.grpo_config import GRPOConfig

from uadt import UADT
from uadt.integrations.trl import UADTGRPOTrainer

SIZE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}
BATCH: dict[str, Any] = {"per_device_train_batch_size": 64, "num_generations": 16}
PLACE: dict[str, Any] = {"use_cpu": True, "bf16": False, "save_strategy": "no", "report_to": []}


def digits(completions: list[str], **_columns: object) -> list[float]:
    """Reward the part of each completion that is a digit, as any reward function of TRL."""
    return [sum(c.isdecimal() for c in text) / max(len(text), 1) for text in completions]


def main(steps: int = 60) -> list[dict[str, float]]:
    """Train, and return TRL's log."""
    words = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    ends: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "<eos>", "padding_side": "left"}
    schedule: dict[str, Any] = {"learning_rate": 1e-2, "max_steps": steps, "logging_steps": 10}
    trainer = UADTGRPOTrainer(
        model=Qwen2ForCausalLM(Qwen2Config(vocab_size=len(words), eos_token_id=1, **SIZE, **HEADS)),
        reward_funcs=digits,
        train_dataset=Dataset.from_list([{"prompt": f"{i % 10}+{i // 10}="} for i in range(100)]),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=core, **ends),
        shaping=UADT(strength=0.5),  # the one line that is ours; the rest is TRL
        args=GRPOConfig(tempfile.mkdtemp(), max_completion_length=8, **BATCH, **PLACE, **schedule),
    )
    trainer.train()
    return [row for row in trainer.state.log_history if "reward" in row]


if __name__ == "__main__":
    for row in main(*map(int, sys.argv[1:])):
        names = ("reward", "uadt/threshold/mean", "uadt/factor/mean")
        print(f"step {row['step']:3}", *(f"{name} {row[name]:.3f}" for name in names))
