"""MM-Retinal-Reason on the command line: convert, check, look for leaks, list the sources.

python -m examples.ophthareason.data convert SOURCE OUT
python -m examples.ophthareason.data check SOURCE
python -m examples.ophthareason.data leakage TRAIN TEST
python -m examples.ophthareason.data sources
"""

from collections.abc import Generator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich import progress as bars
from rich.console import Console
from rich.table import Table

from examples.ophthareason.conversion import Conversion, convert, find_leaks
from examples.ophthareason.loading import (
    HUB_PREFIX,
    Progress,
    ReadReport,
    find_files,
    locate,
    read_records,
)
from examples.ophthareason.records import RecordError
from examples.ophthareason.sources import sources

app = typer.Typer(no_args_is_help=True, add_completion=False, help=(__doc__ or "").split("\n")[0])
out_console = Console()
console = Console(stderr=True)


class To(Enum):
    """What to write."""

    verl = "verl"
    trl = "trl"
    jsonl = "jsonl"


class TaskName(Enum):
    """The kinds of questions."""

    single_choice = "single_choice"
    multiple_choice = "multiple_choice"
    true_false = "true_false"
    diagnosis = "diagnosis"


Source = Annotated[
    str,
    typer.Argument(help=f"A file or folder of records, or {HUB_PREFIX}OWNER/NAME(@REVISION)"),
]
Root = Annotated[
    Path | None, typer.Option(help="What image paths are relative to (default: each file's folder)")
]
ImageTable = Annotated[
    Path | None, typer.Option(help="CSV: file and any of modality, source, split")
]
TaskOption = Annotated[TaskName | None, typer.Option(help="For records that do not say")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and count them")]


@app.command("convert")
def convert_command(
    source: Source,
    out: Annotated[Path, typer.Argument(help="File (verl, jsonl) or folder (trl)")],
    to: Annotated[
        To | None, typer.Option(help="By default by OUT: .parquet verl, .jsonl, else trl")
    ] = None,
    root: Root = None,
    image_table: ImageTable = None,
    task: TaskOption = None,
    modality: Annotated[str | None, typer.Option(help="For records that do not say")] = None,
    split: Annotated[str | None, typer.Option(help="For records that do not say")] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Leave out items that show a picture of this source")
    ] = None,
    keep_duplicates: Annotated[bool, typer.Option("--keep-duplicates")] = False,
    skip_bad: SkipBad = False,
) -> None:
    """Write records for a trainer."""
    to = to or {".parquet": To.verl, ".jsonl": To.jsonl}.get(out.suffix, To.trl)
    others = ReadReport()
    with _errors(), _bar(**({"held out": held_out} if held_out else {}), converting=source) as told:
        kind = task.value if task else None
        forbidden = (
            read_records(
                held_out,
                root,
                task=kind,
                image_table=image_table,
                skip_bad=skip_bad,
                report=others,
                progress=told["held out"],
            )
            if held_out
            else ()
        )
        account = convert(
            source,
            out,
            to=to.value,
            root=root,
            task=kind,
            modality=modality,
            split=split,
            image_table=image_table,
            held_out=forbidden,
            keep_duplicates=keep_duplicates,
            skip_bad=skip_bad,
            progress=told["converting"],
        )
    _show(account)
    _tell_losses("held out", others)
    console.print(f"written: {out} and {out.name}.report.json")


@app.command()
def check(
    source: Source,
    root: Root = None,
    image_table: ImageTable = None,
    task: TaskOption = None,
) -> None:
    """Read everything and say what is wrong; exit 1 if anything is."""
    account = Conversion()
    with _errors(), _bar(checking=source) as told:
        for _ in read_records(
            source,
            root,
            task=task.value if task else None,
            image_table=image_table,
            skip_bad=True,
            report=account.read,
            progress=told["checking"],
        ):
            account.written += 1
    _show(account)
    if not account.read.complete:
        raise typer.Exit(1)


