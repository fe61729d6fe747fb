"""The command line: ``python -m uadt doctor``."""

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from uadt.doctor import examine, report, try_imports

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Those of the command line if it is None.

    Returns:
        The exit status: 0 if nothing needs mending, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m uadt", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor", help="say which stacks are installed, whether uadt is registered, what mends it"
    )
    doctor.add_argument(
        "--import",
        dest="imports",
        action="store_true",
        help="also import every stack that is installed, in a process of its own; takes a while",
    )
    given = parser.parse_args(arguments)
    findings = examine()
    if given.imports:
        findings = try_imports(findings)
    versions = [
        f"uadt {_version('uadt')}",
        f"Python {platform.python_version()}",
        f"torch {_version('torch')}",
    ]
    sys.stdout.write(f"{', '.join(versions)}\n\n{report(findings)}\n")
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
