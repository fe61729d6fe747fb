"""What a policy tries when it wants the reward without the answer."""

from typing import Any

import pytest

from uadt.rewards import Score, score

OPTIONS = {"A": "Drusen", "B": "Chorioretinitis", "C": "Glaucoma", "D": "Cataract", "E": "None"}
SYSTEM_PROMPT = (
    "You're a professional ophthalmologist.A conversation between User and Assistant. The user "
    "asks a question, and the Assistant solves it. The assistant first thinks about the reasoning "
    "process in the mind and then provides the user with the answer. The reasoning process and "
    "answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think><answer> answer here </answer>"
)
QUESTION = "Which finding fits?\n" + "\n".join(f"{key}: {text}" for key, text in OPTIONS.items())
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "single_choice": ("B", {"options": OPTIONS}),
    "multiple_choice": ("B,D", {"options": OPTIONS, "partial": "penalised"}),
    "true_false": ("True", {}),
    "diagnosis": ("Central retinal artery occlusion", {}),
}


def _says(answer: str, thought: str = "t") -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"


def _score(text: str, task: Any, **settings: Any) -> Score:
    truth, more = TASKS[task]
    return score(text, truth, task=task, **{**more, **settings})


EVERYTHING = {
    "single_choice": [
        "A,B,C,D,E",
        "ABCDE",
        "A B C D E",
        "B or A",
        "A/B",
        "B, or maybe C",
        "B. C.",
        "B (C)",
        "B: Chorioretinitis C: Glaucoma",
        "\n".join(OPTIONS.values()),
        QUESTION,
    ],
    "multiple_choice": ["A,B,C,D,E", "ABCDE", QUESTION, "\n".join(OPTIONS.values())],
    "true_false": ["True or false", "True/False", "True. False.", "Yes and no", "True, false"],
    "diagnosis": [
        "CRAO, CRVO, BRAO, BRVO",
        "CRAO or CRVO",
        "CRAO / CRVO",
        "CRAO (CRVO)",
        "1. CRAO\n2. CRVO",
        "CRAO CRAO",
        "CRAO of the left eye, CRVO of the right eye",
    ],
}


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("lenient", [False, True])
def test_naming_everything_earns_no_accuracy(task: str, lenient: bool) -> None:
    for answer in EVERYTHING[task]:
        accuracy = _score(_says(answer), task, lenient=lenient).accuracy
        # Penalised partial credit: two hits, three wrong of five: max(0, 2 - 3) / 2.
        assert accuracy == 0, answer


@pytest.mark.parametrize("task", sorted(TASKS))
def test_answering_more_than_once_earns_nothing(task: str) -> None:
    truth, _ = TASKS[task]
    right, wrong = f"<answer>{truth}</answer>", "<answer>x</answer>"
    for text in (
        f"<think>t</think>{wrong}{right}",
        f"<think>t</think>{right}{right}",
        f"<think>t</think>{right}" * 3,
        f"<think>t{wrong}</think>{right}",
        f"<think>t</think><answer>x{right}</answer>",
    ):
        assert _score(text, task) == Score(0.0, 0.0, 0.0), text


@pytest.mark.parametrize("task", sorted(TASKS))
def test_with_several_answers_lenient_takes_the_last(task: str) -> None:
    truth, _ = TASKS[task]
    right, wrong = f"<answer>{truth}</answer>", "<answer>x</answer>"
    assert _score(f"<think>t</think>{right}{wrong}", task, lenient=True).accuracy == 0
    assert _score(f"<think>t</think>{wrong}{right}", task, lenient=True).accuracy == 1


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("lenient", [False, True])
def test_an_answer_hidden_in_the_thought_earns_nothing(task: str, lenient: bool) -> None:
    truth, _ = TASKS[task]
    for text in (
        f"<think><answer>{truth}</answer></think>",
        f"<think><answer>{truth}</answer>",
        f"<think>\\boxed{{{truth}}}</think>",
        f"<think><answer>{truth}</answer></think><answer></answer>",
        f"<think>It is {truth}.</think><answer>see above</answer>",
        f"<think>t</think><think><answer>{truth}</answer></think>",
    ):
        assert _score(text, task, lenient=lenient).accuracy == 0, text


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("lenient", [False, True])
def test_a_huge_answer_earns_no_accuracy(task: str, lenient: bool) -> None:
    truth, _ = TASKS[task]
    for answer in (truth + " " * 10 + "x" * 1000, f"{truth}\n" * 2000, f"{truth} because " * 5000):
        assert _score(_says(answer), task, lenient=lenient).accuracy == 0


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("lenient", [False, True])
def test_an_echo_of_the_prompt_earns_no_accuracy(task: str, lenient: bool) -> None:
    for text in (SYSTEM_PROMPT, QUESTION, f"{SYSTEM_PROMPT}\n{QUESTION}", _says(QUESTION)):
        assert _score(text, task, lenient=lenient).accuracy == 0, text


@pytest.mark.parametrize("task", sorted(TASKS))
def test_an_echo_before_a_right_answer_costs_the_form(task: str) -> None:
    truth, _ = TASKS[task]
    assert _score(SYSTEM_PROMPT + _says(truth), task) == Score(0.0, 0.0, 0.0)
    assert _score(_says(truth, SYSTEM_PROMPT), task) == Score(0.0, 0.0, 0.0)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_tags_alone_earn_the_form_and_no_more(task: str) -> None:
    assert _score(_says("", ""), task) == Score(1.0, 1.0, 0.0)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_text_meant_for_the_code_is_only_text(task: str) -> None:
    for answer in ("__import__('os')", "{0.__class__}", "'; --", "%s%n", "\\N{BULLET}", "(?R)"):
        assert _score(_says(answer), task).accuracy == 0
