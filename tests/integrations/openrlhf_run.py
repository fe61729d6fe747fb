# pyright: basic, reportMissingImports=false
# Runs in an environment of its own, where OpenRLHF is installed.
"""OpenRLHF's own experience maker and trainer base, in this process and in a Ray actor.

flash-attention is not to be had without a GPU: a module of that name is a stub. Everything else is
the real package, DeepSpeed and the CPU build of vLLM among them.
"""

import contextlib
import json
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

STUBS = ("flash_attn",)


class Anything(ModuleType):
    """A module that has whatever is asked of it: classes that do nothing."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Stubs(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in STUBS:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Anything(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install_stubs() -> None:
    from uadt.integrations.verl.cpu import shims

    if not any(isinstance(finder, Stubs) for finder in sys.meta_path):
        shims.install()
        sys.meta_path.insert(0, Stubs())


def install() -> None:
    """What Ray calls in every worker: the stubs, then what a user's launcher names."""
    from uadt.integrations import openrlhf

    install_stubs()
    openrlhf.install()


def arguments() -> Any:
    """The options that the methods below read; two samples a prompt."""
    return SimpleNamespace(
        algo=SimpleNamespace(
            advantage=SimpleNamespace(estimator="group_norm", gamma=1.0, lambd=1.0),
            kl=SimpleNamespace(target=None, init_coef=0.0, horizon=1),
        ),
        rollout=SimpleNamespace(n_samples_per_prompt=2),
        reward=SimpleNamespace(
            clip_range=None, overlong_buffer_len=None, stop_properly_penalty_coef=None
        ),
        logger=SimpleNamespace(
            wandb=SimpleNamespace(key=None), tensorboard_dir=None, logging_steps=1
        ),
        ckpt=SimpleNamespace(best_metric_key="", save_steps=1, load_enable=False, path="nowhere"),
    )


def experiences() -> list[Any]:
    """Two ragged micro-batches; prompts lie in the masked positions, as OpenRLHF lays them."""
    import torch
    from openrlhf.trainer.ppo_utils.experience import Experience

    def one(index: list[int], rewards: list[float], mask: list[list[int]], seed: int) -> Any:
        draw = torch.Generator().manual_seed(seed)
        actions = torch.tensor(mask).bool()
        logprobs = -torch.rand(actions.shape, generator=draw) * 3
        logprobs[~actions] = 0.0
        return Experience(
            index=index,
            rewards=torch.tensor(rewards),
            action_mask=actions,
            action_log_probs=logprobs,
            kl=torch.zeros(actions.shape),
            response_length=actions.sum(dim=1),
            info={"reward": torch.tensor(rewards)},
        )

    return [
        one([0, 1], [1.0, 0.0], [[0, 1, 1, 1], [0, 1, 1, 0]], 1),
        one([3, 2], [0.5, 0.25], [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]], 2),
    ]


def steps(stack: Any, saved: Any = None) -> dict[str, Any]:
    """Two steps of the trainer's own experience maker, and what it would save."""
    strategy = SimpleNamespace(args=arguments())
    group = SimpleNamespace(async_run_method=lambda **given: [given])
    stack.ray = SimpleNamespace(get=lambda refs: refs)  # the group above is no Ray actor
    trainer = stack.BasePPOTrainer(strategy, group, None, None, None, None, None)
    if saved is not None:
        strategy.args.ckpt.load_enable, strategy.args.ckpt.path = True, saved["path"]
        group.async_run_method = lambda **_given: [saved["states"]]
        trainer.init_checkpoint_states()
    before = experiences()
    out = [trainer.experience_maker.compute_advantages_and_returns(experiences()) for _ in (1, 2)]
    written: dict[str, Any] = {}
    logged: dict[str, Any] = {}
    group.async_run_method = lambda **given: written.update(given["client_states"]) or []
    trainer.tensorboard_logger = SimpleNamespace(log_train=lambda _step, logs: logged.update(logs))
    trainer.save_logs_and_checkpoints(1, {"loss": 0.5}, {"episode": 3})
    return {
        "maker": type(trainer.experience_maker).__name__,
        "advantages": [[one.advantages.tolist() for one in step] for step in out],
        "logprobs": [one.action_log_probs.tolist() for one in before],
        "mask": [one.action_mask.tolist() for one in before],
        "written": written,
        "logged": logged,
    }


def in_ray() -> dict[str, Any]:
    """The same in a Ray actor: patched here only, and by the hook that Ray calls in the worker."""
    import os

    import ray

    def run(**environment: Any) -> Any:
        env_vars = {"PYTHONPATH": os.environ["PYTHONPATH"]}
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={**environment, "env_vars": env_vars},
        )

        @ray.remote
        class Trainer:
            def run(self) -> Any:
                from tests.integrations import openrlhf_run

                openrlhf_run.install_stubs()
                import openrlhf.trainer.ppo_trainer as stack

                return openrlhf_run.steps(stack)

        try:
            return ray.get(Trainer.remote().run.remote())
        finally:
            ray.shutdown()

    hook = "tests.integrations.openrlhf_run.install"
    return {"driver": run(), "worker": run(worker_process_setup_hook=hook)}


def main(path: str) -> None:
    from uadt.integrations import openrlhf

    install_stubs()
    found: dict[str, Any] = {}
    import openrlhf.trainer.ppo_trainer as stack

    found["stock"] = steps(stack)
    openrlhf.install()
    openrlhf.install()  # the hook may run twice
    found["shaped"] = steps(stack)
    states = found["shaped"]["written"] | {"global_step": 2}
    folder = Path(path).parent
    (folder / "_actor").mkdir()
    found["resumed"] = steps(stack, {"path": str(folder), "states": states})
    with contextlib.ExitStack() as undo:
        import os

        config = folder / "zero.yaml"
        config.write_text("uadt: {strength: 0.0, signal: surprisal}\n")
        os.environ["UADT_CONFIG"] = str(config)
        undo.callback(os.environ.pop, "UADT_CONFIG")
        found["zero"] = steps(stack)
        config.write_text("uadt: {signal: entropy}\n")
        try:
            steps(stack)
        except ValueError as error:
            found["refused"] = str(error)
    found |= in_ray()
    Path(path).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
