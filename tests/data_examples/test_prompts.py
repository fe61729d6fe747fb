"""The prompts are the authors' own, and nothing in a question can break out of them."""

import pytest

from examples.ophthareason.prompts import (
    IMAGE_MARK,
    SYSTEM_PROMPT,
    TEMPLATES,
    chat_messages,
    marked_messages,
    user_text,
)
from uadt.rewards import Task

# Copied a second time from eval/eval.py at 58f0eaa, each as the one line that Python makes of it.
SYSTEM = "You're a professional ophthalmologist.A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think><answer> answer here </answer>"  # noqa: E501
SINGLE = "{Question}. First output the thinking process in English in <think> </think> tags and then output the final answer in English in <answer> </answer> tags. The final answer must be uppercase letters (e.g., B). Note that this is a single-choice question with only one correct answer. Carefully analyze all options."  # noqa: E501
MULTI = "{Question}. First output the thinking process in English in <think> </think> tags and then output the final answer in English in <answer> </answer> tags. The final answer must be uppercase letters separated by commas without spaces (e.g., B,E,F). Note that this is a multiple-choice question with potentially multiple correct answers. Carefully analyze all options."  # noqa: E501
COMPLEX = "{Question}. First output the thinking process in English in <think> </think> tags. Then output the final answer (just the name of the disease/entity) in English in <answer> </answer> tags."  # noqa: E501


def test_the_texts_are_the_authors_to_the_letter() -> None:
    assert SYSTEM_PROMPT == SYSTEM
    assert TEMPLATES["single_choice"] == SINGLE
    assert TEMPLATES["multiple_choice"] == MULTI
    assert TEMPLATES["diagnosis"] == COMPLEX


@pytest.mark.parametrize("question", ["Is {it} so?", "{Question}", "{}", "{0[0]}", "50%"])
def test_braces_in_a_question_are_only_text(question: str) -> None:
    # The authors' str.format would raise on a template, never on the question it fills in.
    assert user_text(question, "diagnosis", lettered=False) == COMPLEX.format(Question=question)


def test_true_false_with_letters_is_asked_as_a_single_choice() -> None:
    assert user_text("Q", "true_false", lettered=True) == SINGLE.replace("{Question}", "Q")
    assert user_text("Q", "true_false", lettered=False).endswith("must be True or False.")


def test_an_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"task must be one of .*'diagnosis'.*, got 'essay'"):
        user_text("Q", "essay", lettered=False)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("images", [0, 1, 6])
def test_text_comes_first_and_then_the_images(images: int) -> None:
    system, user = marked_messages("text", images)
    assert system == {"role": "system", "content": SYSTEM}
    assert user == {"role": "user", "content": "text" + IMAGE_MARK * images}
    parts = chat_messages("text", images)[1]["content"]
    assert parts == [{"type": "text", "text": "text"}, *[{"type": "image"}] * images]


@pytest.mark.parametrize("task", ["single_choice", "multiple_choice", "diagnosis"])
def test_the_template_follows_the_question_with_its_full_stop(task: Task) -> None:
    assert user_text("What?", task, lettered=False).startswith("What?. First output")
