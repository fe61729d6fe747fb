"""A run's diagnostics as one HTML page: figures and words in a single file that opens offline.

The diagnostics are one mapping a completion, as an adapter writes them: ``step``, ``reward``,
``advantage``, ``tokens`` and what the shaping shows, such as ``uadt/uncertainty``. Needs the extra
``report`` (matplotlib, Jinja).
"""

import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["QUADRANTS", "Section", "figures", "page", "read_diagnostics", "render", "report"]

QUADRANTS = ("uncertain, right", "certain, right", "uncertain, wrong", "certain, wrong")
"""Right is advantage > 0, uncertain is factor > 0; completions of advantage 0 are in none."""

COLOURS = {
    "uncertain, right": "#7db8e8",
    "certain, right": "#1f6fb2",
    "uncertain, wrong": "#f3b26b",
    "certain, wrong": "#c8641b",
    "ink": "#22303c",
    "line": "#1f6fb2",
    "threshold": "#b3261e",
    "quiet": "#8895a3",
}
"""Colours of the figures; the four of the quadrants can be told apart by the colour-blind."""

_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["quiet"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": COLOURS["quiet"],
    "ytick.color": COLOURS["quiet"],
    "axes.grid": True,
    "grid.color": "#e6eaee",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "uadt",
    "font.family": "sans-serif",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of the page."""

    title: str
    """Its heading."""
    text: str = ""
    """What to see in it, as plain text."""
    body: str = ""
    """Its figures, as HTML. Trusted: what comes from a model must be escaped before."""


def read_diagnostics(folder: Path) -> list[dict[str, Any]]:
    """Read the JSON lines that an adapter wrote, in the order of the file names.

    Args:
        folder: The folder of ``*.jsonl`` files.

    Returns:
        One mapping a completion.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"{folder} must hold .jsonl files, got none")
    return [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]


def figures(rows: Sequence[Mapping[str, Any]], *, shaping: str = "uadt") -> dict[str, str]:
    """Draw what the diagnostics hold.

    Args:
        rows: One mapping a completion. A missing or null value is left out of its figure.
        shaping: The name under which the shaping shows its quantities: ``uadt``, or ``uadt_2`` for
            the second of a chain.

    Returns:
        Name to SVG: ``curves``, ``entropy``, ``factor`` and ``quadrants``.

    Raises:
        ValueError: If there are no rows, or the shaping shows no uncertainty in them.
    """
    if not rows:
        raise ValueError("diagnostics must have at least one row, got none")
    key = f"{shaping}/uncertainty"
    if not any(key in row for row in rows):
        raise ValueError(f"diagnostics must have {key}, got {sorted(rows[0])}")
    return {
        "curves": _curves(rows, shaping),
        "entropy": _entropy(rows, shaping),
        "factor": _factor(rows, shaping),
        "quadrants": _quadrants(rows, shaping),
    }


def report(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    lead: str = "",
    facts: Mapping[str, str] | None = None,
    before: Iterable[Section] = (),
    after: Iterable[Section] = (),
    shaping: str = "uadt",
) -> str:
    """Compose the page of a run.

    Args:
        rows: See `figures`.
        title: Its heading.
        lead: The first paragraph: what was run and what came out.
        facts: Short values for the top of the page, such as the steps.
        before: Sections above those of the shaping.
        after: Sections below them.
        shaping: See `figures`.

    Returns:
        A complete HTML document without any reference to the outside.

    Example:
        >>> row = {"step": 1, "reward": 1.0, "advantage": 1.0, "tokens": 5}
        >>> shown = {"uadt/uncertainty": 0.2, "uadt/threshold": 0.2, "uadt/factor": 0.0}
        >>> document = report([row | shown], title="A run")
        >>> document.count("<section>"), "<script" in document
        (4, False)
    """
    drawn = figures(rows, shaping=shaping)
    own = [
        Section(
            title="Through the steps",
            text="Each dot is the mean of one step, the line a moving average over nine.",
            body=drawn["curves"],
        ),
        Section(
            title="Uncertainty and the threshold",
            text="How many completions of a step had which mean token entropy, and the threshold τ "
            "that they were compared with.",
            body=drawn["entropy"],
        ),
        Section(
            title="The factor against the uncertainty",
            text="ω is 0 where the entropy equals the threshold. The curve moves with τ, so one "
            "entropy can have several factors.",
            body=drawn["factor"],
        ),
        Section(
            title="The four quadrants",
            text="Which completions there were, and what the shaping made of their advantages: a "
            "multiplier of 1 changes nothing. Completions of advantage 0 are left out.",
            body=drawn["quadrants"],
        ),
    ]
    return page(title=title, lead=lead, facts=facts, sections=[*before, *own, *after])


