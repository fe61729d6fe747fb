"""What a run shows while it works, and keeps for afterwards: stage, time left, numbers, memory."""

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Display", "Memory", "usage"]

_GIB = 1024**3
_QUIET = 15.0  # seconds between two lines of a stage where nobody sees the bars


class Memory:
    """The most memory that this process and all that it started have held together.

    Their sizes are added up every few seconds. On Linux a page that several processes share counts
    once in all (the proportional set size); elsewhere it counts in each of them, so that the figure
    is an upper bound.

    Example:
        >>> with Memory() as memory:
        ...     block = bytearray(2**20)
        >>> memory.peak > 0.01  # GiB: an interpreter alone has more
        True
    """

    def __init__(self, every: float = 3.0) -> None:
        """Look once in so many seconds."""
        self.every = every
        self.peak = 0.0
        """GiB."""
        self._own = psutil.Process()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look a last time."""
        self._over.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Add up what is held now."""
        held = 0
        for process in (self._own, *self._own.children(recursive=True)):
            try:
                held += _size(process)
            except psutil.Error:  # it ended in between
                continue
        self.peak = max(self.peak, held / _GIB)

    def _watch(self) -> None:
        while not self._over.wait(self.every):
            self.look()


def _size(process: psutil.Process) -> int:
    """Return bytes: the proportional set size where the system knows it, else the resident one."""
    full = process.memory_full_info()
    return getattr(full, "pss", full.rss)


class Display:
    """Says which stage runs, how far it is and how long it still takes, and keeps every number."""

    def __init__(self, log: Path, console: Console, memory: Memory) -> None:
        """Open the log of metrics."""
        self.log, self.console, self.memory = log, console, memory
        self.began = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=console,
            speed_estimate_period=600,  # a step of stage 3 takes seconds
        )
        self.tasks: dict[str, TaskID] = {}
        self.first: dict[str, tuple[float, int]] = {}
        self.last: dict[str, float] = {}
        self.latest: tuple[str, int, int] | None = None

    def __enter__(self) -> Self:
        """Begin to show."""
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write down until when the last stage ran, also if it was interrupted, and stop."""
        if self.latest:
            self.memory.look()
            self._write(*self.latest, {})
        self.progress.stop()

    def tell(self, stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        """Show one stage's progress and write its numbers down."""
        self.latest = (stage, done, total)
        seconds = self._write(*self.latest, numbers)
        shown = "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=total, shown="")
            self.first[stage] = (seconds, done)
        if shown:
            self.progress.update(self.tasks[stage], shown=shown)
        self.progress.update(self.tasks[stage], completed=done, total=total)
        due = seconds - self.last.get(stage, -_QUIET) >= _QUIET or done >= total
        if due and not self.console.is_terminal:
            self.last[stage] = seconds
            words = f"{seconds:7.1f} s  {stage} {done}/{total}{self._left(stage, done, total)}"
            self.console.print(f"{words}  {shown}".rstrip(), highlight=False, soft_wrap=True)

    def _write(self, stage: str, done: int, total: int, numbers: dict[str, float]) -> float:
        seconds = round(time.monotonic() - self.began, 1)
        line = {"stage": stage, "step": done, "of": total, "seconds": seconds, **numbers}
        line["gib"] = round(self.memory.peak, 3)
        with self.log.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        return seconds

    def _left(self, stage: str, done: int, total: int) -> str:
        began, at = self.first[stage]
        if done <= at or done >= total:
            return ""
        seconds = (time.monotonic() - self.began - began) / (done - at) * (total - done)
        return f"  left {int(seconds) // 60}:{int(seconds) % 60:02d}"


def usage(log: Path) -> tuple[dict[str, float], float]:
    """Read from the log of metrics what a run has cost, over all its sittings.

    Args:
        log: The file that `Display` writes.

    Returns:
        Seconds by stage, in the order in which they ran, and the most memory in GiB. What came
        after the last line of a sitting that was killed is in neither.
    """
    spent: dict[str, float] = {}
    peak = before = 0.0
    for text in log.read_text().splitlines():
        try:
            line: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError:  # a line that was being written when the run was killed
            continue
        seconds = float(line["seconds"])
        # A new sitting counts from zero.
        passed = seconds - before if seconds >= before else seconds
        spent[line["stage"]] = spent.get(line["stage"], 0.0) + passed
        before = seconds
        peak = max(peak, float(line.get("gib", 0.0)))
    return spent, peak
