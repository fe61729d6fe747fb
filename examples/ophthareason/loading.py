"""Items from files, folders or the Hugging Face hub, and an account of what was not read."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from examples.ophthareason.images import (
    CheckedImage,
    ImageError,
    decode_base64,
    looks_like_base64,
    read_image,
)
from examples.ophthareason.readers import Base64Table, stream_records
from examples.ophthareason.records import (
    UNKNOWN,
    Item,
    RecordError,
    make_item,
    parse_record,
    task_of_name,
)
from examples.ophthareason.sources import PUBMED_CENTRAL, domain_of
from uadt.rewards import Task

__all__ = [
    "HUB_DATASET",
    "HUB_PREFIX",
    "ReadReport",
    "find_files",
    "hub_snapshot",
    "locate",
    "read_records",
]

HUB_DATASET = "lxirich/MM-Retinal-Reason"
HUB_PREFIX = "hub:"
MAX_SHOWN = 200
"""Problems that are kept word for word; all are counted."""


@dataclass
class ReadReport:
    """What became of every record. ``read + len(skipped)`` is all there were."""

    files: int = 0
    """Files opened."""
    read: int = 0
    """Records that became items."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Records that did not, by reason."""
    unread: int = 0
    """Files whose rest could not be read; how many records that is, nobody knows."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Fields that records have and nobody reads."""
    passed_over: list[str] = field(default_factory=list)
    """Files that are named like records and are none: hidden ones, and accounts of `convert`."""
    problems: list[str] = field(default_factory=list)
    """The first problems, word for word."""

    @property
    def complete(self) -> bool:
        """Whether every record became an item."""
        return not self.skipped and not self.unread

    def skip(self, reason: str, words: str) -> None:
        """Count a record that is left out.

        Args:
            reason: The short word that it is counted under.
            words: What exactly was wrong.
        """
        self.skipped[reason] += 1
        if len(self.problems) < MAX_SHOWN:
            self.problems.append(words)

    def as_dict(self) -> dict[str, object]:
        """Return the account as plain numbers, for JSON."""
        return {
            "files": self.files,
            "read": self.read,
            "skipped": dict(sorted(self.skipped.items())),
            "files_with_unread_rest": self.unread,
            "ignored_fields": dict(sorted(self.ignored.items())),
            "files_passed_over": self.passed_over,
            "problems": self.problems,
        }


Progress = Callable[[Path, int], None]
"""Called with the file and the number of its bytes read so far."""


def hub_snapshot(name: str, *, revision: str | None = None, cache: Path | None = None) -> Path:
    """Download a data set from the Hugging Face hub, or find it in the cache.

    Args:
        name: ``owner/name`` of the data set.
        revision: A commit, so that a run can be repeated.
        cache: The hub's cache folder, the usual one if not given.

    Returns:
        The folder of the snapshot.
    """
    from huggingface_hub import snapshot_download  # only who asks for the hub needs it

    return Path(
        snapshot_download(
            name,
            repo_type="dataset",
            revision=revision,
            cache_dir=cache,
            allow_patterns=["*.json", "*.jsonl", "*.csv", "*.md", *(f"*.{s}" for s in _SUFFIXES)],
        )
    )


_SUFFIXES = (
    "jpg",
    "jpeg",
    "png",
    "webp",
    "bmp",
    "tif",
    "tiff",
    "JPG",
    "JPEG",
    "PNG",
    "TIF",
    "TIFF",
)


def find_files(source: Path, report: ReadReport | None = None) -> list[Path]:
    """List the record files of a source in a fixed order.

    Args:
        source: A ``.json`` or ``.jsonl`` file, or a folder that holds some at any depth. Links to
            folders inside it are not followed.
        report: Told which files are passed over, if given: hidden ones, and ``X.report.json``
            beside an ``X``, which is the account that ``convert`` wrote of it.

    Returns:
        The files, sorted by path.

    Raises:
        RecordError: If there are none.
    """
    if source.is_file():
        return [source]
    named = sorted(
        path
        for path in source.rglob("*")
        if path.suffix.lower() in (".json", ".jsonl") and path.is_file()
    )
    found = [path for path in named if _is_records(path)]
    if report is not None:
        others = [path for path in named if not _is_records(path)]
        report.passed_over += [path.relative_to(source).as_posix() for path in others]
    if not found:
        raise RecordError(str(source), None, "", "no .json or .jsonl file there")
    return found


def _is_records(path: Path) -> bool:
    about = path.name.removesuffix(".report.json")
    account = about != path.name and path.with_name(about).exists()
    return not account and not path.name.startswith(".")


def locate(source: str | Path) -> tuple[Path, Path | None]:
    """Find a source on the disk; one on the hub is downloaded first.

    Args:
        source: As in `read_records`.

    Returns:
        The file or folder, and for the hub the folder that links in it may lead to.

    Raises:
        RecordError: If there is no such file or folder, or the name is none of the hub's.
    """
    if not str(source).startswith(HUB_PREFIX):
        if not Path(source).exists():
            raise RecordError(str(source), None, "", "no such file or folder")
        return Path(source), None
    name, pinned, revision = str(source).removeprefix(HUB_PREFIX).partition("@")
    if not name or (pinned and not revision):
        raise RecordError(str(source), None, "", f"must be {HUB_PREFIX}OWNER/NAME[@REVISION]")
    folder = hub_snapshot(name, revision=revision or None)
    return folder, folder.parent.parent  # snapshots are links into the folder of blobs beside them


