"""The report of a demo run: the library's page, with results, gallery and what it can show.

    python -m examples.ophthareason.report RUN

writes ``RUN/report.html`` again from what the run folder holds.
"""

import argparse
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.ophthareason.drawing import before_and_after, card, gallery, results_table
from examples.ophthareason.exam import summary
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


def write_report(
    run: Path,
    settings: Settings,
    *,
    test: Sequence[Item],
    before: Answers,
    after: Answers,
    templated: int = 0,
) -> Path:
    """Write ``report.html`` into the folder of a run.

    Args:
        run: The folder, with stage 3 in ``reinforcement``.
        settings: All numbers of the run.
        test: The held-out items.
        before: Exam to answers of the stage-2 model.
        after: The same of the stage-3 model.
        templated: How many traces were made from labels.

    Returns:
        The file.
    """
    rows = [_with_parts(row) for row in diagnostics(run / "reinforcement")]
    environment = json.loads((run / "environment.json").read_text())
    old, new = summary(before["greedy"])["all"], summary(after["greedy"])["all"]
    sampled = [summary(answers["sampled"])["all"]["accuracy"] for answers in (before, after)]
    real = environment["data"] != "phantoms"
    lead = (
        f"GRPO with UADT through verl and Ray: {settings.reinforcement.steps} steps of "
        f"{settings.reinforcement.prompts} questions, {settings.reinforcement.group} answers each. "
        + ("Real retinal images" if real else "The pictures are synthetic phantoms")
        + "; research software, not for clinical use."
    )
    if templated:
        lead += f" {templated} captions and traces were templated from the records' own labels."
    facts = {
        "accuracy, greedy": f"{old['accuracy']:.2f} → {new['accuracy']:.2f}",
        "accuracy, sampled": f"{sampled[0]:.2f} → {sampled[1]:.2f}",
        "held-out items": f"{new['n']:.0f}",
        "λ, γ": f"{settings.reinforcement.strength}, {settings.reinforcement.decay}",
        "seed": str(settings.seed),
    }
    results = Section(
        title="Before and after stage 3",
        text="Accuracy on held-out items, with 95 % intervals (Wilson). The dotted line is the "
        "floor: the same questions with another item's picture.",
        body=before_and_after(before, after) + results_table(before, after),
    )
    shown = gallery(test, before, after)
    pictures = Section(
        title="Some questions",
        text="Chosen by rule: of each task two that were won and one of each other sort.",
        body='<div class="cards">' + "".join(card(*entry) for entry in shown) + "</div>",
    )
    limits = Section(title="What this can show, and what it cannot", text=_LIMITS)
    path = run / "report.html"
    path.write_text(
        report(
            rows,
            title="OphthaReason in miniature",
            lead=lead,
            facts=facts,
            before=[results],
            after=[pictures, limits, _numbers(run, environment)],
        )
    )
    return path


def _with_parts(row: dict[str, Any]) -> dict[str, Any]:
    """Split the reward: 1 for the form, 1 more for the right answer."""
    reward = row.get("reward")
    if reward is None:
        return row
    return {**row, "format": float(reward >= 1), "accuracy": float(reward >= 2)}


def _numbers(run: Path, environment: dict[str, Any]) -> Section:
    settings = html.escape((run / "settings.yaml").read_text())
    machine = html.escape(json.dumps(environment, indent=1))
    command = html.escape((run / "reinforcement" / "command.txt").read_text())
    return Section(
        title="Everything that decided it",
        text="Settings, environment, and the command of stage 3.",
        body=f"<details><summary>Show</summary><pre>{settings}</pre><pre>{machine}</pre>"
        f"<pre>{command}</pre></details>",
    )


def main() -> None:
    """Write the report of a run on phantoms again."""
    parser = argparse.ArgumentParser(description="Write report.html again.")
    parser.add_argument("run", type=Path, help="the folder of a finished run on phantoms")
    run: Path = parser.parse_args().run
    before, after = (
        {
            path.stem.split("-")[1]: json.loads(path.read_text())
            for path in (run / "predictions").glob(f"{when}-*.json")
        }
        for when in ("before", "after")
    )
    settings = load_settings(run / "settings.yaml")
    test = read_split(run / "phantoms", "test")
    print(write_report(run, settings, test=test, before=before, after=after))


if __name__ == "__main__":
    main()
