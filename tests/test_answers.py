import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uadt.answers import (
    MAX_ANSWER,
    Completion,
    clean_answer,
    find_answer,
    fold,
    parse_completion,
    strip_lead,
    tag_counts,
)

BROKEN = Completion(None, None, False)
# Pieces from which broken forms are made; any character of Unicode may stand between them.
PIECES = (
    st.sampled_from(("<think>", "</think>", "<answer>", "</answer>", "<THINK>", "</Answer>"))
    | st.sampled_from(("<think", "answer>", "\\boxed{", "{", "}", "B", "```", "\n", " ", "Ｂ"))
    | st.sampled_from(("\ufeff", "\u200f", "\x00", "\ud800"))
    | st.text(max_size=4)
    | st.characters()
)
TEXTS = st.lists(PIECES, max_size=25).map("".join)


@pytest.mark.parametrize(
    ("text", "think", "answer"),
    [
        ("<think>t</think><answer>B</answer>", "t", "B"),
        (" \n<think> t </think>\n\n<answer>\nB\n</answer>\t", "t", "B"),  # white space is inert
        ("<think></think><answer></answer>", "", ""),  # empty is not missing
        ("<think>a < b > c </ d></think><answer>B</answer>", "a < b > c </ d>", "B"),
        ("<think>```x```</think><answer>B</answer>", "```x```", "B"),
        ("<think>\x00\ud800\u200f</think><answer>B</answer>", "\x00\ud800\u200f", "B"),
    ],
)
def test_a_well_formed_completion_is_split(text: str, think: str, answer: str) -> None:
    assert parse_completion(text) == Completion(think, answer, True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "<answer>B</answer>",  # no thought
        "<think>t</think>B",  # no answer element
        "<think>t</think><answer>B",  # cut off by the length limit
        "<think>t",
        "<answer>B</answer><think>t</think>",  # the wrong order
        "<think><answer>B</answer></think>",  # the answer is inside the thought
        "<think>t<answer></think>B</answer>",  # crossed
        "<think>t</think><answer>A</answer><answer>B</answer>",  # two answers
        "<think>t<answer>A</answer></think><answer>B</answer>",  # one more inside the thought
        "<think>a</think><think>b</think><answer>B</answer>",  # two thoughts
        "<think>t</think><answer>A<answer>B</answer></answer>",  # nested
        "<THINK>t</THINK><ANSWER>B</ANSWER>",  # another case is another form
        "<think>t <ANSWER>A</ANSWER></think><answer>B</answer>",  # but it is a tag
        "So: <think>t</think><answer>B</answer>",
        "<think>t</think>so<answer>B</answer>",
        "<think>t</think><answer>B</answer>.",
        "```\n<think>t</think><answer>B</answer>\n```",  # a code fence is no white space
        "\ufeff<think>t</think><answer>B</answer>",  # nor is a byte order mark
        "\u200f<think>t</think><answer>B</answer>",
        "<think>t</think><answer>B</answer>\x00",
        "< think>t</think><answer>B</answer>",
    ],
)
def test_a_broken_form_has_no_answer(text: str) -> None:
    assert parse_completion(text) == BROKEN
    assert find_answer(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>B</answer>", "B"),
        ("t</think><answer>B</answer>", "B"),  # the chat template opened the thought
        ("<think>t</think>It is <ANSWER> B </ANSWER>.", "B"),
        ("```\n<think>t</think><answer>B</answer>\n```", "B"),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),  # the last one
        ("<answer>A<answer>B</answer></answer>", "B"),  # the last complete one
        ("<answer>A</answer><answer>B", "A"),
        ("<answer>A</answer>\\boxed{B}", "A"),  # an element goes before a box
        ("It is \\boxed{A} or \\boxed{B}", "B"),
        ("\\boxed{\\text{B}}", "\\text{B}"),  # braces balance
        ("\\boxed{B", None),
        ("{\\boxed{B}", "B"),
        ("\\boxed{A} {\\boxed{", "A"),
        ("<think><answer>B</answer>", None),  # nothing inside a thought is an answer
        ("<think><answer>B</answer></think>", None),
        ("<think>\\boxed{B}", None),
        ("<think>t</think><answer>A</answer><think><answer>B</answer>", "A"),
        ("<answer>A</answer><think>t</think>", None),  # reading starts after the thought
        ("<answer>A<think>B</answer>", None),  # the element is not complete before the thought
        ("</answer>B<answer>", None),
        ("", None),
    ],
)
def test_lenient_reading_takes_the_last_answer_after_the_thought(
    text: str, answer: str | None
) -> None:
    assert find_answer(text, lenient=True) == answer


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_characters="<")), st.text(st.characters(exclude_characters="<"))
)
def test_what_is_put_in_comes_out(think: str, answer: str) -> None:
    text = f"<think>{think}</think><answer>{answer}</answer>"
    assert parse_completion(text) == Completion(think.strip(), answer.strip(), True)
    assert find_answer(text, lenient=True) == answer.strip()


