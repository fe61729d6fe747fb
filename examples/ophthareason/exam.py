# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# (the annotations of transformers' models and processors are partial)
"""Let a small model sit the held-out items: greedy, sampled, and with the pictures swapped.

The swapped exam is the floor: questions keep their words and get another item's picture, so what is
still right was right without looking. Large models are evaluated by `evaluate`, item by item and
resumable; this is the quick form between the miniature's stages, which also samples, swaps pictures
and asks for captions.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from examples.ophthareason.inputs import model_inputs
from examples.ophthareason.lessons import CAPTION_QUESTION
from examples.ophthareason.model import load
from examples.ophthareason.records import Item
from examples.ophthareason.splits import Tell
from uadt.rewards import score

__all__ = [
    "EXAMS",
    "MOMENTS",
    "describe",
    "examine",
    "interval",
    "paired",
    "sit",
    "summary",
]

EXAMS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0},
    "swapped": {"swapped": True},
}
"""The likeliest answer; an answer as training samples it; the likeliest with another's picture."""

MOMENTS: Mapping[str, tuple[str, ...]] = {
    "pretrained": ("captions", "greedy"),
    "aligned": ("captions", "greedy"),
    "before": tuple(EXAMS),
    "after": tuple(EXAMS),
}
"""Before stage 1, after stages 1, 2 and 3, and the exams of each; ``before`` is before stage 3.
Captions are what stage 1 teaches; stage 2 turns the model to questions."""


def examine(
    when: str,
    folder: Path,
    items: Sequence[Item],
    run: Path,
    *,
    max_new_tokens: int,
    seed: int,
    tell: Tell,
) -> dict[str, list[dict[str, Any]]]:
    """Let the model of one moment sit its exams, and keep what it answered.

    Args:
        when: One of `MOMENTS`.
        folder: Where the model lies.
        items: The held-out items.
        run: The folder of the run; ``predictions/<when>-<exam>.json`` that is there stays.
        max_new_tokens: The longest answer.
        seed: Of the samples.
        tell: Told of progress.

    Returns:
        Exam to answers.
    """
    done: dict[str, list[dict[str, Any]]] = {}
    model = processor = None
    names = MOMENTS[when]
    for place, name in enumerate(names):
        path = run / "predictions" / f"{when}-{name}.json"
        if not path.is_file():
            if model is None or processor is None:
                model, processor = load(folder)

            def advance(count: int, offset: int = place * len(items)) -> None:
                tell(f"evaluation: {when}", offset + count, len(names) * len(items), {})

            if name == "captions":
                answers = describe(
                    model, processor, items, max_new_tokens=max_new_tokens, advance=advance
                )
            else:
                answers = sit(
                    model,
                    processor,
                    items,
                    max_new_tokens=max_new_tokens,
                    seed=seed,
                    advance=advance,
                    **EXAMS[name],
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(answers, indent=1))
            part.replace(path)
        done[name] = json.loads(path.read_text())
    return done


