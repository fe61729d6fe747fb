"""Predictions survive a kill at any byte, and no item is answered twice."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.ophthareason.predictions import (
    Prediction,
    PredictionFile,
    predict_row,
    read_predictions,
)
from tests.data_examples.samples import item

SETTINGS: dict[str, object] = {"model": "m", "max_tokens": 9}


def row(id: str, response: str = "r") -> Prediction:
    return predict_row(item(id), response=response, tokens=3, finished=True, entropy=0.5)


def written(path: Path) -> list[str]:
    return [one.id for one in read_predictions(path)]


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "m" / "p.jsonl"
    with PredictionFile(path, SETTINGS) as file:
        file.append([row("a"), row("b", 'line\nbreak "quoted" ü \ud800')])
        file.append([row("c")])
    rows = list(read_predictions(path))
    assert [one.id for one in rows] == ["a", "b", "c"]
    assert rows[0] == row("a")
    assert rows[1].response == 'line\nbreak "quoted" ü ?'  # a lone surrogate cannot be written
    assert path.read_bytes().count(b"\n") == 3


@given(st.integers(0, 600))
@settings(max_examples=60, deadline=None)
def test_a_kill_at_any_byte_costs_only_the_torn_line(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "p.jsonl"
    with PredictionFile(path, SETTINGS) as file:
        file.append([row("a"), row("b")])
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    kept = ["a", "b"][: sum(end <= cut for end in ends)]
    assert written(path) == kept  # a reader passes over the torn line
    with PredictionFile(path, SETTINGS) as file:
        assert list(file.done) == kept
        assert file.repaired == cut - max([0, *(end for end in ends if end <= cut)])
        file.append(row(id) for id in ("a", "b") if id not in kept)
    assert path.read_bytes() == whole


def test_the_repair_finds_a_line_end_far_back(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with PredictionFile(path, SETTINGS) as file:
        file.append([row("a"), row("b", "x" * 300_000)])  # longer than one block of the search
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with PredictionFile(path, SETTINGS) as file:
        assert list(file.done) == ["a"]


def test_no_item_twice(tmp_path: Path) -> None:
    with PredictionFile(tmp_path / "p.jsonl", SETTINGS) as file:
        file.append([row("a")])
        for rows in ([row("a")], [row("b"), row("b")]):
            with pytest.raises(ValueError, match=r"must be answered once, got \['[ab]'\] again"):
                file.append(rows)
    assert written(tmp_path / "p.jsonl") == ["a"]


def test_another_question_under_a_known_id_is_refused(tmp_path: Path) -> None:
    with PredictionFile(tmp_path / "p.jsonl", SETTINGS) as file:
        file.append([row("a")])
        assert file.has(item("a"))
        assert not file.has(item("b"))
        with pytest.raises(
            ValueError, match=r"item 'a' in .* is another question: the data changed"
        ):
            file.has(item("a", colour="blue"))


def test_other_settings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with PredictionFile(path, SETTINGS) as file:
        file.append([row("a")])
    with pytest.raises(ValueError, match=r"other settings \(max_tokens: 9 then, 10 now\)"):
        PredictionFile(path, {**SETTINGS, "max_tokens": 10})
    with PredictionFile(path, SETTINGS) as file:  # the refusal unlocked the file
        assert file.done
    (tmp_path / "p.settings.json").unlink()
    with pytest.raises(ValueError, match=r"p\.settings\.json cannot be read"):
        PredictionFile(path, SETTINGS)


def test_a_file_without_rows_may_begin_with_other_settings(tmp_path: Path) -> None:
    with PredictionFile(tmp_path / "p.jsonl", SETTINGS):
        pass
    with PredictionFile(tmp_path / "p.jsonl", {"model": "n"}) as file:
        assert not file.done


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with PredictionFile(path, SETTINGS), pytest.raises(ValueError, match="written by another run"):
        PredictionFile(path, SETTINGS)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"oops\n", "p.jsonl line 2: broken JSON"),
        (b"[]\n", "p.jsonl line 2: must have the fields of a prediction, differs in list"),
        (b'{"id": "b"}\n', "p.jsonl line 2: must have the fields of a prediction"),
    ],
)
def test_a_broken_line_that_is_not_the_last_torn_one_is_an_error(
    tmp_path: Path, line: bytes, words: str
) -> None:
    path = tmp_path / "p.jsonl"
    with PredictionFile(path, SETTINGS) as file:
        file.append([row("a")])
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(ValueError, match=words):
        PredictionFile(path, SETTINGS)


def test_an_item_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with PredictionFile(path, SETTINGS) as file:
        file.append([row("a")])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ValueError, match=r"p\.jsonl line 2: item 'a' is there twice"):
        written(path)


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A write that goes through in part, and then fails: what a full disk does.
    path = tmp_path / "p.jsonl"
    with PredictionFile(path, SETTINGS) as file:
        file.append([row("a")])
        real = os.write
        calls: list[int] = []

        def failing(descriptor: int, data: bytes) -> int:
            calls.append(1)
            if len(calls) > 1:
                raise OSError(28, "No space left on device")
            return real(descriptor, data[:20])

        monkeypatch.setattr(os, "write", failing)
        with pytest.raises(OSError, match="No space left"):
            file.append([row("b")])
        monkeypatch.undo()
        assert written(path) == ["a"]
        file.append([row("b")])
    assert written(path) == ["a", "b"]


def test_a_killed_process_loses_at_most_what_it_was_writing(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from examples.ophthareason.predictions import PredictionFile
from tests.data_examples.test_predictions import SETTINGS, row
with PredictionFile(Path(sys.argv[1]), SETTINGS) as file:
    for place in range(10**9):
        file.append([row(str(place), "x" * 5000)])
        print(place, flush=True)
"""
    path = tmp_path / "p.jsonl"
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(5)]
        process.kill()
    with PredictionFile(path, SETTINGS) as file:
        done = list(file.done)
    assert done[:5] == [str(place) for place in told]
    assert done == [str(place) for place in range(len(done))]


def test_a_row_is_plain_json(tmp_path: Path) -> None:
    with PredictionFile(tmp_path / "p.jsonl", SETTINGS) as file:
        file.append([replace(row("a"), entropy=None)])
    held = json.loads((tmp_path / "p.jsonl").read_text(encoding="utf-8"))
    assert (held["id"], held["entropy"], held["answer"]) == ("a", None, "B")
