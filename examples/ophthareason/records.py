"""One question with its images, and the record of MM-Retinal-Reason that it comes from.

A record is checked field by field before anything is made of it; the error names file, record and
field.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from examples.ophthareason.images import CheckedImage
from examples.ophthareason.prompts import IMAGE_MARK, TASKS, user_text
from uadt.choices import parse_options, read_letters, read_verdict
from uadt.rewards import Task, check_reference

__all__ = [
    "MAX_IMAGES",
    "UNKNOWN",
    "Item",
    "Record",
    "RecordError",
    "parse_answer_key",
    "parse_record",
    "task_of_name",
]

MAX_IMAGES = 6
"""The authors' evaluation allows six images a prompt (*stated*)."""
MAX_TEXT = 200_000
"""Characters in one field (*ours*): no question is a book."""
UNKNOWN = "unknown"
"""What a record does not say and no table knows. Nothing is guessed from a path."""

_MODEL_MARKS = re.compile(
    r"<\|[A-Za-z0-9_]{1,40}\|>|<video>|<audio>|</?img>|<IMG_CONTEXT>", re.IGNORECASE
)
_NAME = re.compile(r"(single|multi)_choice_(train|test)_data_([A-Z]+)")


class RecordError(ValueError):
    """A record that is refused.

    Args:
        file: The file it is in, as the user named it.
        record: Its place in the file, from 0; ``None`` if the file itself is at fault.
        field: The field at fault, such as ``conversations[1].value``; empty for the record as a
            whole.
        problem: What is wrong with it.
    """

    def __init__(self, file: str, record: int | None, field: str, problem: str) -> None:
        """Keep the parts, and compose the message."""
        self.file, self.record, self.field, self.problem = file, record, field, problem
        place = file if record is None else f"{file}[{record}]"
        super().__init__(": ".join(part for part in (place, field, problem) if part))

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive pickling, which calls the class with the message alone."""
        return type(self), (self.file, self.record, self.field, self.problem)


def _clean(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise ValueError(f"must have at most {MAX_TEXT} characters, got {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode, got a lone surrogate") from None
    if "\0" in text:
        raise ValueError("must not contain NUL")
    return text


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _unmarked(text: str) -> str:
    match = _MODEL_MARKS.search(text)
    if match:  # a tokenizer would read it as an image or the end of a turn
        raise ValueError(f"must not contain a model's own mark, got {match[0]!r}")
    return text


Text = Annotated[str, AfterValidator(_clean), AfterValidator(_unmarked)]
Filled = Annotated[Text, AfterValidator(_filled)]
Label = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_clean)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class _Human(_Strict):
    role: Literal["human"] = Field(alias="from")
    value: Filled


class _Gpt(_Strict):
    role: Literal["gpt"] = Field(alias="from")
    value: Filled


Image = Annotated[str, Field(min_length=1)]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Record(_Strict):
    """A checked record; its images are still names or base64 text."""

    image: Annotated[
        list[Image], BeforeValidator(_listed), Field(min_length=1, max_length=MAX_IMAGES)
    ]
    conversations: Annotated[tuple[_Human, _Gpt], Field(strict=False)]
    reason: Text | None = None
    pmcid: Text | None = None
    title: Text | None = None
    caption: Text | None = None
    # The rest is ours: what this project writes, and what a file may say instead of its name.
    id: Label | None = None
    task: Task | None = None
    modality: Label | None = None
    source: Label | None = None
    domain: Literal["in-domain", "out-of-domain", "unknown"] | None = None
    split: Label | None = None

    @property
    def question(self) -> str:
        """The question without image marks: those are set by the writer."""
        return self.conversations[0].value.replace(IMAGE_MARK, "").strip()

    @property
    def answer(self) -> str:
        """The reference answer."""
        return self.conversations[1].value.strip()

    @property
    def ignored(self) -> list[str]:
        """Fields that the record has and nobody reads; the report counts them."""
        extra = list(self.model_extra or {})
        for turn in self.conversations:
            extra += [f"conversations[].{name}" for name in turn.model_extra or {}]
        return extra


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question with its images, ready for any writer or model."""

    id: str
    """Unique in its data set, and equal in every reading."""
    question: str
    """As the record has it, lettered options included, image marks removed."""
    answer: str
    """The reference in canonical form: ``B``, ``A,C``, ``True`` or a name."""
    task: Task
    """How the answer is judged."""
    images: tuple[bytes, ...]
    """The files of one to six images, each decoded once when it was read."""
    pixels: tuple[str, ...] = ()
    """A hash of each image's pixels, for duplicates and leakage."""
    modality: str = UNKNOWN
    """``CFP``, ``FFA``, ``OCT``, … as stated by record, table or the authors' file name."""
    source: str = UNKNOWN
    """The public data set the image is from, as stated by record or table."""
    domain: str = UNKNOWN
    """``in-domain`` or ``out-of-domain`` by the authors' table."""
    split: str = UNKNOWN
    """``train`` or ``test``."""
    reason: str = ""
    """The reasoning trace, empty if there is none."""
    caption: str = ""
    """The caption of the image, empty if there is none."""
    title: str = ""
    """Title of the article that a complex question is from."""
    pmcid: str = ""
    """PubMed Central's number of that article."""

    @cached_property
    def options(self) -> dict[str, str]:
        """Letter to text, empty for a question without lettered options."""
        return parse_options(self.question)

    @property
    def kind(self) -> str:
        """The task as a reader counts it: a choice of True or False is ``true_false``."""
        if self.task == "single_choice" and is_true_false(self.options):
            return "true_false"
        return self.task

    @cached_property
    def prompt(self) -> str:
        """The user's text: the question in the authors' template."""
        return user_text(self.question, self.task, lettered=bool(self.options))

    @cached_property
    def digest(self) -> str:
        """A hash of all that a model sees and of the reference: equal items ask the same thing."""
        seen = json.dumps(
            [self.prompt, self.answer, self.task, [_sha(image) for image in self.images]]
        )
        return _sha(seen.encode())


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_true_false(options: Mapping[str, str]) -> bool:
    """Whether the lettered options are just true and false."""
    return sorted(text.casefold().rstrip(".") for text in options.values()) == ["false", "true"]


