"""Shapes, and the three types that every shaping shares.

Legend of the axes:

* ``B`` completions of the step, ``T`` response positions (padded)
* ``V`` vocabulary, ``D`` model width
* ``*N`` any leading axes, for functions that treat each token alone
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "Advantage",
    "EmptyState",
    "GroupIds",
    "Logits",
    "MissingSignalError",
    "PerSequence",
    "PerToken",
    "Rollout",
    "Shaped",
    "Shaping",
    "State",
    "TokenIds",
    "TokenMask",
    "TokenValues",
    "all_finite",
    "reader_of",
    "required_signals",
]

Logits = Float[Tensor, "*N V"]
"""Unnormalised scores over the vocabulary, any leading axes."""
TokenValues = Float[Tensor, "*N"]
"""One number a token, any leading axes."""
TokenIds = Int[Tensor, "*N"]
"""One token id a token, any leading axes."""
PerToken = Float[Tensor, "B T"]
"""One number a response position."""
TokenMask = Bool[Tensor, "B T"]
"""True where the policy chose a token; False at padding, prompts and tool output."""
PerSequence = Float[Tensor, " B"]
"""One number a completion."""
GroupIds = Int[Tensor, " B"]
"""Which completions answer the same prompt; any labels."""
Advantage = Float[Tensor, " B"] | Float[Tensor, "B T"]
"""One advantage a completion, or one a token."""

State = Any
"""What a shaping remembers: Python numbers, and dicts of them by task, in NamedTuples."""

_HOW_TO_GET = {
    "entropy": "pass Rollout(entropy=...), e.g. from uadt.token_entropy(logits, temperature=...)",
    "logprob": "pass Rollout(logprob=...), e.g. from uadt.token_statistics(logits, token_ids)",
    "reward": "pass Rollout(reward=...), one number a completion",
    "group": "pass Rollout(group=...), one integer label a completion",
    "task": "pass Rollout(task=...), one name a completion",
    "self_certainty": (
        'pass Rollout(extra={"self_certainty": ...}), e.g. from '
        "uadt.token_statistics(logits).self_certainty; a stack that holds entropies only can run "
        'UCAS(certainty="entropy"), another statistic'
    ),
    "logit": (
        'pass Rollout(extra={"logit": ...}), the raw logit of each sampled token, before the '
        "temperature: logits.gather(-1, token_ids[..., None])[..., 0]; UCAS(penalty=0) does "
        "without it"
    ),
    "cluster": (
        'pass Rollout(extra={"cluster": ...}), one integer a completion, the same for the same '
        "meaning: the number of its answer, or of its cluster by a judge; in verl, return it from "
        "the reward function beside the score"
    ),
}


class MissingSignalError(ValueError):
    """A shaping wants a signal that the rollout does not hold.

    Attributes:
        signal: The name of the signal.
        wanted_by: The shaping that wanted it.
        how: How to get it.
    """

    def __init__(self, signal: str, wanted_by: str, how: str = "") -> None:
        """Name the signal, who wanted it, and how to get it."""
        key = f'pass Rollout(extra={{"{signal}": ...}})'
        remedy = how or _HOW_TO_GET.get(signal, key)
        super().__init__(f"{wanted_by} needs the signal {signal!r}, got None: {remedy}")
        self.signal = signal
        self.wanted_by = wanted_by
        self.how = remedy

    def __reduce__(self) -> tuple[type["MissingSignalError"], tuple[str, str, str]]:
        """Pickle by the three strings, so that the error crosses process borders whole."""
        return type(self), (self.signal, self.wanted_by, self.how)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """What a shaping may look at: one step's completions, whole; never carries gradient.

    Tensors are detached on construction. A position outside ``mask`` may hold anything,
    NaN included; nothing depends on it, but for ``EDGE(faithful_to="code")``, which repeats
    that its authors' mean runs over padding.

    Raises:
        ValueError: If a field has another shape or dtype than its neighbours ask for, if
            there is no completion (``B = 0``), or if a reward is not finite. The words say
            what was wanted and what came.

    Example:
        >>> mask, entropy = torch.tensor([[True, False]]), torch.tensor([[0.5, 9.0]])
        >>> rollout = Rollout(mask=mask, entropy=entropy)
        >>> rollout.signal("entropy", wanted_by="UADT").shape
        torch.Size([1, 2])
    """

    mask: TokenMask
    """True where the policy chose a token."""
    entropy: PerToken | None = None
    """Nats, at the sampling temperature; which policy it is of is the adapter's to say.

    Half precision may give a sure token an entropy a little below 0. It is let in, and counts as 0
    where a formula wants a number that is not negative (`uadt.shaping.parts.entropy_of`).
    """
    logprob: PerToken | None = None
    """Log-probabilities of the sampled tokens, in nats."""
    reward: PerSequence | None = None
    """One reward a completion."""
    group: GroupIds | None = None
    """Which completions answer the same prompt; any integer labels."""
    task: Sequence[str] | None = None
    """One name a completion; thresholds may be kept per task."""
    extra: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    """Named signals of single methods, first axis ``B``: self-certainty, cluster ids, …"""

    def __post_init__(self) -> None:
        """Check every field against the mask, and cut the gradients."""
        if self.mask.ndim != 2 or self.mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be a bool tensor of shape (B, T), got {_describe(self.mask)}; "
                "convert an integer mask with mask.bool()"
            )
        batch, positions = self.mask.shape
        if batch == 0:
            raise ValueError("a rollout must hold at least one completion, got B = 0")
        for name in ("entropy", "logprob"):
            value: Tensor | None = getattr(self, name)
            if value is None:
                continue
            if value.shape != (batch, positions) or not value.is_floating_point():
                raise ValueError(
                    f"{name} must be a floating tensor of shape {(batch, positions)} like mask, "
                    f"got {_describe(value)}"
                )
            object.__setattr__(self, name, value.detach())
        if self.reward is not None:
            self._check_reward(self.reward, batch)
        if self.group is not None and (
            self.group.shape != (batch,) or self.group.dtype not in _INTEGERS
        ):
            raise ValueError(
                f"group must be an integer tensor of shape {(batch,)}, got {_describe(self.group)}"
            )
        if self.task is not None:
            if isinstance(self.task, str) or len(self.task) != batch:
                raise ValueError(f"task must hold {batch} names, got {len(self.task)}")
            object.__setattr__(self, "task", tuple(self.task))
        for name, value in self.extra.items():
            if value.ndim == 0 or len(value) != batch:
                raise ValueError(
                    f"extra[{name!r}] must have {batch} rows like mask, got {_describe(value)}"
                )
        detached = {name: value.detach() for name, value in self.extra.items()}
        object.__setattr__(self, "extra", MappingProxyType(detached))

    def _check_reward(self, reward: Tensor, batch: int) -> None:
        if reward.shape != (batch,) or not reward.is_floating_point():
            raise ValueError(
                f"reward must be a floating tensor of shape {(batch,)}, got {_describe(reward)}"
            )
        if not bool(reward.isfinite().all()):
            rows = [int(row) for row in (~reward.isfinite()).nonzero()]
            values = [float(reward[row]) for row in rows]
            raise ValueError(f"reward must be finite, got {values} in rows {rows}")
        object.__setattr__(self, "reward", reward.detach())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the fields: a read-only mapping does not pickle by itself."""
        return _rebuild, (
            self.mask,
            self.entropy,
            self.logprob,
            self.reward,
            self.group,
            self.task,
            dict(self.extra),
        )

    def signal(self, name: str, *, wanted_by: str) -> Tensor:
        """Return a signal by its name, from the fields or from ``extra``.

        Args:
            name: ``"entropy"``, ``"logprob"``, ``"reward"``, ``"group"``, or a key of ``extra``;
                ``"surprisal"`` is minus ``logprob``, a statistic of its own and never a fallback.
            wanted_by: The name of the shaping, for the error.

        Returns:
            The tensor, without gradient.

        Raises:
            MissingSignalError: If the rollout does not hold it.
            ValueError: If one number a token is NaN where ``mask`` is True, or an entropy
                infinite there; the words name the rows.
        """
        if name == "surprisal":
            return -self.signal("logprob", wanted_by=wanted_by)
        value = self.extra.get(name)
        if name in ("entropy", "logprob", "reward", "group"):
            value = getattr(self, name)
        if value is None:
            raise MissingSignalError(name, wanted_by)
        self._check_tokens(name, value, wanted_by)
        return value

    def _check_tokens(self, name: str, value: Tensor, wanted_by: str) -> None:
        if value.shape != self.mask.shape or not value.is_floating_point():
            return
        if all_finite(value):
            return
        wrong = {"NaN": value.isnan()}
        if name == "entropy":  # a log-probability may be -inf, an entropy is finite
            wrong["infinity"] = value.isinf()
        for what, where in wrong.items():
            rows = [int(row) for row in (where & self.mask).any(dim=-1).nonzero()]
            if rows:
                raise ValueError(
                    f"{wanted_by} needs a finite {name!r} where mask is True, "
                    f"got {what} in rows {rows}"
                )

    def tasks(self, *, wanted_by: str) -> Sequence[str]:
        """Return the task names.

        Args:
            wanted_by: The name of the shaping, for the error.

        Returns:
            One name a completion.

        Raises:
            MissingSignalError: If the rollout holds none.
        """
        if self.task is None:
            raise MissingSignalError("task", wanted_by)
        return self.task


