"""Every number of a run, with its default for the miniature; a YAML file overrides what it names.

All values are *ours*: the paper's own are not published (see ``docs/paper.md``).
"""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from examples.ophthareason.tasks import Teacher

__all__ = ["ModelSettings", "Reinforcement", "Settings", "Stage", "load_settings", "save_settings"]


@dataclass
class ModelSettings:
    """Sizes of the miniature: Qwen2.5-VL's architecture, about two million parameters."""

    hidden: int = 192
    layers: int = 3
    intermediate: int = 576
    heads: int = 6
    vision_hidden: int = 96
    vision_depth: int = 2
    vision_heads: int = 3
    vocabulary: int = 1024
    """Upper bound of the vocabulary; the tokenizer stops when the texts have no more pairs."""
    side: int = 112
    """Side of a square picture; 112 pixels are 16 image tokens."""


@dataclass
class Stage:
    """One supervised stage, run by transformers' Trainer."""

    steps: int
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: int = 20
    checkpoint_every: int = 100


@dataclass
class Reinforcement:
    """Stage 3: GRPO + UADT through verl."""

    steps: int = 60
    prompts: int = 16
    group: int = 8
    learning_rate: float = 1e-4
    warmup: int = 15
    max_prompt_tokens: int = 160
    max_new_tokens: int = 48
    micro_batch: int = 64
    """At most so many completions in one forward pass: speed and memory, not the result."""
    temperature: float = 1.0
    checkpoint_every: int = 10
    strength: float = 0.5
    decay: float = 0.9


@dataclass
class Settings:
    """A whole run."""

    seed: int = 0
    train_items: int = 4000
    """Phantoms to learn from in the supervised stages."""
    rl_items: int = 960
    """Phantoms to practise on in stage 3: others than those above."""
    test_items: int = 450
    """Held-out phantoms, a third a task."""
    difficulty: float = 0.0
    teacher: Teacher = field(default_factory=Teacher)
    slips: float = 0.0
    """How often a stage-2 trace lacks the end of its thought, within ``[0, 1]``."""
    model: ModelSettings = field(default_factory=ModelSettings)
    vision: Stage = field(default_factory=lambda: Stage(steps=1000, learning_rate=3e-3, warmup=50))
    """Before stage 1: which finding lies in which cell. Stands for a pretrained vision encoder."""
    language: Stage = field(default_factory=lambda: Stage(steps=700, learning_rate=2e-3))
    """Before stage 1: captions and option letters, from words in the picture's place. Stands for a
    pretrained language model."""
    alignment: Stage = field(default_factory=lambda: Stage(steps=200))
    """Stage 1: captions, language model frozen."""
    finetuning: Stage = field(default_factory=lambda: Stage(steps=200))
    """Stage 2: reasoning traces, everything trained."""
    reinforcement: Reinforcement = field(default_factory=Reinforcement)


def load_settings(path: Path, overrides: list[str] | None = None) -> Settings:
    """Read a YAML file over the defaults.

    Args:
        path: The file; what it does not name keeps its default.
        overrides: More, as ``finetuning.steps=10``.

    Returns:
        The settings.

    Raises:
        omegaconf.errors.ConfigKeyError: If a name is unknown.
    """
    base = OmegaConf.structured(Settings)
    given = OmegaConf.merge(base, OmegaConf.load(path), OmegaConf.from_dotlist(overrides or []))
    settings = OmegaConf.to_object(given)
    if not isinstance(settings, Settings):
        raise TypeError(f"the settings must be a mapping, got {type(settings).__name__}")
    return settings


def save_settings(settings: Settings, path: Path) -> None:
    """Write all settings, defaults included, as YAML."""
    OmegaConf.save(OmegaConf.structured(settings), path)
