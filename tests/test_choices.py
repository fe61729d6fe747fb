from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_answers import TEXTS
from uadt.answers import MAX_ANSWER
from uadt.choices import option_letters, parse_options, read_letters, read_verdict

OPTIONS = {
    "A": "Drusen",
    "B": "Vitamin A deficiency",
    "C": "Haemorrhage, flame and dot",
    "D": "Chorioretinitis",
}
VERDICTS = {"A": "True", "B": "False"}


def _set(letters: str | None) -> frozenset[str] | None:
    return None if letters is None else frozenset(letters)


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("[b]", "B"),
        ("B.", "B"),
        ("B)", "B"),
        ("B:", "B"),
        ("**B**", "B"),
        ("**B**: Chorioretinitis", "B"),  # markup may stand anywhere
        ("**B.** Chorioretinitis", "B"),
        ("`B`: Chorioretinitis", "B"),
        ("__B__: Chorioretinitis", "B"),
        ("$B$: Chorioretinitis", "B"),
        (r"\boxed{B}: Chorioretinitis", "B"),
        ("<b>B</b>", "B"),
        ("(**B**)", "B"),
        ("- B", "B"),  # an item of a list
        ("1. B", "B"),
        ("**Answer:** B", "B"),
        ("The correct answer is option B", "B"),
        ("B\ufe0f", "B"),  # with a variation selector
        ("B。", "B"),
        ("Ｂ", "B"),  # full width
        ("（Ｂ）", "B"),
        ("\u200fB\u200f", "B"),
        ("\\boxed{B}", "B"),
        ("B B", "B"),  # said twice is still one
        ("B: Chorioretinitis", "B"),
        ("b: chorioretinitis", "B"),
        ("(B) Chorioretinitis", "B"),
        ("B - Chorioretinitis", "B"),
        ("B (Chorioretinitis)", "B"),
        ("The answer is (B).", "B"),
        ("Answer: **B**", "B"),
        ("Option B", "B"),
        ("B: the B-scan shows fluid", "B"),  # a letter with a hyphen is part of a word
        ("A,B,D", "ABD"),
        ("d; b / A", "ABD"),
        ("A, B and D", "ABD"),
        ("A and B", "AB"),
        ("['A', 'B']", "AB"),
        ("both A and B", "AB"),
        ("**A**, **B**", "AB"),
        ("- A\n- B", "AB"),
        ("1. A\n2. B", "AB"),
        ("**A**: Drusen\n**B**: Chorioretinitis", "AB"),
        ("ABD", "ABD"),
        ("A\nB", "AB"),
        ("A: Drusen, D: Chorioretinitis", "AD"),
        ("A. Drusen\nD. Chorioretinitis", "AD"),
        ("B: Chorioretinitis or C", "BC"),  # a capital that stands alone is one more letter
        ("D: Vitamin A deficiency", "AD"),  # even here, as long as the options are not known
        ("A or B", None),  # undecided
        ("ABA", None),  # not a set of letters
        ("N/A", None),  # not available: neither N nor A
        ("n/a", None),
        ("n.a.", None),
        ("NA", None),
        ("TBD", None),
        ("PDR", None),  # a name
        ("TRUE", None),
        ("Chorioretinitis", None),
        ("A disease of the retina", None),
        ("I do not know", None),
        ("B1", None),
        ("", None),
        ("?", None),
        ("and", None),
    ],
)
def test_letters_are_read_without_options(answer: str, letters: str | None) -> None:
    assert read_letters(answer) == _set(letters)


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("D", "D"),
        ("E", None),  # no such option
        ("A,E", None),
        ("drusen", "A"),
        ("Drusen.", "A"),
        ("The answer is drusen", "A"),
        ("haemorrhage - flame and dot", "C"),  # its comma and its "and" are its own
        ("B: Vitamin A deficiency", "B"),  # and so is its capital
        ("B Vitamin A deficiency", "B"),
        ("(B) vitamin a deficiency", "B"),
        ("B, vitamin A deficiency", "B"),
        ("Vitamin A deficiency (B)", "B"),
        ('"B": "Vitamin A deficiency"', "B"),
        ("Vitamin A deficiency (D)", None),  # not its letter
        ("A: Drusen, B: Vitamin A deficiency", "AB"),
        ("Drusen, Chorioretinitis", "AD"),
        ("Drusen and chorioretinitis", "AD"),
        ("Drusen; Haemorrhage, flame and dot", "AC"),
        ("A: Drusen of the macula", "A"),  # a text of no option leaves the letter
        ("B: Drusen", None),  # a text of another option takes it away
        ("A: Drusen, B: Drusen", None),
        ("Drusen, glaucoma", None),
        ("D: see option A", "AD"),
    ],
)
def test_letters_are_read_with_options(answer: str, letters: str | None) -> None:
    assert read_letters(answer, options=OPTIONS) == _set(letters)
    assert read_letters(answer, options=list(OPTIONS.values())) == _set(letters)


