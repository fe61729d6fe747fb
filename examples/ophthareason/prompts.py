"""The authors' prompts, word for word, and the messages that carry them.

The texts are those of ``eval/eval.py`` in ``lxirich/OphthaReason`` at commit 58f0eaa (*stated*).
The system prompt has no space after "ophthalmologist." there, so it has none here; a question that
ends in a question mark is followed by the template's full stop all the same.
"""

from collections.abc import Mapping
from typing import Any, get_args

from uadt.rewards import Task

__all__ = [
    "IMAGE_MARK",
    "SYSTEM_PROMPT",
    "TASKS",
    "TEMPLATES",
    "Task",
    "chat_messages",
    "marked_messages",
    "user_text",
]

TASKS: tuple[Task, ...] = get_args(Task)
"""What kind of answer a question wants, by the names of ``uadt.rewards``."""

IMAGE_MARK = "<image>"
"""Where an image stands in a prompt that is plain text: verl counts these marks."""

SYSTEM_PROMPT = (
    "You're a professional ophthalmologist."
    "A conversation between User and Assistant. The user asks a question, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer. The reasoning process and answer are enclosed within "
    "<think> </think> and <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think><answer> answer here </answer>"
)

_THINK_THEN_ANSWER = (
    "{Question}. First output the thinking process in English in <think> </think> tags and then "
    "output the final answer in English in <answer> </answer> tags. "
)
_SINGLE = (
    _THINK_THEN_ANSWER + "The final answer must be uppercase letters (e.g., B). "
    "Note that this is a single-choice question with only one correct answer. "
    "Carefully analyze all options."
)
_MULTI = (
    _THINK_THEN_ANSWER
    + "The final answer must be uppercase letters separated by commas without spaces "
    "(e.g., B,E,F). Note that this is a multiple-choice question with potentially multiple "
    "correct answers. Carefully analyze all options."
)
_COMPLEX = (
    "{Question}. First output the thinking process in English in <think> </think> tags. "
    "Then output the final answer (just the name of the disease/entity) in English in "
    "<answer> </answer> tags."
)
_TRUE_FALSE = _THINK_THEN_ANSWER + "The final answer must be True or False."

TEMPLATES: Mapping[Task, str] = {
    "single_choice": _SINGLE,
    "multiple_choice": _MULTI,
    "true_false": _TRUE_FALSE,
    "diagnosis": _COMPLEX,
}
"""One template a task. The three of the authors, and one of *ours* for a true/false question that
has no lettered options: their data has true/false questions, their script has no template for them.
One with options ``A: True`` and ``B: False`` is asked with their single-choice template."""


def user_text(question: str, task: Task, *, lettered: bool) -> str:
    """Put a question into the template of its task.

    Args:
        question: The question, options included, as the record has it.
        task: The kind of answer it wants.
        lettered: Whether the question has lettered options. A true/false question with letters is
            asked with the single-choice template.

    Returns:
        The text of the user's message, without images.

    Raises:
        ValueError: If ``task`` is not one of `TASKS`.
    """
    if task not in TEMPLATES:
        raise ValueError(f"task must be one of {list(TASKS)}, got {task!r}")
    template = TEMPLATES["single_choice" if task == "true_false" and lettered else task]
    # Not str.format: a question may contain braces.
    return template.replace("{Question}", question, 1)


def marked_messages(text: str, images: int) -> list[dict[str, str]]:
    """Return the conversation as plain strings, each image a ``<image>`` mark: verl's form.

    Text first, then the images, as the authors send them.

    Args:
        text: The user's text, from `user_text`.
        images: How many images follow it.

    Returns:
        The system message and the user message.
    """
    return [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": text + IMAGE_MARK * images},
    ]


def chat_messages(text: str, images: int) -> list[dict[str, Any]]:
    """Return the conversation with structured content: the form of TRL and of chat templates.

    Text first, then the images, as the authors send them. The images themselves are passed beside
    it.

    Args:
        text: The user's text, from `user_text`.
        images: How many images follow it.

    Returns:
        The system message and the user message, each with a list of parts.
    """
    user: list[dict[str, Any]] = [{"type": "text", "text": text}]
    user += [{"type": "image"} for _ in range(images)]
    return [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
        {"role": "user", "content": user},
    ]
