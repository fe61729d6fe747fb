# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# (the annotations of transformers' trainer and models are partial)
"""Everything before reinforcement learning, by one command.

    python -m examples.ophthareason.stages CONFIG --run DIR [--keep DIR] [name=value …]

Phantoms are drawn; encoder and language model are pretrained apart (they stand for the pretrained
halves of a real model); stage 1 aligns them with the language model frozen; stage 2 fine-tunes on
reasoning traces. transformers' Trainer runs all four. Each stage leaves ``DIR/<stage>/done.json``
and is not run again; one that was interrupted goes on from its last checkpoint.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from examples.ophthareason.exam import examine, summary
from examples.ophthareason.lessons import (
    Batches,
    CellLoss,
    Lessons,
    Maker,
    ResponseLoss,
    WordLoss,
    alignment_lesson,
    finetuning_lesson,
    language_lesson,
)
from examples.ophthareason.model import build_model, build_processor, fit_projector, load, save
from examples.ophthareason.provenance import keep
from examples.ophthareason.records import Item
from examples.ophthareason.settings import Settings, Stage, load_settings, save_settings
from examples.ophthareason.splits import Tell, draw_phantoms, read_split

__all__ = [
    "STAGES",
    "claim",
    "fine_tune",
    "run_stage",
    "run_stages",
]

STAGES = ("vision", "language", "alignment", "finetuning")
"""The supervised stages in their order; each starts from the one before."""


def run_stage(
    name: str,
    stage: Stage,
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    items: list[Item],
    folder: Path,
    *,
    cells: np.ndarray | None = None,
    slips: float = 0.0,
    seed: int = 0,
    tell: Tell,
) -> dict[str, float]:
    """Run one supervised stage on a model, in place.

    Args:
        name: One of `STAGES`.
        stage: Its steps, batch and learning rate.
        model: What is trained; which parts are is decided by the stage.
        processor: Its processor.
        items: What the lessons are made of.
        folder: Checkpoints of the trainer go here; an interrupted stage goes on from the last.
        cells: Where the lesions are, shape ``(items, side, side, findings)``; for the stages
            before alignment.
        slips: How often a trace lacks the end of its thought.
        seed: Of the lessons and their order.
        tell: Told of progress.

    Returns:
        The last loss and the seconds it took.
    """
    makers: dict[str, Maker] = {
        "vision": alignment_lesson,
        "language": language_lesson,
        "alignment": alignment_lesson,
        "finetuning": finetuning_lesson(slips),
    }
    losses: dict[str, Callable[[], nn.Module]] = {
        "vision": lambda: CellLoss(model),
        "language": lambda: WordLoss(model, processor),
        "alignment": lambda: ResponseLoss(model, processor),
        "finetuning": lambda: ResponseLoss(model, processor),
    }
    for part in model.parameters():
        part.requires_grad_(name in ("language", "finetuning"))
    for part in model.model.visual.parameters():
        part.requires_grad_(name != "language")
    if cells is not None:
        cells = cells.reshape(len(cells), -1, cells.shape[-1])
    lessons = Lessons(makers[name], items, count=stage.steps * stage.batch, seed=seed, cells=cells)
    torch.manual_seed(seed)
    trainer = Trainer(
        model=losses[name](),
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=stage.steps,
            per_device_train_batch_size=stage.batch,
            learning_rate=stage.learning_rate,
            warmup_steps=stage.warmup,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.1},
            weight_decay=0.01,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            logging_steps=10,
            save_steps=stage.checkpoint_every,
            save_total_limit=1,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
        ),
        data_collator=Batches(processor),
        train_dataset=lessons,
        callbacks=[_Teller(name, tell)],
    )
    trainer.pop_callback(_printer())
    result = trainer.train(resume_from_checkpoint=_last_whole(folder))
    for part in model.parameters():
        part.requires_grad_(True)
    return {"loss": result.training_loss, "seconds": result.metrics["train_runtime"]}


def _last_whole(folder: Path) -> str | None:
    """Return the trainer's last checkpoint that is whole: its state is written last."""
    whole: list[tuple[int, str]] = []
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            whole.append((json.loads(state.read_text())["global_step"], str(state.parent)))
        except (ValueError, KeyError):  # killed in the middle of it
            continue
    return max(whole)[1] if whole else None


def _write_done(path: Path, done: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(done, indent=1))
    part.replace(path)


_AFTER = {"language": "pretrained", "alignment": "aligned", "finetuning": "before"}
"""After which stage which moment of `exam.MOMENTS` has come."""


def run_stages(
    settings: Settings,
    run: Path,
    tell: Tell,
    *,
    stages: tuple[str, ...] = STAGES,
    examined: bool = True,
) -> Path:
    """Run the supervised stages that the folder does not have yet.

    Args:
        settings: All numbers.
        run: The folder of the run.
        tell: Told of progress.
        stages: Which, in order; the first starts from random weights.
        examined: Whether the model sits the exams before and after stages 1 and 2.

    Returns:
        The folder of the last stage's model.

    Raises:
        ValueError: If the folder was made with other settings.
    """
    claim(settings, run)
    phantoms = run / "phantoms"
    for split in ("train", "test"):
        draw_phantoms(settings, phantoms, split, tell)
    missing = [name for name in stages if not (run / name / "done.json").is_file()]
    if not missing:
        return run / stages[-1] / "model"
    train, test = read_split(phantoms, "train"), read_split(phantoms, "test")
    cells = np.load(phantoms / "train" / "cells.npy")
    for place, name in enumerate(stages):
        if name not in missing:
            continue
        if place:
            model, processor = load(run / stages[place - 1] / "model")
        else:
            texts = [f"{item.prompt}\n{item.reason}\n{item.caption}" for item in train[:1500]]
            processor = build_processor(settings.model, texts)
            model = build_model(settings.model, processor, seed=settings.seed)
        if name == "alignment":
            _start_projector(model, processor, train[:1500], cells[:1500])
        began = time.monotonic()
        figures = run_stage(
            name,
            getattr(settings, name),
            model,
            processor,
            train,
            run / name / "trainer",
            cells=cells if name in ("vision", "language") else None,
            slips=settings.slips,
            seed=settings.seed * 100 + place,
            tell=tell,
        )
        save(model.to("cpu"), processor, run / name / "model")
        done: dict[str, Any] = {"stage": name, "figures": figures}
        if examined and name in _AFTER:
            answers = _examine(_AFTER[name], run / name / "model", test, settings, run, tell)
            done |= {how: summary(given) for how, given in answers.items()}
        done["seconds"] = time.monotonic() - began
        _write_done(run / name / "done.json", done)
    return run / stages[-1] / "model"


