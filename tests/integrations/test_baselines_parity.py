# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUnknownParameterType=false, reportPrivateUsage=false
# verl and TRL annotate loosely, and TRL keeps its advantages behind an underscore.
"""Our baselines give the numbers of the real verl and the real TRL."""

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from uadt.baselines import group_advantage, rloo_advantage
from uadt.integrations.verl.cpu import shims

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def verl_algorithms() -> Any:
    """Return verl's module of advantages, or skip with the reason."""
    if importlib.util.find_spec("verl") is None:
        pytest.skip("verl is not installed")
    shims.install()  # torchvision may be a build for another torch
    return importlib.import_module("verl.trainer.ppo.core_algos")


def _step(seed: int) -> tuple[Tensor, Tensor]:
    """Rewards as they occur: 0, 1, 2 and some numbers; groups of 1 to 9, in disorder."""
    g = torch.Generator().manual_seed(seed)
    group = torch.randint(0, 40, (200,), generator=g)
    reward = torch.randint(0, 3, (200,), generator=g).float()
    reward[::3] = torch.rand(67, generator=g)
    reward[group == 3] = 0.1  # a group whose rewards are all the same
    return reward, group


def _verl(algorithm: Callable[..., tuple[Tensor, Tensor]], reward: Tensor, group: Tensor) -> Tensor:
    """Call verl as its trainer does: the reward on the last token, group names as strings."""
    tokens = torch.zeros(len(reward), 4)
    tokens[:, 2] = reward
    mask = torch.ones(len(reward), 4)
    names = np.array([f"prompt-{g}" for g in group], dtype=object)
    advantage, _ = algorithm(token_level_rewards=tokens, response_mask=mask, index=names)
    return advantage[:, 0]


@pytest.mark.parametrize("seed", range(3))
def test_verl_grpo(verl_algorithms: Any, seed: int) -> None:
    reward, group = _step(seed)
    grpo = verl_algorithms.compute_grpo_outcome_advantage
    ours = group_advantage(reward, group, singleton="raw")
    # verl's mean of equal rewards may be off by a rounding, 7e-9 of 0.1, which its ε = 1e-6 blows
    # up to 0.007; ours is exactly 0 there, and the same elsewhere.
    equal = group == 3
    assert (ours[equal] == 0).all()
    theirs = _verl(grpo, reward, group)
    assert (theirs[equal].abs() < 0.02).all()
    torch.testing.assert_close(ours[~equal], theirs[~equal], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_verl_grpo_without_scale_and_rloo(verl_algorithms: Any, seed: int) -> None:
    reward, group = _step(seed)

    def dr_grpo(**tensors: object) -> tuple[Tensor, Tensor]:
        return verl_algorithms.compute_grpo_outcome_advantage(
            **tensors, norm_adv_by_std_in_grpo=False
        )

    torch.testing.assert_close(
        group_advantage(reward, group, scale="none", singleton="raw"),
        _verl(dr_grpo, reward, group),
        atol=1e-6,
        rtol=1e-6,
    )
    torch.testing.assert_close(
        rloo_advantage(reward, group, singleton="raw"),
        _verl(verl_algorithms.compute_rloo_outcome_advantage, reward, group),
        atol=1e-6,
        rtol=1e-6,
    )


_TRL = """
import json
import sys

import torch
from tests.integrations.trl_runs import Stock, train

SCORES = torch.rand(8, generator=torch.Generator().manual_seed(0)).tolist()
out = []


def reward(completions, **columns):
    return SCORES[: len(completions)]


for scale in ("group", "none"):
    class Recording(Stock):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            out.append(batch["advantages"].tolist())
            return batch

    train(Recording, reward=reward, scale_rewards=scale, max_steps=1)
json.dump({"scores": SCORES, "advantages": out}, open(sys.argv[1], "w"))
"""


def test_trl_grpo_with_and_without_scale(tmp_path: Path) -> None:
    # A real GRPOTrainer, one step each, in a process of its own, with rewards that we give.
    pytest.importorskip("trl", reason="TRL is not installed")
    file = tmp_path / "advantages.json"
    done = subprocess.run(
        [sys.executable, "-c", _TRL, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(file.read_text())
    reward = torch.tensor(found["scores"])
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])  # num_generations = 4, side by side
    scaled, unscaled = (torch.tensor(one) for one in found["advantages"])
    torch.testing.assert_close(group_advantage(reward, group, eps=1e-4), scaled)
    torch.testing.assert_close(group_advantage(reward, group, scale="none"), unscaled)
