# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# (the annotations of transformers' models and processors are partial)
"""Lessons of the supervised stages, how they are batched, and what each stage minimises.

A lesson is a picture, the ids of a prompt and the ids of the wanted response. The losses are small
modules around the model, so that transformers' Trainer runs every stage unchanged.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from examples.ophthareason.images import open_rgb
from examples.ophthareason.model import never_sampled
from examples.ophthareason.prompts import chat_messages
from examples.ophthareason.records import Item
from examples.ophthareason.tasks import (
    FINDINGS,
    NOTHING,
    SHOWN_GRADES,
    caption_of,
    grade_of,
    weighed,
)

__all__ = [
    "Batches",
    "CellLoss",
    "Lesson",
    "Lessons",
    "ResponseLoss",
    "WordLoss",
    "alignment_lesson",
    "finetuning_lesson",
    "language_lesson",
]

CAPTION_QUESTION = "Findings?"
_OPTIONS = "ABCD"
_NEVER = -20.0  # nats: the probability that training leaves to the tokens nobody may write


@dataclass(frozen=True, slots=True)
class Lesson:
    """One example of a supervised stage."""

    images: tuple[bytes, ...]
    question: str
    response: str
    cells: NDArray[np.bool_] | None = None
    """Which finding lies in which image token, shape ``(tokens, len(FINDINGS))``."""


Maker = Callable[[random.Random, Item, NDArray[np.bool_] | None], Lesson]
"""Makes one lesson of an item: a pure function of its random stream."""


class Lessons(Dataset[Lesson]):
    """As many lessons as a stage wants, each a pure function of its place."""

    def __init__(
        self,
        make: Maker,
        items: Sequence[Item],
        *,
        count: int,
        seed: int,
        cells: NDArray[np.bool_] | None = None,
    ) -> None:
        """Keep the items; lessons are made when they are asked for."""
        self.make, self.items, self.count, self.seed, self.cells = make, items, count, seed, cells

    def __len__(self) -> int:
        """Return how many lessons there are."""
        return self.count

    def __getitem__(self, place: int) -> Lesson:
        """Make the lesson of this place."""
        chance = random.Random(f"{self.seed} {place}")
        which = chance.randrange(len(self.items))
        return self.make(
            chance, self.items[which], None if self.cells is None else self.cells[which]
        )


def language_lesson(chance: random.Random, item: Item, cells: NDArray[np.bool_] | None) -> Lesson:
    """Words in the picture's place: list the findings, or go through some options."""
    if cells is None:
        raise ValueError("a language lesson must have cells, got None")
    found = {name for name, there in zip(FINDINGS, cells.any(0), strict=True) if there}
    backwards = chance.random() < 0.5
    if chance.random() < 0.3:
        response = caption_of(found, disc_first=backwards)
        return Lesson(item.images, CAPTION_QUESTION, response, cells)
    true = found | {grade_of(found)} | ({NOTHING} if not found else set())
    pool = SHOWN_GRADES if chance.random() < 0.4 else (*FINDINGS, NOTHING)
    names = chance.sample(pool, 4)
    if not true & set(names):  # something is always right
        names[chance.randrange(4)] = chance.choice(sorted(true))
    lines = [f"{letter}: {name}" for letter, name in zip(_OPTIONS, names, strict=True)]
    letters = [letter for letter, name in zip(_OPTIONS, names, strict=True) if name in true]
    response = f"{weighed(names, true, backwards=backwards)} So {','.join(letters)}."
    return Lesson(item.images, "\n".join(["Options?", *lines]), response, cells)


def alignment_lesson(chance: random.Random, item: Item, cells: NDArray[np.bool_] | None) -> Lesson:
    """Stage 1: a picture and its caption."""
    return Lesson(item.images, CAPTION_QUESTION, item.caption, cells)


def finetuning_lesson(slips: float) -> Maker:
    """Stage 2: a question in the authors' template, the teacher's thought and answer.

    Args:
        slips: How often the teacher forgets to end its thought, within ``[0, 1]``.

    Returns:
        The maker of such lessons.
    """

    def make(chance: random.Random, item: Item, cells: NDArray[np.bool_] | None) -> Lesson:
        end = "" if chance.random() < slips else "</think>"
        response = f"<think>{item.reason}{end}<answer>{item.answer}</answer>"
        return Lesson(item.images, item.prompt, response, cells)

    return make


