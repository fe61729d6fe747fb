"""From records to training files: duplicates, contradictions, leakage, and the account."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from examples.ophthareason.loading import Progress, ReadReport, read_records
from examples.ophthareason.records import Item
from examples.ophthareason.writers import (
    atomic_path,
    write_dataset,
    write_jsonl,
    write_verl_parquet,
)
from uadt.rewards import Task

__all__ = ["WRITERS", "Conversion", "Format", "Leak", "convert", "find_leaks", "write_json"]

Format = Literal["verl", "trl", "jsonl"]
WRITERS = {"verl": write_verl_parquet, "trl": write_dataset, "jsonl": write_jsonl}
MAX_SHOWN = 200


class Leak(NamedTuple):
    """One picture in two sets."""

    pixels: str
    """The hash of its pixels."""
    first: str
    """An item of the first set that shows it."""
    second: str
    """An item of the second set that shows it."""


@dataclass
class Conversion:
    """What became of everything that was read."""

    read: ReadReport = field(default_factory=ReadReport)
    """The account of reading."""
    written: int = 0
    """Items in the output."""
    duplicates: int = 0
    """Items left out: same pixels, same question, same answer as an earlier one."""
    contradictions: list[tuple[str, str]] = field(default_factory=list)
    """Pairs that are both kept: same pixels and question, another answer. Label noise."""
    held_out: int = 0
    """Items left out: they show a picture of the held-out set."""

    def as_dict(self) -> dict[str, object]:
        """Return the account as plain values, for JSON."""
        return {
            **self.read.as_dict(),
            "written": self.written,
            "duplicates": self.duplicates,
            "held_out": self.held_out,
            "contradictions": len(self.contradictions),
            "first_contradictions": [list(pair) for pair in self.contradictions[:MAX_SHOWN]],
        }


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: Format = "verl",
    root: str | Path | None = None,
    task: Task | None = None,
    modality: str | None = None,
    split: str | None = None,
    image_table: str | Path | None = None,
    held_out: Iterable[Item] = (),
    keep_duplicates: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Read a source and write it for a trainer, and the account beside it (``OUT.report.json``).

    Nothing is held in memory but hashes, 32 bytes a picture and an item. The output appears whole
    or not at all.

    Args:
        source: As in `read_records`.
        out: A file (``verl``, ``jsonl``) or a folder (``trl``).
        to: What to write.
        root: As in `read_records`.
        task: As in `read_records`.
        modality: As in `read_records`.
        split: As in `read_records`.
        image_table: As in `read_records`.
        held_out: Items whose pictures must not be in the output, such as the test set.
        keep_duplicates: Keep items that say the same thing twice.
        skip_bad: Leave bad records out and count them, instead of raising at the first.
        progress: As in `read_records`.

    Returns:
        The account.

    Raises:
        RecordError: At the first bad record, unless ``skip_bad``; then no output is written.
    """
    if to not in WRITERS:
        raise ValueError(f"to must be one of {list(WRITERS)}, got {to!r}")
    account = Conversion()
    forbidden = {pixels for item in held_out for pixels in item.pixels}
    items = read_records(
        source,
        root,
        task=task,
        modality=modality,
        split=split,
        image_table=image_table,
        skip_bad=skip_bad,
        report=account.read,
        progress=progress,
    )
    chosen = _choose(items, account, forbidden=forbidden, keep_duplicates=keep_duplicates)
    account.written = WRITERS[to](chosen, out)
    out = Path(out)
    write_json(account.as_dict(), out.with_name(f"{out.name}.report.json"))
    return account


def _choose(
    items: Iterator[Item], account: Conversion, *, forbidden: set[str], keep_duplicates: bool
) -> Iterator[Item]:
    seen: dict[tuple[object, ...], dict[str, str]] = {}  # asked → answer → who gave it first
    for item in items:
        if not forbidden.isdisjoint(item.pixels):
            account.held_out += 1
            continue
        asked = (_hash(item.question), *(bytes.fromhex(pixels) for pixels in item.pixels))
        answers = seen.setdefault(asked, {})
        if item.answer not in answers:
            if answers:
                account.contradictions.append((next(iter(answers.values())), item.id))
            answers[item.answer] = item.id
        elif not keep_duplicates:
            account.duplicates += 1
            continue
        yield item


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def find_leaks(first: Iterable[Item], second: Iterable[Item]) -> list[Leak]:
    """Find pictures that are in both sets, whatever their files are called.

    Equal pixels are found, also across lossless formats; a resized or recompressed copy is another
    picture and is not.

    Args:
        first: One set, such as the training items.
        second: The other, such as the test items.

    Returns:
        Each shared picture once, in the order of the second set.
    """
    index: dict[str, str] = {}
    for item in first:
        for pixels in item.pixels:
            index.setdefault(pixels, item.id)
    found: dict[str, Leak] = {}
    for item in second:
        for pixels in item.pixels:
            if pixels in index:
                found.setdefault(pixels, Leak(pixels, index[pixels], item.id))
    return list(found.values())


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file whole or not at all.

    Args:
        value: What `json` can write.
        path: The file.
    """
    with atomic_path(path) as part:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")
