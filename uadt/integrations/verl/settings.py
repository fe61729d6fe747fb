"""The top-level key ``uadt`` of verl's configuration, and what else must fit it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from uadt.config import shaping_from_config
from uadt.integrations.verl.estimator import NAME
from uadt.types import Shaping, required_signals

__all__ = ["MODES", "Diagnostics", "Settings", "check_run"]

MODES: Mapping[str, str] = {
    "uadt_sync": "sync",
    "uadt_colocate_async": "colocate_async",
    "uadt_separate_async": "separate_async",
}
"""Our trainer modes, and verl's that each builds on."""

_FORMATS = ("jsonl", "parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """Whether, where and how a run writes down what was done to each completion."""

    path: Path | None = None
    """A folder, one file an update in it; ``None`` writes nothing."""
    format: str = "jsonl"
    """``"jsonl"`` or ``"parquet"``."""
    tokens: bool = False
    """Write the token ids, entropies, log-probabilities and advantages of each token too."""

    def __post_init__(self) -> None:
        """Check the format."""
        if self.format not in _FORMATS:
            raise ValueError(
                f"uadt.diagnostics.format must be one of {_FORMATS}, got {self.format!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything under the key ``uadt``: the shaping's own keys, and these."""

    shaping: Shaping
    """Made by `uadt.config.shaping_from_config` from all other keys; none of them is ``UADT()``."""
    task_key: str = "data_source"
    """Where in a row of the data the task's name is; ``extra_info.task`` leads into a mapping."""
    fresh_state: bool = False
    """Resume from a checkpoint that holds no state, as of a run with another trainer mode."""
    diagnostics: Diagnostics = Diagnostics()
    """See `Diagnostics`."""

    @classmethod
    def from_config(cls, config: DictConfig) -> "Settings":
        """Read and check the key ``uadt`` of a whole verl configuration.

        Args:
            config: verl's configuration; without the key, all defaults.

        Returns:
            The settings.

        Raises:
            ValueError: If a key is unknown or a value is not possible; the words list what is.
        """
        section = OmegaConf.to_container(config.get("uadt") or OmegaConf.create(), resolve=True)
        keys = cast("dict[str, Any]", section)
        task_key = keys.pop("task_key", "data_source")
        fresh_state = keys.pop("fresh_state", False)
        diagnostics = _diagnostics(keys.pop("diagnostics", None) or {})
        if not isinstance(task_key, str) or not task_key:
            raise ValueError(f"uadt.task_key must be the name of a column, got {task_key!r}")
        return cls(
            shaping=shaping_from_config(keys),
            task_key=task_key,
            fresh_state=_flag("uadt.fresh_state", fresh_state),
            diagnostics=diagnostics,
        )

    def wants(self, signal: str) -> bool:
        """Whether the shaping says that it reads a signal."""
        return signal in (required_signals(self.shaping) or ())


def check_run(config: DictConfig, settings: Settings) -> None:
    """Refuse a run whose other settings keep a signal from the shaping, before it starts.

    Args:
        config: verl's whole configuration.
        settings: What the key ``uadt`` of it says.

    Raises:
        ValueError: If something does not fit; the words name the setting to change.
    """
    if not config.trainer.get("use_v1", True):
        raise ValueError("uadt needs verl's V1 trainer, got trainer.use_v1=False")
    mode = config.trainer.v1.trainer_mode
    if mode not in MODES:
        raise ValueError(
            f"uadt needs one of its own trainer modes, got trainer.v1.trainer_mode={mode}: "
            f"set it to {', '.join(MODES)}; algorithm.adv_estimator={NAME} alone shapes nothing"
        )
    correction: Any = config.algorithm.get("rollout_correction") or {}
    if correction.get("bypass_mode", False):
        for signal in ("entropy", "logprob"):
            if settings.wants(signal):
                raise ValueError(
                    f"{settings.shaping!r} needs the signal {signal!r}, and with "
                    "algorithm.rollout_correction.bypass_mode=True verl skips the pass that "
                    "computes it: set bypass_mode=False"
                )
    if config.algorithm.get("use_pf_ppo", False) and config.algorithm.adv_estimator == "gae":
        raise ValueError(
            "with algorithm.use_pf_ppo=True verl draws the rows of a batch again after their "
            "advantages, so that no entropy belongs to its row: set algorithm.use_pf_ppo=False"
        )
    actor = config.actor_rollout_ref
    reference = actor.actor.get("use_kl_loss") or config.algorithm.get("use_kl_in_reward")
    if settings.wants("ref_logprob") and not reference:
        raise ValueError(
            f"{settings.shaping!r} needs the signal 'ref_logprob', and there is no reference "
            "policy: set actor_rollout_ref.actor.use_kl_loss=True (kl_loss_coef may be 0) or "
            "algorithm.use_kl_in_reward=True"
        )
    if settings.wants("rollout_logprob") and not actor.rollout.get("calculate_log_probs"):
        raise ValueError(
            f"{settings.shaping!r} needs the signal 'rollout_logprob': "
            "set actor_rollout_ref.rollout.calculate_log_probs=True"
        )


def _diagnostics(keys: dict[str, Any]) -> Diagnostics:
    known = [one.name for one in fields(Diagnostics)]
    unknown = sorted(set(keys) - set(known))
    if unknown:
        raise ValueError(f"uadt.diagnostics must have keys of {known}, got {unknown}")
    path = keys.get("path")
    return Diagnostics(
        path=Path(path) if path else None,
        format=keys.get("format", "jsonl"),
        tokens=_flag("uadt.diagnostics.tokens", keys.get("tokens", False)),
    )


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value
