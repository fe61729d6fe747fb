"""Shapings made of shapings, and the small ones that chains need."""

import math
import re
from dataclasses import dataclass
from itertools import count
from typing import cast

import torch
from torch import Tensor

from uadt.shaping.parts import check_advantage, multiplier_of, shaped_positions
from uadt.types import EmptyState, Rollout, Shaped, Shaping, State

__all__ = ["Chain", "Clip", "KeepSign", "MeanOne", "Scale", "chain"]


@dataclass(frozen=True, slots=True)
class Chain:
    """One shaping after another; made by `chain`.

    The state is the tuple of the states of the parts, in their order. ``info`` holds what every
    part shows; where a name comes again, it is numbered: ``uadt/factor``, ``uadt_2/factor``.
    The gradient of the advantages is cut before the first part.
    """

    shapings: tuple[Shaping, ...]
    """The parts, first to last."""

    @property
    def signals(self) -> frozenset[str] | None:
        """The signals that the parts read; ``None`` if one of them does not say."""
        named = [_signals(shaping) for shaping in self.shapings]
        if any(names is None for names in named):
            return None
        return frozenset[str]().union(*(names for names in named if names is not None))

    def init(self) -> tuple[State, ...]:
        """Return the states of the parts before the first batch."""
        return tuple(shaping.init() for shaping in self.shapings)

    def __call__(self, advantage: Tensor, rollout: Rollout, state: State) -> Shaped:
        """Shape by every part in turn.

        Raises:
            ValueError: If ``state`` does not hold one state a part.
        """
        before = _states(state, len(self.shapings))
        advantage = advantage.detach()
        after: list[State] = []
        info: dict[str, Tensor] = {}
        taken: set[str] = set()
        for shaping, its_state in zip(self.shapings, before, strict=True):
            advantage, its_state, shown = shaping(advantage, rollout, its_state)
            after.append(its_state)
            names = {key.split("/", 1)[0]: "" for key in shown}
            for name in sorted(names):
                names[name] = _free(name, taken)
                taken.add(names[name])
            for key, value in shown.items():
                name, slash, quantity = key.partition("/")
                info[f"{names[name]}{slash}{quantity}"] = value
        return Shaped(advantage, tuple(after), info)

    def __repr__(self) -> str:
        """Print as it is written: ``chain(…, …)``."""
        return f"chain({', '.join(map(repr, self.shapings))})"


