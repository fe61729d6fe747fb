"""What a run says of itself: time by stage over its sittings, memory of all its processes."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from examples.ophthareason.progress import Display, Memory, usage


def test_the_memory_of_a_child_counts() -> None:
    with Memory(every=0.05) as memory:
        before = memory.peak
        hold = "import sys; block = b'x' * 300_000_000; print('held', flush=True); sys.stdin.read()"
        child = subprocess.Popen(
            [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        memory.look()
        child.communicate()
    assert memory.peak - before > 300_000_000 / 1024**3


def test_time_and_memory_are_counted_over_all_sittings(tmp_path: Path) -> None:
    # Two sittings: 10 s of A and 20 s of B, then killed in the middle of a line; again 5 s of B.
    lines = [
        {"stage": "A", "seconds": 4.0, "gib": 1.0},
        {"stage": "A", "seconds": 10.0, "gib": 3.5},
        {"stage": "B", "seconds": 30.0, "gib": 3.5},
    ]
    again = [{"stage": "B", "seconds": 5.0, "gib": 2.0}]
    log = tmp_path / "metrics.jsonl"
    words = [*map(json.dumps, lines), '{"stage": "B", "sec', *map(json.dumps, again)]
    log.write_text("\n".join(words) + "\n")
    assert usage(log) == ({"A": 10.0, "B": 25.0}, 3.5)


def test_a_log_without_a_terminal_says_stage_place_and_numbers(tmp_path: Path) -> None:
    shown = io.StringIO()
    log = tmp_path / "metrics.jsonl"
    with Memory() as memory, Display(log, Console(file=shown, width=80), memory) as display:
        display.tell("alignment", 1, 3, {"loss": 0.5})
        display.tell("alignment", 2, 3, {"loss": 0.4})  # too soon after the first: not shown
        display.tell("alignment", 3, 3, {"loss": 0.25})
    said = [line for line in shown.getvalue().splitlines() if " s  " in line]
    assert [line.split(" s  ")[1] for line in said] == [
        "alignment 1/3  loss 0.5",
        "alignment 3/3  loss 0.25",
    ]
    kept = [json.loads(line) for line in log.read_text().splitlines()]
    # The last line says when it ended, whatever ended it.
    assert [line.get("loss") for line in kept] == [0.5, 0.4, 0.25, None]
    assert [line["step"] for line in kept] == [1, 2, 3, 3]
    assert all(line["gib"] > 0 for line in kept)


def test_what_is_left_is_told_from_the_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 100 s for 1 of 3 steps after the first look: 2 steps are left, 200 s.
    now = [0.0]
    monkeypatch.setattr("examples.ophthareason.progress.time.monotonic", lambda: now[0])
    shown = io.StringIO()
    display = Display(tmp_path / "metrics.jsonl", Console(file=shown, width=80), Memory())
    display.tell("alignment", 0, 3, {})
    now[0] = 100.0
    display.tell("alignment", 1, 3, {})
    assert "alignment 1/3  left 3:20" in shown.getvalue()
