"""Ask a checkpoint about one patient's pictures.

python -m examples.ophthareason.ask MODEL PICTURE [PICTURE …] --question "What is the diagnosis?"

MODEL is a folder or a name on the hub, such as ``lxirich/OphthaReason``. Research software: what it
answers is not a finding, and nothing here is for clinical use.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from examples.ophthareason.backends import BACKENDS, Answer
from examples.ophthareason.data import TaskName
from examples.ophthareason.evaluate import BackendName
from examples.ophthareason.images import ImageError, read_image
from examples.ophthareason.records import MAX_IMAGES, Item
from uadt.answers import parse_completion

__all__ = ["ask", "item_of", "main", "shown"]

DISCLAIMER = "Research software: not a finding, not for clinical use."
QUESTION = "What is the most likely diagnosis?"


def item_of(question: str, task: TaskName, pictures: list[Path]) -> Item:
    """Put a question and its pictures into the form that a model is trained on.

    Args:
        question: As it would stand in a record, lettered options included.
        task: What kind of answer it wants.
        pictures: One to six files.

    Returns:
        The item; its reference is empty.

    Raises:
        ValueError: If there are no pictures or more than six.
        ImageError: If a file is no picture, or one that is too large to decode safely.
    """
    if not 1 <= len(pictures) <= MAX_IMAGES:
        raise ValueError(f"a question must have 1 to {MAX_IMAGES} pictures, got {len(pictures)}")
    files = [path.resolve() for path in pictures]
    images = tuple(read_image(path.parent, path.name).data for path in files)
    return Item(id="asked", question=question, answer="", task=task.value, images=images)


def ask(model: str, item: Item, *, backend: str = "transformers", max_tokens: int = 2048) -> Answer:
    """Let a model answer one item, greedily.

    Args:
        model: A folder or a name on the hub.
        item: From `item_of`.
        backend: ``"transformers"`` or ``"vllm"``.
        max_tokens: Longest answer.

    Returns:
        What it wrote.
    """
    return BACKENDS[backend](model, max_tokens=max_tokens).answer([item])[0]


def shown(answer: Answer) -> str:
    """Return an answer for a reader: thought, answer, uncertainty, disclaimer."""
    parsed = parse_completion(answer.response)
    lines = [f"thought  {parsed.think}", f"answer   {parsed.answer}"]
    if not parsed.well_formed:
        lines = [f"not in the form <think>…</think><answer>…</answer>: {answer.response}"]
    if not answer.finished:
        lines.append("cut off: raise --max-tokens")
    if answer.entropy is not None:
        lines.append(f"entropy  {answer.entropy:.3f} nats a token, over {answer.tokens} tokens")
    # A model's text may hold codes that a terminal obeys.
    text = "\n".join([*lines, DISCLAIMER])
    return "".join(
        one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text
    )


def main(
    model: Annotated[str, typer.Argument(help="A folder, or a name on the hub")],
    pictures: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    question: Annotated[str, typer.Option(help="Lettered options included, if there are any")] = (
        QUESTION
    ),
    task: Annotated[TaskName, typer.Option(help="What kind of answer")] = TaskName.diagnosis,
    backend: Annotated[BackendName, typer.Option()] = BackendName.transformers,
    max_tokens: Annotated[int, typer.Option(min=1)] = 2048,
) -> None:
    """Ask, and print what came."""
    try:
        item = item_of(question, task, pictures)
    except (ImageError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    answer = ask(model, item, backend=backend.value, max_tokens=max_tokens)
    Console().print(shown(answer), markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
