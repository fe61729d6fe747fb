"""From predictions to numbers: what is right, for which kind of item, and how sure that is.

Accuracy is strict, as in the reward: a response that is not ``<think>…</think><answer>…</answer>``
has no answer. An item that no metric can score counts as unscored and in no mean.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr

from examples.ophthareason.intervals import Interval, bootstrap_mean
from examples.ophthareason.predictions import Prediction
from uadt.answers import find_answer
from uadt.choices import parse_options
from uadt.diagnosis import normalise
from uadt.rewards import Matcher, multiple_choice, score
from uadt.similarity import Bleu, EditRatio, RougeL

__all__ = ["GROUPINGS", "METRICS", "Summary", "Thinking", "paired", "score_one", "summarise"]

METRICS: Mapping[str, str] = {
    "accuracy": "right, strictly: the letter, the exact set, the name or a synonym",
    "format": "well formed",
    "lenient": "right if the last answer counts although the form is broken",
    "jaccard": "multiple choice: shared letters over all letters",
    "f1": "multiple choice: harmonic mean of precision and recall of the letters",
    "penalised": "multiple choice: right minus wrong letters over the right ones, not below 0",
    "exact": "diagnosis: equal after normalisation, without synonyms",
    "edit": "diagnosis: likeness of the characters (rapidfuzz)",
    "bleu": "diagnosis: sentence BLEU (sacrebleu)",
    "rouge_l": "diagnosis: ROUGE-L F-measure (rouge-score)",
    "tokens": "length of the response in tokens",
    "finished": "ended by itself",
    "entropy": "mean token entropy in nats",
}
"""What is measured for each item, and for which."""

GROUPINGS: tuple[tuple[str, ...], ...] = (
    (),
    ("kind",),
    ("modality",),
    ("source",),
    ("domain",),
    ("kind", "domain", "modality"),
)
"""What the results are broken down by."""

_MATCHERS: Mapping[str, Callable[[], Matcher]] = {
    "edit": EditRatio,
    "bleu": Bleu,
    "rouge_l": RougeL,
}


def score_one(row: Prediction, *, matcher: Matcher | None = None) -> dict[str, float]:
    """Score one prediction.

    Args:
        row: The prediction.
        matcher: A judge for diagnoses that are right in other words; exact and synonyms without.

    Returns:
        The metrics that apply; one that is missing could not be scored.

    Example:
        >>> row = Prediction(id="", digest="", response="<think>x</think><answer>A</answer>",
        ...     tokens=9, finished=True, entropy=None, question="?", answer="A,B", kind="",
        ...     task="multiple_choice", modality="", source="", domain="", pictures="")
        >>> [score_one(row)[name] for name in ("accuracy", "format", "jaccard")]
        [0.0, 1.0, 0.5]
    """
    options = parse_options(row.question) or None
    settings: Any = {"task": row.task, "options": options, "matcher": matcher}
    strict = score(row.response, row.answer, **settings)
    found: dict[str, float | None] = {
        "accuracy": strict.accuracy,
        "format": strict.format,
        "lenient": score(row.response, row.answer, lenient=True, **settings).accuracy,
        "tokens": float(row.tokens),
        "finished": float(row.finished),
        "entropy": row.entropy,
    }
    if row.task == "multiple_choice":
        for name in ("jaccard", "f1", "penalised"):
            found[name] = multiple_choice(row.response, row.answer, partial=name, options=options)
    if row.task == "diagnosis":
        answer = find_answer(row.response) or ""
        found["exact"] = float(normalise(answer) == normalise(row.answer))
        found |= {name: make()(answer, row.answer) for name, make in _MATCHERS.items()}
    return {
        name: value for name, value in found.items() if value is not None and math.isfinite(value)
    }


@dataclass(frozen=True)
class Thinking:
    """Does the model think longer where it is unsure?"""

    n: int
    """Items with a known entropy."""
    correlation: float | None
    """Spearman's, of length and entropy; ``None`` if either is constant or items are under 3."""
    p: float | None
    """How often chance alone gives one as far from 0; items are taken as independent."""
    sure: float | None
    """Mean length of the half with the lower entropy, in tokens."""
    unsure: float | None
    """Mean length of the other half."""


