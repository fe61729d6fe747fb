"""Figures and cards of the demo's report that know about questions, answers and pictures."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from examples.ophthareason.exam import paired, summary
from examples.ophthareason.records import Item
from uadt.answers import parse_completion
from uadt.report import COLOURS, new_figure, render

__all__ = ["before_and_after", "card", "gallery", "results_table"]

Answers = Mapping[str, Sequence[dict[str, Any]]]
"""Exam to answers: ``greedy``, ``sampled``, ``swapped``."""

NAMES = {
    "all": "all",
    "single_choice": "single choice",
    "multiple_choice": "multiple choice",
    "diagnosis": "complex: diagnosis",
    "true_false": "true or false",
}


def before_and_after(before: Answers, after: Answers) -> str:
    """Draw accuracy by task, before and after, with intervals and the floor of swapped pictures."""
    parts: list[str] = []
    for how, label in (("greedy", "The likeliest answer"), ("sampled", "A sampled answer, T = 1")):
        old, new = summary(before[how]), summary(after[how])
        floor = summary(after["swapped"])
        figure, (axes,) = new_figure(4.2, 0.9 + 0.55 * len(old))
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
        axes.set_title(label)
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
                f"{s['accuracy']:.3f} [{s['low']:.3f}, {s['high']:.3f}]"
                for s in (old[task], new[task])
            ]
            cells += ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*paired(was, now))]
            cells += [f"{floor[task]['accuracy']:.3f}"]
            cells += [f"{old[task]['format']:.3f} → {new[task]['format']:.3f}"]
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
    task = html.escape(NAMES.get(item.task, item.task))
    return (
        f'<div class="card">{pictures}<p><span class="tag">{task}</span> '
        f'<span class="tag">{html.escape(item.source)}</span></p>'
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
