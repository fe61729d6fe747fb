"""Evaluation on the command line: the authors' ``eval.py`` with arguments, scores and resumption.

python -m examples.ophthareason.evaluate run SOURCE OUT --model MODEL [--model NAME=MODEL …]
python -m examples.ophthareason.evaluate score OUT
"""

from collections.abc import Iterator
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from examples.ophthareason.data import TaskName
from examples.ophthareason.evaluation import evaluate, score_folder
from examples.ophthareason.loading import HUB_PREFIX, ReadReport, read_records
from examples.ophthareason.records import Item, RecordError
from examples.ophthareason.scores import Summary
from examples.ophthareason.tables import main_table
from uadt.similarity import MATCHERS

app = typer.Typer(no_args_is_help=True, add_completion=False, help=(__doc__ or "").split("\n")[0])
console = Console(stderr=True)
MAX_PROBLEMS = 20
"""Problems of reading that are shown; `scores.json` has more."""


class BackendName(Enum):
    """What runs the model."""

    transformers = "transformers"
    vllm = "vllm"


class MatcherName(Enum):
    """What may call a diagnosis right that is written otherwise."""

    edit_ratio = "edit_ratio"
    token_sort_ratio = "token_sort_ratio"
    rouge_l = "rouge_l"
    bleu = "bleu"
    chrf = "chrf"


MatcherOption = Annotated[
    MatcherName | None, typer.Option(help="A similarity for diagnoses, beside exact and synonyms")
]
Threshold = Annotated[float, typer.Option(help="Likeness from which a diagnosis is right")]


class _Source:
    """Items that can be read again from the disk, so that they need not fit in memory."""

    def __init__(self, limit: int | None, **settings: Any) -> None:
        self.limit, self.settings = limit, settings
        self.report = ReadReport()
        """Of the first time."""
        self.watch: _Bars | None = None
        """Told of the first time."""
        self._times = 0

    def __iter__(self) -> Iterator[Item]:
        watch = None if self._times else self.watch
        report = ReadReport() if self._times else self.report
        self._times += 1
        count = 0
        for item in islice(read_records(**self.settings, report=report), self.limit):
            count += 1
            if watch:
                watch.reading(count)
            yield item
        if watch:
            watch.reading(count, finished=True)


@app.command()
def run(
    source: Annotated[
        str,
        typer.Argument(help=f"A file or folder of records, or {HUB_PREFIX}OWNER/NAME(@REVISION)"),
    ],
    out: Annotated[Path, typer.Argument(help="Folder; a run that was killed goes on there")],
    model: Annotated[
        list[str], typer.Option(help="Folder or hub name, or NAME=MODEL; may be repeated")
    ],
    root: Annotated[Path | None, typer.Option(help="What image paths are relative to")] = None,
    image_table: Annotated[
        Path | None, typer.Option(help="CSV: file and any of modality, source, split")
    ] = None,
    task: Annotated[TaskName | None, typer.Option(help="For records that do not say")] = None,
    backend: BackendName = BackendName.transformers,
    batch_size: Annotated[int, typer.Option(min=1, help="The authors use 16")] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="The authors use 8192")] = 8192,
    dtype: str = "auto",
    tensor_parallel: Annotated[int | None, typer.Option(help="vLLM: GPUs a model")] = None,
    max_length: Annotated[int | None, typer.Option(help="vLLM: prompt and response")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first items")] = None,
    matcher: MatcherOption = None,
    threshold: Threshold = 0.9,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out")] = False,
) -> None:
    """Answer, score, and write tables and figures."""
    named: dict[str, str] | list[str] = list(model)
    if any("=" in one for one in model):
        pairs = [one.partition("=") for one in model]
        named = {name: path or name for name, _, path in pairs}
    items = _Source(
        limit,
        skip_bad=skip_bad,
        source=source,
        root=root,
        task=task.value if task else None,
        image_table=image_table,
    )
    extra = {"tensor_parallel": tensor_parallel, "max_length": max_length}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console) as bar:
            watch = items.watch = _Bars(bar)
            summaries = evaluate(
                items,
                named,
                out,
                backend=backend.value,
                batch_size=batch_size,
                max_tokens=max_tokens,
                matcher=_matcher(matcher, threshold),
                watch=watch,
                reading=items.report,
                dtype=dtype,
                **{key: value for key, value in extra.items() if value is not None},
            )
    except (RecordError, ValueError, OSError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    _tell_losses(items.report)
    _show(out, summaries)


@app.command()
def score(
    out: Annotated[Path, typer.Argument(help="A folder of predictions")],
    matcher: MatcherOption = None,
    threshold: Threshold = 0.9,
) -> None:
    """Score predictions again, without a model."""
    try:
        summaries = score_folder(out, matcher=_matcher(matcher, threshold))
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    _show(out, summaries)


def _matcher(name: MatcherName | None, threshold: float) -> Any:
    return None if name is None else MATCHERS[name.value](threshold=threshold)


def _tell_losses(report: ReadReport) -> None:
    if report.complete:
        return
    lines = [
        f"not everything was read: {report.skipped.total()} records skipped "
        f"{dict(report.skipped)}, {report.unread} files whose rest cannot be read",
        *report.problems[:MAX_PROBLEMS],
    ]
    for line in lines:
        plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
        console.print(plain, markup=False, highlight=False, soft_wrap=True)


def _show(out: Path, summaries: list[Summary]) -> None:
    Console().print(Markdown(main_table(summaries)))
    console.print(f"written: {out}/scores.json, report.md, accuracy.png")


class _Bars:
    """One bar for the first reading and one a model, with the rate since this run began."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.tasks: dict[str, Any] = {}
        self.begun: dict[str, int] = {}

    def reading(self, done: int, *, finished: bool = False) -> None:
        """Every record is read and checked before a model is loaded; how many is not known."""
        if "" not in self.tasks:
            self.tasks[""] = self.bar.add_task("reading", total=None, rate="")
        self.bar.update(self.tasks[""], completed=done, total=done if finished else None)

    def __call__(self, model: str, done: int, total: int) -> None:
        if model not in self.tasks:
            self.begun[model] = done
            self.tasks[model] = self.bar.add_task(model, total=total, completed=done, rate="")
        task = self.tasks[model]
        elapsed = next(one.elapsed for one in self.bar.tasks if one.id == task) or 0.0
        rate = (done - self.begun[model]) / elapsed if elapsed else 0.0
        self.bar.update(task, completed=done, rate=f"{rate:.2f} items/s" if rate else "")


if __name__ == "__main__":
    app()
