# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportUntypedBaseClass=false
# pyright: reportIncompatibleMethodOverride=false
# verl is not typed, and annotates its own backends' methods otherwise than they are.
"""Weights from the trainer to rollout servers with processes of their own, through Ray's store.

``uadt_separate_async`` needs it: verl's own backends (NCCL, NIXL, Mooncake, …) need devices. All
parameters are sent at once; one that does not arrive in time is an error on both sides.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import ray
import torch
from torch import Tensor
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

from uadt.integrations.verl.cpu.shims import in_time

__all__ = ["BACKEND", "RayStoreEngine", "register"]

BACKEND = "ray"
"""``actor_rollout_ref.rollout.checkpoint_engine.backend=ray``."""


class _Mailbox:
    """Holds a reference to the weights while they are on their way."""

    def __init__(self) -> None:
        self.filled = asyncio.Event()
        self.content: list[Any] = []

    async def put(self, content: list[Any]) -> None:
        self.content = content
        self.filled.set()

    async def take(self) -> list[Any]:
        await self.filled.wait()
        return self.content

    async def clear(self) -> None:
        self.filled.clear()
        self.content = []


class RayStoreEngine(CheckpointEngine):
    """One side of the transfer; the trainer's first rank makes the mailbox and fills it."""

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        """Take what verl hands to every backend; nothing is sent in buckets here."""
        self.is_master = is_master
        self.mailbox: Any = None

    def prepare(self) -> Any:
        """Return the mailbox, or nothing if this is not the first rank."""
        if self.is_master and self.mailbox is None:
            actor: Any = ray.remote(_Mailbox)
            self.mailbox = actor.options(num_cpus=0).remote()
        return self.mailbox if self.is_master else None

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[Any]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Give everybody the one mailbox."""
        (mailbox,) = [made for made in metadata if made is not None]
        return (
            {"mailbox": [mailbox] * actor_wg_world_size},
            {"mailbox": [mailbox] * rollout_world_size},
        )

    def init_process_group(self, mailbox: Any) -> None:
        """Note the mailbox."""
        self.mailbox = mailbox

    def finalize(self) -> None:
        """Let go of the weights, after everybody has them."""
        if self.is_master:
            self.mailbox.clear.remote()

    async def send_weights(
        self, weights: Iterable[tuple[str, Tensor]], global_steps: int | None = None
    ) -> None:
        """Put all weights into the store; each is gathered from all ranks first."""
        named = {name: weight.detach().to("cpu").numpy() for name, weight in weights}
        if self.is_master:
            await in_time(self.mailbox.put.remote([ray.put(named)]), "new weights were sent")

    async def receive_weights(
        self, global_steps: int | None = None
    ) -> AsyncGenerator[tuple[str, Tensor]]:
        """Yield the weights once they are there.

        Raises:
            TimeoutError: If they do not come in time.
        """
        awaited = "new weights of the trainer are awaited"
        (stored,) = await in_time(self.mailbox.take.remote(), awaited)
        named: Any = await in_time(stored, awaited)
        for name, value in named.items():
            # A copy: Ray hands over read-only memory.
            yield name, torch.tensor(value)


def register() -> None:
    """Enter the backend in verl's table."""
    registry: Any = CheckpointEngineRegistry
    registry.register(BACKEND)(RayStoreEngine)


register()  # for whoever imports this module before verl; the plug-in's hook calls it again
