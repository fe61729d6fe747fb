# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# verl ships no types.
"""The entry of `uadt.integrations.reward_functions`, loaded and called by verl.

TRL calls `BatchReward` in its own training runs, in ``test_trl.py``.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from uadt.integrations.verl.cpu import shims


def judge_without_connection(answer: str, truth: str) -> float:
    raise RuntimeError("no connection")


def _verl_function(**settings: Any) -> Any:
    pytest.importorskip("verl", reason="verl is not installed")
    shims.install()  # torchvision may be a build for another torch
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn

    return get_custom_reward_fn(
        OmegaConf.create(
            {
                "reward": {
                    "custom_reward_function": {
                        "path": "pkg://uadt.integrations.reward_functions",
                        "name": "compute_score",
                        "reward_kwargs": settings,
                    }
                }
            }
        )
    )


def test_verl_loads_the_entry_and_binds_the_settings() -> None:
    function = _verl_function(format_weight=0.5, synonyms={"sugar eye": "DR"})
    item: dict[str, Any] = {
        "data_source": "x",
        "solution_str": "<think>t</think><answer>sugar eye</answer>",
        "ground_truth": "diabetic retinopathy",
        "extra_info": {"task": "diagnosis"},
    }
    assert function(**item)["score"] == 1.5


def test_verls_reward_loop_scores_a_row_and_passes_the_marks_on() -> None:
    function = _verl_function(matcher=f"{__name__}:judge_without_connection")
    import numpy as np
    import torch
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

    text = "<think>t</think><answer>x</answer>"

    def decode(ids: Any, skip_special_tokens: bool) -> str:
        return "".join(chr(token) for token in ids.tolist())

    ids = torch.tensor([[ord(letter) for letter in text]])
    data = DataProto.from_dict(
        tensors={"responses": ids, "attention_mask": torch.ones_like(ids)},
        non_tensors={
            "data_source": np.array(["x"], dtype=object),
            "reward_model": np.array([{"ground_truth": "Drusen"}], dtype=object),
            "extra_info": np.array([{"task": "diagnosis"}], dtype=object),
        },
    )

    async def run() -> Any:
        config: Any = {}
        tokenizer: Any = SimpleNamespace(decode=decode)
        manager = NaiveRewardManager(config, tokenizer, function)
        return await manager.run_single(data)

    result = asyncio.run(run())
    assert result["reward_score"] == 0.0
    assert result["reward_extra_info"]["unscorable"] == 1.0
    assert result["reward_extra_info"]["format"] == 1.0
