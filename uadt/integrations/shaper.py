"""What a trainer holds for a pure shaping: its state between steps, and the way to it and back."""

import math
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from uadt.config import shaping_from_config
from uadt.integrations.rows import Rows, gather, join, own_part, split
from uadt.integrations.state_file import read_json, write_json
from uadt.metrics import summarise
from uadt.states import state_from_dict, state_to_dict
from uadt.types import (
    MissingSignalError,
    Rollout,
    Shaped,
    Shaping,
    State,
    reader_of,
    required_signals,
)

__all__ = ["STATE_FILE", "Shaper", "shaping_from_environment"]

STATE_FILE = "uadt_state.json"
"""The file in a checkpoint's folder that holds the state."""


class Shaper:
    """A shaping and its state; one per trainer, called once per rollout batch.

    One call is one step of the state. So a call takes all micro-batches of a rollout at once, and
    an evaluation does not call it at all.

    Args:
        shaping: What shapes the advantages.
        stack: The name of the stack, for errors.
        offers: The signals that the adapter can hand over, as in `required_signals`; ``None`` if
            only a batch shows what there is, so that nothing is refused now.

    Attributes:
        state: What the shaping remembers.
        updates: How many batches were shaped, over resumes too.

    Raises:
        MissingSignalError: If the shaping reads a signal that the adapter does not offer; now,
            and not after the first rollout.

    Example:
        >>> import torch
        >>> from uadt import UADT
        >>> shaper = Shaper(UADT(), stack="a loop", offers=["entropy"])
        >>> rows = Rows(
        ...     advantage=torch.tensor([1.0]),
        ...     mask=torch.tensor([[True]]),
        ...     entropy=torch.tensor([[2.0]]),
        ... )
        >>> shaped, metrics = shaper.shape([rows])  # the first batch is its own threshold
        >>> shaped[0]
        tensor([1.])
    """

    def __init__(self, shaping: Shaping, *, stack: str, offers: Iterable[str] | None) -> None:
        """Check that the shaping can be served, and start its state."""
        self.shaping = shaping
        self.state: State = shaping.init()
        self.updates = 0
        if offers is None:
            return
        offered = sorted(offers)
        for name in sorted(required_signals(shaping) or ()):
            if name not in offered:
                raise MissingSignalError(
                    name,
                    wanted_by=reader_of(shaping, name),
                    how=f"the adapter for {stack} hands over {', '.join(offered)} and nothing else",
                )

    def wants(self, signal: str) -> bool:
        """Say whether the shaping may read a signal.

        Args:
            signal: As in `required_signals`.

        Returns:
            False only if the shaping says what it reads and this is not among it.
        """
        signals = required_signals(self.shaping)
        return signals is None or signal in signals

    def shape(
        self, parts: Sequence[Rows], *, process_group: Any = None
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Shape one rollout batch, and move the state by one step.

        Args:
            parts: The micro-batches of this rank; their widths may differ.
            process_group: Whose ranks hold the rest of the batch, see `gather`.

        Returns:
            The shaped advantages of each part, and scalars for the log: `uadt.metrics.summarise`
            of the whole batch, without those that are not defined in it.
        """
        rows = join(parts)
        everyone, start = gather(rows, process_group=process_group)
        shaped, scalars = self.step(everyone.advantage, everyone.rollout())
        return split(own_part(shaped.advantage, rows, start), parts), scalars

    def step(self, advantage: Tensor, rollout: Rollout) -> tuple[Shaped, dict[str, float]]:
        """Shape a batch that lies in one place already, and move the state by one step.

        Args:
            advantage: One a completion, or one a token.
            rollout: The completions.

        Returns:
            What the shaping returned, and the scalars of `shape`.
        """
        shaped = self.shaping(advantage, rollout, self.state)
        self.state = shaped.state
        self.updates += 1
        scalars = summarise(shaped, advantage, rollout)
        # A logger averages over steps, and what is not defined in one would hide the others.
        return shaped, {name: value for name, value in scalars.items() if not math.isnan(value)}

    def save(self, folder: Path) -> None:
        """Write the state beside a checkpoint.

        Args:
            folder: The checkpoint's folder; made if it is not there.
        """
        written = state_to_dict(self.state, shaping=self.shaping)
        write_json(folder / STATE_FILE, {**written, "updates": self.updates})

    def load(self, folder: Path) -> None:
        """Take the state from a checkpoint; one that holds none leaves it alone, with a warning.

        Args:
            folder: The checkpoint's folder.

        Raises:
            ValueError: If it is the state of another shaping; the words say what differs.
        """
        path = folder / STATE_FILE
        if path.exists():
            written = read_json(path)
            self.state = state_from_dict(self.shaping, written)
            self.updates = int(written["updates"])
        else:
            warnings.warn(
                f"{path} is missing: the checkpoint was written without a shaping, "
                "and this one starts without a past",
                stacklevel=2,
            )


def shaping_from_environment(default: Shaping) -> Shaping:
    """Return the shaping that the environment names, for a stack whose options cannot be extended.

    Args:
        default: What to return if ``UADT_CONFIG`` is not set.

    Returns:
        The shaping of the YAML file that ``UADT_CONFIG`` names, see `shaping_from_config`.
    """
    path = os.environ.get("UADT_CONFIG")
    return shaping_from_config(Path(path)) if path else default
