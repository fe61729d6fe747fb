"""Duplicates, contradictions, leakage; and the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from examples.ophthareason.conversion import convert, find_leaks
from examples.ophthareason.data import app
from examples.ophthareason.images import check_image
from examples.ophthareason.loading import read_records
from examples.ophthareason.records import RecordError
from tests.data_examples.samples import encoded, item, picture, raw, rows_of, save

NAME = "single_choice_train_data_CFP.json"


def ids(path: Path) -> list[str]:
    return [row["extra_info"]["id"] for row in rows_of(path)]


def test_duplicates_go_and_contradictions_stay(tmp_path: Path) -> None:
    records = [
        raw(id="first"),
        raw(id="again"),
        raw(id="another question", question="Which?\nA: x\nB: y"),
        raw(id="another picture", image=[encoded("blue")]),
        raw(id="two pictures", image=[encoded(), encoded("blue")]),
        raw(id="another answer", answer="A"),
    ]
    source = save(tmp_path / NAME, records)
    account = convert(source, tmp_path / "x.parquet")
    assert ids(tmp_path / "x.parquet") == [
        record["id"] for record in records if record["id"] != "again"
    ]
    assert (account.read.read, account.duplicates, account.written) == (6, 1, 5)
    assert account.contradictions == [("first", "another answer")]
    assert convert(source, tmp_path / "y.parquet", keep_duplicates=True).written == 6
    report = json.loads((tmp_path / "x.parquet.report.json").read_text(encoding="utf-8"))
    assert (report["read"], report["written"], report["duplicates"]) == (6, 5, 1)


def test_a_duplicate_is_found_after_a_contradiction(tmp_path: Path) -> None:
    # The third says what the second said, the fourth what the first said.
    records = [raw(id=id, answer=id[0]) for id in ("A1", "B1", "B2", "A2", "C1")]
    account = convert(save(tmp_path / NAME, records), tmp_path / "x.parquet")
    assert ids(tmp_path / "x.parquet") == ["A1", "B1", "C1"]
    assert account.duplicates == 2
    assert account.contradictions == [("A1", "B1"), ("A1", "C1")]


def test_a_duplicate_is_found_across_formats(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("blue"))
    (tmp_path / "b.bmp").write_bytes(picture("blue", kind="BMP"))
    source = save(tmp_path / NAME, [raw(image="a.png"), raw(image="b.bmp")])
    assert convert(source, tmp_path / "x.parquet").duplicates == 1


def test_pictures_of_the_test_set_are_held_out(tmp_path: Path) -> None:
    source = save(tmp_path / NAME, [raw(), raw(image=[encoded("blue"), encoded("green")])])
    account = convert(source, tmp_path / "x.jsonl", to="jsonl", held_out=[item(colour="green")])
    assert (account.held_out, account.written) == (1, 1)


def test_leaks_name_one_item_of_each_side() -> None:
    train = [item("a"), item("b"), item("c", colour="blue")]
    test = [item("x", colour="blue"), item("y", colour="white"), item("z", colour="blue")]
    blue = check_image(picture("blue")).pixels
    assert find_leaks(train, test) == [(blue, "c", "x")]
    assert find_leaks(train, test[1:2]) == []


def test_bad_input_leaves_no_output(tmp_path: Path) -> None:
    source = save(tmp_path / NAME, [raw(), raw(answer="Z")])
    with pytest.raises(RecordError):
        convert(source, tmp_path / "x.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]
    account = convert(source, tmp_path / "x.parquet", skip_bad=True)
    assert (account.written, account.read.skipped.total()) == (1, 1)


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"to must be one of .*'verl'.*, got 'csv'"):
        convert(tmp_path, tmp_path / "x", to="csv")  # pyright: ignore[reportArgumentType]


def test_the_command_line_converts_checks_and_looks_for_leaks(tmp_path: Path) -> None:
    run = CliRunner().invoke
    train = save(tmp_path / NAME, [raw(), raw(image=[encoded("blue")])])
    test = save(tmp_path / "single_choice_test_data_CFP.json", [raw(image=[encoded("blue")])])
    out = tmp_path / "x.jsonl"
    done = run(app, ["convert", str(train), str(out), "--held-out", str(test)])
    assert done.exit_code == 0, done.output
    assert [one.images for one in read_records(out)] == [(picture("red"),)]
    leak = run(app, ["leakage", str(train), str(test)])
    assert (leak.exit_code, "train_data_CFP#1 = single_choice_test" in leak.output) == (1, True)
    assert run(app, ["leakage", str(out), str(test)]).exit_code == 0
    assert run(app, ["check", str(train)]).exit_code == 0
    folder = run(app, ["check", str(tmp_path)])  # it holds x.jsonl and its account
    assert "passed over: x.jsonl.report.json" in folder.output
    assert "OCTA_500" in run(app, ["sources"]).output


def test_a_leak_is_not_denied_by_records_that_could_not_be_read(tmp_path: Path) -> None:
    run = CliRunner().invoke
    good = save(tmp_path / NAME, [raw()])
    bad = save(tmp_path / "b" / NAME, [raw(answer="Z"), raw(image=[encoded("blue")])])
    stopped = run(app, ["leakage", str(good), str(bad)])
    assert (stopped.exit_code, "must name exactly one option" in stopped.output) == (1, True)
    told = run(app, ["leakage", str(good), str(bad), "--skip-bad"])
    assert "0 pictures in both; records read: 1 of train and 1 of test" in told.output
    assert "test: 1 records skipped" in told.output
    assert told.exit_code == 1


def test_the_command_line_names_the_fault_in_one_line(tmp_path: Path) -> None:
    source = save(tmp_path / NAME, [raw(), raw(answer="Z[red]\x1b[31m")])
    for command in (["check", str(source)], ["convert", str(source), str(tmp_path / "x.parquet")]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1
        assert "train_data_CFP.json[1]: conversations[1].value: a reference of" in done.output
        assert "\x1b[31m" not in done.output
    assert not (tmp_path / "x.parquet").exists()
