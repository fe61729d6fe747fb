"""The paths behind `uadt.entropy`: which code computes the statistics of these logits.

Every path gives the numbers of `uadt.kernels.plain`, and follows its conventions on ``-inf``, NaN
and token ids. `choose` says which one is taken; ``UADT_KERNELS`` in the environment overrules it.
"""

import functools
import importlib
import importlib.util
import os
import warnings
from typing import cast

import torch
from torch import Tensor

from uadt.kernels import compiled, eager, linear, native, plain, rows
from uadt.kernels.statistics import TokenStatistics

__all__ = [
    "PATHS",
    "TokenStatistics",
    "check_nested",
    "choose",
    "entropy_and_logprob",
    "linear_statistics",
    "statistics",
]

PATHS = ("plain", "eager", "compiled", "native", "one_pass")
"""Every path: the formulas as written; tiles in the cache (CPU); the same through
``torch.compile``; C++ compiled at need (CPU, opt-in); Triton (GPU)."""

_SMALL = 32_768
"""Numbers below which the plain path is as fast."""


def statistics(
    logits: Tensor, token_ids: Tensor | None, temperature: float, *, path: str | None = None
) -> TokenStatistics:
    """Return the statistics of logits of shape ``(*N, V)``, arguments already checked.

    Args:
        logits: Unnormalised scores; a nested tensor gives nested statistics.
        token_ids: Shape ``(*N)``, or ``None``.
        temperature: Positive.
        path: One of `PATHS`; ``None`` leaves it to `choose`.
    """
    return _rows(logits, token_ids, temperature, path, full=True)


