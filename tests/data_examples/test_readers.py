"""Streams from files that are broken, hostile or large."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.ophthareason import readers
from examples.ophthareason.readers import MAX_DEPTH, Base64Table, stream_records
from examples.ophthareason.records import RecordError
from tests.data_examples.samples import encoded, save


def read(path: Path) -> list[tuple[int, object]]:
    return list(stream_records(path))


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_values_are_those_of_the_json_module(tmp_path: Path, suffix: str) -> None:
    values: list[object] = [{"a": [1, 2.5, None, True, 'ü\n"\\']}, {"b": {"c": []}}, {"": {}}]
    lines = "\n".join(map(json.dumps, values))
    path = tmp_path / f"x.{suffix}"
    path.write_text(lines if suffix == "jsonl" else json.dumps(values), encoding="utf-8")
    assert read(path) == list(enumerate(values))


@given(
    st.lists(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
            st.recursive(
                st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e6, 1e6)
                | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
                lambda inner: st.lists(inner, max_size=3),
                max_leaves=5,
            ),
            max_size=3,
        ),
        max_size=4,
    )
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_streaming_equals_loading(
    tmp_path_factory: pytest.TempPathFactory, values: list[object]
) -> None:
    path = save(tmp_path_factory.mktemp("json") / "x.json", values)
    assert [value for _, value in read(path)] == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "words", "before"),
    [
        ("", "x.json", 0),
        ("{}", "must be a list of records, got an object", 0),
        ('"text"', "must be a list of records, got string", 0),
        ('[{"a": 1}, {"b"', "x.json[1]: broken JSON, the rest cannot be read", 1),
        ('[{"a": 1}', "x.json[1]: broken JSON", 1),
        ('[{"a": 1}] trailing', "x.json[1]: broken JSON", 1),
        ('[{"a": 1}][]', "x.json[1]: broken JSON", 1),
        ('[{"a": NaN}]', "x.json[0]: broken JSON", 0),
        ('[{"a": 1, "a": 2}]', "x.json[0]: broken JSON, the rest cannot be read: key 'a' twice", 0),
        ("[" * 100_000, f"nested deeper than {MAX_DEPTH}", 0),
        ('[{"a":' * 1000, f"nested deeper than {MAX_DEPTH}", 0),
    ],
)
def test_broken_files(tmp_path: Path, text: str, words: str, before: int) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    seen: list[object] = []
    with pytest.raises(RecordError) as caught:
        seen.extend(stream_records(path))
    assert words in str(caught.value)


def test_what_came_before_the_break_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1}, {"a": 2}, oops', encoding="utf-8")
    stream = stream_records(path)
    assert [next(stream), next(stream)] == [(0, {"a": 1}), (1, {"a": 2})]
    with pytest.raises(RecordError, match=r"x\.json\[2\]: broken JSON"):
        next(stream)


@pytest.mark.parametrize("data", [b"[\xff\xfe]", b'["\xc3\x28"]', b"\x00\x00", b"\xef\xbb"])
def test_bytes_that_are_no_text(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(RecordError, match=r"x\.json"):
        read(path)


def test_a_broken_line_does_not_cost_the_next(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a":\n\n{"a": NaN}\n{"a": 1, "a": 2}\n{"a": 3}', encoding="utf-8")
    values = [value for _, value in read(path)]
    assert [str(value).split(":")[0] for value in values if isinstance(value, RecordError)] == [
        "x.jsonl[1]",
        "x.jsonl[2]",
        "x.jsonl[3]",
    ]
    assert (values[0], values[-1]) == ({"a": 1}, {"a": 3})


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_one_record_cannot_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 100_000)
    path = tmp_path / f"x.{suffix}"
    path.write_text('[{"a": "' + "x" * 400_000 + '"}]', encoding="utf-8")
    with pytest.raises(RecordError, match="a record must have at most 100000 bytes"):
        read(path)
    # Many small ones of the same sum are no problem.
    small = [{"a": "x" * 20_000}] * 20
    text = "\n".join(map(json.dumps, small)) if suffix == "jsonl" else json.dumps(small)
    path.write_text(text, encoding="utf-8")
    assert len(read(path)) == 20


def test_records_arrive_before_the_file_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "x.json", [{"a": "x" * 1000}] * 2000)
    positions: list[int] = []
    next(stream_records(path, advance=positions.append))
    assert positions[-1] < path.stat().st_size / 4


@pytest.mark.parametrize("write", [Path.mkdir, lambda path: path.symlink_to(path)])  # pyright: ignore
def test_what_is_no_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "x.json"
    write(path)
    with pytest.raises(RecordError, match=r"x\.json: cannot be read"):
        read(path)


@pytest.mark.parametrize("header", ["index,base64", ",base64"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_table_of_images(tmp_path: Path, header: str, end: str) -> None:
    path = tmp_path / "x.csv"
    rows = [header, f"a.jpg,{encoded('red')}", f'"b, c.jpg",{encoded("blue")}', f"7,{encoded()}"]
    path.write_bytes((end.join(rows) + end).encode())
    table = Base64Table(path)
    assert len(table) == 3
    assert [table["a.jpg"], table["b, c.jpg"]] == [encoded("red"), encoded("blue")]
    assert "7" in table
    assert "c.jpg" not in table


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n", "header: must be index,base64, got 'a,b'"),
        ("", "header: must be index,base64"),
        ("index,base64\na\n", "line 2: must have 2 fields, got 1"),
        ("index,base64\na,b,c\n", "line 2: must have 2 fields, got 3"),
        ("index,base64\na,x\na,y\n", "line 3: index 'a' twice"),
        ('index,base64\n"a\nb",x\n', "line 2: broken CSV"),
    ],
)
def test_a_bad_table_names_the_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=words):
        Base64Table(tmp_path / "x.csv")
