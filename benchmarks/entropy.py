"""Token statistics beside those of verl and TRL: time, extra memory, error. Markdown on stdout.

    python benchmarks/entropy.py [forward] [backward] [linear] [memory] [linear-memory] [error]

Without arguments: all. One thread. Times are ratios to one raw read of the same bytes (forward),
one copy of them (forward + backward), or one GEMM (linear); see `timing` for how they are taken.
`UADT_BENCHMARK_ROUNDS` (5) and `UADT_BENCHMARK_VOCABULARY` (151936) make it shorter or longer.
"""

import os
import subprocess
import sys
from collections.abc import Callable

import torch
from timing import Timing, compare, extra_peak_mib, machine
from torch import Tensor

from uadt import kernels
from uadt.kernels import plain

VOCAB = int(os.environ.get("UADT_BENCHMARK_VOCABULARY", "151936"))
ROUNDS = int(os.environ.get("UADT_BENCHMARK_ROUNDS", "5"))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def public() -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the entropy of each library that is installed."""
    _quiet_stacks()
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    try:
        from verl.utils import torch_functional as verl
    except ImportError:
        pass
    else:
        found["verl `entropy_from_logits`"] = verl.entropy_from_logits
        found["verl `entropy_from_logits_with_chunking`"] = verl.entropy_from_logits_with_chunking
    try:
        from trl.trainer import utils as trl
    except ImportError:
        pass
    else:
        found["TRL `entropy_from_logits`"] = trl.entropy_from_logits
    return found


def ours() -> dict[str, Callable[[Tensor], object]]:
    """Return entropy and log-probability by each path, and all six statistics by each."""
    found: dict[str, Callable[[Tensor], object]] = {}
    for path in ("native", "compiled", "eager"):

        def two(x: Tensor, path: str = path) -> object:
            return kernels.entropy_and_logprob(x, ids(x), 1.0, path=path)

        def six(x: Tensor, path: str = path) -> object:
            return kernels.statistics(x, ids(x), 1.0, path=path)

        found[f"uadt {path}, entropy and log-prob"] = two
        found[f"uadt {path}, all six"] = six
    return found


def _quiet_stacks() -> None:
    """Let verl and TRL be imported where torchvision is a build for another torch, without vLLM."""
    from uadt.integrations.verl.cpu import shims

    os.environ.setdefault("VERL_PLATFORM", "cpu")
    sys.modules.setdefault("vllm", None)  # pyright: ignore[reportArgumentType]
    shims.install()


def ids(x: Tensor) -> Tensor:
    """Return a token for each row."""
    return torch.arange(len(x)) % x.shape[-1]


def logits(rows: int, dtype: torch.dtype) -> Tensor:
    """Return logits as spread as those of a model."""
    torch.manual_seed(0)
    return (3.0 * torch.randn(rows, VOCAB)).to(dtype)


def table(title: str, columns: dict[str, dict[str, Timing]]) -> None:
    """Print ratios and milliseconds."""
    print(f"\n**{title}** · {machine()}\n")
    print("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name in next(iter(columns.values())):
        cells = [f"{c[name].ratio:.1f}× ({c[name].best_ms:.0f} ms)" for c in columns.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def forward() -> None:
    """Entropy and log-probability from logits."""
    columns: dict[str, dict[str, Timing]] = {}
    for name, dtype in DTYPES.items():
        x = logits(128, dtype)
        variants = {n: (lambda f=f, x=x: f(x)) for n, f in {**ours(), **public()}.items()}
        bytes_of = x.view(torch.float32)  # a sum of these is one raw read, also of bfloat16
        columns[name] = compare(variants, bytes_of.sum, ROUNDS)
    table(f"Forward, 128 × {VOCAB}; unit: one raw read", columns)


def backward() -> None:
    """The same, and the gradient of both."""

    def two(path: str) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
        return lambda x: kernels.entropy_and_logprob(x, ids(x), 1.0, path=path)

    _quiet_stacks()
    losses: dict[str, Callable[[Tensor], tuple[Tensor, Tensor | None]]] = {
        f"uadt {path}": two(path) for path in ("native", "compiled", "eager")
    }
    try:
        from verl.utils import torch_functional as verl
    except ImportError:
        pass
    else:
        losses["verl, entropy and log-prob"] = lambda x: (
            verl.entropy_from_logits(x),
            verl.logprobs_from_logits(x, ids(x)),
        )
    try:
        from trl.trainer.utils import entropy_from_logits, selective_log_softmax
    except ImportError:
        pass
    else:
        losses["TRL, entropy and log-prob"] = lambda x: (
            entropy_from_logits(x),
            selective_log_softmax(x, ids(x)),
        )

    def gradient(f: Callable[[Tensor], tuple[Tensor, Tensor | None]], x: Tensor) -> object:
        leaf = x.detach().requires_grad_()
        entropy, logprob = f(leaf)
        assert logprob is not None
        return torch.autograd.grad(1.3 * entropy.sum() + logprob.sum(), leaf)

    columns: dict[str, dict[str, Timing]] = {}
    for name, dtype in DTYPES.items():
        x = logits(128, dtype)
        spare = torch.empty_like(x)
        variants = {n: (lambda f=f, x=x: gradient(f, x)) for n, f in losses.items()}
        columns[name] = compare(variants, lambda x=x, s=spare: s.copy_(x), ROUNDS)
    table(f"Forward + backward, 128 × {VOCAB}; unit: one copy", columns)


def linear() -> None:
    """From hidden states and the weight of the lm-head."""
    _quiet_stacks()
    torch.manual_seed(0)
    count, width = 256, 1024
    hidden = torch.randn(count, width)
    weight = torch.randn(VOCAB, width) * 3 / width**0.5
    y = torch.arange(count)
    heads: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {}
    for path in ("native", "eager"):

        def head(h: Tensor, w: Tensor, path: str = path) -> tuple[Tensor, Tensor]:
            s = kernels.linear_statistics(h, w, y, None, 1.0, path=path)
            assert s.logprob is not None
            return s.entropy, s.logprob

        heads[f"uadt {path}"] = head
    try:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    except ImportError:
        pass
    else:

        def trl(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            found = ChunkedLogProbFunction.apply(h, w, None, y, 1.0, 8192, None, 1.0, ("entropy",))
            return found[1], found[0]

        heads["TRL `ChunkedLogProbFunction`"] = trl
    try:
        from verl.utils.experimental.torch_functional import FusedLinearForPPO
    except ImportError:
        pass
    else:

        def verl(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            logprob, entropy = FusedLinearForPPO()(h, w, y)
            return entropy, logprob

        heads["verl `FusedLinearForPPO`"] = verl

    def gradient(f: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> object:
        h, w = hidden.requires_grad_(), weight.requires_grad_()
        entropy, logprob = f(h, w)
        return torch.autograd.grad(1.3 * entropy.sum() + logprob.sum(), (h, w))

    def product() -> object:
        with torch.no_grad():
            return hidden @ weight.T

    def quiet(f: Callable[[Tensor, Tensor], object]) -> object:
        with torch.no_grad():
            return f(hidden, weight)

    rounds = max(1, ROUNDS // 2)
    columns = {
        "forward": compare({n: (lambda f=f: quiet(f)) for n, f in heads.items()}, product, rounds),
        "forward + backward": compare(
            {n: (lambda f=f: gradient(f)) for n, f in heads.items()}, product, rounds
        ),
    }
    table(f"Hidden × lm-head, fp32, {count} × {width} × {VOCAB}; unit: one GEMM", columns)


def memory() -> None:
    """Extra memory, a fresh process for each figure."""
    print(f"\n**Extra peak memory, forward, 512 × {VOCAB}** · {machine()}\n")
    print("| | " + " | ".join(DTYPES) + " |\n|---|" + "---|" * len(DTYPES))
    for name in [*ours(), *public()]:
        cells: list[str] = []
        for dtype in DTYPES:
            command = [sys.executable, __file__, "--memory-of", name, dtype]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            cells.append(done.stdout.strip())
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def linear_memory() -> None:
    """Extra memory of hidden × lm-head, a fresh process for each figure."""
    print(f"\n**Extra peak memory, hidden × lm-head, eager, 512 tokens** · {machine()}\n")
    print("| width × vocabulary | " + " | ".join(DTYPES) + " | bf16, with backward |")
    print("|---|---|---|---|")
    for width, vocab in ((1024, 16_384), (4096, 16_384)):
        cells: list[str] = []
        for dtype, passes in (("fp32", "forward"), ("bf16", "forward"), ("bf16", "both")):
            command = [sys.executable, __file__, "--linear-memory-of", str(width), str(vocab)]
            done = subprocess.run(
                [*command, dtype, passes], capture_output=True, text=True, check=True
            )
            cells.append(done.stdout.strip())
        print(f"| {width} × {vocab} | " + " | ".join(cells) + " |", flush=True)


def linear_memory_of(width: int, vocab: int, dtype: str, passes: str) -> None:
    """Print the extra memory of one product in this process, beyond the gradients."""
    hidden = torch.empty(512, width, dtype=DTYPES[dtype]).normal_()
    weight = torch.empty(vocab, width, dtype=DTYPES[dtype]).normal_(0.0, 3 / width**0.5)
    backward = passes == "both"

    def run(h: Tensor, w: Tensor) -> object:
        h, w = (x.detach().requires_grad_(backward) for x in (h, w))
        s = kernels.linear_statistics(h, w, torch.arange(len(h)), None, 1.0, path="eager")
        assert s.logprob is not None
        return torch.autograd.grad((s.entropy + s.logprob).sum(), (h, w)) if backward else s

    run(hidden[:8], weight[:64])  # code and pools
    results = (hidden.nbytes + weight.nbytes) / 2**20 if backward else 0.0
    print(f"{extra_peak_mib(lambda: run(hidden, weight)) - results:.1f} MiB")


def memory_of(name: str, dtype: str) -> None:
    """Print the extra memory of one variant, in this process."""
    x = torch.empty(512, VOCAB, dtype=DTYPES[dtype])
    for i in range(0, len(x), 8):
        x[i : i + 8] = 3.0 * torch.randn(8, VOCAB)
    run = ours().get(name) or public()[name]
    run(x[:8])  # code, pools and buffers that stay
    run(x[:16])
    if "compiled" in name:
        run(x[:128])  # rows that do not start where the tensor does are compiled apart
    peak = extra_peak_mib(lambda: run(x))
    print(f"{peak:.1f} MiB ({100 * peak * 2**20 / x.nbytes:.1f} %)")


def error() -> None:
    """Largest error on inputs that bite."""
    names = ("fp32", "fp32 + 1e4", "fp32, a third -inf", "fp32, peaked", "bf16")
    print(f"\n**Largest error of the entropy against float64, nats, 8 × {VOCAB}** · {machine()}\n")
    print("| | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    x = logits(8, torch.float32)
    masked = x.index_fill(1, torch.arange(0, VOCAB, 3), -torch.inf)
    peaked = x.index_fill(1, torch.tensor([VOCAB // 2]), 25.0)  # a token that is all but sure
    inputs = [x, x + 1e4, masked, peaked, x.bfloat16()]
    variants = {n: f for n, f in ours().items() if "six" not in n}
    for name, f in {**variants, **public()}.items():
        cells: list[str] = []
        for given in inputs:
            got = f(given)
            entropy = got[0] if isinstance(got, tuple) else got
            assert isinstance(entropy, Tensor)
            exact = plain.statistics(given.double(), None, 1.0).entropy
            cells.append(f"{float((entropy.double() - exact).abs().max()):.0e}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main(arguments: list[str]) -> None:
    """Run the parts that are named, or all."""
    torch.set_num_threads(1)
    if arguments[:1] == ["--memory-of"]:
        memory_of(*arguments[1:])
        return
    if arguments[:1] == ["--linear-memory-of"]:
        width, vocab, dtype, passes = arguments[1:]
        linear_memory_of(int(width), int(vocab), dtype, passes)
        return
    parts = {
        "forward": forward,
        "backward": backward,
        "linear": linear,
        "memory": memory,
        "linear-memory": linear_memory,
        "error": error,
    }
    for name in arguments or parts:
        parts[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
