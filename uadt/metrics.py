"""What a shaping did to one step, as flat scalars for a dashboard.

Every name is in docs/metrics.md with its estimator. No name holds ``max``, ``min``, ``sum`` or
``total`` by accident: verl reads those words out of a name and aggregates by them.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from uadt.shaping.parts import quantile_within, shaped_positions
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
    scalars = _advantages(shaped.advantage, advantage, rollout)
    for key, value in shaped.info.items():
        name = key if key.startswith("uadt/") else f"uadt/{key}"
        scalars |= _quantity(name, value, rollout.mask, tasks)
        if key.endswith("/factor") and value.ndim == 1:
            prefix = name.removesuffix("/factor")
            scalars |= _quadrants(prefix, value, advantage, rollout)
    return scalars


def _advantages(after: Tensor, before: Tensor, rollout: Rollout) -> dict[str, float]:
    """Say how much of the advantages' mass moved, and how many turned round."""
    counts = shaped_positions(before, rollout.mask)
    number = int(counts.sum())
    old, new = (torch.where(counts, value, 0.0) for value in (before, after))
    mass = float(old.abs().sum(dtype=torch.float64))
    moved = float(new.double().sub_(old).abs_().sum())
    turned = ((old < 0) & (new > 0)) | ((old > 0) & (new < 0))
    zero = (old == 0) & counts
    after_mass = float(new.abs().sum(dtype=torch.float64))
    return {
        "uadt/advantage/moved_share": moved / mass if mass else (math.inf if moved else 0.0),
        "uadt/advantage/mass_ratio": after_mass / mass if mass else math.nan,
        "uadt/advantage/turned_share": _ratio(turned.sum(), number),
        "uadt/advantage/zero_share": _ratio(zero.sum(), number),
        "uadt/rows_without_tokens": float((~rollout.mask.any(dim=-1)).sum()),
    }


def _quantity(
    name: str, value: Tensor, mask: TokenMask, tasks: Mapping[str, Tensor]
) -> dict[str, float]:
    """Summarise one quantity of ``info`` by its shape and its name."""
    if value.ndim == 0:
        return {name: float(value)}
    total, number = _by_row(value, mask)
    scalars = {f"{name}/mean": _ratio(total.sum(), number.sum())}
    for task, rows in tasks.items():
        scalars[f"{name}/mean/{task}"] = _ratio(total[rows].sum(), number[rows].sum())
    if not name.endswith(("/uncertainty", "/factor")):
        return scalars
    known = value[shaped_positions(value, mask) & ~value.isnan()].double()
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
    prefix: str, factor: Tensor, advantage: Tensor, rollout: Rollout
) -> dict[str, float]:
    """Count completions: uncertain is ω > 0, correct is a positive advantage."""
    if advantage.ndim == 2:  # a completion's advantage is the mean over its tokens, of this sign
        advantage = _by_row(advantage, rollout.mask)[0]
    alive = rollout.mask.any(dim=-1)
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


def _by_row(value: Tensor, mask: TokenMask) -> tuple[Tensor, Tensor]:
    """Add up each completion, without padding and NaN: its sum in float64, and of how many."""
    counts = shaped_positions(value, mask) & ~value.isnan()
    kept = torch.where(counts, value, 0.0)
    if value.ndim == 1:
        return kept.double(), counts
    return kept.sum(dim=-1, dtype=torch.float64), counts.sum(dim=-1)


def _ratio(total: Tensor, number: Tensor | int) -> float:
    return float(total) / int(number) if number else math.nan
