import json
import math
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_answers import TEXTS
from uadt.choices import parse_options
from uadt.rewards import (
    Matcher,
    Score,
    Scorer,
    Weights,
    check_reference,
    diagnosis,
    format_reward,
    multiple_choice,
    score,
    single_choice,
    true_false,
)

TRUTHS = {
    "single_choice": "B",
    "multiple_choice": "A,C",
    "true_false": "True",
    "diagnosis": "Central retinal artery occlusion",
}


def _says(answer: str) -> str:
    return f"<think>t</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("text", "graded"),
    [
        (_says("B"), 1.0),
        ("", 0.0),
        ("<answer>B</answer>", 0.4),  # two of four tags: 2/5
        ("<think>t</think><answer>B", 0.6),
        ("<think>t<answer>B</answer>", 0.6),
        ("x" + _says("B"), 0.8),  # four tags, but not the form
        ("</answer><answer></think><think>", 0.8),
        (_says("B") + "<answer>", 0.6),  # a tag twice earns nothing
        (_says("B") * 2, 0.0),
        ("<THINK>t</THINK>", 0.0),
    ],
)
def test_the_form_graded_and_strict(text: str, graded: float) -> None:
    assert format_reward(text, graded=True) == pytest.approx(graded)
    assert format_reward(text) == float(graded == 1)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("B", "B", 1.0),
        ("(b)", "B", 1.0),
        ("B: Chorioretinitis", "B", 1.0),
        ("B", "B: Chorioretinitis", 1.0),  # the reference may hold its text
        ("A", "B", 0.0),
        ("A,B", "B", 0.0),
        ("", "B", 0.0),
        ("Chorioretinitis", "B", 0.0),
    ],
)
def test_single_choice(answer: str, truth: str, right: float) -> None:
    assert single_choice(_says(answer), truth) == right


def test_single_choice_by_the_text_of_an_option() -> None:
    options = ["Drusen", "Chorioretinitis"]
    assert single_choice(_says("chorioretinitis."), "B", options=options) == 1
    assert single_choice(_says("drusen"), "B", options=options) == 0
    assert single_choice(_says("A: Chorioretinitis"), "B", options=options) == 0
    assert single_choice(_says("B"), "Chorioretinitis", options=options) == 1


