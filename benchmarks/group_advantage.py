"""Group-normalised advantages of 65,536 sequences, beside verl's loop and its vectorised form.

    VERL_PLATFORM=cpu python benchmarks/group_advantage.py [SEQUENCES]

verl's functions broadcast over response positions; with one position, what is compared is the
arithmetic. Ours takes integer groups, verl's strings: what turning them into integers costs once
is a row of its own.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from timing import machine
from verl.trainer.ppo import core_algos

from uadt import group_advantage


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Return the smallest CPU time of several calls."""
    run()
    spent: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        spent.append(1e3 * (time.process_time() - start))
    return min(spent)


def main(sequences: int) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = torch.randint(1, 17, (sequences,))
    group = torch.arange(sequences).repeat_interleave(sizes)[:sequences]
    group = group[torch.randperm(sequences)]
    reward = torch.randn(sequences)
    names = np.array([f"prompt-{i}" for i in group.tolist()], dtype=object)
    mask = torch.ones(sequences, 1)

    def to_integers() -> object:
        return np.unique(names.astype(str), return_inverse=True)

    ours = milliseconds(lambda: group_advantage(reward, group), 20)
    rows = {
        "uadt `group_advantage`": ours,
        "strings → integers, once a batch": milliseconds(to_integers, 3),
    }
    for title, name in (
        ("verl, vectorised", "compute_grpo_vectorized_outcome_advantage"),
        ("verl, loop", "compute_grpo_outcome_advantage"),
    ):
        f = getattr(core_algos, name)
        rows[title] = milliseconds(lambda f=f: f(reward[:, None], mask, names), 1)
    print(f"**{sequences} sequences in {len(set(names))} groups** · {machine()}\n")
    print("| | ms | × ours |\n|---|---|---|")
    for name, spent in rows.items():
        print(f"| {name} | {spent:.2f} | {spent / ours:.0f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 65_536)
