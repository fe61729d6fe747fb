"""Results as Markdown: models in rows; domains, modalities and kinds in columns.

The paper's own tables were not available to us. The columns follow its test sets: basic questions
by domain and modality, multiple choice, complex questions.
"""

from collections.abc import Mapping, Sequence

from examples.ophthareason.intervals import Interval
from examples.ophthareason.records import UNKNOWN
from examples.ophthareason.scores import METRICS, Summary

__all__ = ["as_markdown", "breakdown_table", "cell", "main_table", "paired_table", "thinking_table"]

_SHARES = METRICS.keys() - {"tokens", "entropy"}
_DOMAINS = {"in-domain": "ID", "out-of-domain": "OOD", UNKNOWN: "domain unknown"}


def cell(interval: Interval | None, *, percent: bool = True, signed: bool = False) -> str:
    """Write one number with its interval.

    Args:
        interval: What to write, or ``None`` for an empty cell.
        percent: Whether to write it in per cent.
        signed: Whether to write a plus before a gain.

    Returns:
        Such as ``62.5 [50.0, 75.0]``.

    Example:
        >>> cell(Interval(0.625, 0.5, 0.75, 8, 8))
        '62.5 [50.0, 75.0]'
    """
    if interval is None:
        return "–"
    scale, form = (100, "+.1f" if signed else ".1f") if percent else (1, ".3g")
    text = format(interval.mean * scale, form)
    if interval.low is None or interval.high is None:
        return f"{text} [–]"
    return f"{text} [{interval.low * scale:{form}}, {interval.high * scale:{form}}]"


def _escape(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main_table(summaries: Sequence[Summary]) -> str:
    """Write accuracy in per cent, one row a model.

    Args:
        summaries: The models, with or without the same items.

    Returns:
        A Markdown table. The last column is the mean over all items.
    """
    grouping = ("kind", "domain", "modality")
    columns = sorted(
        {values for one in summaries for values in one.groups[grouping]}, key=_column_order
    )
    header = ["model", *map(_column_name, columns), "all"]
    rows = [
        [
            _escape(one.model),
            *(cell(one.groups[grouping].get(values, {}).get("accuracy")) for values in columns),
            cell(one.groups[()][()].get("accuracy")),
        ]
        for one in summaries
    ]
    return _table(header, rows)


_KINDS = ["single_choice", "true_false", "multiple_choice", "diagnosis"]
_MODALITIES = ["CFP", "FFA", "OCT"]


def _column_order(values: tuple[str, ...]) -> tuple[object, ...]:
    kind, domain, modality = values
    return (
        _place(_KINDS, kind),
        _place(list(_DOMAINS), domain),
        _place(_MODALITIES, modality),
        values,
    )


def _place(known: Sequence[str], name: str) -> int:
    return known.index(name) if name in known else len(known)


def _column_name(values: tuple[str, ...]) -> str:
    kind, domain, modality = values
    return _escape(f"{kind.replace('_', ' ')} · {_DOMAINS.get(domain, domain)} · {modality}")


def breakdown_table(summary: Summary, grouping: tuple[str, ...]) -> str:
    """Write every metric of one model for each group.

    Args:
        summary: The model.
        grouping: One of `GROUPINGS`.

    Returns:
        A Markdown table: shares in per cent, lengths in tokens, entropies in nats.
    """
    groups = summary.groups[grouping]
    metrics = [name for name in METRICS if any(name in found for found in groups.values())]
    rows: list[list[str]] = []
    for values, found in groups.items():
        count = max((interval.n for interval in found.values()), default=0)
        cells = [cell(found.get(name), percent=name in _SHARES) for name in metrics]
        rows.append([_escape(" · ".join(values) or "all"), str(count), *cells])
    return _table([" · ".join(grouping) or "all", "n", *metrics], rows)


def thinking_table(summary: Summary) -> str:
    """Write whether the model thinks longer where it is unsure.

    Args:
        summary: The model.

    Returns:
        A Markdown table: lengths in tokens.
    """
    rows = [
        [
            kind.replace("_", " "),
            str(found.n),
            *(
                "–" if value is None else format(value, form)
                for value, form in (
                    (found.correlation, "+.2f"),
                    (found.p, ".2g"),
                    (found.sure, ".1f"),
                    (found.unsure, ".1f"),
                )
            ),
        ]
        for kind, found in summary.thinking.items()
    ]
    header = ["kind", "n", "Spearman", "p", "length, surer half", "length, unsure half"]
    return _table(header, rows)


def paired_table(changes: Mapping[str, Mapping[str, Interval]]) -> str:
    """Write differences in accuracy, in points.

    Args:
        changes: A name for each comparison, to kind and interval.

    Returns:
        A Markdown table.
    """
    kinds = sorted(
        {kind for found in changes.values() for kind in found}, key=lambda k: (k != "all", k)
    )
    rows = [
        [_escape(name), *(cell(found.get(kind), signed=True) for kind in kinds)]
        for name, found in changes.items()
    ]
    return _table(["comparison", *(kind.replace("_", " ") for kind in kinds)], rows)


def as_markdown(
    summaries: Sequence[Summary], changes: Mapping[str, Mapping[str, Interval]] | None = None
) -> str:
    """Write the whole report.

    Args:
        summaries: The models.
        changes: Paired comparisons, if there are any.

    Returns:
        A Markdown document.
    """
    parts = [
        "# Evaluation",
        "Accuracy in per cent, 95 % bootstrap intervals over pictures. ID and OOD: in and out of "
        "the domain of the authors' training data, by their table of sources.",
        main_table(summaries),
    ]
    if any("phantom" in source for one in summaries for (source,) in one.groups[("source",)]):
        parts.insert(1, "**Synthetic**: there are drawn phantoms among these items, no patients.")
    if changes:
        parts += ["## Differences on the same items, in points", paired_table(changes)]
    for one in summaries:
        parts += [f"## {_escape(one.model)}", f"{one.n} items, {one.unscored} without a score."]
        parts += [breakdown_table(one, grouping) for grouping in one.groups if len(grouping) < 2]
        parts += ["Does it think longer where it is unsure?", thinking_table(one)]
    legend = "\n".join(f"- `{name}`: {words}" for name, words in METRICS.items())
    return "\n\n".join([*parts, "## Metrics", legend]) + "\n"
