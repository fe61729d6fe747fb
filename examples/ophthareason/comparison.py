"""Tables and figures of a comparison: differences from the first arm, paired by seed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from scipy.stats import t as student

__all__ = ["Difference", "difference", "outcomes", "read_runs", "table", "write_comparison"]

Run = Mapping[str, Any]
"""What `compare` writes of one run: its shaping, its steps and its exam."""

_LAST = 10
"""Steps that count as the end of a run: one alone is as noisy as its sixteen questions."""


def _end(name: str) -> Callable[[Run], float]:
    return lambda run: fmean(step[name] for step in run["steps"][-_LAST:])


def _exam(how: str, *names: str, minus: str | None = None) -> Callable[[Run], float]:
    def read(run: Run) -> float:
        measures = run["exam"][how]
        return fmean(measures[name] for name in names) - (measures[minus] if minus else 0.0)

    return read


_BASIC = ("accuracy/single_choice", "accuracy/multiple_choice")
_ACCURACY, _GREEDY = "accuracy, sampled", "accuracy, greedy"
_ENTROPY, _TOKENS = "entropy, last 10 steps, nats", "tokens, sampled"


def outcomes(style: str) -> dict[str, Callable[[Run], float]]:
    """Return what is compared, by name; on held-out items but for the last steps of training.

    Args:
        style: Of which `styles.STYLES` the share is of interest.
    """
    return {
        "reward, last 10 steps": _end("reward"),
        _ACCURACY: _exam("sampled", "accuracy"),
        "— basic": _exam("sampled", *_BASIC),
        "— complex": _exam("sampled", "accuracy/diagnosis"),
        _GREEDY: _exam("greedy", "accuracy"),
        "— basic, greedy": _exam("greedy", *_BASIC),
        "— complex, greedy": _exam("greedy", "accuracy/diagnosis"),
        "format, sampled": _exam("sampled", "format"),
        _ENTROPY: _end("entropy"),
        _TOKENS: _exam("sampled", "tokens"),
        "tokens, uncertain − certain": _exam("sampled", "tokens/uncertain", minus="tokens/certain"),
        _share(style): _exam("sampled", f"share/{style}"),
    }


def _share(style: str) -> str:
    return f"share of {style} traces"


class Difference(NamedTuple):
    """A mean paired difference with the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


def difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Compare paired values by Student's t.

    Args:
        values: One a seed, at least two.
        reference: Of the same seeds in the same order.

    Returns:
        The mean of ``values - reference`` with its 95 % interval.

    Raises:
        ValueError: If there are not equally many, or fewer than two.

    Example:
        >>> found = difference([1.0, 2.0], [0.0, 2.0])  # .5 ± 12.706 · .7071 / √2
        >>> [round(value, 3) for value in found]
        [0.5, -5.853, 6.853]
    """
    gains = [new - old for new, old in zip(values, reference, strict=True)]
    if len(gains) < 2:
        raise ValueError(f"an interval needs at least two seeds, got {len(gains)}")
    mean = fmean(gains)
    half = float(student.ppf(0.975, len(gains) - 1)) * stdev(gains) / len(gains) ** 0.5
    return Difference(mean, mean - half, mean + half)


def read_runs(run: Path, arms: Sequence[str]) -> dict[str, list[Run]]:
    """Read the seeds that every arm has finished, in the order of the seeds.

    Args:
        run: The folder that `compare` trains in.
        arms: Their names.

    Returns:
        The runs by arm.

    Raises:
        ValueError: If fewer than two seeds are complete.
    """
    seeds = sorted(run.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
    whole = [seed for seed in seeds if all((seed / f"{arm}.json").is_file() for arm in arms)]
    if len(whole) < 2:
        raise ValueError(f"{run} must have two seeds or more of all of {list(arms)}, got {whole}")
    return {arm: [json.loads((seed / f"{arm}.json").read_text()) for seed in whole] for arm in arms}


def table(runs: Mapping[str, Sequence[Run]], before: Run, *, style: str) -> str:
    """Write all outcomes as a Markdown table.

    Args:
        runs: By arm; the first is the reference.
        before: The exam before training; it has no steps.
        style: As in `outcomes`.

    Returns:
        A row an outcome: the stage-2 model, the reference's mean and standard deviation over seeds,
        and for each other arm the paired difference with its interval.
    """
    (reference, base), *others = runs.items()
    head = ["", "stage 2", reference, *(name for name, _ in others)]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for label, outcome in outcomes(style).items():
        old = [outcome(run) for run in base]
        start = "" if label.endswith(("steps", "nats")) else f"{outcome(before):.3f}"
        cells = [label, start, f"{fmean(old):.3f} ± {stdev(old):.3f}"]
        for _, found in others:
            mean, low, high = difference([outcome(run) for run in found], old)
            cells.append(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def write_comparison(run: Path, target: Path, *, arms: Sequence[str], style: str) -> None:
    """Write ``results.json``, ``table.md``, ``curves.png`` and ``differences.png``.

    Args:
        run: The folder that `compare` trains in.
        target: Where they go.
        arms: Their names; the first is the reference.
        style: As in `outcomes`.
    """
    runs = read_runs(run, arms)
    before: Run = {"exam": json.loads((run / "before.json").read_text())}
    target.mkdir(parents=True, exist_ok=True)
    results = {"before": before, "runs": runs}
    (target / "results.json").write_text(json.dumps(_rounded(results)) + "\n")
    (target / "table.md").write_text(table(runs, before, style=style))
    _curves(runs, style).savefig(target / "curves.png", dpi=110)
    _forest(runs, style).savefig(target / "differences.png", dpi=110)


def _rounded(value: Any) -> Any:
    """Keep five digits: what is smaller is noise, and the file stays small."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _curves(runs: Mapping[str, Sequence[Run]], style: str) -> Figure:
    """Draw the means over seeds through time, each point the mean of five steps."""
    curves = {
        "reward": "reward",
        "entropy": "entropy, nats a token",
        "tokens": "tokens a completion",
        f"share/{style}": _share(style),
    }
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
        for place, (arm, found) in enumerate(runs.items()):
            steps = len(found[0]["steps"])
            line = [fmean(run["steps"][step][name] for run in found) for step in range(steps)]
            smooth = [fmean(line[max(0, step - 4) : step + 1]) for step in range(steps)]
            colour, width = (f"C{place - 1}", 1.5) if place else ("black", 2.2)
            axes.plot(range(1, steps + 1), smooth, label=arm, color=colour, lw=width)
        axes.set_ylabel(label)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def _forest(runs: Mapping[str, Sequence[Run]], style: str) -> Figure:
    """Draw each arm's differences: a stroke a seed, the mean and its interval."""
    found_outcomes = outcomes(style)
    shown = (_ACCURACY, _GREEDY, _ENTROPY, _TOKENS, _share(style))
    (reference, base), *others = runs.items()
    figure = Figure(figsize=(13, 0.9 + 0.5 * len(others)), layout="constrained")
    for axes, label in zip(figure.subplots(1, len(shown), sharey=True), shown, strict=True):
        old = [found_outcomes[label](run) for run in base]
        for row, (_, found) in enumerate(reversed(others)):
            new = [found_outcomes[label](run) for run in found]
            mean, low, high = difference(new, old)
            axes.plot([low, high], [row, row], color="#1f6fb2", lw=2)
            axes.plot([mean], [row], "o", color="#1f6fb2")
            axes.plot([b - a for a, b in zip(old, new, strict=True)], [row] * len(new), "|k", ms=9)
        axes.axvline(0, color="grey", lw=0.8)
        axes.set_title(label, fontsize=10)
        axes.set_xlabel(f"minus {reference}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_yticks(range(len(others)), [name for name, _ in reversed(others)])
    return figure
