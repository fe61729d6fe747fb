"""Evaluate models on items: answer, keep, score, write; resumable at every item."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from examples.ophthareason.backends import BACKENDS, Backend, model_name
from examples.ophthareason.conversion import write_json
from examples.ophthareason.figures import accuracy_figure, save_figure, thinking_figure
from examples.ophthareason.loading import ReadReport
from examples.ophthareason.predictions import PredictionFile, predict_row, read_predictions
from examples.ophthareason.prompts import SYSTEM_PROMPT
from examples.ophthareason.records import Item
from examples.ophthareason.scores import Summary, paired, summarise
from examples.ophthareason.tables import as_markdown
from examples.ophthareason.writers import atomic_path
from uadt.rewards import Matcher

__all__ = ["Watch", "answer_items", "evaluate", "score_folder"]

READING = "reading.json"
"""The account of reading, beside the predictions."""


class Watch(Protocol):
    """Told what happens, for a progress display."""

    def __call__(self, model: str, done: int, total: int, /) -> None:
        """Items done of this model, of how many."""
        ...


def answer_items(
    items: Iterable[Item],
    make: Callable[[], Backend],
    path: Path,
    *,
    settings: Mapping[str, object],
    batch_size: int = 16,
    watch: Callable[[int], None] | None = None,
) -> int:
    """Answer the items that are not answered yet, and append each batch to the file.

    The model is closed at the end, also after a failure: the next one finds its room free.

    Args:
        items: All items, in a fixed order.
        make: Loads the model; not called if nothing is left to do.
        path: The JSON-lines file of predictions.
        settings: All that decides the answers, kept beside the file and compared when a run
            resumes.
        batch_size: Items a batch.
        watch: Called with the number of items that are done.

    Returns:
        How many were answered now.
    """
    backend: Backend | None = None
    answered = 0
    with PredictionFile(path, settings) as file:
        try:
            for batch in _batches((item for item in items if not file.has(item)), batch_size):
                backend = backend or make()
                if watch:
                    watch(len(file.done))
                answers = backend.answer(batch)
                file.append(
                    predict_row(item, **answer._asdict())
                    for item, answer in zip(batch, answers, strict=True)
                )
                answered += len(batch)
        finally:
            if backend is not None:
                backend.close()
        if watch:
            watch(len(file.done))
    return answered


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def evaluate(
    items: Iterable[Item],
    models: Mapping[str, str] | Sequence[str],
    out: str | Path,
    *,
    backend: str = "transformers",
    batch_size: int = 16,
    max_tokens: int = 8192,
    matcher: Matcher | None = None,
    watch: Watch | None = None,
    reading: ReadReport | None = None,
    **options: Any,
) -> list[Summary]:
    """Evaluate models and write everything to a folder.

    ``OUT/<model>/predictions.jsonl`` is appended batch by batch; called again after a kill, the
    function goes on where it was. Then `score_folder` writes scores, tables and figures.

    Args:
        items: What to ask. It is read once for each model, and once before; an iterator is kept in
            memory.
        models: Folders or hub names, with names of their own if a mapping.
        out: The folder.
        backend: ``"transformers"`` or ``"vllm"``.
        batch_size: Items a batch; the authors use 16.
        max_tokens: Longest response; the authors use 8192.
        matcher: A judge for diagnoses.
        watch: Told about the progress.
        reading: The account that ``items`` fills when it is first read; kept in
            ``OUT/reading.json`` and in the scores.
        **options: Passed to the backend.

    Returns:
        A summary a model, in their order.

    Raises:
        ValueError: If there are no items, two models have one name, or a folder was begun with
            other settings or other questions.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {list(BACKENDS)}, got {backend!r}")
    if isinstance(items, Iterator):
        items = list(items)
    named = _named(models)
    total = sum(1 for _ in items)  # every record is read and checked before a model is loaded
    if not total:
        raise ValueError("items must not be empty")
    out = Path(out)
    if reading is None:
        (out / READING).unlink(missing_ok=True)
    else:
        write_json(reading.as_dict(), out / READING)
    for name, model in named.items():
        answer_items(
            items,
            lambda model=model: BACKENDS[backend](model, max_tokens=max_tokens, **options),
            out / name / "predictions.jsonl",
            settings={
                "model": model,
                "backend": backend,
                "max_tokens": max_tokens,
                "temperature": 0,
                "system_prompt": SYSTEM_PROMPT,
                **{key: str(value) for key, value in options.items()},
            },
            batch_size=batch_size,
            watch=_watch(watch, name, total),
        )
    return score_folder(out, models=list(named), matcher=matcher)


def _watch(watch: Watch | None, name: str, total: int) -> Callable[[int], None] | None:
    return None if watch is None else lambda done: watch(name, done, total)


def _named(models: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        named = {model_name(model): model for model in models}
        if len(named) != len(models):
            raise ValueError(
                f"models must have different names, got {list(models)}; use NAME=MODEL"
            )
    wrong = [name for name in named if not name or "/" in name or name.startswith(".")]
    if not named or wrong:
        raise ValueError(
            f"models must be one or more, with names fit for a folder, got {list(named)}"
        )
    return named


def score_folder(
    out: str | Path, *, models: Sequence[str] | None = None, matcher: Matcher | None = None
) -> list[Summary]:
    """Score the predictions in a folder again, without a model.

    Writes ``scores.json``, ``report.md`` and ``accuracy.png`` into the folder and ``thinking.png``
    into each model's.

    Args:
        out: The folder of `evaluate`.
        models: Names of models in their order; all in the folder, by name, if not given.
        matcher: A judge for diagnoses.

    Returns:
        A summary a model. Models that answered the same questions are compared with the first.
    """
    out = Path(out)
    names = models or sorted(path.parent.name for path in out.glob("*/predictions.jsonl"))
    if not names:
        raise ValueError(f"no predictions in {out}")
    rows = {name: list(read_predictions(out / name / "predictions.jsonl")) for name in names}
    summaries = [summarise(rows[name], model=name, matcher=matcher) for name in names]
    asked = {name: {row.id: row.digest for row in rows[name]} for name in names}
    changes = {
        f"{name} − {names[0]}": paired(rows[names[0]], rows[name])
        for name in names[1:]
        if asked[name] == asked[names[0]]
    }
    reading = out / READING
    write_json(
        {
            "reading": json.loads(reading.read_text("utf-8")) if reading.exists() else None,
            "models": [one.as_dict() for one in summaries],
            "differences": {
                name: {kind: interval._asdict() for kind, interval in found.items()}
                for name, found in changes.items()
            },
        },
        out / "scores.json",
    )
    with atomic_path(out / "report.md") as part:
        part.write_text(as_markdown(summaries, changes), encoding="utf-8")
    save_figure(accuracy_figure(summaries), out / "accuracy.png")
    for name in names:
        figure = thinking_figure(rows[name])
        if figure is not None:
            save_figure(figure, out / name / "thinking.png")
    return summaries