@app.command()
def leakage(
    train: Source,
    test: Annotated[str, typer.Argument(help="The other source")],
    root: Root = None,
    task: TaskOption = None,
    skip_bad: SkipBad = False,
) -> None:
    """Look for pictures that are in both; exit 1 if there are any, or if not all could be read."""
    reports = {"train": ReadReport(), "test": ReadReport()}
    with _errors(), _bar(train=train, test=test) as told:
        one, other = (
            read_records(
                source,
                root,
                task=task.value if task else None,
                skip_bad=skip_bad,
                report=reports[name],
                progress=told[name],
            )
            for name, source in (("train", train), ("test", test))
        )
        leaks = find_leaks(one, other)
    for leak in leaks:
        out_console.print(
            f"{leak.first} = {leak.second}  {leak.pixels[:16]}", highlight=False, soft_wrap=True
        )
    read = " and ".join(f"{report.read} of {name}" for name, report in reports.items())
    console.print(f"{len(leaks)} pictures in both; records read: {read}")
    for name, report in reports.items():
        _tell_losses(name, report)
    if leaks or not all(report.complete for report in reports.values()):
        raise typer.Exit(1)


@app.command("sources")
def sources_command() -> None:
    """List the 45 public data sets."""
    table = Table("modality", "source", "domain", "note")
    for row in sources():
        table.add_row(*row)
    out_console.print(table)


@contextmanager
def _errors() -> Generator[None]:
    """Show an error in the input as one line, not as a traceback."""
    try:
        yield
    except (RecordError, ValueError, OSError) as error:
        console.print(f"[red]error[/red] {_plain(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _plain(text: str) -> str:
    """A stranger's text for a terminal: no markup, no control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text).replace(
        "[", r"\["
    )


@contextmanager
def _bar(**sources: str) -> Generator[dict[str, Progress]]:
    """Show one bar a source, and give what is to be told of each. The hub is asked first."""
    files = {word: find_files(locate(source)[0]) for word, source in sources.items()}
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console) as bar:
        yield {
            word: _advance(bar, bar.add_task(word, total=sum(f.stat().st_size for f in found)))
            for word, found in files.items()
        }


def _advance(bar: bars.Progress, task: bars.TaskID) -> Progress:
    done: dict[Path, int] = {}

    def advance(path: Path, position: int) -> None:
        bar.update(task, advance=position - done.get(path, 0))
        done[path] = position

    return advance


def _tell_losses(word: str, report: ReadReport) -> None:
    if not report.complete:
        console.print(
            f"{word}: {report.skipped.total()} records skipped, {report.unread} files whose rest "
            "cannot be read"
        )
        _tell_problems(report)


def _show(account: Conversion) -> None:
    report: ReadReport = account.read
    rows = {
        "files": report.files,
        "records read": report.read,
        **{f"skipped: {reason}": count for reason, count in sorted(report.skipped.items())},
        "files whose rest cannot be read": report.unread,
        "files passed over": len(report.passed_over),
        "duplicates left out": account.duplicates,
        "held out": account.held_out,
        "contradictions kept": len(account.contradictions),
        "items": account.written,
        **{f"ignored field: {name}": count for name, count in sorted(report.ignored.items())},
    }
    table = Table(show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    for name, count in rows.items():
        if count or name in ("files", "records read", "items"):
            table.add_row(_plain(name), str(count))
    console.print(table)
    for name in report.passed_over:
        console.print(f"passed over: {_plain(name)}", highlight=False, soft_wrap=True)
    _tell_problems(report)


def _tell_problems(report: ReadReport) -> None:
    for problem in report.problems[:20]:
        console.print(_plain(problem), highlight=False, soft_wrap=True)
    hidden = sum(report.skipped.values()) + report.unread - len(report.problems[:20])
    if hidden > 0:
        console.print(f"… and {hidden} more")


if __name__ == "__main__":
    app()
