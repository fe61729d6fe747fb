"""Figures and cards of the demo's report that know about questions, answers and pictures."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from examples.ophthareason.exam import paired, summary
from examples.ophthareason.real import templated
from examples.ophthareason.records import Item
from uadt.answers import parse_completion
from uadt.report import COLOURS, new_figure, render

__all__ = [
    "before_and_after",
    "card",
    "gallery",
    "loss_curves",
    "results_table",
    "stages_figure",
    "stages_table",
]

Answers = Mapping[str, Sequence[dict[str, Any]]]
"""Exam to answers: ``greedy``, ``sampled``, ``swapped``."""

NAMES = {
    "all": "all",
    "single_choice": "single choice",
    "multiple_choice": "multiple choice",
    "diagnosis": "complex: diagnosis",
    "true_false": "true or false",
    "caption": "captions",
}

MOMENT_NAMES = {
    "pretrained": "before stage 1",
    "aligned": "after stage 1",
    "before": "after stage 2",
    "after": "after stage 3",
}
_TASK_COLOURS = {
    "caption": "#8895a3",
    "single_choice": "#1f6fb2",
    "multiple_choice": "#c8641b",
    "diagnosis": "#2e8b57",
}


def before_and_after(before: Answers, after: Answers) -> str:
    """Draw accuracy by task, before and after, with intervals and the floor of swapped pictures."""
    parts: list[str] = []
    for how, label in (("greedy", "The likeliest answer"), ("sampled", "A sampled answer, T = 1")):
        old, new = summary(before[how]), summary(after[how])
        floor = summary(after["swapped"])
        figure, axes = new_figure(4.2, 0.9 + 0.55 * len(old))
        for row, task in enumerate(reversed(old)):
            for shift, stats, colour in (
                (0.14, old[task], COLOURS["quiet"]),
                (-0.14, new[task], COLOURS["line"]),
            ):
                axes.plot([stats["low"], stats["high"]], [row + shift] * 2, color=colour, lw=2)
                axes.plot([stats["accuracy"]], [row + shift], "o", ms=6, color=colour)
            axes.plot([floor[task]["accuracy"]] * 2, [row - 0.32, row + 0.32], ":", color="#b3261e")
        axes.set_yticks(range(len(old)), [NAMES.get(task, task) for task in reversed(old)])
        axes.set_xlim(0, 1)
        axes.set_title(label, loc="left")
        axes.set_xlabel("accuracy")
        parts.append(f"<figure>{render(figure, label=f'Accuracy by task: {label}')}</figure>")
    key = "".join(
        f'<span><i style="background:{colour}"></i>{name}</span>'
        for name, colour in (
            ("before stage 3", COLOURS["quiet"]),
            ("after stage 3", COLOURS["line"]),
            ("after, pictures swapped: the floor", "#b3261e"),
        )
    )
    return f'<p class="key">{key}</p><div class="grid">{"".join(parts)}</div>'


def results_table(before: Answers, after: Answers) -> str:
    """Write the same figures, and format and length, as a table."""
    rows: list[str] = []
    for how in ("greedy", "sampled"):
        old, new, floor = summary(before[how]), summary(after[how]), summary(after["swapped"])
        for task in old:
            was, now = (
                [answer for answer in answers[how] if task in ("all", answer["task"])]
                for answers in (before, after)
            )
            cells = [how, NAMES.get(task, task), f"{old[task]['n']:.0f}"]
            cells += [
                f"{s['accuracy']:.3f} [{s['low']:.2f}, {s['high']:.2f}]"
                for s in (old[task], new[task])
            ]
            cells += ["{:+.3f} [{:+.2f}, {:+.2f}]".format(*paired(was, now))]
            cells += [f"{floor[task]['accuracy']:.3f}"]
            cells += [f"{old[task]['format']:.2f} → {new[task]['format']:.2f}"]
            cells += [f"{old[task]['tokens']:.1f} → {new[task]['tokens']:.1f}"]
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = (
        "answers",
        "task",
        "n",
        "before",
        "after",
        "gain, paired",
        "swapped",
        "format",
        "tokens",
    )
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def stages_figure(moments: Mapping[str, Answers]) -> str:
    """Draw greedy accuracy by task, and of captions, from one stage to the next.

    Args:
        moments: Moment to exams, in order.

    Returns:
        One figure.
    """
    tables = {when: _by_task(answers) for when, answers in moments.items()}
    figure, axes = new_figure(4.2, 3.2)
    for task, colour in _TASK_COLOURS.items():
        places = [place for place, table in enumerate(tables.values()) if task in table]
        if not places:
            continue
        rows = [table[task] for table in tables.values() if task in table]
        low, high = [row["low"] for row in rows], [row["high"] for row in rows]
        axes.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)
        heights = [row["accuracy"] for row in rows]
        axes.plot(places, heights, "o-", color=colour, label=NAMES[task], lw=2, ms=4)
    names = [MOMENT_NAMES[when].replace(" s", "\ns") for when in tables]
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1)
    axes.set_title("Accuracy, the likeliest answer", loc="left")
    axes.legend(frameon=False, fontsize=8)
    return render(figure, label="Accuracy by task after each stage")


def stages_table(moments: Mapping[str, Answers]) -> str:
    """Write the same as a table: accuracy, its interval, and the share of well-formed answers.

    Args:
        moments: Moment to exams, in order.

    Returns:
        The table.
    """
    tables = {when: _by_task(answers) for when, answers in moments.items()}
    tasks = list(next(iter(tables.values())))
    head = "".join(f"<th>{name}</th>" for name in ("task", *map(MOMENT_NAMES.get, tables)))
    rows: list[str] = []
    for task in tasks:
        cells = [NAMES.get(task, task)]
        for table in tables.values():
            row = table.get(task)
            if row is None:
                cells.append("–")
                continue
            span = f"{row['low']:.2f}–{row['high']:.2f}"
            cells.append(f"{row['accuracy']:.2f} ({span}) · {row['format']:.2f}")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _by_task(answers: Answers) -> dict[str, dict[str, float]]:
    tasks = summary(answers["greedy"])
    captions = answers.get("captions")
    return ({"caption": summary(captions)["all"]} if captions else {}) | tasks


def loss_curves(lines: Sequence[Mapping[str, Any]]) -> str:
    """Draw the loss of each supervised stage.

    Args:
        lines: Of ``metrics.jsonl``.

    Returns:
        One figure a stage, empty if none ran.
    """
    parts: list[str] = []
    for stage in ("vision", "language", "alignment", "finetuning"):
        # A step that was repeated after an interruption counts as last run.
        losses = {
            line["step"]: line["loss"]
            for line in lines
            if line["stage"] == stage and "loss" in line
        }
        if losses:
            figure, axes = new_figure(4.2, 2.5)
            steps = sorted(losses)
            axes.plot(steps, [losses[step] for step in steps], color=COLOURS["line"], lw=2)
            axes.set_ylim(bottom=0)
            axes.set_title(f"Loss: {stage}", loc="left")
            axes.set_xlabel("step")
            parts.append(f"<figure>{render(figure, label=f'Loss of the stage {stage}')}</figure>")
    return f'<div class="grid">{"".join(parts)}</div>' if parts else ""


def gallery(
    items: Sequence[Item], before: Answers, after: Answers, *, each: int = 2
) -> list[tuple[Item, dict[str, Any], dict[str, Any]]]:
    """Choose items to show: of each task some that were won, some kept, some lost or still wrong.

    Args:
        items: The held-out items.
        before: Answers of the stage-2 model.
        after: Answers of the stage-3 model.
        each: How many of each sort and task.

    Returns:
        Items with both greedy answers, in the order of the items.
    """
    old = {answer["id"]: answer for answer in before["greedy"]}
    new = {answer["id"]: answer for answer in after["greedy"]}
    counted: dict[tuple[str, bool, bool], int] = {}
    chosen: list[tuple[Item, dict[str, Any], dict[str, Any]]] = []
    for item in items:
        was, is_now = old[item.id], new[item.id]
        sort = (item.task, was["accuracy"] == 1, is_now["accuracy"] == 1)
        counted[sort] = counted.get(sort, 0) + 1
        wanted = each if sort[1:] == (False, True) else 1
        if counted[sort] <= wanted:
            chosen.append((item, was, is_now))
    return chosen


def card(item: Item, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Show one item: picture, question, and what was thought and answered before and after."""
    pictures = "".join(
        f'<img alt="picture of the question" src="data:{_kind(data)};base64,'
        f'{base64.b64encode(data).decode()}">'
        for data in item.images
    )
    answers = "".join(
        _answer(label, answer) for label, answer in (("before", before), ("after", after))
    )
    tags = [NAMES.get(item.task, item.task), item.source]
    if templated(item):
        tags.append("trace templated")
    shown = " ".join(f'<span class="tag">{html.escape(tag)}</span>' for tag in tags)
    return (
        f'<div class="card">{pictures}<p>{shown}</p>'
        f'<p class="question">{html.escape(item.question)}</p>'
        f"<p>Right answer: <b>{html.escape(item.answer)}</b></p>{answers}</div>"
    )


def _answer(label: str, answer: Mapping[str, Any]) -> str:
    right = answer["accuracy"] == 1
    parsed = parse_completion(answer["response"])
    reward = answer["format"] + (answer["accuracy"] or 0.0)
    if parsed.well_formed:
        said = (
            f"<i>{html.escape(parsed.think or '')}</i><br><b>{html.escape(parsed.answer or '')}</b>"
        )
    else:
        said = f"<code>{html.escape(answer['response'])}</code>"
    state = "right" if right else "wrong"
    return (
        f'<p class="answer {state}"><span class="tag">{label} · {state} · reward {reward:g}</span>'
        f"<br>{said}</p>"
    )


def _kind(data: bytes) -> str:
    return "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
