# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# Ray and verl are only partly typed.
"""The CPU home's way of weights to servers of their own: all of it arrives, or it fails in time."""

import asyncio
from collections.abc import Generator

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("ray", reason="Ray is not installed")

import ray
import torch
from torch import Tensor
from verl.checkpoint_engine.base import CheckpointEngineRegistry

from uadt.integrations.verl.cpu.weight_transfer import RayStoreEngine


@pytest.fixture(scope="module", autouse=True)
def started() -> Generator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def connected() -> tuple[RayStoreEngine, RayStoreEngine, RayStoreEngine]:
    """Two ranks of a trainer and one server, as verl connects them before each transfer."""
    assert CheckpointEngineRegistry.get("ray") is RayStoreEngine
    engines = (RayStoreEngine(1, is_master=True), RayStoreEngine(1), RayStoreEngine(1))
    connect(*engines)
    return engines


def connect(*engines: RayStoreEngine) -> None:
    metadata = [engine.prepare() for engine in engines]
    trainer, rollout = RayStoreEngine.build_topology(2, 1, metadata)
    mailboxes = trainer["mailbox"] + rollout["mailbox"]
    for engine, mailbox in zip(engines, mailboxes, strict=True):
        engine.init_process_group(mailbox)


async def received(engine: RayStoreEngine) -> dict[str, Tensor]:
    return {name: value async for name, value in engine.receive_weights()}


def test_weights_arrive_and_newer_ones_replace_them() -> None:
    first, second, server = engines = connected()

    async def transfer(value: float) -> dict[str, Tensor]:
        weights = [("a", torch.full((2, 3), value)), ("b", torch.tensor(value))]
        waiting = asyncio.create_task(received(server))  # it may ask before anything is there
        await asyncio.gather(first.send_weights(weights), second.send_weights(weights))
        return await waiting

    for value in (1.5, 2.5):
        found = asyncio.run(transfer(value))
        assert found["a"].tolist() == [[value] * 3] * 2
        assert float(found["b"]) == value
        for engine in engines:
            engine.finalize()
        connect(*engines)


def test_weights_that_do_not_come_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, server = connected()
    monkeypatch.setenv("UADT_CPU_TIMEOUT", "1")
    words = "no answer within UADT_CPU_TIMEOUT=1 s: new weights of the trainer are awaited"
    with pytest.raises(TimeoutError, match=words):
        asyncio.run(received(server))
