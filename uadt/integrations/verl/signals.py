# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# TensorDict and its nested tensors are only partly typed.
"""Rows of verl → what a shaping looks at.

verl keeps a batch in TransferQueue as rows of named fields. Sequences are nested (jagged) tensors,
cut to the response, or padded to the longest where verl computes on them; mappings and names are
lists. Padding rows never come here.

| signal | field of verl | of which policy |
|---|---|---|
| ``entropy`` | ``entropy`` | the trainer's, at the sampling temperature |
| ``logprob`` | ``old_log_probs`` | the trainer's |
| ``ref_logprob`` (extra) | ``ref_log_prob`` | the reference |
| ``rollout_logprob`` (extra) | ``rollout_log_probs`` | the one that sampled |
| ``reward`` | ``rm_scores``, added up: what the reward gave, before a KL penalty | |
| ``group`` | ``uid`` | |
| ``task`` | the column ``uadt.task_key`` | |
| any other (extra) | a number under this name that the reward function returned | |

In ``uadt_sync`` the trainer's policy is the one that sampled. In the asynchronous modes it is
newer; no entropy of the older one is kept by verl.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from uadt.types import MissingSignalError, Rollout, Shaping, reader_of, required_signals

__all__ = ["check_finite", "fields_for", "listed", "padded", "rollout_from", "unscorable"]

_PER_TOKEN = {
    "entropy": "entropy",
    "logprob": "old_log_probs",
    "ref_logprob": "ref_log_prob",
    "rollout_logprob": "rollout_log_probs",
}
_PER_ROW = {"reward": "rm_scores", "group": "uid"}
_REMEDIES = {
    "entropy": "algorithm.rollout_correction.bypass_mode must be False",
    "logprob": "algorithm.rollout_correction.bypass_mode must be False",
    "ref_logprob": "set actor_rollout_ref.actor.use_kl_loss=True",
    "rollout_logprob": "set actor_rollout_ref.rollout.calculate_log_probs=True",
}
_ALWAYS = ("response_mask", "advantages", "extra_fields")
AT_HAND = frozenset(
    {"response_mask", "advantages", *_PER_TOKEN.values(), *_PER_ROW.values()} - {"entropy"}
)
"""Fields that verl holds where it has computed advantages, if they are anywhere."""


def fields_for(signals: frozenset[str] | None, task_key: str) -> list[str]:
    """Return the fields that a shaping needs, of verl's own batch or of TransferQueue.

    Args:
        signals: What the shaping reads; ``None`` asks for all that verl has.
        task_key: The column of the task's name, perhaps with a path into a mapping.

    Returns:
        Names of fields.
    """
    named = signals if signals is not None else frozenset((*_PER_TOKEN, *_PER_ROW, "task"))
    wanted = [field for signal, field in _PER_TOKEN.items() if signal in named]
    wanted += [field for signal, field in _PER_ROW.items() if signal in named]
    if "task" in named:
        wanted.append(task_key.split(".")[0])
    return [*_ALWAYS, *wanted]


def rows_of(computed: Any, rows: Sequence[int], fields: Collection[str]) -> dict[str, Any]:
    """Return some rows and fields of a batch that verl computes on.

    Args:
        computed: verl's DataProto.
        rows: Numbers of rows.
        fields: Names; those that verl does not hold are left out.

    Returns:
        Fields by name.
    """
    some = list(rows) if len(rows) < len(computed.batch) else slice(None)
    columns = {**computed.batch, **computed.non_tensor_batch}
    return {name: values[some] for name, values in columns.items() if name in fields}


def padded(values: Tensor, width: int | None = None) -> Tensor:
    """Return a nested tensor as a rectangle, as wide as its longest row or as it is told."""
    if not values.is_nested:
        return values
    return values.to_padded_tensor(0.0, None if width is None else (len(values), width))


def check_finite(scores: Tensor, keys: Sequence[str]) -> None:
    """Refuse rewards that are no numbers.

    Args:
        scores: The field ``rm_scores``.
        keys: verl's names of the rows.

    Raises:
        ValueError: If a reward is not finite; the words name its rows.
    """
    reward = padded(scores).float().sum(dim=-1)
    bad = (~reward.isfinite()).nonzero().flatten().tolist()
    if bad:
        shown = ", ".join(f"{keys[i]}: {float(reward[i])}" for i in bad[:5])
        raise ValueError(
            f"the reward must be a finite number, got {len(bad)} of {len(reward)} that are not "
            f"({shown}); keys are prompt_sample_output"
        )


def rollout_from(data: Any, shaping: Shaping, task_key: str) -> Rollout:
    """Make a rollout of rows of verl.

    Args:
        data: Fields by name, first axis the rows.
        shaping: Gets the signals that it says it reads; all that verl has if it does not say.
        task_key: See `fields_for`.

    Returns:
        The rollout.

    Raises:
        MissingSignalError: If verl has not computed what the shaping reads; the words name the
            setting.
    """
    signals = required_signals(shaping)
    mask = padded(data["response_mask"]).bool()
    per_token = {
        signal: padded(data[field], mask.shape[1]).float()
        for signal, field in _PER_TOKEN.items()
        if (signals is None or signal in signals) and field in data
    }
    for signal in _PER_TOKEN:
        if signals is not None and signal in signals and signal not in per_token:
            raise MissingSignalError(signal, reader_of(shaping, signal), _REMEDIES[signal])
    extra = {
        name: per_token.pop(name)
        for name in ("ref_logprob", "rollout_logprob")
        if name in per_token
    }
    others = (signals or frozenset()) - set(_PER_TOKEN) - set(_PER_ROW) - {"task"}
    for name in sorted(others):
        extra[name] = _from_reward_function(data, name, reader_of(shaping, name))
    return Rollout(
        mask=mask,
        reward=padded(data["rm_scores"]).float().sum(dim=-1) if "rm_scores" in data else None,
        group=_labels(listed(data["uid"])) if "uid" in data else None,
        task=_tasks(data, task_key) if signals is None or "task" in signals else None,
        extra=extra,
        **per_token,
    )


def listed(values: Any) -> list[Any]:
    """Return what a column of names or mappings holds, one entry a row."""
    return list(values.tolist()) if hasattr(values, "tolist") else list(values)


def _labels(names: Sequence[Any]) -> Tensor:
    known: dict[Any, int] = {}
    labels = [known.setdefault(name, len(known)) for name in names]
    return torch.tensor(labels, dtype=torch.int64)


def _tasks(data: Any, task_key: str) -> list[str] | None:
    column, *path = task_key.split(".")
    if column not in data:
        return None
    names: list[str] = []
    for value in listed(data[column]):
        for part in path:
            if not isinstance(value, dict) or part not in value:
                raise ValueError(
                    f"uadt.task_key={task_key} must lead to a name in every row, got {value!r}"
                )
            value = value[part]
        names.append(str(value))
    return names


def unscorable(data: Any) -> int | None:
    """Count the completions that the reward function could not score, and gave 0 to.

    Args:
        data: Fields by name, first axis the rows.

    Returns:
        How many rows hold a true ``unscorable`` of the reward function; ``None`` if it returns no
        such number.
    """
    found = [value for value in _returned(data, "unscorable") if value is not None]
    return sum(map(bool, found)) if found else None


def _returned(data: Any, name: str) -> list[Any]:
    """Return what the reward function gave under a name, one entry a row, or nothing."""
    rows = listed(data["extra_fields"]) if "extra_fields" in data else []
    return [((row or {}).get("reward_extra_info") or {}).get(name) for row in rows]


def _from_reward_function(data: Any, name: str, wanted_by: str) -> Tensor:
    found = _returned(data, name)
    if not found or any(value is None for value in found):
        how = (
            f"verl does not compute it; let the reward function return {{'score': …, {name!r}: …}}"
        )
        raise MissingSignalError(name, wanted_by, how)
    return torch.tensor([float(value) for value in found])
