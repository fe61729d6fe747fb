"""MM-Retinal-Reason on the command line: convert, check, look for leaks, list the sources.

python -m examples.ophthareason.data convert SOURCE OUT
python -m examples.ophthareason.data check SOURCE
python -m examples.ophthareason.data leakage TRAIN TEST
python -m examples.ophthareason.data sources
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from examples.ophthareason.conversion import Conversion, convert, find_leaks
from examples.ophthareason.loading import HUB_PREFIX, ReadReport, find_files, read_records
from examples.ophthareason.records import Item, RecordError
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
    Path | None, typer.Option(help="What image paths are relative to [each file's folder]")
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
    to: Annotated[To | None, typer.Option(help="[by OUT: .parquet verl, .jsonl, else trl]")] = None,
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
    with _errors(), _bar(source, "converting") as progress:
        account = convert(
            source,
            out,
            to=to.value,
            root=root,
            task=task.value if task else None,
            modality=modality,
            split=split,
            image_table=image_table,
            held_out=_items(held_out, root, task, image_table) if held_out else (),
            keep_duplicates=keep_duplicates,
            skip_bad=skip_bad,
            progress=progress,
        )
    _show(account)
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
    with _errors(), _bar(source, "checking") as progress:
        for _ in read_records(
            source,
            root,
            task=task.value if task else None,
            image_table=image_table,
            skip_bad=True,
            report=account.read,
            progress=progress,
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
) -> None:
    """Look for pictures that are in both; exit 1 if there are any."""
    with _errors():
        leaks = find_leaks(_items(train, root, task, None), _items(test, root, task, None))
    for leak in leaks:
        out_console.print(f"{leak.first} = {leak.second}  {leak.pixels[:16]}", highlight=False)
    console.print(f"{len(leaks)} pictures in both")
    if leaks:
        raise typer.Exit(1)


@app.command("sources")
def sources_command() -> None:
    """List the 45 public data sets."""
    table = Table("modality", "source", "domain", "note")
    for row in sources():
        table.add_row(*row)
    out_console.print(table)


def _items(
    source: str, root: Path | None, task: TaskName | None, image_table: Path | None
) -> Iterator[Item]:
    return read_records(source, root, task=task.value if task else None, image_table=image_table)


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
def _bar(source: str, word: str) -> Generator[Callable[[Path, int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        files = [] if source.startswith(HUB_PREFIX) else find_files(Path(source))
        task = bar.add_task(word, total=sum(file.stat().st_size for file in files) or None)
        done: dict[Path, int] = {}

        def advance(path: Path, position: int) -> None:
            bar.update(task, advance=position - done.get(path, 0))
            done[path] = position

        yield advance


def _show(account: Conversion) -> None:
    report: ReadReport = account.read
    rows = {
        "files": report.files,
        "records read": report.read,
        **{f"skipped: {reason}": count for reason, count in sorted(report.skipped.items())},
        "files whose rest cannot be read": report.unread,
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
    for problem in report.problems[:20]:
        console.print(_plain(problem), highlight=False, soft_wrap=True)
    hidden = sum(report.skipped.values()) + report.unread - len(report.problems[:20])
    if hidden > 0:
        console.print(f"… and {hidden} more")


if __name__ == "__main__":
    app()
