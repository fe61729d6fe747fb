"""What a shaping did to one step, as flat scalars for a dashboard.

Every name is in docs/metrics.md with its estimator. No name holds ``max``, ``min``, ``sum`` or
``total`` by accident: verl reads those words out of a name and aggregates by them.
"""

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from uadt.shaping.parts import quantile_within
from uadt.types import Rollout, Shaped, TokenMask

__all__ = ["summarise"]

_QUANTILES = (10, 50, 90)


def summarise(shaped: Shaped, advantage: Tensor, rollout: Rollout) -> dict[str, float]:
    """Return documented scalars of one step.

    All names start with ``uadt/``. ``uadt/factor`` of ``Shaped.info`` becomes
    ``uadt/factor/mean`` and more; what another shaping shows keeps its name behind the prefix,
    ``uadt/clip/changed/mean``, and so does a second UADT, ``uadt/uadt_2/factor/mean``.

    Completions without tokens, and positions outside the mask, enter nothing. What is not
    defined (the mean of nothing, a standard deviation without voters) is NaN.

    Args:
        shaped: What the shaping returned.
        advantage: What it was given.
        rollout: What it was given.

    Returns:
        One float a name; see docs/metrics.md.

    Raises:
        ValueError: If ``advantage`` is not of the shape of the shaped one.

    Example:
        >>> from uadt.shaping import UADT
        >>> entropy = torch.tensor([[0.2], [0.6]])
        >>> rollout = Rollout(mask=entropy > 0, entropy=entropy)
        >>> advantage = torch.tensor([1.0, -1.0])
        >>> shaped = UADT()(advantage, rollout, UADT().init())
        >>> round(summarise(shaped, advantage, rollout)["uadt/threshold/mean"], 6)  # (.2 + .6) / 2
        0.4
    """
    if advantage.shape != shaped.advantage.shape:
        raise ValueError(
            f"advantage must have the shape of the shaped one, {tuple(shaped.advantage.shape)}, "
            f"got {tuple(advantage.shape)}"
        )
    tasks = _rows_by_task(rollout)
    alive = rollout.mask.any(dim=-1)
    counts = {1: alive, 2: rollout.mask}  # of one number a completion, and of one a token
    scalars = _advantages(shaped.advantage, advantage, counts[advantage.ndim])
    scalars["uadt/rows_without_tokens"] = float(len(alive) - alive.count_nonzero())
    for key, value in shaped.info.items():
        name = key if key.startswith("uadt/") else f"uadt/{key}"
        if value.ndim == 0:
            scalars[name] = float(value)
            continue
        scalars |= _quantity(name, value, counts[value.ndim], tasks)
        if key.endswith("/factor") and value.ndim == 1:
            prefix = name.removesuffix("/factor")
            scalars |= _quadrants(prefix, value, advantage, rollout.mask, alive)
    return scalars


def _advantages(after: Tensor, before: Tensor, counts: Tensor) -> dict[str, float]:
    """Say how much of the advantages' mass moved, and how many turned round."""
    number = int(counts.count_nonzero())  # a sum of booleans would make integers of all first
    wide = torch.promote_types(before.dtype, torch.float32)
    old, new = (torch.where(counts, value.to(wide), 0.0) for value in (before, after))
    mass, after_mass, moved = _mass(old), _mass(new), _mass(new - old)
    turned = new.sign_().mul_(old) < 0
    return {
        "uadt/advantage/moved_share": moved / mass if mass else (math.inf if moved else 0.0),
        "uadt/advantage/mass_ratio": after_mass / mass if mass else math.nan,
        "uadt/advantage/turned_share": _ratio(turned.count_nonzero(), number),
        "uadt/advantage/zero_share": _ratio(number - old.count_nonzero(), number),
    }


def _mass(advantage: Tensor) -> float:
    rows = advantage.reshape(len(advantage), -1)
    by_row = cast("Tensor", torch.linalg.vector_norm(rows, ord=1, dim=-1))
    return float(by_row.double().sum())


def _quantity(
    name: str, value: Tensor, counts: Tensor, tasks: Mapping[str, Tensor]
) -> dict[str, float]:
    """Summarise one quantity of ``info`` by its name."""
    total, number = _by_row(value, counts)
    scalars = {f"{name}/mean": _ratio(total.sum(), number.sum())}
    for task, rows in tasks.items():
        scalars[f"{name}/mean/{task}"] = _ratio(total[rows].sum(), number[rows].sum())
    if not name.endswith(("/uncertainty", "/factor")):
        return scalars
    known = value[counts & ~value.isnan()].double()
    if name.endswith("/uncertainty"):
        scalars[f"{name}/std"] = float(known.std(correction=0)) if len(known) else math.nan
        together = torch.zeros_like(known, dtype=torch.int64)  # one scope: the whole batch
        for percent in _QUANTILES:
            found = quantile_within(known, together, percent / 100)
            scalars[f"{name}/p{percent}"] = float(found[0]) if len(found) else math.nan
    else:
        scalars[f"{name}/share_above"] = _ratio((known > 0).sum(), len(known))
        scalars[f"{name}/share_below"] = _ratio((known < 0).sum(), len(known))
    return scalars


def _quadrants(
    prefix: str, factor: Tensor, advantage: Tensor, mask: TokenMask, alive: Tensor
) -> dict[str, float]:
    """Count completions: uncertain is ω > 0, correct is a positive advantage."""
    if advantage.ndim == 2:  # a completion's advantage is the mean over its tokens, of this sign
        advantage = _by_row(advantage, mask)[0]
    signs = {"uncertain": factor > 0, "certain": factor < 0}
    truths = {"correct": advantage > 0, "wrong": advantage < 0}
    return {
        f"{prefix}/quadrant/{how}_{what}": float((alive & sign & truth).sum())
        for how, sign in signs.items()
        for what, truth in truths.items()
    }


def _rows_by_task(rollout: Rollout) -> dict[str, Tensor]:
    """Return the numbers of the rows of each task; none without tasks."""
    places: dict[str, list[int]] = {}
    for row, task in enumerate(rollout.task or ()):
        places.setdefault(task, []).append(row)
    device = rollout.mask.device
    return {task: torch.tensor(rows, device=device) for task, rows in sorted(places.items())}


def _by_row(value: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Add up each completion, without padding and NaN: its sum as float64, and of how many."""
    if bool(value.sum().isnan()):
        counts = counts & ~value.isnan()
    kept = torch.where(counts, value.to(torch.promote_types(value.dtype, torch.float32)), 0.0)
    if value.ndim == 1:
        return kept.double(), counts
    return kept.sum(dim=-1).double(), counts.count_nonzero(dim=-1)


def _ratio(total: Tensor, number: Tensor | int) -> float:
    return float(total) / int(number) if number else math.nan