@dataclass(frozen=True)
class Summary:
    """All numbers of one model."""

    model: str
    """Its name."""
    n: int
    """Items answered."""
    unscored: int
    """Items without an accuracy: a judge failed."""
    groups: dict[tuple[str, ...], dict[tuple[str, ...], dict[str, Interval]]] = field(repr=False)
    """Grouping → values → metric → interval."""
    thinking: dict[str, Thinking] = field(repr=False)
    """By kind."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            "model": self.model,
            "n": self.n,
            "unscored": self.unscored,
            "metrics": dict(METRICS),
            "by": {
                " × ".join(names) or "all": {
                    " × ".join(values) or "all": {
                        metric: interval._asdict() for metric, interval in metrics.items()
                    }
                    for values, metrics in found.items()
                }
                for names, found in self.groups.items()
            },
            "thinking": {kind: vars(found) for kind, found in self.thinking.items()},
        }


def summarise(
    rows: Iterable[Prediction],
    *,
    model: str,
    matcher: Matcher | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Summary:
    """Score predictions and break them down.

    Args:
        rows: Predictions of one model.
        model: Its name.
        matcher: As in `score_one`.
        confidence: Of the intervals.
        resamples: Of the bootstrap.

    Returns:
        The summary.

    Raises:
        ValueError: If there are no predictions.
    """
    scored = [(row, score_one(row, matcher=matcher)) for row in rows]
    if not scored:
        raise ValueError(f"predictions must not be empty, got none of {model}")
    groups: dict[tuple[str, ...], dict[tuple[str, ...], dict[str, Interval]]] = {}
    for names in GROUPINGS:
        parts: dict[tuple[str, ...], list[tuple[Prediction, dict[str, float]]]] = {}
        for row, metrics in scored:
            parts.setdefault(tuple(getattr(row, name) for name in names), []).append((row, metrics))
        groups[names] = {
            values: _intervals(part, confidence, resamples)
            for values, part in sorted(parts.items())
        }
    kinds = sorted({row.kind for row, _ in scored})
    return Summary(
        model=model,
        n=len(scored),
        unscored=sum("accuracy" not in metrics for _, metrics in scored),
        groups=groups,
        thinking={
            kind: _thinking([row for row, _ in scored if row.kind == kind]) for kind in kinds
        },
    )


def _intervals(
    part: Sequence[tuple[Prediction, dict[str, float]]], confidence: float, resamples: int
) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    for metric in METRICS:
        known = [(row.pictures, metrics[metric]) for row, metrics in part if metric in metrics]
        if known:
            found[metric] = bootstrap_mean(
                [value for _, value in known],
                [pictures for pictures, _ in known],
                confidence=confidence,
                resamples=resamples,
            )
    return found


def _thinking(rows: Sequence[Prediction]) -> Thinking:
    known = sorted((row.entropy, row.tokens) for row in rows if row.entropy is not None)
    entropy, tokens = [pair[0] for pair in known], [pair[1] for pair in known]
    if len(known) < 3 or len(set(entropy)) == 1 or len(set(tokens)) == 1:
        correlation = p = None
    else:
        test: Any = spearmanr(entropy, tokens)
        correlation, p = float(test.statistic), float(test.pvalue)
    half = len(tokens) // 2
    sure = fmean(tokens[:half]) if half else None
    unsure = fmean(tokens[-half:]) if half else None
    return Thinking(len(known), correlation, p, sure, unsure)


def paired(
    before: Iterable[Prediction],
    after: Iterable[Prediction],
    *,
    metric: str = "accuracy",
    confidence: float = 0.95,
    resamples: int = 2000,
) -> dict[str, Interval]:
    """Return how much better one model is than another on the same items, by kind and in all.

    Pairing takes the difficulty of the items out of the comparison; the interval is of the mean
    difference.

    Args:
        before: Predictions of one model.
        after: Predictions of the other, of the same items.
        metric: Which of `METRICS`.
        confidence: Of the intervals.
        resamples: Of the bootstrap.

    Returns:
        Kind, and ``all``, to the difference ``after - before``. A kind that cannot be scored is
        missing.

    Raises:
        ValueError: If they did not answer the same questions.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {list(METRICS)}, got {metric!r}")
    first = {row.id: row for row in before}
    second = {row.id: row for row in after}
    other = first.keys() ^ second.keys() or {
        id for id in first if first[id].digest != second[id].digest
    }
    if other:
        raise ValueError(f"both must answer the same questions, differ in {sorted(other)[:5]}")
    found: dict[str, Interval] = {}
    change = {
        id: (score_one(first[id]).get(metric), score_one(second[id]).get(metric)) for id in first
    }
    for kind in ["all", *sorted({row.kind for row in first.values()})]:
        known = [
            (after_ - before_, first[id].pictures)
            for id, (before_, after_) in change.items()
            if kind in ("all", first[id].kind) and before_ is not None and after_ is not None
        ]
        if known:
            found[kind] = bootstrap_mean(
                [value for value, _ in known],
                [pictures for _, pictures in known],
                confidence=confidence,
                resamples=resamples,
            )
    return found
