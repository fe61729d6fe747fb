"""How many completions a second the rewards score, on one core.

    python benchmarks/rewards.py            # takes some ten seconds

Rows: a typical completion of each task (a thought of 400 words), a diagnosis that no synonym
settles under each matcher, and a hostile megabyte.
"""

import argparse
import platform
import time
from collections.abc import Callable

from uadt.rewards import Matcher, Score, Task, score
from uadt.similarity import MATCHERS

THOUGHT = "The macula shows yellow deposits between the retinal pigment epithelium and more. " * 33
OPTIONS = {"A": "Drusen", "B": "Choroidal neovascularization", "C": "Glaucoma", "D": "Normal"}
CASES: list[tuple[Task, str, str]] = [
    ("single_choice", "B: Choroidal neovascularisation", "B"),
    ("multiple_choice", "A,B,D", "A,B"),
    ("true_false", "True", "True"),
    ("diagnosis", "Age-related macular degeneration (AMD), left eye", "wet AMD"),
]


def says(answer: str) -> str:
    """Return a well-formed completion."""
    return f"<think>{THOUGHT}</think><answer>{answer}</answer>"


def per_second(call: Callable[[], Score], seconds: float) -> float:
    """Return how often a call runs in a second: the best of three rounds."""
    call()
    best = 0.0
    for _ in range(3):
        started, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < seconds / 3:
            call()
            count += 1
        best = max(best, count / elapsed)
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.6, help="time for each row")
    seconds = parser.parse_args().seconds
    print(f"Python {platform.python_version()}, {platform.machine()}, one core")
    print("| completion | completions a second |")
    print("|---|---|")

    def row(name: str, text: str, truth: str, task: Task, matcher: Matcher | None = None) -> None:
        options = OPTIONS if task.endswith("choice") else None

        def call() -> Score:
            return score(text, truth, task=task, options=options, matcher=matcher)

        print(f"| {name} | {per_second(call, seconds):,.0f} |")

    for task, answer, truth in CASES:
        row(task, says(answer), truth, task)
    for name, matcher in MATCHERS.items():
        row(f"diagnosis, {name}", says("macular degeneration"), "wet AMD", "diagnosis", matcher())
    row("a megabyte of `<think>`", "<think>" * 150_000, "B", "single_choice")
    row("a megabyte of text as the answer", says("x" * 1_000_000), "B", "single_choice")


if __name__ == "__main__":
    main()