def task_of_name(stem: str) -> tuple[Task | None, str | None, str | None]:
    """Read task, split and modality off the authors' file names.

    Args:
        stem: A file name without suffix.

    Returns:
        The three, each ``None`` where the name does not say.

    Example:
        >>> task_of_name("multi_choice_test_data_CFP")
        ('multiple_choice', 'test', 'CFP')
        >>> task_of_name("complex_reason")
        ('diagnosis', None, None)
    """
    if stem == "complex_reason":
        return "diagnosis", None, None
    match = _NAME.fullmatch(stem)
    if match is None:
        return None, None, None
    return ("single_choice" if match[1] == "single" else "multiple_choice"), match[2], match[3]


def parse_answer_key(answer: str, task: Task, options: Mapping[str, str]) -> str:
    """Bring a reference answer into the form that the rewards read.

    Args:
        answer: The reference as the record has it.
        task: How it will be judged.
        options: The lettered options of the question, empty if it has none.

    Returns:
        One letter, sorted letters with commas, ``True`` or ``False``, or the name.

    Raises:
        ValueError: If the rewards cannot read it: such an item could never be right.
    """
    check_reference(answer, task=task, options=options or None)
    if task == "diagnosis":
        return answer
    if task == "true_false":
        return str(read_verdict(answer))
    return ",".join(sorted(read_letters(answer, options=options or None) or ()))


def parse_record(raw: object, *, file: str, index: int) -> Record:
    """Check the form of one record.

    Args:
        raw: What the JSON holds.
        file: The file, for the error.
        index: The place in the file, from 0, for the error.

    Returns:
        The record, its fields typed and its text clean.

    Raises:
        RecordError: With the first field at fault.
    """
    try:
        record = Record.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RecordError(file, index, _field(first["loc"]), _problem(first)) from None
    marks = record.conversations[0].value.count(IMAGE_MARK)
    if marks not in (0, len(record.image)):
        raise RecordError(
            file,
            index,
            "conversations[0].value",
            f"must have no {IMAGE_MARK} mark or one an image ({len(record.image)}), got {marks}",
        )
    if not record.question:
        raise RecordError(file, index, "conversations[0].value", "must not be empty")
    return record


def _field(location: tuple[int | str, ...]) -> str:
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part not in ("str", "constrained-str") and not part.startswith(("list[", "function-")):
            name += f".{part}" if name else part
    return name


def _problem(error: Any) -> str:
    words = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] in ("missing", "value_error"):
        return words
    return (
        f"{words}, got {str(error['input'])[:80]!r}"
        if error["input"] is not None
        else f"{words}, got null"
    )


def make_item(
    record: Record,
    images: list[CheckedImage],
    *,
    id: str,
    task: Task,
    modality: str,
    source: str,
    domain: str,
    split: str,
) -> Item:
    """Join a record with its images and what is known of them.

    Args:
        record: The checked record.
        images: Its images in their order.
        id: Unique in the data set.
        task: How the answer is judged.
        modality: What made the images.
        source: The public data set they are from.
        domain: In-domain or out-of-domain.
        split: Train or test.

    Returns:
        The item.

    Raises:
        ValueError: If the reference answer does not fit the task or the options.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {list(TASKS)}, got {task!r}")
    options = parse_options(record.question)
    if task == "true_false" and options:
        if not is_true_false(options):
            raise ValueError(f"true_false must have the options True and False, got {options}")
        task = "single_choice"  # answered by letter, as the authors' template asks
    return Item(
        id=id,
        question=record.question,
        answer=parse_answer_key(record.answer, task, options),
        task=task,
        images=tuple(image.data for image in images),
        pixels=tuple(image.pixels for image in images),
        modality=modality,
        source=source,
        domain=domain,
        split=split,
        reason=(record.reason or "").strip(),
        caption=(record.caption or "").strip(),
        title=(record.title or "").strip(),
        pmcid=(record.pmcid or "").strip(),
    )
