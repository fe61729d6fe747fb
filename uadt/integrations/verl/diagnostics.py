"""One file an update: what was done to each completion, for reports and for tests."""

import json
import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from uadt.integrations.verl.settings import Diagnostics
from uadt.types import Rollout, Shaped

__all__ = ["records", "write_records"]


def records(
    shaped: Shaped,
    advantage: Tensor,
    rollout: Rollout,
    *,
    labels: Sequence[dict[str, Any]],
    tokens: bool = False,
) -> list[dict[str, Any]]:
    """Describe each completion of an update.

    Args:
        shaped: What the shaping returned.
        advantage: What it was given, shape ``(B, T)``.
        rollout: What it was given.
        labels: What else to write of each completion: step, key, group.
        tokens: Add lists with one entry a token of the policy: ``advantages``,
            ``shaped_advantages``, and ``entropies`` and ``logprobs`` where the rollout has them.

    Returns:
        One dict a completion. ``advantage`` and ``shaped_advantage`` are means over its tokens.
        What the shaping shows stands under its own name, one number a completion; a quantity of
        the whole batch is repeated; one of each token is averaged. NaN is None.
    """
    mask = rollout.mask
    columns: dict[str, Tensor] = {
        "advantage": _over_tokens(advantage, mask),
        "shaped_advantage": _over_tokens(shaped.advantage, mask),
    }
    if rollout.reward is not None:
        columns["reward"] = rollout.reward
    for name, value in shaped.info.items():
        if value.ndim == 2:
            columns[name] = _over_tokens(value, mask)
        else:
            columns[name] = value.expand(len(mask)) if value.ndim == 0 else value
    counts = cast("list[int]", mask.sum(dim=-1).tolist())
    numbers = {name: _listed(column) for name, column in columns.items()}
    found: list[dict[str, Any]] = []
    for row, (label, count) in enumerate(zip(labels, counts, strict=True)):
        record = {**label, "tokens": count}
        if rollout.task is not None:
            record["task"] = rollout.task[row]
        record |= {name: column[row] for name, column in numbers.items()}
        if tokens:
            record |= _token_lists(shaped, advantage, rollout, row)
        found.append(record)
    return found


def write_records(rows: Sequence[dict[str, Any]], settings: Diagnostics, name: str) -> Path | None:
    """Write the records of one update, whole or not at all.

    A step that is trained again after a resume overwrites its own file.

    Args:
        rows: See `records`.
        settings: Where and how; without a path nothing is written.
        name: Of the file, without its suffix.

    Returns:
        The file.
    """
    if settings.path is None:
        return None
    settings.path.mkdir(parents=True, exist_ok=True)
    path = settings.path / f"{name}.{settings.format}"
    temporary = path.with_name(f".{path.name}.new")
    if settings.format == "parquet":
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(list(rows)), temporary)
    else:
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    temporary.replace(path)
    return path


def _over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    if values.ndim == 1:
        return values
    kept = values.double().masked_fill(~mask, 0.0).sum(dim=-1)
    return kept / mask.sum(dim=-1)  # NaN for a completion without tokens


def _token_lists(
    shaped: Shaped, advantage: Tensor, rollout: Rollout, row: int
) -> dict[str, list[float | None]]:
    columns = {"advantages": advantage, "shaped_advantages": shaped.advantage}
    if rollout.entropy is not None:
        columns["entropies"] = rollout.entropy
    if rollout.logprob is not None:
        columns["logprobs"] = rollout.logprob
    chosen = rollout.mask[row]
    return {name: _listed(column[row][chosen]) for name, column in columns.items()}


def _listed(values: Tensor) -> list[float | None]:
    """Return numbers that JSON can carry: what is not finite is None."""
    numbers = cast("list[float]", values.double().tolist())
    return [number if math.isfinite(number) else None for number in numbers]
