"""Streams of raw records: one JSON list or JSON lines, never the whole file in memory.

What a stranger's file can do to a parser is bounded here: depth, size of one record, duplicate
keys.
"""

import csv
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from examples.ophthareason.images import MAX_BYTES
from examples.ophthareason.records import MAX_IMAGES, RecordError

__all__ = ["MAX_DEPTH", "MAX_RECORD_BYTES", "Base64Table", "stream_records"]

MAX_DEPTH = 16
"""A record is four levels deep."""
MAX_RECORD_BYTES = MAX_IMAGES * MAX_BYTES * 3 // 2
"""Six of the largest images in base64."""

Advance = Callable[[int], None]
"""Called with the number of bytes read so far."""


class _Metered:
    """A file that counts what is read, and refuses to feed one record without end."""

    def __init__(self, handle: BinaryIO, advance: Advance | None) -> None:
        self._handle, self._advance = handle, advance
        self.position = self.mark = 0

    def read(self, size: int = -1) -> bytes:
        if self.position - self.mark > MAX_RECORD_BYTES:
            raise ValueError(f"a record must have at most {MAX_RECORD_BYTES} bytes")
        chunk = self._handle.read(size)
        self.position += len(chunk)
        if self._advance:
            self._advance(self.position)
        return chunk


def stream_records(
    path: Path, *, name: str | None = None, advance: Advance | None = None
) -> Iterator[tuple[int, object]]:
    """Read the records of a file one by one.

    Args:
        path: A ``.json`` file with one list, or a ``.jsonl`` file with one record a line.
        name: What errors call the file; its own name if not given.
        advance: Called with the number of bytes read so far.

    Yields:
        The place in the file, from 0, and the JSON value there, not yet checked. A broken line
        among JSON lines is yielded as the `RecordError` that it deserves, for the next line can be
        read all the same.

    Raises:
        RecordError: If the file is no list of records or breaks off. What came before it was
            yielded; what comes after it cannot be read.
    """
    name = name or path.name
    try:
        with path.open("rb") as handle:
            if path.suffix.lower() == ".jsonl":
                yield from _lines(handle, name, advance)
            else:
                yield from _list(_Metered(handle, advance), name)
    except OSError as error:
        raise RecordError(name, None, "", f"cannot be read: {error.strerror}") from None


def _list(metered: _Metered, name: str) -> Iterator[tuple[int, object]]:
    events = ijson.basic_parse(metered, buf_size=1 << 16)
    index = 0
    try:
        first = next(events, (None, None))
        if first[0] != "start_array":
            raise RecordError(name, None, "", f"must be a list of records, got {_word(first[0])}")
        for event, value in events:
            if event == "end_array":
                break
            yield index, _value(event, value, events, depth=1)
            metered.mark = metered.position
            index += 1
        for event, _ in events:  # the parser itself refuses what follows; this drains it
            raise ValueError(f"{event} after the list")
    except RecordError:
        raise
    except (ijson.JSONError, ValueError, RecursionError, UnicodeDecodeError) as error:
        # A generator that is closed by its consumer raises GeneratorExit, which is none of these.
        words = " ".join(str(error).split("\n")[0].split())
        raise RecordError(
            name, index, "", f"broken JSON, the rest cannot be read: {words}"
        ) from None


def _value(event: str, value: Any, events: Iterator[tuple[str, Any]], depth: int) -> Any:
    """Build the value that starts with this event."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if event == "start_map":
        built: dict[str, Any] = {}
        for inner, key in events:
            if inner == "end_map":
                return built
            if key in built:
                raise ValueError(f"key {key[:80]!r} twice in one object")
            built[key] = _value(*next(events), events, depth + 1)
        raise ValueError("object without end")
    if event == "start_array":
        listed: list[Any] = []
        for inner, item in events:
            if inner == "end_array":
                return listed
            listed.append(_value(inner, item, events, depth + 1))
        raise ValueError("list without end")
    return float(value) if isinstance(value, Decimal) else value


def _word(event: str | None) -> str:
    return {None: "an empty file", "start_map": "an object"}.get(event, event or "")


def _lines(handle: BinaryIO, name: str, advance: Advance | None) -> Iterator[tuple[int, object]]:
    index = 0
    while line := handle.readline(MAX_RECORD_BYTES + 1):
        if advance:
            advance(handle.tell())
        if len(line) > MAX_RECORD_BYTES:
            raise RecordError(
                name, index, "", f"a record must have at most {MAX_RECORD_BYTES} bytes"
            )
        if not line.strip():
            continue
        try:
            yield index, json.loads(line, object_pairs_hook=_no_duplicates, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            yield index, RecordError(name, index, "", f"broken JSON: {error}")
        index += 1


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        raise ValueError("a key twice in one object")
    return built


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


class Base64Table:
    """The authors' table of images, ``index,base64``, read row by row from disk.

    Only where each row begins is kept in memory. A row is one line: base64 needs no quotes, and an
    index with a line break in it is refused.

    Args:
        path: A CSV file with the columns ``index`` and ``base64``; the first column may have no
            name, as pandas writes it.
    """

    def __init__(self, path: Path) -> None:
        """Find the rows."""
        self.path = path
        self._rows: dict[str, tuple[int, int]] = {}
        csv.field_size_limit(MAX_RECORD_BYTES)
        try:
            with path.open("rb") as handle:
                header = self._split(handle.readline(4096), 1)
                if header not in (["index", "base64"], ["", "base64"]):
                    raise RecordError(
                        path.name,
                        None,
                        "header",
                        f"must be index,base64, got {','.join(header)[:80]!r}",
                    )
                start, number = handle.tell(), 2
                while line := handle.readline(MAX_RECORD_BYTES):
                    fields = self._split(line, number) if line.strip() else []
                    if fields and len(fields) != 2:
                        raise RecordError(
                            path.name,
                            None,
                            f"line {number}",
                            f"must have 2 fields, got {len(fields)}",
                        )
                    if fields and fields[0] in self._rows:
                        raise RecordError(
                            path.name, None, f"line {number}", f"index {fields[0][:80]!r} twice"
                        )
                    if fields:
                        self._rows[fields[0]] = (start, len(line))
                    start, number = start + len(line), number + 1
        except OSError as error:
            raise RecordError(path.name, None, "", f"cannot be read: {error.strerror}") from None

    def _split(self, line: bytes, number: int) -> list[str]:
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            return next(csv.reader([text.rstrip("\r\n")], strict=True), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise RecordError(
                self.path.name, None, f"line {number}", f"broken CSV: {error}"
            ) from None

    def __len__(self) -> int:
        """How many images the table has."""
        return len(self._rows)

    def __contains__(self, index: str) -> bool:
        """Whether the table has this image."""
        return index in self._rows

    def __getitem__(self, index: str) -> str:
        """Return the base64 text of an image."""
        start, length = self._rows[index]
        with self.path.open("rb") as handle:
            handle.seek(start)
            return self._split(handle.read(length), 0)[1]
