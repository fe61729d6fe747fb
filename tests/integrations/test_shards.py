"""A vocabulary spread over gloo processes: the same statistics and gradients as in one.

The library holds the combine rule; the two collectives are the caller's, as here.
"""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from uadt.kernels import eager, linear, plain

WORLD, COUNT, WIDTH, VOCAB = 2, 7, 16, 3001
CUTS = (0, 1100, 3001)  # unequal parts


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(COUNT, WIDTH, generator=g), torch.randn(VOCAB, WIDTH, generator=g)
    bias = torch.randn(VOCAB, generator=g)
    bias[:1100:3] = -torch.inf  # tokens that cannot be sampled
    ids = torch.tensor([0, 1099, 1100, 3000, -100, 3001, 1111])
    return hidden, weight, bias, ids


def loss(values: tuple[Tensor | None, ...]) -> Tensor:
    total = torch.zeros(())
    for i, value in enumerate(values):
        if value is not None:
            total = total + (i + 1) * value[value.isfinite()].float().sum()
    return total


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=WORLD)

    def gather(own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(WORLD)]
        dist.all_gather(parts, own)
        return torch.stack(parts)

    def add(own: Tensor) -> Tensor:
        own = own.clone()
        dist.all_reduce(own)
        return own

    hidden, weight, bias, ids = inputs()
    part = slice(CUTS[rank], CUTS[rank + 1])
    hidden.requires_grad_()
    w, b = weight[part].clone().requires_grad_(), bias[part].clone().requires_grad_()
    shards = linear.Shards(first=part.start, vocab_size=VOCAB, gather=gather, add=add)
    found = linear.statistics(eager, hidden, w, ids, b, 0.9, shards=shards)
    loss(tuple(found)).backward()
    result = {
        "statistics": [None if v is None else v.detach() for v in found],
        "gradients": [hidden.grad, w.grad, b.grad],
    }
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file, which Windows locks")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=WORLD)  # pyright: ignore
    hidden, weight, bias, ids = (x.double() if x.is_floating_point() else x for x in inputs())
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    expected = plain.statistics(hidden @ weight.T + bias, ids, 0.9)
    loss(tuple(expected)).backward()
    grads = [x.grad for x in leaves]
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for rank, result in enumerate(results):
        part = slice(CUTS[rank], CUTS[rank + 1])
        for a, b in zip(result["statistics"], expected, strict=True):
            assert b is not None
            torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-5, equal_nan=True)
        whole = [grads[0], *(None if g is None else g[part] for g in grads[1:])]
        for a, b in zip(result["gradients"], whole, strict=True):
            assert b is not None
            torch.testing.assert_close(a.double(), b, atol=2e-5, rtol=1e-5)
