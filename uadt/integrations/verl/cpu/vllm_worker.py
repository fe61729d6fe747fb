"""Loaded by vLLM in each of its processes: entry point group ``vllm.general_plugins``."""

import importlib
import os

__all__ = ["register"]


def register() -> None:
    """Keep vLLM's weights writable on the CPU platform; elsewhere do nothing.

    vLLM's CPU linear layers pack a weight into a oneDNN handle and drop the parameter, so that
    verl's next weight sync has nothing to write into and its sender waits for ever.
    """
    if os.environ.get("VERL_PLATFORM", "").strip().lower() != "cpu":
        return
    importlib.import_module("vllm._custom_ops").__dict__["_supports_onednn"] = False