def page(
    *,
    title: str,
    sections: Iterable[Section],
    lead: str = "",
    facts: Mapping[str, str] | None = None,
) -> str:
    """Put sections into the page's template.

    Args:
        title: Its heading; escaped.
        sections: Its parts; titles and texts are escaped, bodies are not.
        lead: The first paragraph; escaped.
        facts: Short values for the top of the page; escaped.

    Returns:
        A complete HTML document.
    """
    source = resources.files("uadt").joinpath("templates/report.html").read_text("utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(source).render(
        title=title, lead=lead, facts=dict(facts or {}), sections=list(sections)
    )


def render(figure: Figure, *, label: str) -> str:
    """Return a figure as SVG that fits into a page.

    Args:
        figure: The figure.
        label: What it shows, for those who cannot see it.

    Returns:
        An ``svg`` element as wide as its parent.
    """
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{html.escape(label)}">{rest}'


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure in the style of the page.

    Args:
        width: Inches; 4.2 fill a phone.
        height: Inches.

    Returns:
        The figure and its axes.
    """
    with mpl.rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    values = [row.get(name) for row in rows]
    return np.array([math.nan if value is None else float(value) for value in values])


def _by_step(
    steps: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    known = ~np.isnan(values)
    each = np.unique(steps[known])
    return each, np.array([values[known & (steps == step)].mean() for step in each])


def _smooth(values: NDArray[np.float64], width: int = 9) -> NDArray[np.float64]:
    half = width // 2
    return np.array([values[max(0, at - half) : at + half + 1].mean() for at in range(len(values))])


def _curves(rows: Sequence[Mapping[str, Any]], shaping: str) -> str:
    steps = _column(rows, "step")
    wanted = [
        ("reward", "Reward"),
        ("format", "Well-formed answers"),
        ("accuracy", "Right answers"),
        ("tokens", "Length, tokens"),
        (f"{shaping}/uncertainty", "Uncertainty, nats"),
        (f"{shaping}/multiplier", "Multiplier A′/A"),
    ]
    parts: list[str] = []
    for name, label in wanted:
        values = _column(rows, name)
        if np.isnan(values).all():
            continue
        each, means = _by_step(steps, values)
        figure, axes = new_figure(4.2, 2.5)
        axes.plot(each, means, "o", ms=3, color=COLOURS["line"], alpha=0.35)
        axes.plot(each, _smooth(means), color=COLOURS["line"], lw=2)
        axes.set_title(label, loc="left")
        axes.set_xlabel("step")
        parts.append(render(figure, label=f"{label} through the steps"))
    return _grid(*parts)


def _grid(*parts: str) -> str:
    return '<div class="grid">' + "".join(f"<figure>{part}</figure>" for part in parts) + "</div>"


def _key() -> str:
    names = "".join(
        f'<span><i style="background:{COLOURS[name]}"></i>{name}</span>' for name in QUADRANTS
    )
    return f'<p class="key">{names}</p>'


def _entropy(rows: Sequence[Mapping[str, Any]], shaping: str) -> str:
    steps, values = _column(rows, "step"), _column(rows, f"{shaping}/uncertainty")
    known = ~np.isnan(values)
    each, tau = _by_step(steps, _column(rows, f"{shaping}/threshold"))
    top = (float(np.quantile(values[known], 0.995)) if known.any() else 0.0) or 1.0
    figure, axes = new_figure(4.2, 3.0)
    if known.any():
        count = round(float(steps.max() - steps.min())) + 2
        across = np.linspace(float(steps.min()) - 0.5, float(steps.max()) + 0.5, count)
        upwards = np.linspace(0.0, top, 40)
        counts = np.histogram2d(steps[known], values[known], [across, upwards])[0]
        axes.pcolormesh(across, upwards, counts.T, cmap="Blues", rasterized=True)
    axes.plot(each, tau, color=COLOURS["threshold"], lw=2, label="threshold τ")
    axes.grid(visible=False)
    axes.set_title("Through the steps: darker is more", loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel("mean token entropy, nats")
    axes.legend(loc="upper right", frameon=False)
    first = render(figure, label="Entropy histogram and threshold by step")
    figure, axes = new_figure(4.2, 3.0)
    bounds = np.quantile(each, [0.2, 0.8]) if len(each) else np.array([0.0, 0.0])
    for label, chosen, at, colour in (
        ("first fifth of the steps", steps <= bounds[0], each <= bounds[0], COLOURS["quiet"]),
        ("last fifth", steps >= bounds[1], each >= bounds[1], COLOURS["line"]),
    ):
        shown = values[chosen & known]
        if len(shown):
            share = np.histogram(shown, 30, (0.0, top))[0] / len(shown)
            axes.stairs(share, np.linspace(0.0, top, 31), lw=2, color=colour, label=label)
            axes.axvline(float(tau[at].mean()), color=colour, ls="--", lw=1.5)
    axes.set_title("First and last steps; dashed is τ", loc="left")
    axes.set_xlabel("mean token entropy, nats")
    axes.set_ylabel("share of completions")
    axes.legend(loc="upper right", frameon=False)
    return _grid(first, render(figure, label="Entropy histogram of the first and last steps"))


def _quadrant(advantage: NDArray[np.float64], factor: NDArray[np.float64]) -> NDArray[np.int64]:
    """0 to 3 in the order of `QUADRANTS`; -1 for a completion that is in none."""
    place = np.where(factor > 0, 0, 1) + np.where(advantage > 0, 0, 2)
    return np.where((advantage == 0) | np.isnan(advantage) | np.isnan(factor), -1, place)


def _factor(rows: Sequence[Mapping[str, Any]], shaping: str) -> str:
    uncertainty, factor = (
        _column(rows, f"{shaping}/uncertainty"),
        _column(rows, f"{shaping}/factor"),
    )
    place = _quadrant(_column(rows, "advantage"), factor)
    figure, axes = new_figure(4.2, 3.0)
    thin = max(1, len(rows) // 2500)
    for number, name in enumerate(QUADRANTS):
        chosen = np.flatnonzero(place == number)[::thin]
        at = (uncertainty[chosen], factor[chosen])
        axes.plot(*at, "o", ms=3, mew=0, alpha=0.6, color=COLOURS[name])
    axes.axhline(0, color=COLOURS["quiet"], lw=1)
    axes.set_ylim(-1.05, 1.05)
    axes.set_title("Each completion", loc="left")
    axes.set_xlabel("mean token entropy U, nats")
    axes.set_ylabel("factor ω")
    first = render(figure, label="Factor against uncertainty")
    figure, axes = new_figure(4.2, 3.0)
    axes.hist(
        [factor[place == number] for number in range(4)],
        np.linspace(-1, 1, 41).tolist(),
        stacked=True,
        color=[COLOURS[name] for name in QUADRANTS],
    )
    axes.axvline(0, color=COLOURS["quiet"], lw=1)
    axes.set_yticks([])
    axes.set_xlim(-1.05, 1.05)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.set_title("How often which factor", loc="left")
    axes.set_xlabel("factor ω")
    return _key() + _grid(first, render(figure, label="Histogram of the factor"))


def _quadrants(rows: Sequence[Mapping[str, Any]], shaping: str) -> str:
    steps = _column(rows, "step")
    advantage, factor = _column(rows, "advantage"), _column(rows, f"{shaping}/factor")
    multiplier = _column(rows, f"{shaping}/multiplier")
    place = _quadrant(advantage, factor)
    each = np.unique(steps)
    counts = np.array([[(place[steps == s] == q).sum() for s in each] for q in range(4)], float)
    shares = counts / np.maximum(counts.sum(0), 1)
    figure, axes = new_figure(4.2, 3.0)
    smooth = [_smooth(share) for share in shares]
    axes.stackplot(each, *smooth, colors=[COLOURS[name] for name in QUADRANTS], labels=QUADRANTS)
    axes.set_title("Share of the completions", loc="left")
    axes.set_xlabel("step")
    axes.set_ylim(0, 1)
    first = render(figure, label="Share of each quadrant by step")
    figure, axes = new_figure(4.2, 3.0)
    for number, name in enumerate(QUADRANTS):
        values = multiplier[(place == number) & ~np.isnan(multiplier)]
        if len(values):
            low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
            axes.plot([low, high], [3 - number] * 2, color=COLOURS[name], lw=8, alpha=0.5)
            axes.plot([middle], [3 - number], "o", ms=8, color=COLOURS[name])
    axes.axvline(1, color=COLOURS["quiet"], lw=1)
    axes.set_yticks([3, 2, 1, 0], QUADRANTS)
    axes.set_ylim(-0.6, 3.6)
    axes.set_title("Multiplier: median, and 5 to 95 %", loc="left")
    second = render(figure, label="Multiplier of each quadrant")
    return _key() + _grid(first, second)
