"""The state file is the old one or the new one, and its numbers come back bit for bit."""

import math
from pathlib import Path

import pytest

from uadt.integrations.state_file import read_json, write_json


def test_floats_survive_bit_for_bit(tmp_path: Path) -> None:
    numbers = [1 / 3, math.pi * 1e-300, 5e-324, 1.7976931348623157e308, -0.0]
    write_json(tmp_path / "state.json", {"numbers": numbers})
    read = read_json(tmp_path / "state.json")["numbers"]
    assert [value.hex() for value in read] == [value.hex() for value in numbers]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(path, {"step": 2, "threshold": math.nan})
    with pytest.raises(TypeError):
        write_json(path, {"step": object()})
    assert read_json(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_holds_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        read_json(path)
