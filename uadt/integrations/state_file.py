"""A small JSON file that is either the old one or the new one, whenever the process dies.

Adapters keep a shaping's state in it, beside the model's checkpoint.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

__all__ = ["read_json", "write_json"]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, whole or not at all.

    The text goes to a temporary file in the same folder, is flushed to the disk, and takes the
    name in one step. The folder is made if it is missing.

    Args:
        path: Where to.
        content: What JSON can carry; floats come back bit for bit.

    Raises:
        ValueError: If a number is NaN or infinite, which JSON does not know.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new" / "state.json"
        >>> write_json(path, {"threshold": 0.1})
        >>> read_json(path)
        {'threshold': 0.1}
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Args:
        path: Where from.

    Returns:
        The mapping.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not hold a mapping.
    """
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return cast("dict[str, Any]", content)
