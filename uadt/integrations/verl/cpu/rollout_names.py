# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# verl is not typed.
"""Add ``rollout.name=transformers`` to verl's two tables of rollout backends."""

import importlib
from typing import Any

__all__ = ["NAME", "register_adapter", "register_replica"]

NAME = "transformers"
_HOME = "uadt.integrations.verl.cpu.transformers_rollout"


def register_adapter() -> None:
    """Name the class that hands weights from a worker to its server."""
    table: dict[tuple[str, str], str] = importlib.import_module(
        "verl.workers.rollout.base"
    )._ROLLOUT_REGISTRY
    table[(NAME, "async")] = f"{_HOME}.TransformersAdapter"


def register_replica() -> None:
    """Name the class that starts the servers, loaded when a run asks for it."""
    registry = importlib.import_module("verl.workers.rollout.replica").RolloutReplicaRegistry
    registry.register(NAME, _load)


def _load() -> Any:
    return importlib.import_module(_HOME).TransformersReplica
