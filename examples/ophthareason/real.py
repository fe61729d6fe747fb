"""Real retinal images and records for the miniature, with traces and captions where they have none.

Public classification records name the right answer and nothing else. Stages 1 and 2 need captions
and thoughts, so both are templated from the record's own labels. That teaches a form and no
medicine; each such item says so in its title, the run folder keeps all of them with that mark, and
the report says how many there were.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.ophthareason.lessons import Batches
from examples.ophthareason.loading import read_records
from examples.ophthareason.model import load
from examples.ophthareason.records import UNKNOWN, Item
from examples.ophthareason.settings import Reinforcement
from examples.ophthareason.tasks import weighed

__all__ = [
    "CREDITS",
    "TEMPLATED",
    "fit_lengths",
    "read_real",
    "templated",
    "with_templates",
    "write_texts",
]

TEMPLATED = "TEMPLATED from the record's own labels"
"""How the title of an item begins whose trace or caption nobody wrote."""

CREDITS = {
    "idrid": "IDRiD dataset (c) Prasanna Porwal, Samiksha Pachade and Manesh Kokare, CC BY 4.0, "
    "https://creativecommons.org/licenses/by/4.0/; Porwal et al., Data 2018, 3(3):25. Cropped and "
    "resized.",
    "kermany_oct": "OCT images: Kermany D., Zhang K., Goldbaum M., Labeled Optical Coherence "
    "Tomography (OCT) and Chest X-Ray Images for Classification, Mendeley Data, v2, 2018, "
    "CC BY 4.0. Padded and resized.",
    "ffa": "FFA images: huapu4/FFA, doi:10.5281/zenodo.11212583, Apache License 2.0. Resized.",
}
"""What must be printed where pictures of these sources are shown."""


def read_real(folder: Path) -> tuple[list[Item], list[Item], int]:
    """Read records, each once, and split them by what they or their files say.

    Args:
        folder: A folder with records; images are looked up from it, and ``retina/images.csv`` in it
            is read if it is there.

    Returns:
        Items to practise on, held-out items, and how many traces were templated.

    Raises:
        ValueError: If either split is empty.
    """
    table = folder / "retina" / "images.csv"
    records = folder / "mm_retinal_reason"
    source = records if records.is_dir() else folder
    once: dict[tuple[str, str], Item] = {}  # one record may stand in two files
    for item in read_records(
        source, folder, image_table=table if table.is_file() else None, skip_bad=True
    ):
        key = (item.split, item.digest)
        if key not in once or once[key].source == UNKNOWN:
            once[key] = item
    items = [with_templates(item) for item in once.values()]
    practice = [item for item in items if item.split == "train"]
    test = [item for item in items if item.split == "test"]
    if not practice or not test:
        raise ValueError(
            f"{folder} must have items of both splits, got {len(practice)} train, {len(test)} test"
        )
    return practice, test, sum(map(templated, items))


def with_templates(item: Item) -> Item:
    """Give an item a thought and a caption if it has none.

    Args:
        item: As it was read.

    Returns:
        The same item, or one whose title begins with `TEMPLATED` and says which texts are.
    """
    missing = [name for name in ("reason", "caption") if not getattr(item, name)]
    if not missing:
        return item
    options = item.options
    chosen = [options[letter] for letter in item.answer.split(",") if letter in options]
    if options:
        thought = f"{weighed(list(options.values()), chosen)} So {item.answer}."
    else:
        thought = f"This is {item.answer}."
    said = " and ".join(chosen) or item.answer
    return replace(
        item,
        reason=item.reason or thought,
        caption=item.caption or f"{item.modality}: {said}.",
        title=f"{TEMPLATED}: {' and '.join(missing)}. {item.title}".strip(),
    )


def templated(item: Item) -> bool:
    """Whether a text of this item was made from its labels."""
    return item.title.startswith(TEMPLATED)


def write_texts(items: Iterable[Item], path: Path) -> None:
    """Keep what was learnt and asked, one item a line, without the pictures.

    Args:
        items: All items of a run.
        path: The file; ``title`` has the mark of `with_templates`.
    """
    names = ("id", "split", "source", "modality", "task", "title", "question", "answer")
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as lines:
        for item in items:
            texts = {name: getattr(item, name) for name in (*names, "reason", "caption")}
            lines.write(json.dumps(texts, ensure_ascii=False) + "\n")
    part.replace(path)


def fit_lengths(settings: Reinforcement, model: Path, items: list[Item]) -> Reinforcement:
    """Make room for prompts and answers that are longer than those of the phantoms.

    Args:
        settings: The numbers of stage 3.
        model: The model whose tokenizer counts.
        items: All items of the run.

    Returns:
        The same numbers, with ``max_prompt_tokens`` and ``max_new_tokens`` large enough for every
        item; an image is counted as the most tokens that the image processor gives it.
    """
    _, processor = load(model)
    batches = Batches(processor)
    sizes: Any = processor.image_processor.size
    pixels = sizes["longest_edge"]
    prompts = [
        len(batches.prompt_ids(item.prompt, len(item.images)))
        + len(item.images) * (pixels // 28**2 - 1)
        for item in items
    ]
    answers = [len(batches.tokenizer.encode(item.reason + item.answer)) + 8 for item in items]
    return replace(
        settings,
        max_prompt_tokens=max(settings.max_prompt_tokens, *prompts),
        max_new_tokens=max(settings.max_new_tokens, *answers),
    )
