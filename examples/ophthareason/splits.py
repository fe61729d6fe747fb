"""The phantoms of a run: three splits of records with pictures, drawn once."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from examples.ophthareason.loading import read_records
from examples.ophthareason.records import Item
from examples.ophthareason.settings import Settings
from examples.ophthareason.tasks import pose, record

__all__ = ["SPLITS", "Tell", "draw_phantoms", "read_split"]

SPLITS = {"train": 0, "practice": 1_000_000, "test": 2_000_000}
"""The seed of the first phantom of each split: no picture is in two of them."""

Tell = Callable[[str, int, int, dict[str, float]], None]
"""Called with a stage, its steps done, its steps in all and some numbers to show."""


def draw_phantoms(settings: Settings, folder: Path, split: str, tell: Tell) -> Path:
    """Draw one split as records with pictures; what is there already is kept.

    Args:
        settings: How many, and how difficult.
        folder: Where the splits lie.
        split: One of `SPLITS`.
        tell: Told of every fiftieth picture.

    Returns:
        The file of records. Beside it lies ``cells.npy``: where each picture's lesions are.
    """
    count = {
        "train": settings.train_items,
        "practice": settings.rl_items,
        "test": settings.test_items,
    }[split]
    target = folder / split / "records.json"
    if target.is_file() and len(json.loads(target.read_text())) == count:
        return target
    pictures = target.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    teacher = settings.teacher if split == "train" else None
    side = settings.model.side
    tasks = ("single_choice", "multiple_choice", "diagnosis")
    records, cells = [], []
    for place in range(count):
        item = pose(
            SPLITS[split] + 10_000_000 * settings.seed + place,
            teacher=teacher,
            task=tasks[place % 3],
            size=side,
            difficulty=settings.difficulty,
        )
        name = f"pictures/{place:05d}.png"
        Image.fromarray(item.phantom.image).save(target.parent / name, compress_level=1)
        records.append(record(item, name, split=split, taught=split == "train"))
        cells.append(item.phantom.cells(side // 28))
        if place % 50 == 49:
            tell(f"phantoms: {split}", place + 1, count, {})
    np.save(target.parent / "cells.npy", np.stack(cells))
    part = target.with_suffix(".part")
    part.write_text(json.dumps(records, indent=1))
    part.replace(target)
    tell(f"phantoms: {split}", count, count, {})
    return target


def read_split(folder: Path, split: str) -> list[Item]:
    """Read the items of one split."""
    return list(read_records(folder / split / "records.json", split=split))