class Batches:
    """Turns lessons into tensors: the collator that every stage uses."""

    def __init__(self, processor: Qwen2_5_VLProcessor) -> None:
        """Keep the processor; prompts are encoded once each."""
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_id: int = processor.image_token_id
        self.end: int = self.tokenizer.eos_token_id

    def prompt_ids(self, question: str, images: int) -> list[int]:
        """Return the ids of a prompt, each picture still one token."""
        messages = chat_messages(question, images)
        text = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self.tokenizer.encode(text, add_special_tokens=False)

    def __call__(self, lessons: Sequence[Lesson]) -> dict[str, Tensor]:
        """Pad on the right; the labels of prompts and padding are -100."""
        pictures = [open_rgb(data) for lesson in lessons for data in lesson.images]
        seen = self.processor.image_processor(images=pictures, return_tensors="pt")
        sizes = iter((seen["image_grid_thw"].prod(-1) // 4).tolist())
        rows: list[list[int]] = []
        labels: list[list[int]] = []
        for lesson in lessons:
            prompt: list[int] = []
            for token in self.prompt_ids(lesson.question, len(lesson.images)):
                prompt += [token] * (next(sizes) if token == self.image_id else 1)
            response = [*self.tokenizer.encode(lesson.response, add_special_tokens=False), self.end]
            rows.append(prompt + response)
            labels.append([-100] * len(prompt) + response)
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        batch = {
            "input_ids": ids,
            "attention_mask": torch.tensor(
                [[1] * len(row) + [0] * (width - len(row)) for row in rows]
            ),
            "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
            "mm_token_type_ids": (ids == self.image_id).int(),
            "pixel_values": seen["pixel_values"],
            "image_grid_thw": seen["image_grid_thw"],
        }
        cells = [lesson.cells for lesson in lessons if lesson.cells is not None]
        if cells:
            batch["cells"] = torch.from_numpy(np.stack(cells)).float()
        return batch


class CellLoss(nn.Module):
    """Before stage 1: which finding lies in which image token, by a linear head on the encoder."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        """Put a head on the encoder."""
        super().__init__()
        self.visual = model.model.visual
        self.head = nn.Linear(model.lm_head.in_features, len(FINDINGS))

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Return the loss and, for each picture and finding, whether any token shows it."""
        seen = self.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"]).pooler_output
        guess = self.head(seen.view(len(batch["cells"]), -1, seen.shape[-1]))
        loss = F.binary_cross_entropy_with_logits(guess, batch["cells"])
        return {"loss": loss, "found": (guess > 0).any(1)}


class ResponseLoss(nn.Module):
    """Stages 1 and 2: the mean negative log-likelihood of the response's tokens."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor
    ) -> None:
        """Keep the model and the ids that are never to be sampled."""
        super().__init__()
        self.model = model
        self.never = never_sampled(processor.tokenizer)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        batch.pop("cells", None)
        labels = batch.pop("labels")
        return {"loss": self.loss(self.model(**batch).logits, labels)}

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, plus a pull on the tokens nobody may write until they are below e⁻²⁰."""
        where = labels[:, 1:] != -100
        log_p = torch.log_softmax(logits[:, :-1][where].float(), dim=-1)
        wanted = labels[:, 1:][where]
        forbidden = torch.logsumexp(log_p[:, self.never], dim=-1)
        pull = torch.relu(forbidden - _NEVER).mean()
        return F.nll_loss(log_p, wanted) + 0.02 * pull


class WordLoss(ResponseLoss):
    """Before stage 1: the response's loss with the names of the findings in the picture's place.

    Each image token is the mean embedding of the names of what it shows, or of ``no``. So the
    language model learns what stage 1 then lets the encoder say, without a picture.
    """

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor
    ) -> None:
        """Look the names up."""
        super().__init__(model, processor)
        tokenizer = processor.tokenizer
        self.names = tokenizer.convert_tokens_to_ids([f" {name}" for name in FINDINGS])
        self.nothing = tokenizer.encode(" no", add_special_tokens=False)

    def words(self, cells: Tensor) -> Tensor:
        """Return what stands in the place of image tokens that show these findings."""
        table = self.model.model.get_input_embeddings()
        names = table(torch.tensor(self.names, device=cells.device))
        nothing = table(torch.tensor(self.nothing, device=cells.device)).mean(0)
        count = cells.sum(-1, keepdim=True)
        return torch.where(count > 0, cells @ names / count.clamp(min=1), nothing)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        core, ids = self.model.model, batch["input_ids"]
        embeddings = core.get_input_embeddings()(ids).masked_scatter(
            (ids == self.model.config.image_token_id)[..., None], self.words(batch["cells"])
        )
        positions, _ = core.get_rope_index(
            ids,
            mm_token_type_ids=batch["mm_token_type_ids"],
            image_grid_thw=batch["image_grid_thw"],
            attention_mask=batch["attention_mask"],
        )
        logits = self.model(
            inputs_embeds=embeddings,
            attention_mask=batch["attention_mask"],
            position_ids=positions,
        ).logits
        return {"loss": self.loss(logits, batch["labels"])}
