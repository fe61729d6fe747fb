"""Predictions on disk: one JSON line an item, appended whole, never twice, safe from a kill.

A run that is killed in the middle of a line leaves a torn one; the next run cuts it off, and its
item is answered again. Everything before it stands. Two runs cannot write to one file at the same
time.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from examples.ophthareason.records import Item

__all__ = ["Prediction", "PredictionFile", "predict_row", "read_predictions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model answered to one item, with all that scoring needs."""

    id: str
    """The item."""
    digest: str
    """A hash of what was asked; another digest under this id is another question."""
    response: str
    """What the model wrote, without special tokens."""
    tokens: int
    """How many tokens it wrote."""
    finished: bool
    """Whether it ended by itself; ``False``: cut off at the length limit."""
    entropy: float | None
    """Mean entropy of its tokens in nats; ``None`` if the backend does not tell."""
    question: str
    """The question, options included."""
    answer: str
    """The reference."""
    task: str
    """How it is judged."""
    kind: str
    """What it is counted as."""
    modality: str
    """What made the image."""
    source: str
    """The data set that the image is from."""
    domain: str
    """In-domain or out-of-domain."""
    pictures: str
    """One word for the images that are shown: items with equal ones are not independent."""


def predict_row(
    item: Item, *, response: str, tokens: int, finished: bool, entropy: float | None
) -> Prediction:
    """Join an answer with its item.

    Args:
        item: What was asked.
        response: What the model wrote.
        tokens: How many tokens that is.
        finished: Whether it ended by itself.
        entropy: Mean token entropy in nats, if known.

    Returns:
        The row.
    """
    return Prediction(
        id=item.id,
        digest=item.digest,
        response=response.encode("utf-8", "replace").decode(),  # a lone surrogate is no JSON text
        tokens=tokens,
        finished=finished,
        entropy=entropy,
        question=item.question,
        answer=item.answer,
        task=item.task,
        kind=item.kind,
        modality=item.modality,
        source=item.source,
        domain=item.domain,
        pictures=" ".join(sorted({pixels[:16] for pixels in item.pixels})),
    )


_NAMES = {field.name for field in fields(Prediction)}


def _parse(line: bytes, where: str) -> Prediction:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: broken JSON: {error}") from None
    if not isinstance(row, dict) or set(row) != _NAMES:
        wrong = sorted(set(row) ^ _NAMES) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where}: must have the fields of a prediction, differs in {wrong}")
    return Prediction(**row)


def read_predictions(path: Path) -> Iterator[Prediction]:
    """Read a finished or unfinished file.

    Args:
        path: A file that `PredictionFile` wrote.

    Yields:
        The predictions in their order. A torn last line is passed over.

    Raises:
        ValueError: If any other line is broken, or an item is there twice.
    """
    seen: set[str] = set()
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.endswith(b"\n"):
                return
            row = _parse(line, f"{path.name} line {number}")
            if row.id in seen:
                raise ValueError(f"{path.name} line {number}: item {row.id!r} is there twice")
            seen.add(row.id)
            yield row


class PredictionFile:
    """Appends predictions, and knows which items are done.

    Args:
        path: The JSON-lines file; it is made if it is not there.
        settings: All that decides the answers. A file that was begun with others is refused: its
            parts could not be compared.
    """

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        """Lock the file, repair it, and read what is done."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.repaired = 0
        """Bytes of a torn last line that were cut off."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{path} is being written by another run") from None
            self._repair()
            self._check_settings(dict(settings))
            self.done = {row.id: row.digest for row in read_predictions(path)}
        except BaseException:
            os.close(self._file)
            raise

    def _repair(self) -> None:
        size = end = os.fstat(self._file).st_size
        while end:
            start = max(0, end - (1 << 16))
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end != size:
            self.repaired = size - end
            os.ftruncate(self._file, end)
            os.fsync(self._file)

    def _check_settings(self, settings: dict[str, object]) -> None:
        path = self.path.with_name(f"{self.path.stem}.settings.json")
        wanted = json.loads(json.dumps(settings))
        if os.fstat(self._file).st_size == 0:
            part = path.with_name(f".{path.name}.part")
            part.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
            part.replace(path)
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read, but {self.path.name} was begun: {error}"
            ) from None
        differs = [
            f"{name}: {before.get(name)!r} then, {wanted.get(name)!r} now"
            for name in sorted({*before, *wanted})
            if before.get(name) != wanted.get(name)
        ]
        if differs:
            raise ValueError(f"{self.path} was begun with other settings ({'; '.join(differs)})")

    def has(self, item: Item) -> bool:
        """Tell whether an item is done.

        Args:
            item: The item.

        Returns:
            Whether its prediction is in the file.

        Raises:
            ValueError: If another question was answered under this id.
        """
        digest = self.done.get(item.id)
        if digest is not None and digest != item.digest:
            raise ValueError(
                f"item {item.id!r} in {self.path} is another question: the data changed"
            )
        return digest is not None

    def append(self, rows: Iterable[Prediction]) -> None:
        """Write predictions to the disk before returning.

        Args:
            rows: Predictions of items that are not done.

        Raises:
            ValueError: If one of the items is done.
            OSError: If they cannot be written; the file is then as it was before.
        """
        rows = list(rows)
        ids = [row.id for row in rows]
        twice = {id for id in ids if id in self.done or ids.count(id) > 1}
        if twice:
            raise ValueError(f"items must be answered once, got {sorted(twice)} again")
        text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
        data, size = memoryview(text.encode()), os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)
            raise
        self.done |= {row.id: row.digest for row in rows}

    def __enter__(self) -> Self:
        """Return the open file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it, which unlocks it."""
        os.close(self._file)
