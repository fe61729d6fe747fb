"""The report of a demo run: the library's page, with results, gallery and what it can show.

    python -m examples.ophthareason.report RUN

writes ``RUN/report.html`` again from what the run folder holds.
"""

import argparse
import contextlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.ophthareason.drawing import (
    before_and_after,
    card,
    gallery,
    loss_curves,
    results_table,
    stages_figure,
    stages_table,
)
from examples.ophthareason.exam import MOMENTS, summary
from examples.ophthareason.progress import usage
from examples.ophthareason.real import CREDITS, TEMPLATED, read_real
from examples.ophthareason.records import Item
from examples.ophthareason.reinforce import diagnostics
from examples.ophthareason.settings import Settings, load_settings
from examples.ophthareason.splits import read_split
from uadt.report import Section, report

__all__ = ["write_report"]

Answers = Mapping[str, Sequence[dict[str, Any]]]

_LIMITS = (
    "A model of two million parameters that has only ever seen drawings shows that the pipeline "
    "works from end to end: seeing, thinking in the format, a reward that rises, and a factor that "
    "moves with the policy's entropy. It shows nothing about medicine, and it cannot say whether "
    "UADT helps a model of billions of parameters. The teacher of stage 2 makes mistakes on "
    "purpose; that is what stage 3 wins back. One run is one seed: the intervals are over held-out "
    "items and know nothing of other seeds."
)
_REAL_LIMITS = (
    "Real retinal images show here that the pipeline takes them: records are read, trained on, "
    "asked and scored. A model of two million parameters that sees 112 pixels of a few hundred "
    "photographs does not learn to read them: where its accuracy is that of swapped pictures, it "
    "answers without looking. It shows nothing about medicine, and it cannot say whether UADT "
    "helps a model of billions of parameters. Several questions are about one photograph, which "
    "the intervals do not know; nor do they know of other seeds."
)


def write_report(run: Path, settings: Settings, *, test: Sequence[Item]) -> Path:
    """Write ``report.html`` into the folder of a run.

    Args:
        run: The folder, with stage 3 in ``reinforcement`` and the answers in ``predictions``.
        settings: All numbers of the run.
        test: The held-out items.

    Returns:
        The file.
    """
    rows = [_with_parts(row) for row in diagnostics(run / "reinforcement")]
    environment = json.loads((run / "environment.json").read_text())
    moments = _moments(run)
    before, after = moments["before"], moments["after"]
    real = environment["data"] != "phantoms"
    texts = _texts(run) if real else []
    sections = [
        Section(
            title="Before and after stage 3",
            text="Accuracy on held-out items, with 95 % intervals (Wilson). The dotted line is the "
            "floor: the same questions with another item's picture.",
            body=before_and_after(before, after) + results_table(before, after),
        )
    ]
    if "pretrained" in moments:
        sections.append(_stages(run, moments, texts))
    shown = gallery(test, before, after)
    text = "Chosen by rule: of each task two that were won and one of each other sort."
    if real:
        known = {name for item, _, _ in shown for name in item.source.split(";")}
        credits = [words for name, words in CREDITS.items() if name in known]
        text = " ".join([text, "The pictures keep their owners' licences.", *credits])
    pictures = Section(
        title="Some questions",
        text=text,
        body='<div class="cards">' + "".join(card(*entry) for entry in shown) + "</div>",
    )
    limits = Section(
        title="What this can show, and what it cannot", text=_REAL_LIMITS if real else _LIMITS
    )
    path = run / "report.html"
    path.write_text(
        report(
            rows,
            title="OphthaReason in miniature",
            lead=_lead(settings, environment, texts),
            facts=_facts(run, settings, before, after),
            before=sections,
            after=[pictures, limits, _numbers(run, environment)],
        )
    )
    return path


def _moments(run: Path) -> dict[str, Answers]:
    """Read the answers of all moments that were examined, in their order."""
    found: dict[str, Answers] = {}
    for when in MOMENTS:
        paths = sorted((run / "predictions").glob(f"{when}-*.json"))
        if paths:
            found[when] = {
                path.stem.split("-", 1)[1]: json.loads(path.read_text()) for path in paths
            }
    return found


def _texts(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "texts.jsonl").read_text().splitlines()]


