"""Environments of their own for stacks that want other versions than the tests' environment has."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(
    name: str,
    *packages: str,
    alone: tuple[str, ...] = (),
    variables: Mapping[str, str] | None = None,
) -> Path:
    """Return the Python of an environment with some packages, made once and kept.

    It sees what the tests' own environment has, so that torch is not installed again, and what is
    installed into it comes first.

    Args:
        name: Of the environment; it lies in the tests' own.
        packages: For pip, with what they require.
        alone: For pip, without what they require: what cannot be had without a GPU.
        variables: For pip's environment, where a package reads some when it is built.
    """
    folder = Path(sys.prefix) / "stacks" / name
    python = folder / "bin" / "python"
    wanted = "\n".join([*packages, "", *alone])
    stamp = folder / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    venv.EnvBuilder(with_pip=False, clear=True).create(folder)
    (inside,) = (folder / "lib").glob("python3.*/site-packages")
    (inside / "zz_outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    for command in ([*pip, *packages], [*pip, "--no-deps", *alone]):
        if command[-1] not in ("-q", "--no-deps"):
            surroundings = {**os.environ, **(variables or {})}
            subprocess.run(command, check=True, timeout=1500, env=surroundings)
    stamp.write_text(wanted)
    return python


def run(python: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> str:
    """Run something of this repository in such an environment; return what it printed."""
    quiet = {"HF_HUB_OFFLINE": "1", "MODELSCOPE_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(python), *arguments],
        cwd=ROOT,
        env={**os.environ, **quiet, "PYTHONPATH": str(ROOT), **(variables or {})},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout
