# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false
# verl, TransferQueue and TensorDict are not typed.
"""The trainer modes: verl computes the advantages of a step, then one shaping shapes the batch."""

import importlib.metadata
import logging
import os
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import transfer_queue as tq
from omegaconf import open_dict
from torch import Tensor
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.debug import marked_timer

from uadt.integrations.shaper import STATE_FILE, Shaper
from uadt.integrations.verl.diagnostics import records, write_records
from uadt.integrations.verl.estimator import NAME
from uadt.integrations.verl.failing import count_groups_of_one, end_after_failures
from uadt.integrations.verl.plugin import TESTED_VERSIONS, warn_if_untested
from uadt.integrations.verl.settings import MODES, Settings, check_run
from uadt.integrations.verl.signals import (
    AT_HAND,
    check_finite,
    fields_for,
    listed,
    rollout_from,
    rows_of,
    unscorable,
)
from uadt.types import all_finite, required_signals

__all__ = [
    "UadtColocateAsync",
    "UadtMixin",
    "UadtSeparateAsync",
    "UadtSync",
    "register",
]

_COMPUTE = "compute_advantage_for_multi_trajectories"
"""What verl's ``_compute_advantage`` calls for the advantages, a name of its module."""
_logger = logging.getLogger(__name__)


class UadtMixin:
    """What the three modes share: shape what verl has computed, and keep the state.

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
        rows = [i for i, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        if not rows:
            return super()._compute_advantage(batch, metrics)  # type: ignore[misc]
        keys = [batch.keys[row] for row in rows]
        # Beside verl's own reading and padding, so that nothing waits for it.
        with ThreadPoolExecutor(max_workers=1) as pool:
            fetched = pool.submit(
                tq.kv_batch_get,
                keys=keys,
                partition_id=batch.partition_id,
                select_fields=sorted(self._fields() - AT_HAND),
            )
            shape = partial(self._shape, rows=rows, keys=keys, fetched=fetched, metrics=metrics)
            with _before_verl_writes(shape):
                return super()._compute_advantage(batch, metrics)  # type: ignore[misc]

    def _shape(
        self,
        computed: Any,
        *,
        rows: list[int],
        keys: list[str],
        fetched: Future[Any],
        metrics: dict[str, Any],
    ) -> None:
        """Put shaped advantages in the place of those that verl computed."""
        with marked_timer("uadt", self.timing_raw):
            scores, before = computed.batch["rm_scores"], computed.batch["advantages"]
            if not all_finite(scores):
                check_finite(scores[rows], keys)
            data = rows_of(computed, rows, self._fields()) | dict(fetched.result().items())
            shaped = self._shaped_advantage(data, keys, metrics)
            # A new tensor: some estimators return one for advantages and returns.
            index = torch.tensor(rows, device=before.device)
            computed.batch["advantages"] = before.index_copy(0, index, shaped.to(before.dtype))

    def _fields(self) -> set[str]:
        settings = self.uadt_settings
        fields = set(fields_for(required_signals(settings.shaping), settings.task_key))
        if settings.diagnostics.path is not None:
            fields |= {"uid", "rm_scores"}
            fields |= {"prompts", "responses"} if settings.diagnostics.tokens else set[str]()
        return fields

    def _shaped_advantage(
        self, data: Mapping[str, Any], keys: list[str], metrics: dict[str, Any]
    ) -> Tensor:
        settings, advantage = self.uadt_settings, data["advantages"]
        rollout = rollout_from(data, settings.shaping, settings.task_key)
        shaped, scalars = self.shaper.step(advantage, rollout)
        metrics |= scalars | {"uadt/updates": self.shaper.updates}
        if self.config.actor_rollout_ref.rollout.n > 1:
            metrics["uadt/groups_of_one"] = count_groups_of_one(keys)
        if (count := unscorable(data)) is not None:
            metrics["uadt/unscorable"] = count
        if settings.diagnostics.path is not None:
            labels, tokens = self._labels(data, keys), settings.diagnostics.tokens
            described = records(shaped, advantage, rollout, labels=labels, tokens=tokens)
            name = f"step_{self.global_steps:06d}_{self.local_trigger_step:02d}"
            write_records(described, settings.diagnostics, name)
        return shaped.advantage

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


@contextmanager
def _before_verl_writes(shape: Callable[[Any], None]) -> Generator[None]:
    """Let a function see, and change, the advantages that verl computes before it writes them.

    verl's ``_compute_advantage`` reads rows from TransferQueue, calls one function of its module
    for their advantages, and writes. A shaping after all that would read again what is at hand
    here, and write a second time, which takes half as long as all of it.
    """
    compute: Any = getattr(trainer_base, _COMPUTE, None)
    calls: list[str] = []

    def both(*args: Any, **kwargs: Any) -> Any:
        calls.append(_COMPUTE)
        computed = compute(*args, **kwargs)
        shape(computed)
        return computed

    setattr(trainer_base, _COMPUTE, both)
    try:
        yield
    finally:
        setattr(trainer_base, _COMPUTE, compute)
    if len(calls) != 1:
        raise RuntimeError(
            f"uadt shapes what {_COMPUTE} returns, and verl {importlib.metadata.version('verl')} "
            f"called it {len(calls)} times for the advantages of a step: "
            f"use verl {' or '.join(TESTED_VERSIONS)}"
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