def entropy_and_logprob(
    logits: Tensor, token_ids: Tensor | None, temperature: float, *, path: str | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the first two of `statistics`, which take half the time of all."""
    few = _rows(logits, token_ids, temperature, path, full=False)
    return few.entropy, few.logprob


def linear_statistics(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor | None,
    bias: Tensor | None,
    temperature: float,
    *,
    path: str | None = None,
) -> TokenStatistics:
    """Return the statistics of ``hidden @ weight.T + bias``, arguments already checked.

    Args:
        hidden: Shape ``(*N, D)``.
        weight: Shape ``(V, D)``.
        token_ids: Shape ``(*N)``, or ``None``.
        bias: Shape ``(V,)``, or ``None``.
        temperature: Positive.
        path: One of `PATHS`; ``None`` leaves it to `choose`.
    """
    if hidden.is_nested:
        check_nested("hidden", hidden, token_ids)
        ids = None if token_ids is None else token_ids.values()
        flat = linear_statistics(hidden.values(), weight, ids, bias, temperature, path=path)
        return _nested(flat, hidden)
    if path is None:
        path = choose(hidden, weight, *([] if bias is None else [bias]))
        # A tile has no size to choose by, and is no place for a compiler.
        path = "eager" if path == "compiled" else path
    if path == "plain":
        with rows.full_precision(hidden):
            return plain.linear_statistics(hidden, weight, token_ids, bias, temperature)
    return linear.statistics(_module(path), hidden, weight, token_ids, bias, temperature)


def choose(logits: Tensor, *others: Tensor) -> str:
    """Name the path for tensors like these.

    * inside ``torch.compile``: ``plain``, whose formulas the surrounding compiler fuses;
    * float64, empty or small tensors, subclasses of Tensor (distributed, fake, functional
      transforms), and devices other than CPU and CUDA: ``plain``;
    * CUDA: ``one_pass`` where Triton is installed, else ``eager``;
    * CPU: ``eager``; ``UADT_KERNELS=native`` or ``compiled`` asks for the faster ones, which need
      a C++ compiler and some seconds at the first call.

    A path that ``UADT_KERNELS`` names is taken for tensors of any size if it can run; if it
    cannot, one warning says why, and the choice is as without it.

    Args:
        logits: What decides.
        others: Further tensors that the path would have to handle.

    Returns:
        One of `PATHS`.

    Raises:
        ValueError: If ``UADT_KERNELS`` names no path.
    """
    tensors = (logits, *others)
    if any(t.dtype not in _DTYPES or t.device.type not in ("cpu", "cuda") for t in tensors):
        return "plain"
    if logits.numel() == 0:
        return "plain"
    if torch.compiler.is_compiling():
        return "plain"
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors) or _in_transform():
        return "plain"
    on_gpu = logits.device.type == "cuda"
    wish = os.environ.get("UADT_KERNELS", "auto")
    if wish != "auto":
        if wish not in PATHS:
            raise ValueError(f"UADT_KERNELS must be auto or one of {list(PATHS)}, got {wish!r}")
        if _usable(wish, on_gpu):
            return wish
    if logits.numel() < _SMALL and not others:
        return "plain"
    return "one_pass" if on_gpu and importlib.util.find_spec("triton") else "eager"


_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _in_transform() -> bool:
    """Whether a transform of ``torch.func`` is under way, which plain autograd serves."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore


@functools.cache
def _usable(path: str, on_gpu: bool) -> bool:
    reason = None
    try:
        if path == "one_pass" and not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
            reason = "it runs on a GPU"
        elif path == "native" and on_gpu:
            reason = "it runs on a CPU"
        elif path in ("native", "compiled", "one_pass"):
            _module(path).prepare()  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # whatever a compiler raises is a reason to do without it
        reason = str(error).splitlines()[0]
    if reason is not None:
        warnings.warn(f"UADT_KERNELS={path} is not used: {reason}", stacklevel=4)
    return reason is None


def _module(path: str) -> rows.Path:
    if path == "compiled":
        return compiled
    if path == "eager":
        return eager
    if path == "native":
        return native
    if path == "one_pass":  # the only one that imports what not everybody has
        return cast("rows.Path", importlib.import_module("uadt.kernels.one_pass"))
    raise ValueError(f"path must be one of {list(PATHS)}, got {path!r}")


def _rows(
    logits: Tensor, token_ids: Tensor | None, temperature: float, path: str | None, *, full: bool
) -> TokenStatistics:
    if logits.is_nested:
        check_nested("logits", logits, token_ids)
        ids = None if token_ids is None else token_ids.values()
        return _nested(_rows(logits.values(), ids, temperature, path, full=full), logits)
    if path is None:
        path = choose(logits)
    with rows.full_precision(logits):
        if path == "plain":
            return plain.statistics(logits, token_ids, temperature)
        return rows.statistics(_module(path), logits, token_ids, temperature, full=full)


def check_nested(name: str, values: Tensor, token_ids: Tensor | None) -> None:
    """Refuse nested tensors that no path takes; others pass.

    Args:
        name: What the caller calls ``values``.
        values: Logits or hidden states.
        token_ids: That go with them, or ``None``.

    Raises:
        ValueError: If ``values`` is nested, but not jagged along its second axis, or
            ``token_ids`` are not nested in the same way.
    """
    if not values.is_nested:
        return
    if values.layout != torch.jagged:
        raise ValueError(
            f"{name} must be nested with layout=torch.jagged, got {values.layout}: "
            f"torch.nested.nested_tensor(rows, layout=torch.jagged)"
        )
    if getattr(values, "_ragged_idx", 1) != 1:
        raise ValueError(f"{name} must be ragged along its second axis, got {values.shape}")
    if token_ids is None:
        return
    same = token_ids.is_nested and token_ids.layout == torch.jagged
    if not (
        same and all(a is b for a, b in zip(*map(_raggedness, (values, token_ids)), strict=True))
    ):
        raise ValueError(
            f"token_ids must be nested with the very offsets tensor of {name} (and lengths, if "
            f"there are holes), not a copy of it: torch.nested.nested_tensor_from_jagged("
            f"ids, {name}.offsets(), {name}.lengths())"
        )


def _raggedness(nested: Tensor) -> tuple[Tensor, Tensor | None]:
    offsets = cast("Tensor", nested.offsets())  # pyright: ignore - nested tensors only
    return offsets, cast("Tensor | None", nested.lengths())  # pyright: ignore


def _nested(flat: TokenStatistics, like: Tensor) -> TokenStatistics:
    offsets, lengths = _raggedness(like)

    def nest(values: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(values, offsets, lengths)

    logprob = None if flat.logprob is None else nest(flat.logprob)
    return TokenStatistics(
        entropy=nest(flat.entropy),
        logprob=logprob,
        varentropy=nest(flat.varentropy),
        renyi2=nest(flat.renyi2),
        min_entropy=nest(flat.min_entropy),
        self_certainty=nest(flat.self_certainty),
    )
