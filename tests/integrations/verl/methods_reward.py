"""A reward of several values that says which completions mean the same, for the methods' runs."""

from typing import Any


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **kwargs: Any
) -> dict[str, float]:
    """Return six times the share of ASCII letters and digits, and which side of 1.5 it is on."""
    share = sum(c.isascii() and c.isalnum() for c in solution_str) / max(len(solution_str), 1)
    return {"score": 6 * share, "cluster": float(6 * share > 1.5)}
