"""What counts as right, broken down, compared and written out."""

import json
from typing import Any

import pytest

from examples.ophthareason.intervals import Interval
from examples.ophthareason.predictions import Prediction, predict_row
from examples.ophthareason.scores import GROUPINGS, METRICS, paired, score_one, summarise
from examples.ophthareason.tables import as_markdown, cell, main_table, paired_table
from tests.data_examples.samples import item


def says(said: str, /, **fields: Any) -> Prediction:
    settings: dict[str, Any] = {"tokens": 10, "finished": True, "entropy": 0.5}
    settings |= {name: fields.pop(name) for name in list(settings) if name in fields}
    text = fields.pop("text", f"<think>t</think><answer>{said}</answer>")
    return predict_row(item(**fields), response=text, **settings)


@pytest.mark.parametrize(
    ("answer", "accuracy"),
    [("B", 1.0), ("A", 0.0), ("Normal retina", 1.0), ("B: Normal retina", 1.0), ("A,B", 0.0)],
)
def test_single_choice(answer: str, accuracy: float) -> None:
    assert score_one(says(answer))["accuracy"] == accuracy


def test_multiple_choice_exact_and_in_part() -> None:
    # Named {A, B}, right {A, C}: 1 shared of 3 named in all; F1 = 2 * 1 / (2 + 2).
    scores = score_one(says("A,B", task="multiple_choice", answer="A,C"))
    assert (scores["accuracy"], scores["jaccard"], scores["f1"]) == (0.0, 1 / 3, 0.5)
    assert scores["penalised"] == 0.0  # (1 right - 1 wrong) / 2
    # Two of two, and one too many: (2 - 1) / 2.
    assert score_one(says("A,B,C", task="multiple_choice", answer="A,C"))["penalised"] == 0.5
    assert score_one(says("c, a", task="multiple_choice", answer="A,C"))["accuracy"] == 1.0


def test_a_diagnosis_exact_by_synonym_and_by_likeness() -> None:
    exact, synonym, near, far = (
        score_one(says(text, task="diagnosis", answer="Central retinal artery occlusion"))
        for text in (
            "central retinal artery occlusion",
            "CRAO",
            "retinal artery occlusion",
            "uveitis",
        )
    )
    assert (exact["exact"], exact["accuracy"], exact["rouge_l"]) == (1.0, 1.0, 1.0)
    assert (synonym["exact"], synonym["accuracy"]) == (0.0, 1.0)
    # 3 of 4 words in order: precision 1, recall 3/4, F = 6/7
    assert (near["accuracy"], near["rouge_l"]) == (0.0, pytest.approx(6 / 7))
    assert far["edit"] < near["edit"]
    assert far["bleu"] == pytest.approx(0.0, abs=1e-9)


def test_a_broken_form_has_no_answer_but_a_lenient_one() -> None:
    scores = score_one(says("", text="The answer is <answer>B</answer>"))
    assert (scores["accuracy"], scores["format"], scores["lenient"]) == (0.0, 0.0, 1.0)


def test_what_no_judge_could_score_is_in_no_mean() -> None:
    def failing(answer: str, truth: str) -> float:
        raise RuntimeError("the service is down")

    rows = [says("uveitis", id="a", task="diagnosis", answer="Glaucoma"), says("B", id="b")]
    summary = summarise(rows, model="m", matcher=failing)
    assert summary.unscored == 1
    assert summary.groups[()][()]["accuracy"].n == 1


def test_an_unknown_entropy_is_missing_and_not_zero() -> None:
    assert "entropy" not in score_one(says("B", entropy=None))
    summary = summarise([says("B", entropy=None)], model="m")
    assert "entropy" not in summary.groups[()][()]
    assert summary.thinking["single_choice"].n == 0


def some() -> list[Prediction]:
    return [
        says("B", id="1", colour="red", modality="CFP", domain="in-domain", source="APTOS"),
        says("A", id="2", colour="red", modality="CFP", domain="in-domain", source="APTOS"),
        says("B", id="3", colour="blue", modality="OCT", domain="out-of-domain", source="OCTID"),
        says("Glaucoma", id="4", task="diagnosis", answer="Glaucoma", modality="CFP"),
    ]


