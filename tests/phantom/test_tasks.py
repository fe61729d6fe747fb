"""The questions about phantoms: exact answers, balance, and a teacher whose mistakes are known."""

import re
from collections import Counter

import pytest

from examples.ophthareason.phantom import GRADES, KINDS
from examples.ophthareason.records import parse_record
from examples.ophthareason.tasks import (
    DIAGNOSES,
    FINDINGS,
    PhantomItem,
    Task,
    Teacher,
    caption,
    pose,
    record,
)
from uadt.choices import parse_options
from uadt.rewards import score

SEEDS = range(160)
TASKS: tuple[Task, ...] = ("single_choice", "multiple_choice", "diagnosis")


@pytest.fixture(scope="module")
def items() -> list[PhantomItem]:
    return [pose(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def taught() -> list[PhantomItem]:
    always = Teacher(letter=1.0, grade=1.0, forgets=1.0, history=1.0)
    return [pose(seed, teacher=always) for seed in SEEDS]


def there(item: PhantomItem) -> set[str]:
    found = {kind for kind in KINDS if item.phantom.count(kind)}
    return found | ({"large cup"} if item.phantom.large_cup else set())


def test_the_answers_follow_from_the_picture(items: list[PhantomItem]) -> None:
    # Judged from the phantom's truth alone, not from what the generator meant to draw.
    for item in items:
        named = parse_options(item.question)
        if item.topic == "lesion":
            right = [k for k, name in named.items() if name in there(item)]
            right = right or [k for k, name in named.items() if name == "none of these"]
            assert [item.answer] == right
        elif item.topic == "grade":
            assert named[item.answer] == GRADES[item.phantom.grade]
        elif item.topic == "multiple_choice":
            assert item.answer == ",".join(k for k, name in named.items() if name in there(item))


@pytest.mark.parametrize(
    ("history", "sign", "diagnosis"),
    [
        ("diabetes", "haemorrhages", "diabetic retinopathy"),
        ("high blood pressure", "haemorrhages", "hypertensive retinopathy"),
        ("loss of sight", "haemorrhages", "retinal vein occlusion"),
        ("diabetes", "drusen", "macular degeneration"),
        ("loss of sight", "large cup", "glaucoma"),
    ],
)
def test_a_diagnosis_needs_history_and_picture(
    items: list[PhantomItem], history: str, sign: str, diagnosis: str
) -> None:
    matching = [
        item
        for item in items
        if item.task == "diagnosis" and history in item.question and sign in there(item)
    ]
    assert matching
    assert {item.answer for item in matching} == {diagnosis}


def test_nobody_can_do_well_without_the_picture() -> None:
    # The best that a guess can do which knows the question's kind, but not the picture, on many
    # items: about one in four. The letter, the offered name and the history are its clues.
    many = [pose(seed) for seed in range(1000, 1300)]
    chosen = [item for item in many if item.task == "single_choice"]
    letters = Counter(item.answer for item in chosen)
    assert max(letters.values()) / len(chosen) < 0.36
    for topic in ("lesion", "grade"):
        part = [item for item in chosen if item.topic == topic]
        right = Counter(parse_options(item.question)[item.answer] for item in part)
        offered = Counter(name for item in part for name in parse_options(item.question).values())
        assert max(right[name] / offered[name] for name in right) < 0.42
    sets = Counter(item.answer for item in many if item.task == "multiple_choice")
    assert max(sets.values()) / sum(sets.values()) < 0.2
    for clue in ("diabetes", "pressure", "sight"):
        part = [i for i in many if i.task == "diagnosis" and clue in i.question]
        assert max(Counter(i.answer for i in part).values()) / len(part) < 0.4


def test_a_faultless_teacher_gives_traces_that_score_in_full(items: list[PhantomItem]) -> None:
    for item in items:
        text = f"<think>{item.reason}</think><answer>{item.taught}</answer>"
        points = score(text, item.answer, task=item.task)
        assert (points.format, points.accuracy) == (1.0, 1.0)


def test_a_teacher_that_always_errs_is_wrong_where_it_can_be(
    items: list[PhantomItem], taught: list[PhantomItem]
) -> None:
    for right, wrong in zip(items, taught, strict=True):
        assert right.question == wrong.question
        assert right.answer == wrong.answer  # the truth does not depend on the teacher
        if right.topic == "lesion":
            assert wrong.taught != right.answer
        if right.topic == "grade":
            clear = "no apparent" in parse_options(right.question)[right.answer]
            assert (wrong.taught == right.answer) == clear  # nothing is below grade 0
        if right.topic == "multiple_choice":
            lost = len(right.answer.split(",")) - len(wrong.taught.split(","))
            assert lost == (1 if "," in right.answer else 0)
        if right.answer in ("hypertensive retinopathy", "retinal vein occlusion"):
            assert wrong.taught == "diabetic retinopathy"
        if right.answer == "macular degeneration":
            assert wrong.taught == "normal retina"


def test_the_thought_ends_in_the_answer(taught: list[PhantomItem]) -> None:
    for item in taught:
        if item.task == "diagnosis":
            assert item.reason.endswith(f"this is {item.taught}.")
        else:
            assert item.reason.endswith(f" So {item.taught}.")
            said = re.findall(r"([A-D]) [a-z -]+ yes", item.reason)
            assert ",".join(sorted(said)) == item.taught


def test_both_orders_of_a_trace_have_as_many_words(items: list[PhantomItem]) -> None:
    for item in items[:20]:
        one, other = caption(item.phantom), caption(item.phantom, disc_first=True)
        assert one != other
        assert sorted(re.findall(r"\w+", one)) == sorted(re.findall(r"\w+", other))
        assert one.count(" yes") + one.count(" no") == len(FINDINGS)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_can_be_asked_for(task: Task) -> None:
    assert {pose(seed, task=task).task for seed in range(5)} == {task}


def test_equal_seeds_pose_equal_items() -> None:
    one, other = pose(9), pose(9)
    assert (one.question, one.answer, one.reason) == (other.question, other.answer, other.reason)
    assert one.phantom.image.tobytes() == other.phantom.image.tobytes()


def test_records_are_valid_and_say_that_they_are_synthetic(items: list[PhantomItem]) -> None:
    for item in items[:30]:
        raw = record(item, "a.png", split="test")
        checked = parse_record(raw, file="records.json", index=0)
        assert checked.answer == item.answer
        assert raw["title"].startswith("SYNTHETIC")
        assert raw["source"].startswith("synthetic phantom ")
        assert raw["domain"] == "unknown"  # it is in no table of the authors
    wrong = pose(0, teacher=Teacher(letter=1.0, grade=1.0, forgets=1.0, history=1.0))
    kept = record(wrong, "a.png", split="train", taught=True)
    assert kept["conversations"][1]["value"] == wrong.taught


def test_the_diagnoses_are_told_apart_by_the_reward() -> None:
    for said in DIAGNOSES:
        for truth in DIAGNOSES:
            text = f"<think>x</think><answer>{said}</answer>"
            assert score(text, truth, task="diagnosis").accuracy == float(said == truth)


def test_a_teacher_errs_with_a_probability() -> None:
    with pytest.raises(ValueError, match=r"grade must be within \[0, 1\], got 2"):
        Teacher(grade=2.0)
