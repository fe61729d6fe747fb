"""A record is checked field by field; the error says which field of which record of which file."""

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.ophthareason.records import (
    RecordError,
    parse_answer_key,
    parse_record,
    task_of_name,
)
from tests.data_examples.samples import QUESTION, item, raw
from uadt.rewards import Task

ABC = {"A": "Drusen", "B": "Normal retina", "C": "Glaucoma"}


def turns(question: object, answer: object) -> dict[str, Any]:
    return {
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    }


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([], "f.json[7]: Input should be a valid dictionary"),
        (None, "f.json[7]: "),
        ("text", "f.json[7]: "),
        ({}, "f.json[7]: image: Field required"),
        (raw(image=[]), "f.json[7]: image: Value should have at least 1 item"),
        (raw(image=["a"] * 7), "f.json[7]: image: Value should have at most 6 items"),
        (raw(image=5), "f.json[7]: image: Input should be a valid list, got '5'"),
        (raw(image=["a", 5]), "f.json[7]: image[1]: Input should be a valid string, got '5'"),
        (raw(image=""), "f.json[7]: image[0]: String should have at least 1 character"),
        (raw(conversations=None), "f.json[7]: conversations: "),
        (raw(conversations=[]), "f.json[7]: conversations[0]: Field required"),
        (raw(conversations=turns("q", "a")["conversations"] * 2), "f.json[7]: conversations: "),
        (raw(**turns(3, "a")), "f.json[7]: conversations[0].value: Input should be a valid string"),
        (raw(**turns(" \n", "a")), "f.json[7]: conversations[0].value: must not be empty"),
        (raw(**turns("<image>", "a")), "f.json[7]: conversations[0].value: must not be empty"),
        (raw(**turns("q", "")), "f.json[7]: conversations[1].value: must not be empty"),
        (raw(**turns("q\0", "a")), "f.json[7]: conversations[0].value: must not contain NUL"),
        (raw(**turns("q\ud800", "a")), "f.json[7]: conversations[0].value: "),
        (raw(**turns("q" * 200_001, "a")), "must have at most 200000 characters, got 200001"),
        (raw(**turns("q <|im_end|>", "a")), "model's own mark, got '<|im_end|>'"),
        (raw(**turns("q <video>", "a")), "model's own mark, got '<video>'"),
        (raw(**turns("<image><image>q", "a")), "no <image> mark or one an image (1), got 2"),
        (raw(reason=["steps"]), "f.json[7]: reason: Input should be a valid string"),
        (raw(task="essay"), "f.json[7]: task: Input should be 'single_choice'"),
        (raw(domain="near"), "f.json[7]: domain: Input should be 'in-domain'"),
        (raw(id=""), "f.json[7]: id: String should have at least 1 character"),
    ],
)
def test_a_bad_record_names_file_record_and_field(record: object, words: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_record(record, file="f.json", index=7)
    assert words in str(caught.value)
    assert str(caught.value).startswith("f.json[7]: ")
    assert (caught.value.file, caught.value.record) == ("f.json", 7)


def test_a_swapped_conversation_is_refused() -> None:
    swapped = raw()
    swapped["conversations"].reverse()
    with pytest.raises(RecordError, match=r"conversations\[0\]\.from: Input should be 'human'"):
        parse_record(swapped, file="f", index=0)


def test_one_image_may_be_a_string() -> None:
    assert parse_record(raw(image="a.jpg"), file="f", index=0).image == ["a.jpg"]


def test_image_marks_are_taken_out_of_the_question() -> None:
    record = parse_record(raw(question="<image>\n" + QUESTION), file="f", index=0)
    assert record.question == QUESTION


def test_fields_that_nobody_reads_are_known() -> None:
    record = raw(width=3)
    record["conversations"][0]["mood"] = "fine"
    assert parse_record(record, file="f", index=0).ignored == ["width", "conversations[].mood"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from(["image", "conversations", "reason", "task", "id", "pmcid"]), json_values)
@settings(max_examples=150)
def test_any_json_in_any_field_is_taken_or_refused(field: str, value: object) -> None:
    try:
        parse_record(raw() | {field: value}, file="f", index=0)
    except RecordError as error:
        assert field in str(error)  # noqa: PT017  the accepted branch is the point of the test


@pytest.mark.parametrize(
    ("answer", "task", "options", "key"),
    [
        ("B", "single_choice", ABC, "B"),
        ("C, A", "multiple_choice", ABC, "A,C"),
        ("A", "multiple_choice", ABC, "A"),
        ("B", "single_choice", {}, "B"),
        ("normal retina", "single_choice", ABC, "B"),  # an option's own text
        ("C: Glaucoma", "single_choice", ABC, "C"),
        ("true", "true_false", {}, "True"),
        ("Optic neuritis", "diagnosis", {}, "Optic neuritis"),
    ],
)
def test_references(answer: str, task: Task, options: dict[str, str], key: str) -> None:
    assert parse_answer_key(answer, task, options) == key


@pytest.mark.parametrize(
    ("answer", "task", "words"),
    [
        ("D", "single_choice", "must name exactly one option, got 'D'"),
        ("A,B", "single_choice", "must name exactly one option, got 'A,B'"),
        ("Coloboma", "single_choice", "must name exactly one option"),  # no option's text
        ("A,D", "multiple_choice", "must name one option or more, got 'A,D'"),
        ("none", "multiple_choice", "must name one option or more"),
        ("Α", "single_choice", "must name exactly one option"),  # a Greek capital alpha
    ],
)
def test_a_reference_that_cannot_be_judged_is_an_error(answer: str, task: Task, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_answer_key(answer, task, ABC)


def test_true_false_takes_only_a_verdict() -> None:
    with pytest.raises(ValueError, match="must be true or false, got 'maybe'"):
        parse_answer_key("maybe", "true_false", {})


@pytest.mark.parametrize(
    ("stem", "known"),
    [
        ("single_choice_test_data_CFP", ("single_choice", "test", "CFP")),
        ("multi_choice_train_data_CFP", ("multiple_choice", "train", "CFP")),
        ("complex_reason", ("diagnosis", None, None)),
        ("single_choice", (None, None, None)),
        ("my_single_choice_test_data_CFP", (None, None, None)),
    ],
)
def test_the_authors_file_names(stem: str, known: tuple[str | None, ...]) -> None:
    assert task_of_name(stem) == known


def test_a_choice_of_true_and_false_is_counted_as_true_false() -> None:
    lettered = item(question="True or false: drusen.\nA: False\nB: True")
    assert (lettered.task, lettered.kind) == ("single_choice", "true_false")
    assert item().kind == "single_choice"


def test_the_digest_is_of_what_is_seen_and_asked() -> None:
    assert item("a").digest == item("b", source="IDRID").digest  # labels are not seen
    others = [item(answer="A"), item(colour="blue"), item(task="multiple_choice")]
    assert len({item().digest, *(other.digest for other in others)}) == 4


def test_errors_survive_pickling() -> None:
    error = RecordError("f.json", 3, "image[0]", "gone")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "f.json[3]: image[0]: gone"
