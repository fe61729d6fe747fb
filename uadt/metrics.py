"""What a shaping did to one step, as flat scalars for a dashboard.

Every name is in docs/metrics.md with its estimator. No name holds ``max``, ``min``, ``sum`` or
``total`` by accident: verl reads those words out of a name and aggregates by them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from uadt.shaping.parts import like_advantage, quantile_within, shaped_positions
from uadt.types import Rollout, Shaped

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
    scalars = _advantages(shaped.advantage, advantage, rollout)
    for key, value in shaped.info.items():
        name = key if key.startswith("uadt/") else f"uadt/{key}"
        scalars |= _quantity(name, value, rollout)
        if key.endswith("/factor") and value.ndim == 1:
            prefix = name.removesuffix("/factor")
            scalars |= _quadrants(prefix, value, advantage, rollout)
        if rollout.task is not None and value.ndim:
            scalars |= _by_task(name, value, rollout, rollout.task)
    return scalars


def _advantages(after: Tensor, before: Tensor, rollout: Rollout) -> dict[str, float]:
    """Say how much of the advantages' mass moved, and how many turned round."""
    counts = shaped_positions(before, rollout.mask)
    old, new = before[counts].double(), after[counts].double()
    mass = float(old.abs().sum())
    moved = float((new - old).abs().sum())
    return {
        "uadt/advantage/moved_share": moved / mass if mass else (math.inf if moved else 0.0),
        "uadt/advantage/mass_ratio": float(new.abs().sum()) / mass if mass else math.nan,
        "uadt/advantage/turned_share": _mean((old * new < 0).double()),
        "uadt/advantage/zero_share": _mean((old == 0).double()),
        "uadt/rows_without_tokens": float((~rollout.mask.any(dim=-1)).double().sum()),
    }


def _quantity(name: str, value: Tensor, rollout: Rollout) -> dict[str, float]:
    """Summarise one quantity of ``info`` by its shape and its name."""
    if value.ndim == 0:
        return {name: float(value)}
    known = _known(value, rollout)
    scalars = {f"{name}/mean": _mean(known)}
    if name.endswith("/uncertainty"):
        scalars[f"{name}/std"] = float(known.std(correction=0)) if len(known) else math.nan
        together = torch.zeros_like(known, dtype=torch.int64)  # one scope: the whole batch
        for percent in _QUANTILES:
            found = quantile_within(known, together, percent / 100)
            scalars[f"{name}/p{percent}"] = float(found[0]) if len(found) else math.nan
    if name.endswith("/factor"):
        scalars[f"{name}/share_above"] = _mean((known > 0).double())
        scalars[f"{name}/share_below"] = _mean((known < 0).double())
    return scalars


def _quadrants(
    prefix: str, factor: Tensor, advantage: Tensor, rollout: Rollout
) -> dict[str, float]:
    """Count completions: uncertain is ω > 0, correct is a positive advantage."""
    if advantage.ndim == 2:  # a completion's advantage is the mean over its tokens
        kept = advantage.masked_fill(~rollout.mask, 0.0).double().sum(dim=-1)
        advantage = kept / rollout.mask.sum(dim=-1).clamp(min=1)
    alive = rollout.mask.any(dim=-1)
    signs = {"uncertain": factor > 0, "certain": factor < 0}
    truths = {"correct": advantage > 0, "wrong": advantage < 0}
    return {
        f"{prefix}/quadrant/{how}_{what}": float((alive & sign & truth).double().sum())
        for how, sign in signs.items()
        for what, truth in truths.items()
    }


def _by_task(name: str, value: Tensor, rollout: Rollout, tasks: Sequence[str]) -> dict[str, float]:
    """Average a quantity over each task."""
    scalars: dict[str, float] = {}
    for task in sorted(set(tasks)):
        rows = torch.tensor([one == task for one in tasks], device=value.device)
        elsewhere = like_advantage(~rows, value)
        scalars[f"{name}/mean/{task}"] = _mean(
            _known(value.masked_fill(elsewhere, math.nan), rollout)
        )
    return scalars


def _known(value: Tensor, rollout: Rollout) -> Tensor:
    """Leave out completions without tokens, padding, and what is NaN."""
    picked = value[shaped_positions(value, rollout.mask)].double()
    return picked[~picked.isnan()]


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
