"""Items to the files that trainers read: verl's parquet, a `datasets` folder for TRL, JSON lines.

Every writer takes a stream, holds a bounded part of it in memory, writes beside the target and
renames at the end: a file with the target's name is whole. The same items give the same bytes.
"""

import base64
import json
import os
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from examples.ophthareason.prompts import chat_messages, marked_messages
from examples.ophthareason.records import Item

__all__ = [
    "VERL_SCHEMA",
    "atomic_path",
    "chat_row",
    "record_of",
    "verl_row",
    "write_dataset",
    "write_jsonl",
    "write_verl_parquet",
]

_TEXT = pa.string()
VERL_SCHEMA = pa.schema(
    [
        ("data_source", _TEXT),
        ("prompt", pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary())]))),
        ("ability", _TEXT),
        ("reward_model", pa.struct([("style", _TEXT), ("ground_truth", _TEXT)])),
        (
            "extra_info",
            pa.struct(
                [
                    ("index", pa.int64()),
                    ("split", _TEXT),
                    ("task", _TEXT),
                    ("kind", _TEXT),
                    ("modality", _TEXT),
                    ("source", _TEXT),
                    ("domain", _TEXT),
                    ("id", _TEXT),
                    ("question", _TEXT),
                    ("options", pa.list_(_TEXT)),
                ]
            ),
        ),
    ]
)
"""The columns of verl 0.9 (``RLHFDataset``); ``extra_info`` reaches the reward function."""
ROW_GROUP_BYTES = 32 * 1024 * 1024
"""A row group is written when its images reach this size, or at `ROW_GROUP_ROWS`."""
ROW_GROUP_ROWS = 256


@contextmanager
def atomic_path(target: Path) -> Generator[Path]:
    """Give a path to write to that becomes the target at the end, or vanishes.

    Args:
        target: A file or folder. Its parent is made.

    Yields:
        A path beside it, free to be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    _remove(part)
    try:
        yield part
        if part.is_file():
            with part.open("rb+") as handle:
                os.fsync(handle.fileno())
        elif target.exists():
            _remove(target)  # a folder cannot be renamed over one that has files
        part.replace(target)
    finally:
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def verl_row(item: Item, index: int) -> dict[str, Any]:
    """Return an item as verl reads it.

    The images stand after the text, one ``<image>`` mark each.

    Args:
        item: The item.
        index: Its place in the file.

    Returns:
        One row of `VERL_SCHEMA`.
    """
    return {
        "data_source": item.source,
        "prompt": marked_messages(item.prompt, len(item.images)),
        "images": [{"bytes": image} for image in item.images],
        "ability": item.task,
        "reward_model": {"style": "rule", "ground_truth": item.answer},
        "extra_info": {
            "index": index,
            "split": item.split,
            "task": item.task,
            "kind": item.kind,
            "modality": item.modality,
            "source": item.source,
            "domain": item.domain,
            "id": item.id,
            "question": item.question,
            "options": list(item.options.values()),
        },
    }


def write_verl_parquet(items: Iterable[Item], path: str | Path) -> int:
    """Write the parquet file that verl trains on.

    Args:
        items: Any stream of items; it is read once.
        path: The file to write.

    Returns:
        How many rows were written.
    """
    count = 0
    with atomic_path(Path(path)) as part, pq.ParquetWriter(part, VERL_SCHEMA) as writer:
        for rows in _groups(items):
            table = [verl_row(item, count + place) for place, item in enumerate(rows)]
            writer.write_table(pa.Table.from_pylist(table, schema=VERL_SCHEMA))
            count += len(rows)
    return count


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    rows: list[Item] = []
    size = 0
    for item in items:
        rows.append(item)
        size += sum(map(len, item.images))
        if size >= ROW_GROUP_BYTES or len(rows) == ROW_GROUP_ROWS:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def chat_row(item: Item) -> dict[str, Any]:
    """Return an item as TRL reads it: structured messages, images, and columns for the rewards.

    Args:
        item: The item.

    Returns:
        ``prompt`` and ``images`` for the trainer; ``ground_truth``, ``task``, ``options`` and the
        rest reach each reward function as keyword arguments.
    """
    return {
        "prompt": chat_messages(item.prompt, len(item.images)),
        "images": [{"bytes": image, "path": None} for image in item.images],
        "ground_truth": item.answer,
        "task": item.task,
        "kind": item.kind,
        "options": list(item.options.values()),
        "modality": item.modality,
        "source": item.source,
        "domain": item.domain,
        "split": item.split,
        "id": item.id,
        "question": item.question,
        "reason": item.reason,
        "caption": item.caption,
    }


def write_dataset(items: Iterable[Item], path: str | Path) -> int:
    """Write a folder for ``datasets.load_from_disk``.

    Args:
        items: Any stream of items; it is read once.
        path: The folder to write.

    Returns:
        How many rows were written.
    """
    # Imported here: two seconds that only this writer needs.
    from datasets import Dataset, Features, Image, List, Value
    from datasets.arrow_writer import ArrowWriter

    text = Value("string")
    features = Features(
        {
            "prompt": List({"role": text, "content": List({"type": text, "text": text})}),
            "images": List(Image()),
            **dict.fromkeys(
                ("ground_truth", "task", "kind", "modality", "source", "domain", "split", "id"),
                text,
            ),
            "question": text,
            "options": List(text),
            "reason": text,
            "caption": text,
        }
    )
    with atomic_path(Path(path)) as part:
        part.mkdir()
        table = part / "rows.arrow"
        with ArrowWriter(path=str(table), features=features, writer_batch_size=64) as writer:
            for item in items:
                encoded: Any = features.encode_example(chat_row(item))
                writer.write(encoded)
            count, _ = writer.finalize()
        if not count:
            raise ValueError("items must not be empty")
        Dataset.from_file(str(table)).save_to_disk(part / "saved")
        table.unlink()
        for file in sorted((part / "saved").iterdir()):
            file.replace(part / file.name)
        (part / "saved").rmdir()
    return int(count)


def record_of(item: Item) -> dict[str, Any]:
    """Return an item as a record of MM-Retinal-Reason, images in base64, plus our labels.

    Reading it back gives the item again.

    Args:
        item: The item.

    Returns:
        What a line of JSON holds.
    """
    record: dict[str, Any] = {
        "image": [base64.b64encode(image).decode() for image in item.images],
        "conversations": [
            {"from": "human", "value": item.question},
            {"from": "gpt", "value": item.answer},
        ],
        "reason": item.reason,
    }
    record |= {
        name: getattr(item, name) for name in ("pmcid", "title", "caption") if getattr(item, name)
    }
    labels = ("id", "task", "modality", "source", "domain", "split")
    return record | {name: getattr(item, name) for name in labels}


def write_jsonl(items: Iterable[Item], path: str | Path) -> int:
    """Write one record a line.

    Args:
        items: Any stream of items; it is read once.
        path: The file to write.

    Returns:
        How many lines were written.
    """
    count = 0
    with atomic_path(Path(path)) as part, part.open("w", encoding="utf-8") as handle:
        for item in items:
            handle.write(json.dumps(record_of(item), ensure_ascii=False) + "\n")
            count += 1
    return count