def test_a_text_that_two_options_share_names_neither() -> None:
    options = {"A": "Drusen", "B": "drusen.", "C": "Glaucoma"}
    assert read_letters("Drusen", options=options) is None
    assert read_letters("Glaucoma", options=options) == {"C"}


def test_an_answer_over_the_limit_names_nothing() -> None:
    assert read_letters("B" + " " * (MAX_ANSWER - 1)) == {"B"}
    assert read_letters("B" + " " * MAX_ANSWER) is None
    assert read_verdict("true" + " " * MAX_ANSWER) is None


@settings(deadline=None)
@given(st.sets(st.sampled_from("ABCDEFGH"), min_size=1), st.randoms())
def test_order_case_blanks_and_repetition_do_not_matter(letters: set[str], random: Random) -> None:
    written = sorted(letters) * 2
    random.shuffle(written)
    text = " , ".join(c.lower() if at % 2 else c for at, c in enumerate(written))
    assert read_letters(text) == letters


@settings(deadline=None)
@given(TEXTS)
def test_reading_a_choice_is_total(text: str) -> None:
    for options in (None, OPTIONS):
        letters = read_letters(text, options=options)
        assert letters is None or (letters and letters <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    assert read_verdict(text) in (True, False, None)
    assert read_verdict(text, options=VERDICTS) in (True, False, None)
    assert isinstance(parse_options(text), dict)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("True", True),
        ("true.", True),
        ("(TRUE)", True),
        ("yes", True),
        ("T", True),
        ("Correct", True),
        ("False", False),
        ("no", False),
        ("N", False),
        ("A: True", True),
        ("(B) False.", False),
        ("The statement is false.", False),
        ("The answer is: **False**", False),
        ("True, there is no haemorrhage", True),  # a reason may hold a "no"
        ("False: the disc is pale", False),
        ("True or false", None),
        ("True. False.", None),
        ("Yes. No.", None),
        ("True, no, false", None),
        ("True, F", None),
        ("T. F.", None),
        ("False. T", None),
        ("True (F)", None),
        ("yes\nN", None),
        ("True, T.", True),
        ("False, they don't.", False),  # the end of a word is no letter
        ("True, a T-shaped lesion", True),
        ("not true", None),
        ("No haemorrhage", None),
        ("A", None),
        ("", None),
        ("truest", None),
        ("n.a.", None),  # not available: no verdict
        ("N/A", None),
        ("**True**: it is so", True),
    ],
)
def test_verdicts_are_read(answer: str, verdict: bool | None) -> None:
    assert read_verdict(answer) is verdict


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("A", True),
        ("b", False),
        ("B: False", False),
        ("False", False),
        ("The answer is B", False),
        ("A: False", None),  # the letter and its text contradict each other
        ("A, B", None),
        ("C", None),
    ],
)
def test_verdicts_are_read_by_their_letter(answer: str, verdict: bool | None) -> None:
    assert read_verdict(answer, options=VERDICTS) is verdict


def test_options_are_read_from_a_question() -> None:
    question = "Which grade?\nA: None\n(B) Mild, or so\nC. Severe\nD) x\nE : y"
    expected = {"A": "None", "B": "Mild, or so", "C": "Severe", "D": "x", "E": "y"}
    assert parse_options(question) == expected
    assert parse_options("A patient.\nB: x\nA: y\nC: z") == {}  # only A stands in its place
    assert parse_options("Vision A: 6/6 B: 6/9") == {}


def test_options_are_checked(shapes_unchecked: None) -> None:
    with pytest.raises(ValueError, match="options must have the keys A to Z, got 'a'"):
        option_letters({"a": "Drusen"})
    with pytest.raises(ValueError, match="options must be at most 26, got 27"):
        option_letters(["x"] * 27)
    with pytest.raises(ValueError, match=r"got the string 'A: x'; uadt\.choices\.parse_options"):
        option_letters("A: x")
    with pytest.raises(ValueError, match="options of true or false must say which, got B: 'x'"):
        read_verdict("True", options=["True", "x"])