def read_records(
    source: str | Path,
    root: str | Path | None = None,
    *,
    task: Task | None = None,
    modality: str | None = None,
    split: str | None = None,
    image_table: str | Path | None = None,
    skip_bad: bool = False,
    report: ReadReport | None = None,
    progress: Progress | None = None,
) -> Iterator[Item]:
    """Read items one by one.

    What a record says of itself comes first, then the argument, then the table of images, then the
    authors' file name (``single_choice_test_data_CFP``: task, split, modality). A source is only
    ever stated, by the record, by the table, or by an article's number.

    Args:
        source: A file or folder of records, or ``hub:owner/name``, or
            ``hub:owner/name@revision`` with a commit, a branch or a tag.
        root: What image paths are relative to; the folder of each file if not given.
        task: The task of records that do not say.
        modality: The modality of records that do not say.
        split: The split of records that do not say.
        image_table: A CSV file with a column ``file`` and any of ``modality``, ``source`` and
            ``split``.
        skip_bad: Leave a bad record out and count it, instead of raising.
        report: Filled while reading, if given.
        progress: Called with the file and the number of its bytes read so far.

    Yields:
        Items with unique ids, in the order of files and records.

    Raises:
        RecordError: At the first bad record, unless ``skip_bad``.
    """
    report = report if report is not None else ReadReport()
    folder, boundary = locate(source)
    known = _read_image_table(Path(image_table)) if image_table else {}
    seen: set[str] = set()
    for path in find_files(folder, report):
        name = path.relative_to(folder).as_posix() if folder.is_dir() else path.name
        report.files += 1
        advance = None if progress is None else _bind(progress, path)
        try:
            reader = _FileReader(
                path,
                name,
                root=Path(root) if root is not None else (folder if boundary else path.parent),
                boundary=boundary,
                known=known,
                task=task,
                stated={"modality": modality, "split": split},
            )
            for index, raw in stream_records(path, name=name, advance=advance):
                try:
                    item = reader.item(raw, index, report)
                    if item.id in seen:
                        raise RecordError(
                            name, index, "id", f"must be unique, got {item.id!r} again"
                        )
                except RecordError as error:
                    if not skip_bad:
                        raise
                    report.skip(_reason(error), str(error))
                    continue
                seen.add(item.id)
                report.read += 1
                yield item
        except RecordError as error:
            if not skip_bad:
                raise
            report.unread += 1
            report.problems.insert(0, str(error))


def _bind(progress: Progress, path: Path) -> Callable[[int], None]:
    return lambda position: progress(path, position)


def _reason(error: RecordError) -> str:
    return re.sub(r"\[\d+\]", "[]", error.field) or "record"


class _FileReader:
    """Makes items of the records of one file."""

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        root: Path,
        boundary: Path | None,
        known: dict[str, dict[str, str]],
        task: Task | None,
        stated: dict[str, str | None],
    ) -> None:
        """Keep what holds for every record of the file."""
        self.name, self.root, self.boundary, self.known = name, root, boundary, known
        self.stem = name.removesuffix(path.suffix)
        table = path.with_suffix(".csv")
        self.table = Base64Table(table) if table.is_file() else None
        named, split, modality = task_of_name(path.stem)
        self.task: Task | None = task or named
        self.stated = stated
        self.named = {"split": split, "modality": modality}

    def item(self, raw: object, index: int, report: ReadReport) -> Item:
        """Check one raw record and make an item of it."""
        if isinstance(raw, RecordError):
            raise raw
        record = parse_record(raw, file=self.name, index=index)
        images = [self._image(ref, index, place) for place, ref in enumerate(record.image)]
        rows = [self.known.get(ref, {}) for ref in record.image]
        task: Task | None = record.task or self.task
        if task is None and (record.pmcid or "").strip():
            task = "diagnosis"  # the authors' format has pmcid only for complex questions
        if task is None:
            raise RecordError(
                self.name,
                index,
                "task",
                "unknown: neither record, argument nor file name states it",
            )
        source = record.source or self._agreed(rows, "source")
        if not source and re.fullmatch(r"PMC\d+", record.pmcid or ""):
            source = PUBMED_CENTRAL
        try:
            item = make_item(
                record,
                images,
                id=record.id or f"{self.stem}#{index}",
                task=task,
                modality=self._label("modality", record.modality, rows),
                source=source or UNKNOWN,
                domain=record.domain or domain_of(source or UNKNOWN),
                split=self._label("split", record.split, rows),
            )
        except ValueError as error:
            raise RecordError(self.name, index, "conversations[1].value", str(error)) from None
        report.ignored.update(record.ignored)
        return item

    def _label(self, name: str, own: str | None, rows: list[dict[str, str]]) -> str:
        return own or self.stated[name] or self._agreed(rows, name) or self.named[name] or UNKNOWN

    @staticmethod
    def _agreed(rows: list[dict[str, str]], name: str) -> str:
        values = {row.get(name, "") for row in rows}
        return values.pop() if len(values) == 1 else ""

    def _image(self, reference: str, index: int, place: int) -> CheckedImage:
        try:
            if self.table is not None and reference in self.table:
                return decode_base64(self.table[reference])
            if looks_like_base64(reference):
                return decode_base64(reference)
            return read_image(self.root, reference, boundary=self.boundary)
        except ImageError as error:
            raise RecordError(self.name, index, f"image[{place}]", str(error)) from None


def _read_image_table(path: Path) -> dict[str, dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            if "file" not in (reader.fieldnames or []):
                raise RecordError(
                    path.name, None, "header", f"must have a column file, got {reader.fieldnames}"
                )
            return {row["file"]: row for row in reader}
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise RecordError(path.name, None, "", f"cannot be read: {error}") from None
