# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# OpenRLHF is annotated loosely, and is not installed where this file is checked.
"""OpenRLHF: its experience maker, with advantages that pass through a shaping.

``python -m uadt.integrations.openrlhf …`` takes the options of ``openrlhf.cli.train_ppo_ray``. The
shaping comes from the YAML file that ``UADT_CONFIG`` names; without one it is
``UADT(signal="surprisal")``. OpenRLHF hands over log-probabilities and no entropy where advantages
are made, so a shaping that reads the entropy is refused.

OpenRLHF's trainer runs in a Ray actor, and a patch made in the driver is lost there. So Ray calls
`install` in every worker, and the patch waits until the worker imports OpenRLHF's trainer.
"""

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["install", "main"]

_TRAINER = "openrlhf.trainer.ppo_trainer"


def main() -> None:
    """Start OpenRLHF's own command with the hook in every worker."""
    import ray

    # OpenRLHF starts Ray with these unless it is running already. A fresh dictionary: Ray writes
    # the name of the hook into it.
    env_vars = {
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "true"),
        "NCCL_DEBUG": os.environ.get("NCCL_DEBUG", "WARN"),
        "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": os.environ.get(
            "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS", "1"
        ),
    }
    if "UADT_CONFIG" in os.environ:
        env_vars["UADT_CONFIG"] = os.path.abspath(os.environ["UADT_CONFIG"])
    hook = f"{__spec__.name if __spec__ else __name__}.install"
    ray.init(runtime_env={"worker_process_setup_hook": hook, "env_vars": env_vars})
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")


def install() -> None:
    """Shape advantages in this process once it imports OpenRLHF's trainer; idempotent and cheap."""
    if _TRAINER in sys.modules:
        _patch(sys.modules[_TRAINER])
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    """Patches the trainer's module when it has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TRAINER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_patch(module: ModuleType) -> None:
            load(module)
            _patch(module)

        spec.loader.exec_module = load_and_patch
        return spec


def _patch(stack: Any) -> None:
    """Put a shaped experience maker, and a trainer that keeps its state, into the module."""
    import torch

    from uadt.integrations.rows import Rows
    from uadt.integrations.shaper import Shaper, shaping_from_environment
    from uadt.shaping import UADT
    from uadt.states import state_from_dict, state_to_dict

    base: Any = stack.RemoteExperienceMaker
    trainer: Any = stack.BasePPOTrainer
    if hasattr(base, "shaped_by_uadt"):
        return

    class UADTExperienceMaker(base):
        """OpenRLHF's, and one step of the shaping after it has made the advantages."""

        shaped_by_uadt = True

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.uadt_scalars: dict[str, float] = {}
            shaping = shaping_from_environment(UADT(signal="surprisal"))
            self.shaper = Shaper(shaping, stack="OpenRLHF", offers=["logprob", "reward", "group"])

        @torch.no_grad()
        def compute_advantages_and_returns(self, experiences: list[Any]) -> list[Any]:
            experiences = super().compute_advantages_and_returns(experiences)
            members = self.strategy.args.rollout.n_samples_per_prompt
            shaped, self.uadt_scalars = self.shaper.shape(
                [
                    Rows(
                        advantage=one.advantages,
                        # Never the advantages: they are not zero at the prompt's positions.
                        mask=one.action_mask.bool(),
                        logprob=one.action_log_probs,
                        reward=one.rewards,
                        group=torch.tensor(one.index) // members,
                    )
                    for one in experiences
                ]
            )
            for one, advantages in zip(experiences, shaped, strict=True):
                one.advantages = advantages
            return experiences

    save, restore = trainer.save_logs_and_checkpoints, trainer.init_checkpoint_states
    save_best = trainer.save_best_checkpoint

    def with_state(self: Any, client_states: dict[str, Any] | None) -> dict[str, Any]:
        shaper = self.experience_maker.shaper
        state = state_to_dict(shaper.state, shaping=shaper.shaping)
        return {**(client_states or {}), "uadt": state}

    def save_logs_and_checkpoints(
        self: Any, global_step: int, logs_dict: Any = None, client_states: Any = None
    ) -> Any:
        logs = {**(logs_dict or {}), **self.experience_maker.uadt_scalars}
        return save(self, global_step, logs, with_state(self, client_states))

    def save_best_checkpoint(
        self: Any, eval_metrics: Any, global_step: int, client_states: Any = None
    ) -> Any:
        return save_best(self, eval_metrics, global_step, with_state(self, client_states))

    def init_checkpoint_states(self: Any) -> Any:
        states = restore(self)
        if "uadt" in states:
            shaper = self.experience_maker.shaper
            shaper.state = state_from_dict(shaper.shaping, states["uadt"])
        return states

    stack.RemoteExperienceMaker = UADTExperienceMaker
    trainer.save_logs_and_checkpoints = save_logs_and_checkpoints
    trainer.save_best_checkpoint = save_best_checkpoint
    trainer.init_checkpoint_states = init_checkpoint_states


if __name__ == "__main__":
    main()
