# pyright: reportMissingTypeStubs=false, reportAbstractUsage=false
"""Seconds of verl's ``_compute_advantage``, with GRPO alone and with UADT on top of it.

    VERL_PLATFORM=cpu python benchmarks/verl_advantage.py [SEQUENCES TOKENS]

Both run on the same real TransferQueue, in a Ray of its own: fetching the rows, computing, writing
back. A step's other parts (rollout, log-probabilities, update) are not in it. The third line is the
queue's own part of what UADT adds: fetching the columns that verl does not read.

Calls alternate, so that a busy machine slows all alike; the figures are medians.
"""

import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
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
ROUNDS = 31


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
        "extra_fields": NonTensorStack(
            *({"reward_extra_info": {"score": 0.0, "format": 1.0}} for _ in range(sequences))
        ),
    }
    return TensorDict(fields, batch_size=sequences)


def alternate(variants: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return the seconds of some rounds of calls, after one that warms up.

    As in timeit, Python's garbage collector is off within a call: among the objects of Ray and verl
    it takes as long as the call, and whom it strikes is chance.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(ROUNDS + 1):
        for name, compute in variants.items():
            gc.collect()
            gc.disable()
            start = time.perf_counter()
            compute()
            seconds = time.perf_counter() - start
            gc.enable()
            if turn:
                times[name].append(seconds)
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

    def traffic() -> None:
        tq.kv_batch_get(keys=keys, partition_id="train", select_fields=["entropy", "extra_fields"])

    times = alternate(
        {
            "grpo": lambda: PPOTrainerSync._compute_advantage(trainer, batch, {}),
            "grpo, then UADT": lambda: trainer._compute_advantage(batch, {}),
            "the queue's part": traffic,
        }
    )
    print(f"{sequences} sequences x {tokens} tokens, {torch.get_num_threads()} threads")
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"{name:16} median {middle:.3f} s (min {min(found):.3f}, max {max(found):.3f})")
    for how in (statistics.median, min):
        grpo, both, queue = (how(found) for found in times.values())
        print(f"{how.__name__}: ratio {both / grpo:.2f}, {1 + queue / grpo:.2f} by the queue alone")
    tq.close()
    ray.shutdown()


if __name__ == "__main__":
    main()
