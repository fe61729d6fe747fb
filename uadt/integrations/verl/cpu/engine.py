# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportUntypedBaseClass=false
# pyright: reportUntypedClassDecorator=false, reportPrivateUsage=false
# verl is not typed, and its table of engines has no public reader.
"""verl's own FSDP2 engines, registered for the device ``cpu``."""

from typing import Any

from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

from uadt.integrations.verl.cpu.barred import bar_tokens

__all__ = ["register"]


class _OnCpu:
    """What both engines need on a CPU."""

    engine_config: Any

    def _build_fsdp_module(self, module: Any) -> Any:
        # A forward-only (reference) model would get CPUOffloadPolicy(pin_memory=True), and pinning
        # needs an accelerator. It lies on the CPU anyway.
        forward_only = self.engine_config.forward_only
        object.__setattr__(self.engine_config, "forward_only", False)
        try:
            return super()._build_fsdp_module(module)  # type: ignore[misc]
        finally:
            object.__setattr__(self.engine_config, "forward_only", forward_only)


class CpuLanguageEngine(_OnCpu, FSDPEngineWithLMHead):
    """The engine of actors and reference policies."""

    def _build_module(self) -> Any:
        module = super()._build_module()  # type: ignore[misc]
        bar_tokens(module)
        return module


class CpuValueEngine(_OnCpu, FSDPEngineWithValueHead):
    """The engine of critics."""


def register() -> None:
    """Enter both engines in verl's table; calling it again changes nothing."""
    engines = {"language_model": CpuLanguageEngine, "value_model": CpuValueEngine}
    for model_type, engine in engines.items():
        known = EngineRegistry._engines.get(model_type, {}).get("fsdp2", {})
        if "cpu" not in known:
            EngineRegistry.register(model_type=model_type, backend="fsdp2", device="cpu")(engine)


register()  # for whoever imports this module before verl; the plug-in's hook calls it again
