"""Small pictures and records that the tests of this folder share."""

import base64
import io
import json
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
from PIL import Image

from examples.ophthareason.images import check_image
from examples.ophthareason.records import Item
from uadt.rewards import Task

QUESTION = "What is shown?\nA: Drusen\nB: Normal retina\nC: Glaucoma"


def picture(colour: str = "red", *, size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    handle = io.BytesIO()
    Image.new("RGB", size, colour).save(handle, kind)
    return handle.getvalue()


def encoded(colour: str = "red") -> str:
    return base64.b64encode(picture(colour)).decode()


def raw(question: str = QUESTION, answer: str = "B", **fields: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "image": [encoded()],
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        "reason": "",
    }
    return record | fields


def item(
    id: str = "a",
    *,
    task: Task = "single_choice",
    answer: str = "B",
    colour: str = "red",
    **fields: Any,
) -> Item:
    checked = check_image(picture(colour))
    values: dict[str, Any] = {"question": QUESTION if task != "diagnosis" else "What is it?"}
    return Item(
        id=id,
        task=task,
        answer=answer,
        images=(checked.data,),
        pixels=(checked.pixels,),
        **(values | fields),
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    table: Any = cast(Any, pq).read_table(path)  # pyarrow has no types
    return table.to_pylist()


def save(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path
