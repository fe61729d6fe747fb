"""Bootstrap confidence intervals of a mean, over groups of items that belong together.

Two questions about one photograph are not two independent pieces of evidence, so photographs are
drawn and not questions (the cluster bootstrap). Percentile intervals; *ours*, the authors publish
none.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

__all__ = ["Interval", "bootstrap_mean"]


class Interval(NamedTuple):
    """A mean and how sure it is."""

    mean: float
    """The mean over items."""
    low: float | None
    """Lower end; ``None`` if one group cannot tell."""
    high: float | None
    """Upper end; ``None`` if one group cannot tell."""
    n: int
    """How many items."""
    groups: int
    """How many groups they are in."""


def bootstrap_mean(
    values: Sequence[float],
    groups: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 3702,
) -> Interval:
    r"""Return a mean with its percentile bootstrap interval.

    Each resample draws as many groups as there are, with replacement, and takes the mean over the
    items in them, $\sum_g s_g / \sum_g n_g$. Where all values are 0, or all are 1, every resample
    is the same and the bootstrap would call a mean of three items certain; then the interval is
    Wilson's for that many groups. The same arguments give the same interval.

    Args:
        values: One number an item, without NaN.
        groups: What each item belongs to.
        confidence: Within (0, 1).
        resamples: How often to draw.
        seed: Of the draws.

    Returns:
        Mean, interval and counts.

    Raises:
        ValueError: If there are no values, or one is not finite, or the lengths differ.

    Example:
        >>> bootstrap_mean([1, 1, 1], ["a", "b", "c"])._replace(low=None)  # Wilson: 1 / (1 + z²/3)
        Interval(mean=1.0, low=None, high=1.0, n=3, groups=3)
        >>> round(bootstrap_mean([1, 1, 1], ["a", "b", "c"]).low, 3)
        0.439
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be within (0, 1), got {confidence}")
    if len(values) != len(groups):
        raise ValueError(f"groups must be one a value ({len(values)}), got {len(groups)}")
    data = np.asarray(values, dtype=np.float64)
    if not len(data) or not np.isfinite(data).all():
        raise ValueError(f"values must be finite and at least one, got {list(values)[:10]}")
    place: dict[Hashable, int] = {}
    index = np.array([place.setdefault(group, len(place)) for group in groups])
    count = len(place)
    sums = np.bincount(index, weights=data)
    sizes = np.bincount(index).astype(np.float64)
    mean = float(data.mean())
    if set(data.tolist()) in ({0.0}, {1.0}):
        wilson = binomtest(count if mean else 0, count).proportion_ci(confidence, method="wilson")
        return Interval(mean, float(wilson.low), float(wilson.high), len(data), count)
    if count == 1:
        return Interval(mean, None, None, len(data), 1)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 100):  # a hundred at a time bounds the memory
        step = min(100, resamples - start)
        draws = rng.multinomial(count, np.full(count, 1 / count), size=step)
        means[start : start + step] = (draws @ sums) / (draws @ sizes)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), len(data), count)
