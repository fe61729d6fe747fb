# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# slime and Megatron are annotated loosely, and are not installed where this file is checked.
"""slime: functions for two of its paths. It is the one stack that hands entropies to them.

* ``--rollout-data-postprocess-path uadt.integrations.slime.postprocess`` shapes what any of its
  estimators made, after whitening. Take this one.
* ``--custom-advantage-function-path uadt.integrations.slime.grpo_advantages`` replaces the
  estimator with GRPO's returns, shaped. Its state is not saved: this path knows no step.

Both need ``--use-rollout-entropy``, and ``--get-mismatch-metrics`` so that slime does not leave out
the pass of the old policy. ``--custom-config-path`` names a YAML file whose key ``uadt`` is the
shaping; without it, it is ``UADT()``. Context parallelism is refused: its ranks hold slices.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uadt.config import shaping_from_config
from uadt.integrations.rows import Rows
from uadt.integrations.shaper import Shaper
from uadt.types import MissingSignalError, reader_of

__all__ = ["grpo_advantages", "postprocess"]

_logger = logging.getLogger(__name__)
_shapers: dict[str, Shaper] = {}
"""The one of this process: slime calls functions, so there is no object to hold it."""


def postprocess(args: Any, rollout_id: int, rollout_data: dict[str, Any]) -> None:
    """Shape the advantages of one rollout, and keep the state under ``--save``.

    Args:
        args: Those of slime.
        rollout_id: The step; after a restart the state is that of the step before.
        rollout_data: Lists of one tensor a completion; its advantages are replaced.

    Raises:
        MissingSignalError: If there are no entropies; the words say which options bring them.
        NotImplementedError: Under context parallelism.
    """
    if "advantages" not in rollout_data:
        return  # not the last stage of the pipeline
    first = not _shapers
    shaper = _shaper(args)
    if first and rollout_id > 0 and getattr(args, "load", None):
        shaper.load(_folder(args.load, rollout_id - 1))
    _shape(shaper, rollout_data)
    if getattr(args, "save", None) and _writes():
        shaper.save(_folder(args.save, rollout_id))


def grpo_advantages(args: Any, rollout_data: dict[str, Any]) -> None:
    """Set GRPO's returns, and shaped advantages.

    Args:
        args: Those of slime.
        rollout_data: Lists of one tensor a completion; ``advantages`` and ``returns`` are set.

    Raises:
        MissingSignalError: If there are no entropies; the words say which options bring them.
        NotImplementedError: Under context parallelism.
    """
    from slime.utils.ppo_utils import get_grpo_returns

    kl: Sequence[Tensor] = rollout_data["kl"]
    rewards = torch.tensor(rollout_data["rewards"], dtype=torch.float32, device=kl[0].device)
    rollout_data["returns"] = get_grpo_returns(rewards, kl)
    rollout_data["advantages"] = list(rollout_data["returns"])
    _shape(_shaper(args), rollout_data)


def _shape(shaper: Shaper, rollout_data: dict[str, Any]) -> None:
    from megatron.core import mpu

    if mpu.get_context_parallel_world_size() > 1:
        raise NotImplementedError(
            "uadt wants whole completions, and under context parallelism each rank holds slices"
        )
    entropy = rollout_data.get("entropy") or None
    # The trainer's own if it ran, else the sampler's.
    logprob = rollout_data.get("log_probs") or rollout_data.get("rollout_log_probs") or None
    if entropy is None and shaper.wants("entropy"):
        raise MissingSignalError(
            "entropy",
            wanted_by=reader_of(shaper.shaping, "entropy"),
            how="start slime with --use-rollout-entropy --get-mismatch-metrics",
        )
    parts = [
        Rows(
            advantage=advantage[None],
            mask=rollout_data["loss_masks"][row][None].bool().to(advantage.device),
            entropy=None if entropy is None else entropy[row][None].float(),
            logprob=None if logprob is None else logprob[row][None].float(),
        )
        for row, advantage in enumerate(rollout_data["advantages"])
    ]
    shaped, scalars = shaper.shape(parts, process_group=mpu.get_data_parallel_group())
    rollout_data["advantages"] = [advantages[0] for advantages in shaped]
    if _writes():
        _logger.info("uadt: %s", scalars)


def _shaper(args: Any) -> Shaper:
    if "this process" not in _shapers:
        shaping = shaping_from_config(getattr(args, "uadt", None) or {})
        _shapers["this process"] = Shaper(shaping, stack="slime", offers=["entropy", "logprob"])
    return _shapers["this process"]


def _folder(root: str, rollout_id: int) -> Path:
    return Path(root) / "uadt" / f"rollout_{rollout_id:07d}"


def _writes() -> bool:
    """Say whether this rank logs and saves: the last one is on the pipeline's last stage."""
    dist = torch.distributed
    return not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1
