# pyright: reportMissingTypeStubs=false, reportAbstractUsage=false
"""Seconds of verl's ``_compute_advantage``, with GRPO alone and with UADT on top of it.

    VERL_PLATFORM=cpu python benchmarks/verl_advantage.py [SEQUENCES TOKENS]

Both run on the same real TransferQueue, in a Ray of its own: fetching the rows, computing, writing
back. A step's other parts (rollout, log-probabilities, update) are not in it.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("VERL_PLATFORM", "cpu")

import ray
import torch
import transfer_queue as tq
from hydra import compose, initialize_config_module
from tensordict import NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from uadt.integrations.verl.trainer import UadtSync

GROUP = 8
REPEATS = 7


def rows(sequences: int, tokens: int) -> TensorDict:
    """Return what the rollout and the log-probability pass leave behind, all rows full."""
    torch.manual_seed(0)

    def nested(make: Callable[[int], torch.Tensor]) -> torch.Tensor:
        return torch.nested.as_nested_tensor(
            [make(tokens - i % 2) for i in range(sequences)], layout=torch.jagged
        )

    def score(length: int) -> torch.Tensor:
        values = torch.zeros(length)
        values[-1] = torch.rand(())
        return values

    fields: dict[str, Any] = {
        "uid": NonTensorStack(*[f"prompt{i // GROUP}" for i in range(sequences)]),
        "response_mask": nested(lambda n: torch.ones(n, dtype=torch.int64)),
        "rm_scores": nested(score),
        "old_log_probs": nested(lambda n: -torch.rand(n)),
        "rollout_log_probs": nested(lambda n: -torch.rand(n)),
        "entropy": nested(lambda n: torch.rand(n) * 2),
    }
    return TensorDict(fields, batch_size=sequences)


def seconds(compute: Callable[[], object]) -> list[float]:
    """Return the times of some calls, after one that warms up."""
    compute()
    times: list[float] = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        compute()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Print one line a variant."""
    sequences, tokens = map(int, sys.argv[1:3] or ("1024", "2048"))
    folder = tempfile.mkdtemp()
    with initialize_config_module("uadt.integrations.verl.config", version_base=None):
        config = compose("uadt_ppo_cpu", [f"trainer.default_local_dir={folder}"])
    config.transfer_queue.enable = True
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    tq.init(config.transfer_queue)
    trainer = UadtSync(config)
    trainer.timing_raw, trainer.global_steps = {}, 1
    keys = [f"prompt{i // GROUP}_{i % GROUP}_0" for i in range(sequences)]
    tags = [{"is_padding": False} for _ in keys]
    tq.kv_batch_put(keys=keys, partition_id="train", fields=rows(sequences, tokens), tags=tags)
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=tags)
    variants = {
        "grpo": lambda: PPOTrainerSync._compute_advantage(trainer, batch, {}),
        "grpo, then UADT": lambda: trainer._compute_advantage(batch, {}),
    }
    medians: dict[str, float] = {}
    print(f"{sequences} sequences x {tokens} tokens, {torch.get_num_threads()} threads")
    for name, compute in variants.items():
        times = seconds(compute)
        medians[name] = statistics.median(times)
        print(
            f"{name:16} median {medians[name]:.3f} s (min {min(times):.3f}, max {max(times):.3f})"
        )
    print(f"ratio {medians['grpo, then UADT'] / medians['grpo']:.2f}")
    tq.close()
    ray.shutdown()


if __name__ == "__main__":
    main()
