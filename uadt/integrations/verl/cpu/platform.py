# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false
# verl is not typed.
# ruff: noqa: D102 - each method answers the question that verl's base class documents
"""The platform ``cpu`` for verl: gloo between workers, no memory to manage, no device to choose."""

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

__all__ = ["CpuPlatform", "register"]


class CpuPlatform(PlatformBase):
    """verl's questions about its device, answered for a CPU."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"

    def current_device(self) -> Any:
        return _CpuIndex()

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return (None, None)

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Generator[Any]:  # type: ignore[override]
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        # verl reads get_accelerator_ids()[resource][0], so Ray is told of GPUs that stand for slots
        # (ray_kwargs.ray_init.num_gpus).
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False  # weights go to vLLM through shared memory

    def rollout_env_vars(self) -> dict[str, str]:
        startup = str(Path(__file__).with_name("startup"))
        path = os.environ.get("PYTHONPATH")
        return {
            "PYTHONPATH": f"{startup}{os.pathsep}{path}" if path else startup,
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        }

    def cudart(self) -> None:
        return None


def register() -> None:
    """Enter the platform in verl's table; calling it again changes nothing."""
    if PlatformRegistry.get("cpu") is not CpuPlatform:
        PlatformRegistry.register(platform="cpu")(CpuPlatform)


class _CpuIndex(str):
    """A device index that serves both of its uses, ``x.to(index)`` and ``f"{name}:{index}"``."""

    __slots__ = ()

    def __new__(cls) -> "_CpuIndex":
        return super().__new__(cls, "cpu")

    def __format__(self, format_spec: str) -> str:
        return "0"


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _zero(*args: Any, **kwargs: Any) -> int:
    return 0


def _memory(device: Any = None) -> tuple[int, int]:
    return (1 << 34, 1 << 34)


def _name(device: Any = None) -> str:
    return "CPU"


def _rng_state(device: Any = None) -> torch.Tensor:
    return torch.get_rng_state()


def _device_module() -> ModuleType:
    # torch.cpu lacks most of what verl asks of torch.cuda: memory counters, seeds, state.
    module = ModuleType("uadt_cpu_device")
    quiet = ("empty_cache", "synchronize", "set_device", "manual_seed", "manual_seed_all")
    quiet += ("ipc_collect", "reset_peak_memory_stats", "set_per_process_memory_fraction")
    members: dict[str, Any] = dict.fromkeys((*quiet, "set_rng_state"), _nothing)
    counters = (
        "max_memory_allocated",
        "max_memory_reserved",
        "memory_allocated",
        "memory_reserved",
    )
    members |= dict.fromkeys((*counters, "current_device"), _zero)
    members |= {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "mem_get_info": _memory,
        "get_device_name": _name,
        "get_rng_state": _rng_state,
    }
    module.__dict__.update(members)
    return module


_DEVICE_MODULE = _device_module()


register()  # for whoever imports this module before verl; the plug-in's hook calls it again
