"""From files to items: what is stated wins, nothing is guessed, every record is accounted for."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples.ophthareason.loading import ReadReport, find_files, read_records
from examples.ophthareason.records import Item, RecordError
from tests.data_examples.samples import encoded, picture, raw, save

NAME = "single_choice_test_data_CFP.json"


def one(path: Path, **settings: Any) -> Item:
    (item,) = read_records(path, **settings)
    return item


def test_the_two_published_forms_give_the_same_items(tmp_path: Path) -> None:
    (tmp_path / "eye.png").write_bytes(picture("green"))
    by_path = one(save(tmp_path / NAME, [raw(image=["eye.png"])]))
    by_text = one(save(tmp_path / "b" / NAME, [raw(image=[encoded("green")])]))
    save(tmp_path / "c" / NAME, [raw(image="eye.png")])
    (tmp_path / "c" / NAME).with_suffix(".csv").write_text(
        f"index,base64\neye.png,{encoded('green')}\n"
    )
    by_table = one(tmp_path / "c" / NAME)
    assert by_path == by_text == by_table
    assert by_path.images == (picture("green"),)


def test_what_the_authors_file_name_says(tmp_path: Path) -> None:
    item = one(save(tmp_path / NAME, [raw()]))
    assert (item.task, item.split, item.modality) == ("single_choice", "test", "CFP")
    assert (item.source, item.domain) == ("unknown", "unknown")
    assert item.id == "single_choice_test_data_CFP#0"


def test_a_source_is_never_guessed_from_a_path(tmp_path: Path) -> None:
    (tmp_path / "IDRID").mkdir()
    (tmp_path / "IDRID" / "APTOS.png").write_bytes(picture())
    item = one(save(tmp_path / NAME, [raw(image=["IDRID/APTOS.png"])]))
    assert (item.source, item.domain) == ("unknown", "unknown")


def test_the_order_of_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "eye.png").write_bytes(picture())
    table = tmp_path / "images.csv"
    table.write_text("file,modality,source,split\neye.png,OCT,OCTID,train\n")
    path = save(tmp_path / NAME, [raw(image=["eye.png"])])
    # The table comes before the file name, the argument before the table, the record before all.
    item = one(path, image_table=table)
    assert (item.modality, item.source, item.domain, item.split) == (
        "OCT",
        "OCTID",
        "out-of-domain",
        "train",
    )
    assert one(path, image_table=table, modality="FFA").modality == "FFA"
    save(path, [raw(image=["eye.png"], modality="CT", source="APTOS", task="multiple_choice")])
    item = one(path, image_table=table, modality="FFA", task="single_choice")
    assert (item.modality, item.source, item.domain) == ("CT", "APTOS", "in-domain")
    assert item.task == "multiple_choice"


def test_articles_are_a_stated_source(tmp_path: Path) -> None:
    record = raw(question="What?", answer="Glaucoma", pmcid="PMC123", title="t", caption="c")
    item = one(save(tmp_path / "complex_reason.json", [record]))
    assert (item.task, item.source, item.domain) == ("diagnosis", "PubMed Central", "in-domain")
    assert (item.title, item.caption, item.pmcid) == ("t", "c", "PMC123")
    record["pmcid"] = "SYNTHETIC"
    assert one(save(tmp_path / "complex_reason.json", [record])).source == "unknown"


def test_a_task_that_nobody_states_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.json", [raw()])
    with pytest.raises(
        RecordError, match=r"mine\.json\[0\]: task: unknown: neither record, argument"
    ):
        one(path)
    assert one(path, task="single_choice").task == "single_choice"


def test_several_images_keep_their_order(tmp_path: Path) -> None:
    colours = ["red", "green", "blue", "white", "black", "yellow"]
    item = one(save(tmp_path / NAME, [raw(image=[encoded(colour) for colour in colours])]))
    assert list(item.images) == [picture(colour) for colour in colours]


def test_every_record_is_read_or_counted_with_its_reason(tmp_path: Path) -> None:
    records: list[object] = [
        raw(),
        raw(image=["../secret.png"]),
        raw(image=[encoded()[:40] + "!" * 60]),
        raw(answer="Z"),
        {"image": []},
        raw(colour="red"),
        "text",
        raw(id="same"),
        raw(id="same"),
    ]
    report = ReadReport()
    items = list(read_records(save(tmp_path / NAME, records), skip_bad=True, report=report))
    assert [item.id.rpartition("#")[2] for item in items] == ["0", "5", "same"]
    assert report.read + report.skipped.total() == len(records)
    assert report.skipped == Counter(
        {"image[]": 2, "conversations[].value": 1, "image": 1, "record": 1, "id": 1}
    )
    assert len(report.problems) == 6
    assert (
        "single_choice_test_data_CFP.json[1]: image[0]: path must stay inside" in report.problems[0]
    )
    assert report.ignored == Counter({"colour": 1})
    assert not report.complete


def test_without_leave_the_first_bad_record_stops(tmp_path: Path) -> None:
    path = save(tmp_path / NAME, [raw(), raw(answer="Z"), raw()])
    with pytest.raises(
        RecordError, match=r"CFP\.json\[1\]: conversations\[1\]\.value: a reference of"
    ):
        list(read_records(path))


def test_a_file_that_breaks_off_is_counted_and_the_next_is_read(tmp_path: Path) -> None:
    first = save(tmp_path / "a" / NAME, [raw(), raw()])
    first.write_text(first.read_text()[:-30], encoding="utf-8")
    save(tmp_path / "b" / NAME, [raw()])
    report = ReadReport()
    items = list(read_records(tmp_path, skip_bad=True, report=report))
    assert [item.id for item in items] == [
        "a/single_choice_test_data_CFP#0",
        "b/single_choice_test_data_CFP#0",
    ]
    assert (report.files, report.read, report.unread) == (2, 2, 1)
    assert "broken JSON" in report.problems[0]


def test_ids_are_unique_over_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name / NAME, [raw(id="x")])
    with pytest.raises(RecordError, match=r"b/single.*\[0\]: id: must be unique, got 'x' again"):
        list(read_records(tmp_path))


def test_files_come_in_a_fixed_order_and_reports_are_none(tmp_path: Path) -> None:
    names = ("b.json", "a/c.jsonl", "D.JSON", ".hidden.json", "b.json.report.json", "note.txt")
    for name in (*names, "clinic.report.json"):
        save(tmp_path / name, [])
    report = ReadReport()
    found = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path, report)]
    # A report is the account of a file beside it; clinic.report.json is the report of none.
    assert found == ["D.JSON", "a/c.jsonl", "b.json", "clinic.report.json"]
    assert report.passed_over == [".hidden.json", "b.json.report.json"]
    assert report.as_dict()["files_passed_over"] == report.passed_over
    with pytest.raises(RecordError, match=r"no \.json or \.jsonl file there"):
        find_files(tmp_path / "a" / "nowhere")


def test_a_missing_source_and_a_bad_table_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such file or folder"):
        list(read_records(tmp_path / "nowhere"))
    (tmp_path / "t.csv").write_text("name\nx\n")
    with pytest.raises(RecordError, match=r"t\.csv: header: must have a column file"):
        list(read_records(save(tmp_path / NAME, [raw()]), image_table=tmp_path / "t.csv"))


def test_the_hubs_cache_is_read_through_its_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The layout of huggingface_hub: blobs, and a snapshot of links. The real client finds it
    # offline; a record that climbs out of it is refused all the same.
    repo = tmp_path / "datasets--lxirich--MM-Retinal-Reason"
    commit = "0" * 40
    snapshot = repo / "snapshots" / commit
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    blobs = repo / "blobs"
    blobs.mkdir()
    (blobs / "1").write_bytes(picture("green"))
    save(blobs / "2", [raw(image=["eye.png"])])
    snapshot.mkdir(parents=True)
    (snapshot / "eye.png").symlink_to("../../blobs/1")
    (snapshot / NAME).symlink_to("../../blobs/2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    (item,) = read_records("hub:lxirich/MM-Retinal-Reason")
    assert item.images == (picture("green"),)
    # Pinned to a tag, it is that snapshot; to one that is not there, none.
    other = repo / "snapshots" / ("1" * 40)
    other.mkdir()
    (blobs / "3").write_bytes(picture("blue"))
    (other / "eye.png").symlink_to("../../blobs/3")
    (other / NAME).symlink_to("../../blobs/2")
    (repo / "refs" / "v1").write_text("1" * 40)
    (item,) = read_records("hub:lxirich/MM-Retinal-Reason@v1")
    assert item.images == (picture("blue"),)
    (item,) = read_records("hub:lxirich/MM-Retinal-Reason@main")
    assert item.images == (picture("green"),)
    with pytest.raises(OSError, match="snapshot"):
        list(read_records("hub:lxirich/MM-Retinal-Reason@v2"))
    (tmp_path / "outside.png").write_bytes(picture())
    (snapshot / "eye.png").unlink()
    (snapshot / "eye.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(RecordError, match="must stay inside"):
        list(read_records("hub:lxirich/MM-Retinal-Reason"))


@pytest.mark.parametrize("source", ["hub:", "hub:a/b@", "hub:@main"])
def test_a_hub_source_is_a_name_and_a_revision_or_none(source: str) -> None:
    with pytest.raises(RecordError, match=r"must be hub:OWNER/NAME\[@REVISION\]"):
        list(read_records(source))


def test_the_real_records_in_all_forms(real_data: Path) -> None:
    folder = real_data / "mm_retinal_reason"
    report = ReadReport()
    items = list(
        read_records(
            folder, real_data, image_table=real_data / "retina" / "images.csv", report=report
        )
    )
    # Its README: 762 + 98 + 40 + 142 to train; 232 + 42 + 24 + 75 + 8 to test, 24 again in base64.
    splits = Counter(item.split for item in items)
    assert splits == {"train": 1042, "test": 381 + 24}
    assert report.complete
    with (real_data / "retina" / "images.csv").open(newline="") as handle:
        sources = {row["source"] for row in csv.DictReader(handle)}
    assert {item.source for item in items} == sources | {"unknown"}  # base64 text has no row there
    plain, text = (
        [item for item in items if item.id.startswith(start)]
        for start in ("single_choice_test_data_OCT#", "base64/")
    )
    assert [item.digest for item in plain] == [item.digest for item in text]
    kinds = Counter(
        item.kind for item in items if item.modality == "OCT" and item.task != "diagnosis"
    )
    assert kinds == {"single_choice": 44, "true_false": 44}