class Shaped(NamedTuple):
    """What a shaping returns."""

    advantage: Tensor
    """The shaped advantages, in the shape that came in."""
    state: State
    """What to pass in at the next step, and to write to a checkpoint."""
    info: dict[str, Tensor]
    """What to show, ``<shaping>/<quantity>``; the shaping's docstring documents each key."""


class EmptyState(NamedTuple):
    """The state of a shaping that remembers nothing."""


def all_finite(values: Tensor) -> bool:
    """Say whether a sum of all values is finite, in one pass.

    NaN and infinity survive addition, so True is certain. False also comes of sums that overflow,
    and so asks for a closer look.

    Args:
        values: Floating, any shape.

    Returns:
        True if every value is finite.

    Example:
        >>> all_finite(torch.ones(3)), all_finite(torch.tensor([1.0, float("nan")]))
        (True, False)
    """
    return bool(values.sum().isfinite())


@runtime_checkable
class Shaping(Protocol):
    """Anything with these two methods is a shaping.

    It sees the whole batch of a step, never a micro-batch. It may name what it reads in a
    property ``signals`` (see `required_signals`).

    Shaped advantages are constants of the loss: no gradient passes through a shaping, neither to
    the advantage that came in nor to a signal. Ours cut it from both, so a critic or a reward
    model behind the advantage is not trained by the policy's loss.
    """

    def init(self) -> State:
        """Return the state before the first batch."""
        ...

    def __call__(self, advantage: Tensor, rollout: Rollout, state: State) -> Shaped:
        """Shape the advantages of one step."""
        ...