def test_the_breakdown_by_hand() -> None:
    summary = summarise(some(), model="m")
    assert list(summary.groups) == list(GROUPINGS)
    accuracy = {key: found["accuracy"] for key, found in summary.groups[("modality",)].items()}
    # Colour photographs: 1 of 2 choices and the diagnosis; two pictures, both red.
    assert (accuracy[("CFP",)].mean, accuracy[("CFP",)].n, accuracy[("CFP",)].groups) == (
        2 / 3,
        3,
        1,
    )
    assert accuracy[("OCT",)].mean == 1.0
    assert summary.groups[()][()]["accuracy"].mean == 0.75
    every = summary.groups[("kind", "domain", "modality")]
    assert {key: found["accuracy"].n for key, found in every.items()} == {
        ("single_choice", "in-domain", "CFP"): 2,
        ("single_choice", "out-of-domain", "OCT"): 1,
        ("diagnosis", "unknown", "CFP"): 1,
    }
    assert (
        json.loads(json.dumps(summary.as_dict()))["by"]["modality"]["OCT"]["accuracy"]["mean"]
        == 1.0
    )


def test_longer_where_unsure_by_hand() -> None:
    rows = [
        says("B", id=str(place), entropy=entropy, tokens=tokens)
        for place, (entropy, tokens) in enumerate([(0.1, 5), (0.4, 30), (0.2, 10), (0.3, 20)])
    ]
    found = summarise(rows, model="m").thinking["single_choice"]
    assert found.correlation == pytest.approx(1.0)  # the ranks agree
    assert (found.n, found.sure, found.unsure) == (4, 7.5, 25.0)  # (5 + 10) / 2, (20 + 30) / 2


def test_constant_lengths_have_no_correlation() -> None:
    rows = [says("B", id=str(place), entropy=place / 10) for place in range(4)]
    assert summarise(rows, model="m").thinking["single_choice"].correlation is None


def test_paired_differences_by_hand() -> None:
    before = [
        says("A", id="1"),
        says("B", id="2", colour="blue"),
        says("A", id="3", colour="green"),
    ]
    after = [says("B", id="1"), says("B", id="2", colour="blue"), says("B", id="3", colour="green")]
    # Gains 1, 0, 1.
    found = paired(before, after)
    assert list(found) == ["all", "single_choice"]
    assert found["all"].mean == pytest.approx(2 / 3)
    assert found["all"].groups == 3
    assert paired(before, before)["all"].mean == 0.0
    assert paired(after, before)["all"].mean == -found["all"].mean


def test_models_that_answered_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"the same questions, differ in \['2'\]"):
        paired([says("A", id="1"), says("A", id="2")], [says("A", id="1")])
    with pytest.raises(ValueError, match=r"the same questions, differ in \['1'\]"):
        paired([says("A", id="1")], [says("A", id="1", colour="blue")])
    with pytest.raises(ValueError, match="metric must be one of"):
        paired([says("A", id="1")], [says("A", id="1")], metric="luck")


def test_no_predictions_are_an_error() -> None:
    with pytest.raises(ValueError, match="got none of m"):
        summarise([], model="m")


@pytest.mark.parametrize(
    ("interval", "settings", "text"),
    [
        (Interval(0.5, 0.25, 0.75, 4, 4), {}, "50.0 [25.0, 75.0]"),
        (Interval(0.5, None, None, 4, 1), {}, "50.0 [–]"),
        (Interval(0.1, -0.1, 0.3, 4, 4), {"signed": True}, "+10.0 [-10.0, +30.0]"),
        (Interval(12.5, 10.0, 15.0, 4, 4), {"percent": False}, "12.5 [10, 15]"),
        (None, {}, "–"),
    ],
)
def test_a_cell(interval: Interval | None, settings: dict[str, bool], text: str) -> None:
    assert cell(interval, **settings) == text


def test_the_main_table_has_models_in_rows_and_the_papers_test_sets_in_columns() -> None:
    first = summarise(some(), model="a|b")
    second = summarise(some()[:2], model="second")
    lines = main_table([first, second]).splitlines()
    assert lines[0] == (
        "| model | single choice · ID · CFP | single choice · OOD · OCT "
        "| diagnosis · domain unknown · CFP | all |"
    )
    assert lines[2].startswith("| a\\|b | 50.0 [")
    assert lines[3].split(" | ")[2:4] == ["–", "–"]  # the second model has no such items
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}


def test_a_report_on_phantoms_says_that_they_are_synthetic() -> None:
    row = says("B", id="5", source="synthetic phantom lesion")
    assert "**Synthetic**" in as_markdown([summarise([*some(), row], model="m")])
    assert "Synthetic" not in as_markdown([summarise(some(), model="m")])


def test_the_whole_report_names_every_metric() -> None:
    summary = summarise(some(), model="m")
    text = as_markdown([summary], {"m − n": paired(some(), some())})
    assert all(f"`{name}`" in text for name in METRICS)
    assert "4 items, 0 without a score" in text
    assert paired_table({"m − n": paired(some(), some())}) in text
