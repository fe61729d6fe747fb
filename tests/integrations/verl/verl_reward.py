"""Rewards with different values for the texts of a random model; some that fail."""

import math
from typing import Any


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **kwargs: Any
) -> dict[str, float]:
    """Return the share of ASCII letters and digits."""
    share = sum(c.isascii() and c.isalnum() for c in solution_str) / max(len(solution_str), 1)
    return {"score": float(share), "acc": float(ground_truth in solution_str)}


def compute_nan(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **kwargs: Any
) -> dict[str, float]:
    """Return no number for the prompt with index 1."""
    scored = compute_score(data_source, solution_str, ground_truth, extra_info)
    if extra_info["index"] % 4 == 1:
        scored["score"] = math.nan
    return scored


def raise_always(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **kwargs: Any
) -> dict[str, float]:
    """Fail for every prompt."""
    raise RuntimeError("this reward always fails")


def raise_for_one(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **kwargs: Any
) -> dict[str, float]:
    """Fail for all members of a quarter of the groups."""
    if extra_info["index"] % 4 == 1:
        raise RuntimeError("this reward fails for every fourth prompt")
    return compute_score(data_source, solution_str, ground_truth, extra_info)


def compute_colour(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **kwargs: Any
) -> dict[str, float]:
    """Return at least 1 if the image that came along has the colour of the reference."""
    (image,) = extra_info["images"]
    pixel = image.convert("RGB").getpixel((0, 0))
    seen = dict(zip(pixel, ("red", "green", "blue"), strict=True))[255]
    scored = compute_score(data_source, solution_str, ground_truth)
    return {**scored, "score": scored["score"] + float(seen == ground_truth)}