def _templated(texts: Sequence[Mapping[str, Any]]) -> str:
    made = sum(text["title"].startswith(TEMPLATED) for text in texts)
    return (
        f"{made} of {len(texts)} records had no reasoning trace or no caption of their own: theirs "
        "are templated from the record's labels, and marked so in texts.jsonl."
    )


def _lead(
    settings: Settings, environment: Mapping[str, Any], texts: Sequence[Mapping[str, Any]]
) -> str:
    lead = (
        f"GRPO with UADT through verl and Ray; steps: {settings.reinforcement.steps}, of "
        f"{settings.reinforcement.prompts} questions, {settings.reinforcement.group} answers each. "
        + ("Real retinal images" if texts else "The pictures are synthetic phantoms")
        + "; research software, not for clinical use. "
    )
    if texts:
        lead += _templated(texts)
    elif environment["start"] != "all stages":
        lead += (
            "Stages 1 and 2 were not part of this run: it began with the stage-2 model that is "
            "kept in the repository, whose provenance.json says how it was made."
        )
    return lead


def _facts(run: Path, settings: Settings, before: Answers, after: Answers) -> dict[str, str]:
    facts: dict[str, str] = {}
    for how in ("greedy", "sampled"):
        old, new = (summary(answers[how])["all"] for answers in (before, after))
        facts[f"right, {how}"] = f"{old['accuracy']:.2f} → {new['accuracy']:.2f}"
    old, new = (summary(answers["sampled"])["all"] for answers in (before, after))
    seconds, peak = usage(run / "metrics.jsonl")
    return facts | {
        "well-formed, sampled": f"{old['format']:.2f} → {new['format']:.2f}",
        "held-out items": f"{new['n']:.0f}",
        "λ, γ": f"{settings.reinforcement.strength}, {settings.reinforcement.decay}",
        "seed": str(settings.seed),
        "time": f"{sum(seconds.values()) / 60:.0f} min",
        "memory at most": f"{peak:.1f} GiB",
    }


def _stages(
    run: Path, moments: Mapping[str, Answers], texts: Sequence[Mapping[str, Any]]
) -> Section:
    lines: list[dict[str, Any]] = []
    for text in (run / "metrics.jsonl").read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # torn by a kill
            lines.append(json.loads(text))
    words = (
        "The likeliest answers to the held-out items before and after each stage, by task. Stage 1 "
        "teaches captions only, so the questions begin to be answered with stage 2. A caption is "
        "right if it says all that the reference says and nothing else; none is asked for after "
        "stage 2. The table has accuracy, its 95 % interval, and the share of well-formed answers. "
    )
    if texts:
        words += _templated(texts)
    return Section(
        title="Stage by stage",
        text=words,
        body=f'<div class="grid"><figure>{stages_figure(moments)}</figure></div>'
        + stages_table(moments)
        + loss_curves(lines),
    )


def _with_parts(row: dict[str, Any]) -> dict[str, Any]:
    """Split the reward: 1 for the form, 1 more for the right answer."""
    reward = row.get("reward")
    if reward is None:
        return row
    return {**row, "format": float(reward >= 1), "accuracy": float(reward >= 2)}


def _numbers(run: Path, environment: dict[str, Any]) -> Section:
    seconds, peak = usage(run / "metrics.jsonl")
    spent = "".join(
        f"<tr><td>{html.escape(stage)}</td><td>{took / 60:.1f} min</td></tr>"
        for stage, took in seconds.items()
    )
    settings = html.escape((run / "settings.yaml").read_text())
    machine = html.escape(json.dumps(environment, indent=1))
    command = html.escape((run / "reinforcement" / "command.txt").read_text())
    return Section(
        title="Everything that decided it",
        text=f"{sum(seconds.values()) / 60:.1f} minutes; at most {peak:.1f} GiB, all "
        "processes together. Below: time by stage, settings, environment, and the command of "
        "stage 3.",
        body=f"<details><summary>Show</summary><table>{spent}</table><pre>{settings}</pre>"
        f"<pre>{machine}</pre><pre>{command}</pre></details>",
    )


def main() -> None:
    """Write the report of a finished run again."""
    parser = argparse.ArgumentParser(description="Write report.html again.")
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    run: Path = parser.parse_args().run
    settings = load_settings(run / "settings.yaml")
    data = json.loads((run / "environment.json").read_text())["data"]
    test = read_split(run / "phantoms", "test") if data == "phantoms" else read_real(Path(data))[1]
    print(write_report(run, settings, test=test))


if __name__ == "__main__":
    main()