def required_signals(shaping: Shaping) -> frozenset[str] | None:
    """Return the names of the signals that a shaping reads.

    Args:
        shaping: Any shaping.

    Returns:
        Names of fields of `Rollout` and of keys of its ``extra``, ``"surprisal"`` given as
        ``"logprob"``; ``None`` if the shaping does not say, so that an adapter offers all it has.
    """
    signals: frozenset[str] | None = getattr(shaping, "signals", None)
    if signals is None:
        return None
    return frozenset("logprob" if name == "surprisal" else name for name in signals)


def reader_of(shaping: Shaping, signal: str) -> str:
    """Return the name of the shaping that reads a signal, for an error that is raised for it.

    Args:
        shaping: Any shaping.
        signal: One of its `required_signals`.

    Returns:
        The name of its class; of a chain, or of a shaping with one inside, the name of the first
        part that says it reads the signal.

    Example:
        >>> from uadt.shaping import SEED, UADT, chain
        >>> reader_of(chain(UADT(), SEED()), "cluster")
        'SEED'
    """
    inside = getattr(shaping, "shaping", None)
    parts: tuple[Shaping, ...] = getattr(shaping, "shapings", () if inside is None else (inside,))
    for part in parts:
        if signal in (required_signals(part) or ()):
            return reader_of(part, signal)
    return type(shaping).__name__


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def _rebuild(  # noqa: PLR0913 - one argument a field
    mask: Tensor,
    entropy: Tensor | None,
    logprob: Tensor | None,
    reward: Tensor | None,
    group: Tensor | None,
    task: Sequence[str] | None,
    extra: dict[str, Tensor],
) -> Rollout:
    return Rollout(
        mask=mask,
        entropy=entropy,
        logprob=logprob,
        reward=reward,
        group=group,
        task=task,
        extra=extra,
    )