def chain(*shapings: Shaping) -> Chain:
    """Combine shapings into one that applies them in the order given.

    A chain of nothing is the identity, and a chain inside a chain is the same as its parts:
    ``chain(a, chain(b, c)) == chain(a, b, c)``.

    Args:
        *shapings: The parts, first to last.

    Returns:
        A shaping. Its state is the tuple of the states of the parts.

    Raises:
        TypeError: If a part is not a shaping, such as a class in place of its instance.

    Example:
        >>> rollout = Rollout(mask=torch.tensor([[True]]))
        >>> doubled = chain(Scale(by=2.0), Clip(low=-1.5, high=1.5))  # 1 * 2, then at most 1.5
        >>> doubled(torch.tensor([1.0]), rollout, doubled.init()).advantage
        tensor([1.5000])
    """
    parts: list[Shaping] = []
    for shaping in shapings:
        _check_shaping(shaping, "chain")
        parts.extend(shaping.shapings if isinstance(shaping, Chain) else (shaping,))
    return Chain(tuple(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Multiply every advantage by one number.

    | | uncertain | certain |
    |---|---|---|
    | **correct** (A > 0) | times ``by`` | times ``by`` |
    | **wrong** (A < 0) | times ``by`` | times ``by`` |

    Example:
        >>> rollout = Rollout(mask=torch.tensor([[True]]))
        >>> Scale(by=0.5)(torch.tensor([3.0]), rollout, EmptyState()).advantage
        tensor([1.5000])
    """

    by: float
    """Any finite number; 1 is the identity."""

    def __post_init__(self) -> None:
        """Check the number."""
        if not math.isfinite(self.by):
            raise ValueError(f"by must be finite, got {self.by}")

    @property
    def signals(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    def init(self) -> EmptyState:
        """Return the empty state."""
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        """Multiply the advantages that count."""
        advantage = check_advantage(advantage, rollout, wanted_by="Scale")
        counts = shaped_positions(advantage, rollout.mask)
        return Shaped(torch.where(counts, advantage * self.by, advantage), state, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Keep every advantage within a range.

    | | uncertain | certain |
    |---|---|---|
    | **correct** (A > 0) | at most ``high`` | at most ``high`` |
    | **wrong** (A < 0) | at least ``low`` | at least ``low`` |

    Info:
        clip/changed: 1 where the range was left, 0 elsewhere, in the shape of the advantages.

    Example:
        >>> rollout = Rollout(mask=torch.tensor([[True], [True]]))
        >>> Clip(low=-1.0, high=2.0)(torch.tensor([-3.0, 1.0]), rollout, EmptyState()).advantage
        tensor([-1.,  1.])
    """

    low: float
    """The least advantage; at most ``high``."""
    high: float
    """The greatest advantage."""

    def __post_init__(self) -> None:
        """Check the order of the numbers."""
        if not self.low <= self.high:
            raise ValueError(f"low must be at most high, got low={self.low}, high={self.high}")

    @property
    def signals(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    def init(self) -> EmptyState:
        """Return the empty state."""
        return EmptyState()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: EmptyState) -> Shaped:
        """Clip the advantages that count."""
        advantage = check_advantage(advantage, rollout, wanted_by="Clip")
        counts = shaped_positions(advantage, rollout.mask)
        shaped = torch.where(counts, advantage.clamp(self.low, self.high), advantage)
        changed = counts & (shaped != advantage)
        return Shaped(shaped, state, {"clip/changed": changed.to(advantage.dtype)})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepSign:
    r"""Let a shaping change how much, never which way.

    $$\hat{A}'' = \hat{A}' \text{ where } \hat{A}' \hat{A} > 0, \qquad 0 \text{ elsewhere}$$

    For additive shapings, which may turn a small advantage round. An advantage of 0 stays 0.

    | | uncertain | certain |
    |---|---|---|
    | **correct** (A > 0) | as the shaping inside, at least 0 | as the shaping inside, at least 0 |
    | **wrong** (A < 0) | as the shaping inside, at most 0 | as the shaping inside, at most 0 |

    Info:
        keep_sign/changed: 1 where a sign was turned or made of nothing, and 0 elsewhere; and
            all that the shaping inside shows. Inside another, the outer is ``keep_sign_2``.

    Example:
        >>> rollout = Rollout(mask=torch.tensor([[True], [True]]))
        >>> turned = KeepSign(shaping=Scale(by=-1.0))
        >>> turned(torch.tensor([1.0, -2.0]), rollout, turned.init()).advantage
        tensor([0., 0.])
    """

    shaping: Shaping
    """The shaping inside; a chain will do."""

    def __post_init__(self) -> None:
        """Check that there is a shaping inside."""
        _check_shaping(self.shaping, "KeepSign")

    @property
    def signals(self) -> frozenset[str] | None:
        """What the shaping inside reads."""
        return _signals(self.shaping)

    def init(self) -> State:
        """Return the state of the shaping inside."""
        return self.shaping.init()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: State) -> Shaped:
        """Shape, then set to 0 what changed its sign."""
        advantage = check_advantage(advantage, rollout, wanted_by="KeepSign")
        shaped, after, info = self.shaping(advantage, rollout, state)
        counts = shaped_positions(advantage, rollout.mask)
        turned = counts & (shaped != 0) & (shaped.sign() != advantage.sign())
        shaped = torch.where(turned, 0.0, shaped)
        return Shaped(
            shaped, after, _with(info, "keep_sign", "changed", turned.to(advantage.dtype))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanOne:
    r"""Let a shaping move credit from one completion to another, never add to it on average.

    $$\hat{A}'' = \hat{A} \cdot m / \bar{m}, \qquad m = \hat{A}' / \hat{A}$$

    The mean is over all advantages of the batch that are not 0 (tokens, if the advantages are
    ``(B, T)``). So the learning rate means the same with the shaping as without it.

    | | uncertain | certain |
    |---|---|---|
    | **correct** (A > 0) | as the shaping inside, beside the mean | the same |
    | **wrong** (A < 0) | as the shaping inside, beside the mean | the same |

    Info:
        mean_one/mean: The mean multiplier that was divided out; and all that the shaping inside
            shows, as it was before the division. Inside another, the outer is ``mean_one_2``.

    Raises:
        ValueError: When it is called, if the mean multiplier is not positive: the shaping
            inside turned most signs, and to divide would turn them back.

    Example:
        >>> rollout = Rollout(mask=torch.tensor([[True], [True]]))
        >>> same = MeanOne(shaping=Scale(by=3.0))  # everything times 3 is nothing moved
        >>> same(torch.tensor([1.0, -2.0]), rollout, same.init()).advantage
        tensor([ 1., -2.])
    """

    shaping: Shaping
    """The shaping inside; a chain will do."""

    def __post_init__(self) -> None:
        """Check that there is a shaping inside."""
        _check_shaping(self.shaping, "MeanOne")

    @property
    def signals(self) -> frozenset[str] | None:
        """What the shaping inside reads."""
        return _signals(self.shaping)

    def init(self) -> State:
        """Return the state of the shaping inside."""
        return self.shaping.init()

    def __call__(self, advantage: Tensor, rollout: Rollout, state: State) -> Shaped:
        """Shape, then divide by the mean multiplier."""
        advantage = check_advantage(advantage, rollout, wanted_by="MeanOne")
        shaped, after, info = self.shaping(advantage, rollout, state)
        counts = shaped_positions(advantage, rollout.mask)
        votes = counts & (advantage != 0)
        multiplier = multiplier_of(shaped, advantage, counts)[votes].double()
        mean = multiplier.mean() if len(multiplier) else multiplier.new_ones(())
        if not float(mean) > 0:
            raise ValueError(f"MeanOne needs a positive mean multiplier, got {float(mean)}")
        shaped = torch.where(votes, (shaped.double() / mean).to(shaped.dtype), shaped)
        return Shaped(shaped, after, _with(info, "mean_one", "mean", mean.to(advantage.dtype)))


def _with(info: dict[str, Tensor], name: str, quantity: str, value: Tensor) -> dict[str, Tensor]:
    """Add what a shaping shows to what the one inside shows, numbered if the name is taken."""
    taken = {key.split("/", 1)[0] for key in info}
    return info | {f"{_free(name, taken)}/{quantity}": value}


def _free(name: str, taken: set[str]) -> str:
    """Return the name, numbered from 2 on if it is taken: ``uadt_2``, ``uadt_3``."""
    stem = re.sub(r"_\d+$", "", name)
    numbered = (f"{stem}_{number}" for number in count(2))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def _check_shaping(shaping: object, wanted_by: str) -> None:
    if isinstance(shaping, type) or not isinstance(shaping, Shaping):
        raise TypeError(f"{wanted_by} needs shapings, got {shaping!r}")


def _signals(shaping: Shaping) -> frozenset[str] | None:
    return cast("frozenset[str] | None", getattr(shaping, "signals", None))


def _states(state: State, count: int) -> tuple[State, ...]:
    named = getattr(cast("object", state), "_fields", None) is not None
    if not isinstance(state, tuple) or named:
        raise ValueError(
            f"a chain of {count} needs a tuple of {count} states, got {state!r}: "
            "start with chain(...).init()"
        )
    states = cast("tuple[State, ...]", state)
    if len(states) != count:
        raise ValueError(
            f"a chain of {count} needs {count} states, got {len(states)}: "
            "start with chain(...).init()"
        )
    return states
