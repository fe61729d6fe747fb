"""Stages 1 and 2 at full size, by TRL's SFTTrainer: captions first, then reasoning trajectories.

``torchrun --nproc-per-node 8 -m examples.ophthareason.full.finetune CONFIG [key=value …]``

The configuration names the model, the data (a folder that ``examples.ophthareason.data convert``
wrote for ``trl``), what is learned, which parts are frozen, and any key of ``trl.SFTConfig``.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from omegaconf import MISSING, OmegaConf

__all__ = ["FineTuning", "completion_of", "load", "main", "rows_for", "run"]

CAPTION_REQUEST = "Describe the image."
"""What stage 1 asks (ours: the authors publish no wording)."""


@dataclass
class FineTuning:
    """One supervised stage."""

    model: str = MISSING
    """A name on the hub or a folder."""
    data: str = MISSING
    """A folder for ``datasets.load_from_disk``."""
    target: str = "trace"
    """``"caption"`` or ``"trace"``: what is learned."""
    frozen: list[str] = field(default_factory=list)
    """Modules whose parameters stay as they are, by their names in the model."""
    training: dict[str, Any] = field(default_factory=dict)
    """Keys of ``trl.SFTConfig``."""

    def check(self) -> "FineTuning":
        """Refuse what cannot be run.

        Returns:
            Itself.

        Raises:
            ValueError: If ``target`` is neither word.
        """
        if self.target not in ("caption", "trace"):
            raise ValueError(f'target must be "caption" or "trace", got {self.target!r}')
        return self


def load(path: Path, overrides: list[str]) -> FineTuning:
    """Read a configuration.

    Args:
        path: A YAML file with the fields of `FineTuning`.
        overrides: More, as ``training.max_steps=2``.

    Returns:
        The stage.

    Raises:
        ValueError: If ``target`` is not possible.
        omegaconf.errors.OmegaConfBaseException: If a key is unknown or missing.
    """
    base = OmegaConf.structured(FineTuning)
    merged = OmegaConf.merge(base, OmegaConf.load(path), OmegaConf.from_dotlist(overrides))
    return cast("FineTuning", OmegaConf.to_object(merged)).check()


def completion_of(row: dict[str, Any], target: Literal["caption", "trace"]) -> str:
    """Return what the model shall write for a row.

    Args:
        row: A row of the data set.
        target: Which text.

    Returns:
        The caption, or ``<think>…</think><answer>…</answer>`` (*stated*: the authors' prompt).

    Raises:
        ValueError: If the row has no such text; a stage that trains on empty texts unlearns.
    """
    text = row["caption"] if target == "caption" else row["reason"]
    if not text or not text.strip():
        missing = "caption" if target == "caption" else "reason"
        raise ValueError(f"item {row['id']!r} must have a {missing}, got none: leave it out")
    if target == "caption":
        return text.strip()
    return f"<think>{text.strip()}</think><answer>{row['ground_truth']}</answer>"


def rows_for(target: Literal["caption", "trace"], data: Any) -> Any:
    """Turn a data set of items into TRL's prompt and completion.

    Args:
        target: What is learned.
        data: The ``datasets.Dataset``.

    Returns:
        A data set with ``prompt``, ``completion`` and ``images``.
    """

    def row(item: dict[str, Any]) -> dict[str, Any]:
        prompt = item["prompt"]
        if target == "caption":
            images = [{"type": "image", "text": None} for _ in item["images"]]
            request = {"type": "text", "text": CAPTION_REQUEST}
            prompt = [{"role": "user", "content": [request, *images]}]
        written = [{"type": "text", "text": completion_of(item, target)}]
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": written}]}

    keep = {"images"}
    return data.map(row, remove_columns=[name for name in data.column_names if name not in keep])


def freeze(model: torch.nn.Module, names: list[str]) -> int:
    """Freeze modules.

    Args:
        model: The model.
        names: Names of modules in it.

    Returns:
        How many parameters still learn.

    Raises:
        AttributeError: If there is no such module.
    """
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def run(stage: FineTuning) -> None:
    """Train, and save model and processor into ``training.output_dir``."""
    from datasets import load_from_disk
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.trainer_utils import get_last_checkpoint
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    arguments = SFTConfig(report_to=[], **stage.training)
    model = AutoModelForImageTextToText.from_pretrained(stage.model, dtype=torch.float32)
    learning = freeze(model, stage.frozen)
    print(f"{stage.model}: {learning:,} parameters learn {stage.target}s")
    target = cast('Literal["caption", "trace"]', stage.target)
    processor = AutoProcessor.from_pretrained(stage.model)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=rows_for(target, load_from_disk(stage.data)),
        processing_class=processor,
    )
    output = Path(arguments.output_dir or "")
    resume = get_last_checkpoint(output) if output.is_dir() else None
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    processor.save_pretrained(output)


def main() -> None:
    """Run the stage that the command line names."""
    if len(sys.argv) < 2:
        raise SystemExit(f"usage: {Path(sys.argv[0]).name} CONFIG.yaml [key=value …]")
    run(load(Path(sys.argv[1]), sys.argv[2:]))


if __name__ == "__main__":
    main()