@torch.inference_mode()
def describe(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    items: Sequence[Item],
    *,
    max_new_tokens: int,
    batch: int = 50,
    advance: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Ask for the caption of every item, as stage 1 teaches it; the likeliest is taken.

    A caption is right if it says what the reference says, in any order. That is strict: one finding
    missed makes it wrong.

    Args:
        model: The model.
        processor: Its processor.
        items: With captions; others are passed over.
        max_new_tokens: The longest caption.
        batch: Items at a time.
        advance: Called with the number of items done.

    Returns:
        One record an item, as `sit`; ``format`` is whether the caption ended by itself.
    """
    model.eval()
    processor.tokenizer.padding_side = "left"
    known = [item for item in items if item.caption]
    done: list[dict[str, Any]] = []
    for start in range(0, len(known), batch):
        part = known[start : start + batch]
        asked = [(CAPTION_QUESTION, item.images) for item in part]
        written = _written(model, processor, asked, max_new_tokens=max_new_tokens)
        for item, (response, tokens, ended) in zip(part, written, strict=True):
            done.append(
                {
                    "id": item.id,
                    "task": "caption",
                    "source": item.source,
                    "answer": item.caption,
                    "response": response,
                    "tokens": tokens,
                    "format": float(ended),
                    "accuracy": float(_statements(response) == _statements(item.caption)),
                }
            )
        if advance:
            advance(len(done))
    return done


def _statements(caption: str) -> set[str]:
    return {part.strip(" .") for part in caption.split(",")}


def _written(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    asked: Sequence[tuple[str, tuple[bytes, ...]]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
) -> list[tuple[str, int, bool]]:
    """Return for each prompt and its pictures: the text, its tokens, and whether it ended."""
    inputs = model_inputs(processor, asked).to(model.device)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        **(sampling if temperature else {"do_sample": False}),
    )
    tokenizer = processor.tokenizer
    rows: list[tuple[str, int, bool]] = []
    for row in output[:, inputs["input_ids"].shape[1] :]:
        ids = row.tolist()
        ended = tokenizer.eos_token_id in ids
        end = ids.index(tokenizer.eos_token_id) if ended else len(ids)
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        rows.append((text, min(end + 1, len(ids)), ended))
    return rows


@torch.inference_mode()
def sit(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    items: Sequence[Item],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    swapped: bool = False,
    batch: int = 50,
    advance: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Answer every item once.

    Args:
        model: The model.
        processor: Its processor.
        items: The questions.
        max_new_tokens: The longest answer.
        temperature: 0 for the likeliest token; else a sample.
        seed: Of the samples.
        swapped: Whether each question gets the picture of the item half the list away.
        batch: Items at a time.
        advance: Called with the number of items done.

    Returns:
        One record an item: its id, task, source, response, tokens, format and accuracy.
    """
    model.eval()
    torch.manual_seed(seed)
    processor.tokenizer.padding_side = "left"
    done: list[dict[str, Any]] = []
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        other = [(start + place + len(items) // 2) % len(items) for place in range(len(part))]
        shown = [items[k] for k in other] if swapped else part
        asked = [(item.prompt, look.images) for item, look in zip(part, shown, strict=True)]
        written = _written(
            model, processor, asked, max_new_tokens=max_new_tokens, temperature=temperature
        )
        for item, (response, tokens, _) in zip(part, written, strict=True):
            points = score(response, item.answer, task=item.task)
            done.append(
                {
                    "id": item.id,
                    "task": item.task,
                    "source": item.source,
                    "answer": item.answer,
                    "response": response,
                    "tokens": tokens,
                    "format": points.format,
                    "accuracy": points.accuracy,
                }
            )
        if advance:
            advance(len(done))
    return done


def summary(answers: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Average answers by task, with 95 % intervals for accuracy.

    Args:
        answers: What `sit` returned.

    Returns:
        ``all`` and each task: ``n``, ``accuracy``, ``low``, ``high``, ``format`` and ``tokens``.
    """
    groups = {"all": list(answers)}
    for task in sorted({answer["task"] for answer in answers}):
        groups[task] = [answer for answer in answers if answer["task"] == task]
    table: dict[str, dict[str, float]] = {}
    for name, group in groups.items():
        right = sum(answer["accuracy"] or 0.0 for answer in group)
        low, high = interval(right, len(group))
        table[name] = {
            "n": len(group),
            "accuracy": right / len(group),
            "low": low,
            "high": high,
            "format": sum(answer["format"] for answer in group) / len(group),
            "tokens": sum(answer["tokens"] for answer in group) / len(group),
        }
    return table


def interval(right: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share.

    Args:
        right: How many were right.
        count: Out of how many, at least one.

    Returns:
        The bounds, within ``[0, 1]``.

    Example:
        >>> low, high = interval(5, 10)  # 0.5 ± 0.5 · 0.525…: symmetric about one half
        >>> round(low, 3), round(high, 3)
        (0.237, 0.763)
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    z = 1.959964
    share, weight = right / count, z * z / count
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * (share * (1 - share) / count + weight / (4 * count)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def paired(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
) -> tuple[float, float, float]:
    """Return the gain in accuracy on the same items, and its 95 % interval.

    The items are their own controls: the interval is narrower than the two of `summary` suggest.

    Args:
        before: Answers to the items, at least two.
        after: Answers to the same items in the same order.

    Returns:
        The mean difference and the bounds of its normal interval.

    Example:
        >>> was = [{"id": 1, "accuracy": 0.0}, {"id": 2, "accuracy": 1.0}]
        >>> now = [{"id": 1, "accuracy": 1.0}, {"id": 2, "accuracy": 1.0}]
        >>> [round(value, 2) for value in paired(was, now)]  # 0.5 ± 1.96 · 0.7071 / √2
        [0.5, -0.48, 1.48]
    """
    if [answer["id"] for answer in before] != [answer["id"] for answer in after]:
        raise ValueError("both exams must have the same items in the same order")
    gains = [
        (new["accuracy"] or 0.0) - (old["accuracy"] or 0.0)
        for old, new in zip(before, after, strict=True)
    ]
    mean = sum(gains) / len(gains)
    spread = sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
    half = 1.959964 * (spread / len(gains)) ** 0.5
    return mean, mean - half, mean + half
