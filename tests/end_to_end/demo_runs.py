"""Starts, watches and ends runs of the demo, as a user at a terminal does."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

__all__ = ["PATIENCE", "TINY_MODEL", "finish", "left_behind", "start", "wait_for"]

PATIENCE = 1200.0
"""Seconds: a machine may be slow and busy."""

TINY_MODEL = [
    "model.hidden=64",
    "model.layers=1",
    "model.intermediate=96",
    "model.heads=2",
    "model.vision_hidden=32",
    "model.vision_depth=1",
    "model.vision_heads=1",
]

Process = subprocess.Popen[bytes]


def start(words: list[str], log: Path, **environment: str) -> Process:
    """Start ``python -m examples.ophthareason.…`` in a process group of its own."""
    command = [sys.executable, "-m", *words]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def wait_for(condition: Callable[[], object], process: Process, log: Path) -> None:
    """Wait until something is so, while the process lives."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        assert time.monotonic() < end, log.read_text(errors="replace")[-4000:]
        time.sleep(0.2)


def finish(process: Process, log: Path) -> None:
    """Wait for a good end."""
    process.wait(timeout=PATIENCE)
    assert process.returncode == 0, log.read_text(errors="replace")[-6000:]


def left_behind(run: Path) -> list[str]:
    """Return what still runs for this folder: verl's and Ray's processes carry it along."""
    mark = str(run / "reinforcement")
    found: list[str] = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any(
                mark in value for value in process.environ().values()
            ):
                found.append(f"{process.pid} {process.name()}")
        except psutil.Error:
            continue
    return found
