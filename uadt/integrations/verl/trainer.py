# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false
# verl, TransferQueue and TensorDict are not typed.
"""The trainer modes: verl computes the advantages of a step, then one shaping shapes the batch."""

import logging
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
import transfer_queue as tq
from omegaconf import open_dict
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.debug import marked_timer

from uadt.integrations.shaper import STATE_FILE, Shaper
from uadt.integrations.verl.diagnostics import records, write_records
from uadt.integrations.verl.estimator import NAME
from uadt.integrations.verl.failing import count_groups_of_one, end_after_failures
from uadt.integrations.verl.plugin import warn_if_untested
from uadt.integrations.verl.settings import MODES, Settings, check_run
from uadt.integrations.verl.signals import (
    check_finite,
    fields_for,
    listed,
    padded,
    rollout_from,
    unscorable,
)
from uadt.types import required_signals

__all__ = [
    "UadtColocateAsync",
    "UadtMixin",
    "UadtSeparateAsync",
    "UadtSync",
    "register",
]

_logger = logging.getLogger(__name__)


class UadtMixin:
    """What the three modes share: shape after verl has computed, and keep the state.

    Placed before a trainer of verl. It overrides what none of verl's three trainers overrides, so
    everything that verl does for its own estimators stays verl's.
    """

    mode: ClassVar[str]
    """The trainer mode of verl that this one builds on."""
    config: Any
    global_steps: int
    local_trigger_step: int
    timing_raw: dict[str, float]
    replay_buffer: Any

    def __init__(self, config: Any) -> None:
        """Check the configuration, then start as verl's trainer of this mode."""
        settings = Settings.from_config(config)
        check_run(config, settings)
        self.uadt_settings = settings
        self.shaper = Shaper(settings.shaping, stack="verl", offers=None)
        with open_dict(config):
            # verl branches on its own names of modes and estimators in many places; ours have
            # served their purpose. As "grpo", sessions with several outputs are verl's work too.
            config.trainer.v1.trainer_mode = self.mode
            if config.algorithm.adv_estimator == NAME:
                config.algorithm.adv_estimator = "grpo"
        super().__init__(config)  # type: ignore[call-arg]
        end_after_failures(self.replay_buffer)

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_advantage(batch, metrics)  # type: ignore[misc]
        with marked_timer("uadt", self.timing_raw):
            self._shape(batch, metrics)
        return batch

    def _shape(self, batch: Any, metrics: dict[str, Any]) -> None:
        padding = [tag.get("is_padding", False) for tag in batch.tags]
        keys = [key for key, pad in zip(batch.keys, padding, strict=True) if not pad]
        if not keys:
            return
        settings = self.uadt_settings
        fields = fields_for(required_signals(settings.shaping), settings.task_key)
        if settings.diagnostics.path is not None:
            fields += ["uid", "rm_scores"]
            fields += ["prompts", "responses"] if settings.diagnostics.tokens else []
        data = _get(batch, keys, sorted(set(fields)))
        advantage = padded(data["advantages"])
        if not advantage.sum().isfinite():
            check_finite(_get(batch, keys, ["rm_scores"])["rm_scores"], keys)
        rollout = rollout_from(data, settings.shaping, settings.task_key)
        shaped, scalars = self.shaper.step(advantage, rollout)
        _write_back(batch, keys, data, advantage, shaped.advantage)
        metrics |= scalars | {"uadt/updates": self.shaper.updates}
        if self.config.actor_rollout_ref.rollout.n > 1:
            metrics["uadt/groups_of_one"] = count_groups_of_one(keys)
        if (count := unscorable(data)) is not None:
            metrics["uadt/unscorable"] = count
        if settings.diagnostics.path is not None:
            labels, tokens = self._labels(data, keys), settings.diagnostics.tokens
            rows = records(shaped, advantage, rollout, labels=labels, tokens=tokens)
            name = f"step_{self.global_steps:06d}_{self.local_trigger_step:02d}"
            write_records(rows, settings.diagnostics, name)

    def _labels(self, data: Any, keys: list[str]) -> list[dict[str, Any]]:
        labels: list[dict[str, Any]] = []
        lists = [name for name in ("prompts", "responses") if name in data]
        unbound = {name: data[name].unbind() for name in lists}
        for row, (key, group) in enumerate(zip(keys, listed(data["uid"]), strict=True)):
            label: dict[str, Any] = {
                "step": self.global_steps,
                "update": self.shaper.updates,
                "key": key,
                "group": group,
            }
            labels.append(label | {name: unbound[name][row].tolist() for name in lists})
        return labels

    def _save_checkpoint(self) -> None:
        # Before verl: it names the checkpoint in its tracker file last, so a checkpoint that this
        # file names always holds the state.
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        self.shaper.save(folder)
        super()._save_checkpoint()  # type: ignore[misc]

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()  # type: ignore[misc]
        if self.global_steps == 0:
            return
        trainer = self.config.trainer
        folder = Path(trainer.default_local_dir) / f"global_step_{self.global_steps}"
        if trainer.resume_mode == "resume_path":
            folder = Path(trainer.resume_from_path)
        path = Path(os.path.abspath(folder)) / STATE_FILE
        if self.uadt_settings.fresh_state:
            _logger.warning("uadt.fresh_state=True: the shaping starts afresh, not from %s", path)
            return
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: the checkpoint was not written by a uadt trainer mode; "
                "set uadt.fresh_state=True to start the shaping's state afresh"
            )
        self.shaper.load(path.parent)
        _logger.info("restored the shaping's state after update %d: %s", self.shaper.updates, path)


def _get(batch: Any, keys: list[str], fields: list[str]) -> Any:
    return tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)


def _write_back(batch: Any, keys: list[str], data: Any, before: Tensor, after: Tensor) -> None:
    """Send the rows that the shaping changed: the queue takes its time over each."""
    changed = (after != before).any(dim=-1).nonzero().flatten().tolist()
    if not changed:
        return
    lengths = data["response_mask"].offsets().diff().tolist()
    rows = [after[row, : lengths[row]] for row in changed]
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    tq.kv_batch_put(
        keys=[keys[row] for row in changed],
        partition_id=batch.partition_id,
        fields=TensorDict({"advantages": nested}, batch_size=len(changed)),
    )


class UadtSync(UadtMixin, PPOTrainerSync):
    """Rollout and training take turns; entropies are of the policy that sampled."""

    mode = MODES["uadt_sync"]


class UadtColocateAsync(UadtMixin, PPOTrainerColocateAsync):
    """Unfinished rollouts go on under newer weights; entropies are of the trainer's policy."""

    mode = MODES["uadt_colocate_async"]


class UadtSeparateAsync(UadtMixin, PPOTrainerSeparateAsync):
    """Rollouts on devices of their own; several updates a step, each shaped by itself."""

    mode = MODES["uadt_separate_async"]


def register() -> None:
    """Enter the three modes in verl's table; calling it again changes nothing."""
    warn_if_untested()
    for trainer in (UadtSync, UadtColocateAsync, UadtSeparateAsync):
        name = f"uadt_{trainer.mode}"
        if name not in TRAINER_REGISTRY:
            register_trainer(name)(trainer)


register()  # for whoever imports this module before verl; the plug-in's hook calls it again
