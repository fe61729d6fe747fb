# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportAbstractUsage=false
# verl is not typed.
"""The trainer modes over verl's real classes, without Ray: what start, save and resume do."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="verl is not installed")

import torch
from hydra import compose, initialize_config_module
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.utils import MetricsAggregator

from uadt import UADT, EmaState, Rollout
from uadt.integrations.shaper import STATE_FILE
from uadt.integrations.verl.trainer import UadtColocateAsync, UadtSync
from uadt.metrics import summarise


def config_of(folder: Path, *overrides: str) -> Any:
    with initialize_config_module("uadt.integrations.verl.config", version_base=None):
        return compose("uadt_ppo_cpu", [f"trainer.default_local_dir={folder}", *overrides])


def test_the_trainer_starts_as_verls_own_of_its_mode(tmp_path: Path) -> None:
    # The replay buffer is one of many things that verl chooses by its own mode's name.
    from verl.trainer.ppo.v1.replay_buffer import ReplayBufferAsync

    sync = UadtSync(config_of(tmp_path))
    assert sync.config.trainer.v1.trainer_mode == "sync"
    assert sync.config.algorithm.adv_estimator == "grpo"
    assert not isinstance(sync.replay_buffer, ReplayBufferAsync)
    mode = "trainer.v1.trainer_mode=uadt_colocate_async"
    other = UadtColocateAsync(config_of(tmp_path, mode, "algorithm.adv_estimator=rloo"))
    assert other.config.algorithm.adv_estimator == "rloo"  # the user's baseline stays
    assert isinstance(other.replay_buffer, ReplayBufferAsync)


def test_a_wrong_setting_stops_the_trainer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="strenght"):
        UadtSync(config_of(tmp_path, "+uadt.strenght=0.5"))


def test_the_state_lies_in_the_checkpoint_before_verl_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = UadtSync(config_of(tmp_path))
    trainer.global_steps, trainer.shaper.updates = 3, 5
    trainer.shaper.state = EmaState(threshold=1 / 3, step=2)
    path = tmp_path / "global_step_3" / STATE_FILE
    there: list[bool] = []

    def save(self: PPOTrainer) -> None:
        there.append(path.exists())

    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", save)
    trainer._save_checkpoint()  # pyright: ignore[reportPrivateUsage] - verl's hook
    assert there == [True]
    assert json.loads(path.read_text())["updates"] == 5

    resumed = resume(config_of(tmp_path), 3, monkeypatch)
    assert resumed.shaper.state == trainer.shaper.state
    assert resumed.shaper.updates == 5


def resume(config: Any, step: int, monkeypatch: pytest.MonkeyPatch) -> UadtSync:
    def load(self: PPOTrainer) -> None:
        self.global_steps = step

    monkeypatch.setattr(PPOTrainer, "_load_checkpoint", load)
    trainer = UadtSync(config)
    trainer._load_checkpoint()  # pyright: ignore[reportPrivateUsage] - verl's hook
    return trainer


def test_a_run_from_scratch_looks_for_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resume(config_of(tmp_path), 0, monkeypatch).shaper.updates == 0


def test_a_checkpoint_without_state_is_an_error_that_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"global_step_2.*uadt\.fresh_state=True"):
        resume(config_of(tmp_path), 2, monkeypatch)
    afresh = resume(config_of(tmp_path, "uadt.fresh_state=True"), 2, monkeypatch)
    assert afresh.shaper.state == UADT().init()


def test_the_state_of_another_shaping_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(self: PPOTrainer) -> None:
        pass

    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", save)
    trainer = UadtSync(config_of(tmp_path))
    trainer.global_steps = 1
    trainer._save_checkpoint()  # pyright: ignore[reportPrivateUsage] - verl's hook
    with pytest.raises(ValueError, match=r"strength=0\.5 there, strength=0\.25 here"):
        resume(config_of(tmp_path, "+uadt.strength=0.25"), 1, monkeypatch)


def test_verl_averages_our_metrics_over_the_updates_of_a_step() -> None:
    # verl reads how to aggregate out of a metric's name; separate_async has several updates a step.
    entropy = torch.rand(6, 4) + 0.5
    rollout = Rollout(mask=entropy > 0, entropy=entropy)
    advantage = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0])
    shaped = UADT()(advantage, rollout, UADT().init())
    names = [*summarise(shaped, advantage, rollout), "uadt/updates"]
    aggregator = MetricsAggregator()
    aggregator.add_step_metrics(dict.fromkeys(names, 1.0), sample_count=1)
    aggregator.add_step_metrics(dict.fromkeys(names, 5.0), sample_count=3)
    # (1 * 1 + 3 * 5) / 4 = 4; a name with max, min or sum in it would give 5, 1 or 6.
    assert aggregator.get_aggregated_metrics() == dict.fromkeys(names, 4.0)
