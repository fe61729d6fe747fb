# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# verl and hydra's decorator are not typed.
"""``python -m uadt.integrations.verl OVERRIDES…``: verl's own main, with our configuration on top.

Every override of ``verl.trainer.main_ppo`` works here. Keys under ``uadt`` need no ``+``. The
configuration is checked before Ray starts. With ``VERL_PLATFORM=cpu`` the overrides that a CPU
needs are defaults.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

_ON_CPU = os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"
if _ON_CPU:
    # Ray would hide its GPU slots, which stand for processes here, from actors that take none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import hydra  # noqa: E402 - Ray and torch read the environment when they are imported
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo  # noqa: E402
from verl.trainer.ppo.utils import need_critic, need_reference_policy  # noqa: E402
from verl.utils.config import validate_config  # noqa: E402
from verl.utils.device import auto_set_device  # noqa: E402

from uadt.integrations.verl.settings import Settings, check_run  # noqa: E402

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the configuration, then hand it to verl.

    Args:
        arguments: Hydra overrides; ``None`` takes those of the command line.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    sys.argv = [sys.argv[0], *map(_addable, given)]
    _main()


def _addable(argument: str) -> str:
    """Let a key of ours be set whether the configuration holds it already or not."""
    return f"++{argument}" if argument.startswith("uadt.") else argument


@hydra.main(
    config_path="pkg://uadt.integrations.verl.config",
    config_name="uadt_ppo_cpu" if _ON_CPU else "uadt_ppo",
    version_base=None,
)
def _main(config: Any) -> None:
    check_run(config, Settings.from_config(config))
    auto_set_device(config)
    validate_config(
        config=config,
        use_reference_policy=need_reference_policy(config),
        use_critic=need_critic(config),
    )
    run_ppo(config, task_runner_class=TaskRunnerV1)


if __name__ == "__main__":
    main()
