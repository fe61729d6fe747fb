"""Turn a policy's uncertainty into better credit: small pure functions and composable shapings.

Not a trainer. The names below follow the figure, arrow by arrow; they are resolved lazily, so that
`uadt.answers` and `uadt.rewards` work in a process that never imports torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uadt import answers, baselines, config, metrics, rewards, shaping
    from uadt.baselines import group_advantage
    from uadt.check import check_rollout
    from uadt.entropy import (
        EntropyBounds,
        TokenStatistics,
        linear_token_statistics,
        surprisal,
        token_entropy,
        token_statistics,
        topk_entropy,
    )
    from uadt.factor import shape_advantage, tanh_factor
    from uadt.shaping import UADT, chain
    from uadt.states import state_from_dict, state_to_dict
    from uadt.threshold import EmaState, ema_threshold
    from uadt.types import MissingSignalError, Rollout, Shaped, Shaping
    from uadt.uncertainty import sequence_max, sequence_mean, sequence_top_mean

__all__ = [
    "UADT",
    "EmaState",
    "EntropyBounds",
    "MissingSignalError",
    "Rollout",
    "Shaped",
    "Shaping",
    "TokenStatistics",
    "__version__",
    "answers",
    "baselines",
    "chain",
    "check_rollout",
    "config",
    "ema_threshold",
    "group_advantage",
    "linear_token_statistics",
    "metrics",
    "rewards",
    "sequence_max",
    "sequence_mean",
    "sequence_top_mean",
    "shape_advantage",
    "shaping",
    "state_from_dict",
    "state_to_dict",
    "surprisal",
    "tanh_factor",
    "token_entropy",
    "token_statistics",
    "topk_entropy",
]

__version__ = version("uadt")

_HOMES = {
    "EmaState": "threshold",
    "EntropyBounds": "entropy",
    "MissingSignalError": "types",
    "Rollout": "types",
    "Shaped": "types",
    "Shaping": "types",
    "TokenStatistics": "entropy",
    "UADT": "shaping",
    "chain": "shaping",
    "check_rollout": "check",
    "ema_threshold": "threshold",
    "group_advantage": "baselines",
    "linear_token_statistics": "entropy",
    "sequence_max": "uncertainty",
    "sequence_mean": "uncertainty",
    "sequence_top_mean": "uncertainty",
    "shape_advantage": "factor",
    "state_from_dict": "states",
    "state_to_dict": "states",
    "surprisal": "entropy",
    "tanh_factor": "factor",
    "token_entropy": "entropy",
    "token_statistics": "entropy",
    "topk_entropy": "entropy",
}
_MODULES = ("answers", "baselines", "config", "metrics", "rewards", "shaping")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"uadt.{name}")
    if name in _HOMES:
        return getattr(import_module(f"uadt.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'uadt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