@pytest.mark.parametrize(
    ("answer", "exact", "jaccard", "f1", "penalised"),
    [
        # R = {A, B, D}
        ("A,B,D", 1.0, 1.0, 1.0, 1.0),
        ("d b a", 1.0, 1.0, 1.0, 1.0),
        ("A,B", 0.0, 2 / 3, 4 / 5, 2 / 3),  # two hits, none wrong
        ("A,B,C", 0.0, 2 / 4, 4 / 6, 1 / 3),  # two hits, one wrong
        ("A,B,C,D,E", 0.0, 3 / 5, 6 / 8, 1 / 3),  # three hits, two wrong
        ("C", 0.0, 0.0, 0.0, 0.0),  # one wrong: -1/3, cut at 0
        ("A,C", 0.0, 1 / 4, 2 / 5, 0.0),
        ("none", 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_multiple_choice_by_hand(
    answer: str, exact: float, jaccard: float, f1: float, penalised: float
) -> None:
    text = _says(answer)
    assert multiple_choice(text, "A,B,D") == exact
    assert multiple_choice(text, "A,B,D", partial="jaccard") == pytest.approx(jaccard)
    assert multiple_choice(text, "A,B,D", partial="f1") == pytest.approx(f1)
    assert multiple_choice(text, "A,B,D", partial="penalised") == pytest.approx(penalised)


LETTERS = st.sets(st.sampled_from("ABCDEF"), min_size=1)


@settings(deadline=None)
@given(LETTERS, LETTERS)
def test_partial_credits_are_ordered_and_full_only_for_the_exact_set(
    named: set[str], right: set[str]
) -> None:
    text, truth = _says(",".join(named)), ",".join(right)
    jaccard = multiple_choice(text, truth, partial="jaccard")
    f1 = multiple_choice(text, truth, partial="f1")
    penalised = multiple_choice(text, truth, partial="penalised")
    assert 0 <= penalised <= f1 <= 1
    assert f1 == pytest.approx(2 * jaccard / (1 + jaccard))  # an identity of the two measures
    for value in (jaccard, f1, penalised):
        assert (value == 1) == (named == right) == (multiple_choice(text, truth) == 1)


def test_true_false() -> None:
    assert true_false(_says("False."), "false") == 1
    assert true_false(_says("true"), "false") == 0
    assert true_false(_says("true or false"), "false") == 0
    assert true_false(_says("B"), "B: False", options=["True", "False"]) == 1
    assert true_false(_says("no"), "B", options=["True", "False"]) == 1


def test_diagnosis_is_exact_up_to_writing_and_synonyms() -> None:
    truth = "Age-related macular degeneration"
    assert diagnosis(_says("AMD, left eye"), truth) == 1
    assert diagnosis(_says("Macular degeneration"), truth) == 0
    assert diagnosis(_says("macula rot"), truth, synonyms={"macula rot": "AMD"}) == 1


def _never(answer: str, truth: str) -> float:
    raise AssertionError(f"asked about {answer!r} and {truth!r}")


def test_a_matcher_is_asked_only_where_it_can_decide() -> None:
    truth = "Drusen"
    assert diagnosis(_says("drusen"), truth, matcher=_never) == 1
    assert diagnosis("drusen", truth, matcher=_never) == 0  # not well formed
    assert diagnosis(_says(""), truth, matcher=_never) == 0
    assert diagnosis(_says("x" * 1001), truth, matcher=_never) == 0
    seen: list[tuple[str, str]] = []

    def judge(answer: str, truth: str) -> float:
        seen.append((answer, truth))
        return 0.25

    assert diagnosis(_says("**Waste of the eye**"), truth, matcher=judge) == 0.25
    assert seen == [("Waste of the eye", "Drusen")]


def _raises(error: BaseException) -> Matcher:
    def judge(answer: str, truth: str) -> float:
        raise error

    return judge


def _says_always(verdict: Any) -> Matcher:
    def judge(answer: str, truth: str) -> float | None:
        return verdict

    return judge


@pytest.mark.parametrize(
    "judge",
    [
        _raises(RuntimeError("no connection")),
        _raises(TimeoutError()),
        _raises(AssertionError()),
        _says_always(None),
        _says_always(math.nan),
        _says_always(1.5),
        _says_always(-0.1),
        _says_always("yes"),
    ],
)
def test_a_judge_that_fails_leaves_the_item_unscorable(judge: Matcher) -> None:
    assert diagnosis(_says("x"), "Drusen", matcher=judge) is None
    assert score(_says("x"), "Drusen", task="diagnosis", matcher=judge) == Score(None, 1.0, None)


def test_a_missing_package_is_not_a_failure_of_the_judge() -> None:
    with pytest.raises(ImportError, match="rapidfuzz"):
        diagnosis(_says("x"), "Drusen", matcher=_raises(ImportError("rapidfuzz")))
    with pytest.raises(KeyboardInterrupt):
        diagnosis(_says("x"), "Drusen", matcher=_raises(KeyboardInterrupt()))


def test_a_judge_may_say_yes_or_no() -> None:
    assert diagnosis(_says("x"), "Drusen", matcher=_says_always(True)) == 1
    assert diagnosis(_says("x"), "Drusen", matcher=_says_always(False)) == 0


def test_the_total_is_the_weighted_sum() -> None:
    weighed = score(
        _says("A,B"), "A,B,D", task="multiple_choice", weights=(0.5, 2.0), partial="jaccard"
    )
    assert weighed == pytest.approx((0.5 * 1 + 2 * 2 / 3, 1, 2 / 3))
    assert score("B", "B", task="single_choice") == Score(0.0, 0.0, 0.0)
    loose = score("<answer>B</answer>", "B", task="single_choice", lenient=True, graded=True)
    assert loose == pytest.approx((2 / 5 + 1, 2 / 5, 1))


@pytest.mark.parametrize("task", sorted(TRUTHS))
def test_strict_pays_only_the_well_formed_and_lenient_the_answer(task: Any) -> None:
    truth = TRUTHS[task]
    broken = f"<answer>{truth}</answer>"
    assert score(_says(truth), truth, task=task) == Score(2.0, 1.0, 1.0)
    assert score(broken, truth, task=task) == Score(0.0, 0.0, 0.0)
    assert score(broken, truth, task=task, lenient=True) == Score(1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("task", "truth", "words"),
    [
        ("single_choice", "", "single_choice must name exactly one option, got ''"),
        ("single_choice", "A,C", "single_choice must name exactly one option, got 'A,C'"),
        ("single_choice", "Drusen", "single_choice must name exactly one option, got 'Drusen'"),
        ("multiple_choice", "?", r"multiple_choice must name one option or more, got '\?'"),
        ("true_false", "A", "true_false must be true or false, got 'A'"),
        ("true_false", "maybe", "true_false must be true or false, got 'maybe'"),
        # What only holds the place of an answer is none: neither N and A, nor no, nor a disease.
        *(
            (task, text, f"got '{text}'")
            for task in TRUTHS
            for text in ("N/A", "n.a.", "NA", "TBD", "unknown", "not available")
        ),
        ("diagnosis", "", "diagnosis must be a name within 1000 characters, got ''"),
        ("diagnosis", "left eye", "must be a name within 1000 characters, got 'left eye'"),
        ("diagnosis", "x" * 2000, "must be a name within 1000 characters, got 'x{80}'"),
        ("essay", "A", r"task must be one of \(.*'single_choice', .*\), got 'essay'"),
    ],
)
def test_a_reference_that_cannot_be_read_is_an_error(
    task: Any, truth: str, words: str, shapes_unchecked: None
) -> None:
    with pytest.raises(ValueError, match=words):
        check_reference(truth, task=task)
    with pytest.raises(ValueError, match=words):  # also where the completion says the same
        score(_says(truth), truth, task=task)


def test_a_reference_outside_the_options_is_an_error() -> None:
    with pytest.raises(ValueError, match="must name exactly one option, got 'C'"):
        check_reference("C", task="single_choice", options=["Drusen", "Glaucoma"])
    check_reference("B", task="single_choice", options=["Drusen", "Glaucoma"])


@pytest.mark.parametrize(
    ("files", "task"),
    [
        ("single_choice_*.json", "single_choice"),
        ("multi_choice_*.json", "multiple_choice"),
        ("complex_reason.json", "diagnosis"),
    ],
)
def test_every_reference_of_the_real_records_can_be_read(
    files: str, task: Any, real_data: Path
) -> None:
    paths = sorted((real_data / "mm_retinal_reason").glob(files))
    assert paths
    asked: set[tuple[str, str]] = set()  # many images share a question and its answer
    for path in paths:
        for record in json.loads(path.read_text(encoding="utf-8")):
            question, truth = (turn["value"] for turn in record["conversations"])
            asked.add((question, truth))
    for question, truth in asked:
        options = parse_options(question) or None
        check_reference(truth, task=task, options=options)
        assert score(_says(truth), truth, task=task, options=options).total == 2
        for letter, text in (options or {}).items():  # an option's own text is its letter
            as_text = score(_says(text), truth, task=task, options=options)
            as_letter = score(_says(letter), truth, task=task, options=options)
            assert as_text == as_letter


def test_settings_are_checked(shapes_unchecked: None) -> None:
    bad: Any = "half"
    with pytest.raises(ValueError, match=r"partial must be one of \(None, 'jaccard', .*'half'"):
        multiple_choice(_says("A"), "A", partial=bad)
    with pytest.raises(ValueError, match=r"partial must be one of .*, got 'half'"):
        Scorer(partial=bad)
    with pytest.raises(ValueError, match=r"task must be one of .*, got 'half'"):
        Scorer(task=bad)
    with pytest.raises(ValueError, match=r"task must be one of .*, got None"):
        Scorer()("", "A")
    for weights in ((-1.0, 1.0), (1.0, math.nan), (math.inf, 1.0)):
        with pytest.raises(ValueError, match="weights must be finite and not negative, got"):
            Scorer(weights=Weights(*weights))


@settings(deadline=None)
@given(TEXTS, st.booleans(), st.booleans())
def test_scoring_is_total_on_completions(text: str, lenient: bool, graded: bool) -> None:
    for task, truth in TRUTHS.items():
        kind: Any = task
        total, form, accuracy = score(text, truth, task=kind, lenient=lenient, graded=graded)
        assert accuracy is not None
        assert 0 <= form <= 1
        assert 0 <= accuracy <= 1
        assert total == form + accuracy


def _half(answer: str, truth: str) -> float:
    return 0.5


SCORER = Scorer(
    task="diagnosis", weights=Weights(0.5, 1.0), matcher=_half, synonyms={"sugar eye": "DR"}
)
JOBS = [(_says(answer), "diabetic retinopathy") for answer in ("DR", "sugar eye", "x", "")] * 25
WANTED = [1.5, 1.5, 1.0, 0.5] * 25


def _total(job: tuple[str, str]) -> float | None:
    return SCORER(*job).total


def test_a_scorer_pickles_and_compares() -> None:
    again = pickle.loads(pickle.dumps(SCORER))
    assert again == SCORER
    assert [again(*job).total for job in JOBS] == WANTED


def test_threads_agree() -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(_total, JOBS)) == WANTED


def test_processes_agree() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert [pool.submit(SCORER, *job).result().total for job in JOBS[:4]] == WANTED[:4]
