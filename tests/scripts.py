"""Run a script of the repository as a user does, in a process of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The environment of the tests holds more than a user's: a vLLM that TRL would import, and perhaps
# a torchvision that was built for another torch.
_START = """
import runpy, sys
from uadt.integrations.verl.cpu import shims
shims.install()
sys.modules["vllm"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_script(path: str, *arguments: str, timeout: float = 600.0) -> str:
    """Return what a script printed; its path is relative to the repository."""
    done = subprocess.run(
        [sys.executable, "-c", _START, path, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
