"""Timing that a noisy machine cannot fool: one process, shuffled rounds, ratios to a floor.

Each sample is floor, variant, floor; its ratio is the variant's CPU time over the mean of the two
floors; a variant's figure is the median ratio. CPU time of one thread, because wall time measures
the neighbours.
"""

import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """What was measured of one variant."""

    ratio: float
    """Median of variant / floor."""
    best_ms: float
    """Smallest CPU time."""


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the CPU time of one call, its result thrown away after the clock stopped."""
    start = time.process_time()
    kept = run()
    spent = time.process_time() - start
    del kept
    return spent


def compare(
    variants: Mapping[str, Callable[[], object]], floor: Callable[[], object], rounds: int
) -> dict[str, Timing]:
    """Measure variants, each warmed by one call, in shuffled rounds."""
    for run in variants.values():
        run()
    floor()
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for _ in range(rounds):
        random.shuffle(names)
        for name in names:
            gc.collect()
            before, spent, after = (
                cpu_seconds(floor),
                cpu_seconds(variants[name]),
                cpu_seconds(floor),
            )
            times[name].append(spent)
            ratios[name].append(spent / (0.5 * (before + after)))
    return {n: Timing(statistics.median(ratios[n]), 1e3 * min(times[n])) for n in variants}


def extra_peak_mib(run: Callable[[], object]) -> float:
    """Return by how much one call raises the high-water mark of resident memory (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is resident now
    before = _status_mib("VmHWM")
    kept = run()
    peak = _status_mib("VmHWM") - before
    del kept
    return peak


def machine() -> str:
    """Say where and under which load this runs."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return (
        f"{names[0] if names else platform.machine()} ({os.cpu_count()} cores), "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread, "
        f"load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d')}"
    )


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(field)).split()[1]) / 1024
