"""Files that appear whole, are the same every time, and say what the trainers read."""

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
from PIL import Image

from examples.ophthareason import writers
from examples.ophthareason.loading import read_records
from examples.ophthareason.records import Item
from examples.ophthareason.writers import (
    atomic_path,
    chat_row,
    verl_row,
    write_jsonl,
    write_verl_parquet,
)
from tests.data_examples.samples import item, picture, rows_of

ITEMS = [
    item("a", source="IDRID", domain="out-of-domain", modality="CFP", split="test"),
    item("b", task="multiple_choice", answer="A,C", colour="blue"),
    item("c", task="diagnosis", answer="Glaucoma", colour="green", reason="Because.", title="t"),
]
Writer = Callable[[Iterable[Item], Path], int]
WRITERS: list[Writer] = [write_verl_parquet, write_jsonl]


def test_a_row_for_verl_field_by_field() -> None:
    row = verl_row(ITEMS[0], 7)
    system, user = row["prompt"]
    assert system["role"] == "system"
    assert user["content"] == ITEMS[0].prompt + "<image>"
    assert row["images"] == [{"bytes": picture("red")}]
    assert row["reward_model"] == {"style": "rule", "ground_truth": "B"}
    assert row["data_source"] == "IDRID"
    assert row["extra_info"] == {
        "index": 7,
        "split": "test",
        "task": "single_choice",
        "kind": "single_choice",
        "modality": "CFP",
        "source": "IDRID",
        "domain": "out-of-domain",
        "id": "a",
        "question": ITEMS[0].question,
        "options": ["Drusen", "Normal retina", "Glaucoma"],
    }


def test_a_choice_of_true_or_false_is_still_known_as_such() -> None:
    # Asked and rewarded by its letter, hence single choice; only the kind tells.
    one = item(question="Is this eye healthy?\nA: True\nB: False")
    told = (verl_row(one, 0)["extra_info"], chat_row(one))
    assert [(row["task"], row["kind"]) for row in told] == [("single_choice", "true_false")] * 2


def test_parquet_gives_back_every_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    assert write_verl_parquet(iter(ITEMS), path) == 3
    rows = rows_of(path)
    assert rows == [verl_row(one, index) for index, one in enumerate(ITEMS)]
    with Image.open(io.BytesIO(rows[1]["images"][0]["bytes"])) as image:
        assert image.getpixel((0, 0)) == (0, 0, 255)
    # verl asserts that there are as many marks as images.
    assert all(row["prompt"][1]["content"].count("<image>") == len(row["images"]) for row in rows)


def test_row_groups_bound_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "ROW_GROUP_ROWS", 4)
    path = tmp_path / "x.parquet"
    assert write_verl_parquet((item(str(place)) for place in range(10)), path) == 10
    groups = cast(Any, pq).ParquetFile(path).metadata
    assert [groups.row_group(place).num_rows for place in range(groups.num_row_groups)] == [4, 4, 2]
    index = [row["extra_info"]["index"] for row in rows_of(path)]
    assert index == list(range(10))


def test_json_lines_come_back_as_the_same_items(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert write_jsonl(iter(ITEMS), path) == 3
    assert list(read_records(path)) == ITEMS


@pytest.mark.parametrize("write", WRITERS)
def test_the_same_items_give_the_same_bytes(tmp_path: Path, write: Writer) -> None:
    write(iter(ITEMS), tmp_path / "a")
    write(iter(ITEMS), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("write", WRITERS)
def test_a_stream_that_fails_leaves_nothing_and_harms_nothing(
    tmp_path: Path, write: Writer
) -> None:
    def failing() -> Iterator[Item]:
        yield ITEMS[0]
        raise RuntimeError("the disk of the source died")

    (tmp_path / "x").write_text("what was there before")
    with pytest.raises(RuntimeError, match="died"):
        write(failing(), tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "what was there before"


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_is_made_and_no_items_are_a_valid_file(tmp_path: Path, write: Writer) -> None:
    assert write(iter(()), tmp_path / "new" / "x") == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x"]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_path(tmp_path / "x") as part:
            part.mkdir()
            (part / content).write_text(content)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["new"]