@settings(deadline=None)
@given(TEXTS)
def test_reading_is_total_and_strict_agrees_with_lenient(text: str) -> None:
    parsed = parse_completion(text)
    assert parsed.well_formed == (parsed.answer is not None) == (parsed.think is not None)
    if parsed.well_formed:
        assert tag_counts(text) == (1, 1, 1, 1)
        assert find_answer(text, lenient=True) == parsed.answer
    answer = find_answer(text, lenient=True)
    assert answer is None or answer in text
    for read in (clean_answer, fold, strip_lead):
        assert len(read(text)) <= 18 * len(text)  # no compatibility form is longer than 18 letters


@settings(deadline=None)
@given(TEXTS)
def test_any_further_tag_breaks_the_form(text: str) -> None:
    well_formed = "<think>t</think><answer>B</answer>"
    for tag in ("<think>", "</think>", "<answer>", "</answer>", "<Answer>"):
        assert not parse_completion(f"{text}{tag}{well_formed}").well_formed
        assert not parse_completion(f"<think>{tag}{text}</think><answer>B</answer>").well_formed


@pytest.mark.parametrize(
    ("answer", "cleaned"),
    [
        ("  B\t", "B"),
        ("**B**", "B"),
        ("`B`", "B"),
        ("```\nB\n```", "B"),
        ("```text\nB\n```", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ('"B"', "B"),
        ("“Drusen”", "Drusen"),
        ("**B**: *Drusen*", "B: Drusen"),  # markup may stand anywhere
        ("* A\n* `C`", "A\nC"),
        ("1) AMD\n2) PDR", "AMD\nPDR"),
        (r"\(B\)", "B"),
        ("<strong>B</strong>", "B"),
        ("type_2_MNV _here_", "type_2_MNV here"),  # inside a word it is no markup
        ("1.5 - 2", "1.5 - 2"),
        ("ＡＢ", "AB"),  # full width
        ("\ufeff\u200fB\u200e", "B"),
        ("a\x00b", "a b"),
        ("a \r\n  b", "a\nb"),
        ("x" * MAX_ANSWER, "x" * MAX_ANSWER),
        ("x" * (MAX_ANSWER + 1), ""),  # an essay names nothing
        ("** **", ""),  # emphasis of nothing
    ],
)
def test_what_surrounds_an_answer_goes(answer: str, cleaned: str) -> None:
    assert clean_answer(answer) == cleaned


@settings(deadline=None)
@given(TEXTS)
def test_folding_twice_is_folding_once(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("The answer is B", "B"),
        ("the final answer: B", "B"),
        ("Option B", "B"),
        ("So, the most likely diagnosis is drusen.", "drusen."),
        ("The statement is false.", "false."),
        ("Best disease", "Best disease"),  # a name, not a lead
        ("Answers", ""),
        ("B", "B"),
    ],
)
def test_a_lead_is_passed_over(text: str, rest: str) -> None:
    assert strip_lead(text) == rest


def _seconds(function: Callable[[str], object], text: str) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        function(text)
        best = min(best, time.process_time() - started)
    return best


@pytest.mark.parametrize(
    "unit",
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<think><answer>",
        "<answer></answer>",
        "<answer>B",
        "\\boxed{",
        "\\boxed{}",
        "{",
        "<",
        "</",
        " ",
        "\u0301",  # combining marks: sorting them is quadratic where they are normalised
        "\ufeff",
        "`",
        "*",
    ],
)
def test_eight_times_the_text_takes_no_more_than_some_twenty_times_the_work(unit: str) -> None:
    def work(text: str) -> None:
        parse_completion(text)
        answer = find_answer(text, lenient=True)
        find_answer(f"<think>{text}</think><answer>{text}</answer>", lenient=True)
        clean_answer(answer or text)
        fold(text)

    small, large = 1 << 16, 1 << 19
    # Linear work grows 8 times, quadratic work 64 times; 10 ms cover what does not grow.
    short = _seconds(work, unit * (small // len(unit)))
    assert _seconds(work, unit * (large // len(unit))) < 24 * (short + 0.01)


def test_a_megabyte_of_opened_thoughts_is_broken() -> None:
    assert parse_completion("<think>" * 150_000) == BROKEN
    assert find_answer("<think>" * 150_000 + "<answer>B</answer>", lenient=True) is None


BLOCKED = """
    import sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("torch", "numpy", "jaxtyping"):
                raise ImportError(f"{name} is blocked")

    sys.meta_path.insert(0, Block())
"""


def _without_tensors(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BLOCKED) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )


def test_answers_and_rewards_work_without_torch() -> None:
    done = _without_tensors("""
        import uadt
        import uadt.rewards
        import uadt.integrations.reward_functions
        assert uadt.answers.parse_completion("<think>t</think><answer>B</answer>").answer == "B"
        text = "<think>t</think><answer>CRAO</answer>"
        truth = "Central retinal artery occlusion"
        assert uadt.rewards.score(text, truth, task="diagnosis").total == 2
        assert "torch" not in sys.modules
    """)
    assert done.returncode == 0, done.stderr


def test_the_block_of_that_test_works() -> None:
    done = _without_tensors("import torch")
    assert done.returncode != 0
    assert "torch is blocked" in done.stderr
