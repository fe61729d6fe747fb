"""Loaded by ``import verl`` in every process, through the entry point group ``verl.plugins``.

verl resolves the entry point and does not call it, so importing this module is what registers.
It imports nothing but the standard library. verl's registries want real subclasses, whose modules
are heavy and not yet there while verl itself is being imported; so a post-import hook waits for
each registry module and registers our names right after it.

verl logs a plug-in that fails at DEBUG only. Here a registration that fails is logged as an error
with its traceback, and leaves verl as it was.
"""

import functools
import importlib
import importlib.metadata
import logging
import os
import sys
import warnings
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["TESTED_VERSIONS", "register", "warn_if_untested"]

TESTED_VERSIONS = ("0.9.1",)
"""The versions of verl that the tests of this adapter run against."""

_HOME = "uadt.integrations.verl"
_HOOKS = {
    "verl.trainer.ppo.core_algos": f"{_HOME}.estimator:register",
    "verl.trainer.ppo.v1": f"{_HOME}.trainer:register",
}
_CPU_HOOKS = {
    "verl.plugin.platform": f"{_HOME}.cpu.platform:register",
    "verl.models.transformers.monkey_patch": f"{_HOME}.cpu.shims:leave_trl_alone",
    "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer": (
        f"{_HOME}.cpu.shims:give_up_in_time"
    ),
    "verl.utils.model": f"{_HOME}.cpu.shims:critic_without_flash_attention",
    "verl.utils.tensordict_utils": f"{_HOME}.cpu.shims:keep_equal_positions",
    "verl.utils.distributed": f"{_HOME}.cpu.shims:initialise_gloo_once",
    "verl.workers.engine": f"{_HOME}.cpu.engine:register",
    "verl.checkpoint_engine": f"{_HOME}.cpu.weight_transfer:register",
    "verl.workers.rollout.base": f"{_HOME}.cpu.rollout_names:register_adapter",
    "verl.workers.rollout.replica": f"{_HOME}.cpu.rollout_names:register_replica",
}
"""A module of verl, and what to call once it has been imported."""

_logger = logging.getLogger(__name__)


def register() -> None:
    """Set the post-import hooks; calling it again changes nothing.

    With ``VERL_PLATFORM=cpu`` in the environment it also sets those of the CPU home.
    """
    if any(isinstance(finder, _PostImport) for finder in sys.meta_path):
        return
    on_cpu = os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"
    hooks = _HOOKS | _CPU_HOOKS if on_cpu else _HOOKS
    sys.meta_path.insert(0, _PostImport(hooks))
    if on_cpu:
        _run(f"{_HOME}.cpu.shims:install")
    for name, action in hooks.items():
        module = sys.modules.get(name)
        if module is not None and not _is_being_imported(module):
            _run(action)


@functools.cache
def warn_if_untested() -> None:
    """Warn once a process if this version of verl is not one of the tested ones."""
    version = importlib.metadata.version("verl")
    if version not in TESTED_VERSIONS:
        warnings.warn(
            f"uadt is tested with verl {', '.join(TESTED_VERSIONS)}, got verl {version}; "
            "compare one step with strength 0 against adv_estimator=grpo before you trust it",
            stacklevel=2,
        )


class _PostImport(MetaPathFinder):
    """Finds the modules named in ``hooks`` as the other finders do, and acts after their import."""

    def __init__(self, hooks: dict[str, str]) -> None:
        self.hooks = hooks

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.hooks:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                # A loader belongs to one spec, so its own method can be wrapped in place.
                load = spec.loader.exec_module
                spec.loader.exec_module = _then(load, self.hooks[fullname])
                return spec
        return None


def _then(load: Callable[[ModuleType], None], action: str) -> Any:
    def exec_module(module: ModuleType) -> None:
        load(module)
        _run(action)

    return exec_module


def _is_being_imported(module: ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False))


def _run(action: str) -> None:
    module, function = action.split(":")
    ours = sys.modules.get(module)
    if ours is not None and _is_being_imported(ours):
        return  # it was imported before verl, half of it is there: it registers at its own end
    try:
        getattr(importlib.import_module(module), function)()
    except Exception:
        _logger.exception("uadt could not register with verl (%s): its names are missing", action)


register()
