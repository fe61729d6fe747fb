"""Prompts with their pictures, as the tensors that a vision-language model reads."""

from collections.abc import Sequence
from typing import Any

from examples.ophthareason.images import open_rgb
from examples.ophthareason.prompts import chat_messages

__all__ = ["model_inputs"]


def model_inputs(processor: Any, asked: Sequence[tuple[str, Sequence[bytes]]]) -> Any:
    """Write the authors' messages and hand them with the pictures to a processor of transformers.

    Args:
        processor: Its tokenizer pads on the side that it is set to; generation wants the left.
        asked: Prompts, each with its pictures as the bytes of image files.

    Returns:
        A batch of tensors, one row a prompt.
    """
    texts = [
        processor.apply_chat_template(
            chat_messages(prompt, len(images)), tokenize=False, add_generation_prompt=True
        )
        for prompt, images in asked
    ]
    pictures = [[open_rgb(data) for data in images] for _, images in asked]
    return processor(text=texts, images=pictures, padding=True, return_tensors="pt")
