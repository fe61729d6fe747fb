"""Two figures of an evaluation: accuracy by kind, and length against entropy."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.ophthareason.predictions import Prediction
from examples.ophthareason.scores import Summary, score_one
from examples.ophthareason.writers import atomic_path

__all__ = ["accuracy_figure", "save_figure", "thinking_figure"]

_INK, _RIGHT, _WRONG = "#333333", "#0072b2", "#d55e00"  # told apart by colour-blind readers
_MODELS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]


def accuracy_figure(summaries: Sequence[Summary]) -> Figure:
    """Draw accuracy with its interval, by kind and model.

    Args:
        summaries: The models.

    Returns:
        The figure.
    """
    kinds = sorted({kind for one in summaries for (kind,) in one.groups[("kind",)]})
    figure = Figure(figsize=(1.6 + 1.7 * len(kinds), 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(summaries)
    for place, one in enumerate(summaries):
        label: str | None = one.model  # once a model
        for x, kind in enumerate(kinds):
            interval = one.groups[("kind",)].get((kind,), {}).get("accuracy")
            if interval is None:
                continue
            low = interval.mean - (interval.mean if interval.low is None else interval.low)
            high = (interval.mean if interval.high is None else interval.high) - interval.mean
            axes.bar(
                x + (place - (len(summaries) - 1) / 2) * width,
                100 * interval.mean,
                width * 0.9,
                yerr=[[100 * max(low, 0.0)], [100 * max(high, 0.0)]],
                capsize=3,
                ecolor=_INK,
                color=_MODELS[place % len(_MODELS)],
                label=label,
            )
            label = None
    axes.set_xticks(range(len(kinds)), [kind.replace("_", "\n") for kind in kinds])
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy, %, with 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    if len(summaries) > 1:
        figure.legend(loc="outside upper center", ncols=min(3, len(summaries)), frameon=False)
    return figure


def thinking_figure(rows: Sequence[Prediction]) -> Figure | None:
    """Draw the length of each response against its mean token entropy, right and wrong apart.

    Args:
        rows: Predictions of one model.

    Returns:
        The figure, or ``None`` if no entropy is known.
    """
    known: Mapping[bool, list[tuple[float, int]]] = {True: [], False: []}
    for row in rows:
        if row.entropy is not None:
            known[score_one(row).get("accuracy", 0.0) == 1.0].append((row.entropy, row.tokens))
    if not any(known.values()):
        return None
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for right, colour, mark in ((False, _WRONG, "x"), (True, _RIGHT, "o")):
        axes.scatter(
            [entropy for entropy, _ in known[right]],
            [tokens for _, tokens in known[right]],
            s=16,
            c=colour,
            marker=mark,
            alpha=0.6,
            label=f"{'right' if right else 'wrong'} ({len(known[right])})",
        )
    axes.set_xlabel("mean token entropy, nats")
    axes.set_ylabel("length, tokens")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all.

    Args:
        figure: The figure.
        path: A ``.png`` file.
    """
    with atomic_path(path) as part:
        FigureCanvasAgg(figure).print_png(part)
