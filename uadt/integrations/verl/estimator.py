"""The estimator name ``uadt``: a baseline for the trainer modes, an error anywhere else."""

import importlib
from typing import Any, NoReturn

from uadt.integrations.verl.plugin import warn_if_untested

__all__ = ["NAME", "register"]

NAME = "uadt"
"""``algorithm.adv_estimator=uadt`` means: GRPO as the baseline, then the configured shaping."""


def register() -> None:
    """Enter the name in verl's table of estimators."""
    warn_if_untested()
    importlib.import_module("verl.trainer.ppo.core_algos").register_adv_est(NAME)(_without_trainer)


def _without_trainer(*args: Any, **kwargs: Any) -> NoReturn:
    # The trainer modes replace the name by "grpo"; who arrives here runs another trainer, in which
    # the entropies never reach an estimator.
    raise ValueError(
        "algorithm.adv_estimator=uadt needs one of our trainer modes, which bring the entropies: "
        "add trainer.v1.trainer_mode=uadt_sync (or uadt_colocate_async, uadt_separate_async; "
        "trainer.use_v1=True)"
    )
