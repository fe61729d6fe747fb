# pyright: basic, reportMissingImports=false
# Runs in an environment of its own, where slime is installed.
"""slime's own ``compute_advantages_and_returns`` and its loading of functions, on lists of tensors.

Megatron's process groups are real, over gloo. What cannot be had without a GPU is a stub: the
modules in ``STUBS``.
"""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.integrations import openrlhf_run

openrlhf_run.STUBS = ("sglang", "sglang_router")


def arguments(**given: Any) -> Namespace:
    return Namespace(
        **{
            "advantage_estimator": "grpo",
            "kl_coef": 0.0,
            "normalize_advantages": False,
            "use_opd": False,
            "use_rollout_logprobs": False,
            "custom_advantage_function_path": None,
            "rollout_data_postprocess_path": "uadt.integrations.slime.postprocess",
            "save": None,
            "load": None,
            "uadt": None,
        }
        | given
    )


def rollout(rank: int, step: int = 0) -> dict[str, Any]:
    """Two completions on one rank and one on the other, with different lengths."""
    lengths = ([3, 2], [4])[rank]
    draw = torch.Generator().manual_seed(rank + 2 * step)
    return {
        "rewards": ([1.0, -1.0], [0.5])[rank],
        "response_lengths": lengths,
        "total_lengths": [length + 2 for length in lengths],
        "loss_masks": [torch.tensor([1] * (length - 1) + [rank]) for length in lengths],
        "entropy": [torch.rand(length, generator=draw) * 3 for length in lengths],
        "log_probs": [-torch.rand(length, generator=draw) for length in lengths],
    }


def run(stack: Any, rank: int, steps: int = 1, first: int = 0, **given: Any) -> dict[str, Any]:
    from slime.utils.misc import load_function

    from uadt.integrations import slime

    slime._shapers.clear()
    args = arguments(**given)
    data: dict[str, Any] = {}
    for step in range(first, first + steps):
        data = rollout(rank, step)
        if args.without_entropy:
            del data["entropy"]
        stack.compute_advantages_and_returns(args, data)
        if args.rollout_data_postprocess_path:
            load_function(args.rollout_data_postprocess_path)(args, step, data)
    states = [shaper.state for shaper in slime._shapers.values()]
    return {
        "advantages": [one.tolist() for one in data["advantages"]],
        "returns": [one.tolist() for one in data["returns"]],
        "state": states[0] if states else None,
    }


def main(path: str) -> None:
    rank = int(os.environ["RANK"])
    openrlhf_run.install_stubs()
    dist.init_process_group("gloo")
    from megatron.core import mpu

    mpu.initialize_model_parallel()
    from slime.backends.megatron_utils import loss as stack

    save = str(Path(path).parent / "saved")
    own_function = {
        "custom_advantage_function_path": "uadt.integrations.slime.grpo_advantages",
        "rollout_data_postprocess_path": None,
    }
    common = {"without_entropy": False}
    found = {
        "rollout": {
            key: [one.tolist() for one in rollout(rank)[key]] for key in ("entropy", "loss_masks")
        },
        "stock": run(stack, rank, rollout_data_postprocess_path=None, **common),
        "zero": run(stack, rank, uadt={"strength": 0.0}, **common),
        "whitened": run(
            stack, rank, rollout_data_postprocess_path=None, normalize_advantages=True, **common
        ),
        "whitened_zero": run(
            stack, rank, uadt={"strength": 0.0}, normalize_advantages=True, **common
        ),
        "shaped": run(stack, rank, **common),
        "own_function": run(stack, rank, **own_function, **common),
        "unbroken": run(stack, rank, steps=3, **common),
        "half": run(stack, rank, steps=2, save=save, **common),
    }
    dist.barrier()
    found["resumed"] = run(stack, rank, steps=1, first=2, load=save, **common)
    try:
        run(stack, rank, without_entropy=True)
    except ValueError as error:
        found["refused"] = str(error)
    Path(f"{path}.{rank}").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
