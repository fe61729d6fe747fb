# pyright: reportArgumentType=false
# (the annotation of a model's `to` is partial)
"""The ways in which the miniature writes a thought: which it prefers is what a comparison watches.

Stage 2 teaches two orders of the same words, forward and backward, with equally many tokens, so a
drift from one to the other is not one of length. `learn_short_traces` adds a third way, which names
only what is there: it is shorter, and each of its tokens decides more.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from examples.ophthareason.model import load, save
from examples.ophthareason.records import Item
from examples.ophthareason.settings import Settings
from examples.ophthareason.splits import Tell, draw_phantoms, read_split
from examples.ophthareason.stages import run_stage

__all__ = ["STYLES", "learn_short_traces", "shortened", "style_of"]

STYLES = ("forward", "backward", "short", "other")
_FIRST = {"A": "forward", "microaneurysms": "forward", "D": "backward", "large cup": "backward"}
_ABSENT = re.compile(r" no[,.]")


def style_of(response: str) -> str:
    """Say in which way a thought is written.

    Args:
        response: A completion of the miniature.

    Returns:
        One of `STYLES`: ``short`` names no finding that is absent, ``forward`` and ``backward``
        begin with the first or with the last option or finding, ``other`` is all else.

    Example:
        >>> style_of("<think>D drusen no, C large cup yes")
        'backward'
        >>> style_of("<think>microaneurysms no, haemorrhages yes")
        'forward'
        >>> style_of("<think>C large cup yes. So C.</think><answer>C</answer>")
        'short'
        >>> style_of("C")
        'other'
    """
    thought = response.removeprefix("<think>")
    if thought == response:
        return "other"
    if not _ABSENT.search(thought):
        return "short"
    for first, style in _FIRST.items():
        if thought.startswith(first + " "):
            return style
    return "other"


def shortened(reason: str) -> str:
    """Leave what is absent out of a taught trace.

    Args:
        reason: Verdicts with commas, a full stop, and what follows from them.

    Returns:
        The trace with its positive verdicts only, or with ``nothing``.

    Example:
        >>> shortened("A drusen no, B large cup yes, C cotton no. So B.")
        'B large cup yes. So B.'
        >>> shortened("microaneurysms no, large cup no. With diabetes this is normal retina.")
        'nothing. With diabetes this is normal retina.'
    """
    verdicts, dot, rest = reason.partition(".")
    present = [verdict for verdict in verdicts.split(", ") if not verdict.endswith(" no")]
    return (", ".join(present) or "nothing") + dot + rest


def learn_short_traces(settings: Settings, run: Path, start: Path, tell: Tell) -> Path:
    """Fine-tune a stage-2 model on traces every second of which is short.

    Args:
        settings: The number of phantoms, and stage 2's steps and learning rate.
        run: A folder; a model that is there is kept.
        start: The stage-2 model.
        tell: Told of progress.

    Returns:
        The folder of the model.
    """
    folder = run / "short-traces"
    if not (folder / "model.safetensors").is_file():
        draw_phantoms(settings, run / "phantoms", "train", tell)
        items = read_split(run / "phantoms", "train")
        model, processor = load(start)
        run_stage(
            "finetuning",
            settings.finetuning,
            model,
            processor,
            _every_second_short(items),
            folder / "trainer",
            seed=settings.seed,
            tell=tell,
            slips=settings.slips,
        )
        part = run / "short-traces.part"
        save(model.to("cpu"), processor, part)
        for path in part.iterdir():
            path.replace(folder / path.name)
    return folder


def _every_second_short(items: Sequence[Item]) -> list[Item]:
    # The three tasks take turns: of six items in a row, three are short, one of each task.
    return [
        replace(item, reason=shortened(item.reason)) if item.reason and place % 2 else item
        for place, item in enumerate(items)
    ]