def _examine(
    when: str, folder: Path, items: list[Item], settings: Settings, run: Path, tell: Tell
) -> dict[str, list[dict[str, Any]]]:
    return examine(
        when,
        folder,
        items,
        run,
        max_new_tokens=settings.reinforcement.max_new_tokens,
        seed=settings.seed,
        tell=tell,
    )


@torch.no_grad()
def _start_projector(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    items: list[Item],
    cells: np.ndarray,
) -> None:
    """Fit the projector to the words of what the pictures are known to show."""
    lessons = [alignment_lesson(random.Random(0), item, None) for item in items]
    seen: list[torch.Tensor] = []
    for start in range(0, len(lessons), 100):
        batch = Batches(processor)(lessons[start : start + 100])
        part = model.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"])
        seen.append(part.pooler_output)
    found = torch.from_numpy(cells.reshape(-1, cells.shape[-1])).float()
    fit_projector(model, torch.cat(seen), WordLoss(model, processor).words(found))


def fine_tune(
    settings: Settings,
    run: Path,
    items: list[Item],
    start: Path,
    tell: Tell,
    *,
    test: list[Item] | None = None,
) -> Path:
    """Run stages 1 and 2 on other items, such as real records, from a model that exists.

    Args:
        settings: All numbers.
        run: The folder of the run; what it has is not made again.
        items: With captions and reasons.
        start: The model to start from.
        tell: Told of progress.
        test: Held-out items, for exams before and after stages 1 and 2.

    Returns:
        The folder of the model.
    """
    if test:
        _examine("pretrained", start, test, settings, run, tell)
    for place, (name, moment) in enumerate((("alignment", "aligned"), ("finetuning", "before"))):
        folder = run / f"real-{name}"
        if not (folder / "done.json").is_file():
            model, processor = load(start)
            figures = run_stage(
                name,
                getattr(settings, name),
                model,
                processor,
                items,
                folder / "trainer",
                seed=settings.seed * 100 + place,
                tell=tell,
            )
            save(model.to("cpu"), processor, folder / "model")
            done: dict[str, Any] = {"stage": name, "items": len(items), "figures": figures}
            if test:
                answers = _examine(moment, folder / "model", test, settings, run, tell)
                done |= {how: summary(given) for how, given in answers.items()}
            _write_done(folder / "done.json", done)
        start = folder / "model"
    return start


def claim(settings: Settings, run: Path) -> None:
    """Write the settings into a new run folder, or check that they are those of an old one.

    Raises:
        ValueError: If the folder was made with other settings.
    """
    run.mkdir(parents=True, exist_ok=True)
    path = run / "settings.yaml"
    if path.is_file():
        before = asdict(load_settings(path))
        differing = sorted(
            name for name, value in asdict(settings).items() if before[name] != value
        )
        if differing:
            raise ValueError(
                f"{run} must be continued with the settings it began with, got other {differing}; "
                "choose another folder for other settings"
            )
    else:
        part = path.with_suffix(".part")
        save_settings(settings, part)
        part.replace(path)


class _Teller(TrainerCallback):
    """Hands the trainer's log lines on."""

    def __init__(self, stage: str, tell: Tell) -> None:
        self.stage, self.tell = stage, tell

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Pass the loss on."""
        numbers = {key: logs[key] for key in ("loss", "grad_norm", "learning_rate") if key in logs}
        self.tell(self.stage, state.global_step, state.max_steps, numbers)


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Stages 1 and 2 of the miniature.")
    parser.add_argument("config", type=Path, help="a YAML file of settings")
    parser.add_argument("--run", type=Path, required=True, help="the folder of the run")
    parser.add_argument("overrides", nargs="*", help="such as finetuning.steps=10")
    parser.add_argument("--keep", type=Path, help="also write the model here, in half precision")
    given = parser.parse_intermixed_args()
    settings = load_settings(given.config, given.overrides)
    began = time.monotonic()
    log = given.run / "metrics.jsonl"
    given.run.mkdir(parents=True, exist_ok=True)

    def tell(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        seconds = round(time.monotonic() - began, 1)
        line = {"stage": stage, "step": done, "of": total, "seconds": seconds, **numbers}
        with log.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        print(f"{seconds:7.1f} s  {stage} {done}/{total}", _shown(numbers), file=sys.stderr)

    folder = run_stages(settings, given.run, tell)
    if given.keep:
        words = ["python -m examples.ophthareason.stages", *sys.argv[1:]]
        keep(given.run, given.keep, stages=STAGES, command=" ".join(words))
    print(json.dumps(json.loads((folder.parent / "done.json").read_text()), indent=1))


def _shown(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())


if __name__ == "__main__":
    main()
