"""Tiny assets, made once, and a way to say what a long run is doing."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["VERL_PLATFORM"] = "cpu"  # before verl is imported


@pytest.fixture(scope="session")
def text_assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny language model and its data."""
    from verl_assets import make_text

    return make_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def vision_assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny vision-language model and its data."""
    from verl_assets import make_vision

    return make_vision(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="session")
def tell(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Print a line past pytest's capture, so that nobody takes a long run for a hanging one."""
    capture: Any = pytestconfig.pluginmanager.getplugin("capturemanager")

    def line(text: str) -> None:
        if capture is None:
            return
        with capture.global_and_fixture_disabled():
            sys.stdout.write(f"  … {text}\n")
            sys.stdout.flush()

    return line
