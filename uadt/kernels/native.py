"""CPU, with a C++ compiler: one pass in hand-vectorised code, compiled at need.

Opt-in. ``native.cpp`` is compiled once for each processor, compiler and version of the source,
into a folder of the user's cache, and loaded through ctypes: it uses no header of torch.
"""

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from uadt.kernels import eager
from uadt.kernels.moments import Coefficients, Moments

__all__ = ["gradient", "moments", "prepare"]

_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
_KIND = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_LOG2E = math.log2(math.e)


def moments(logits: Tensor, temperature: float, *, full: bool) -> Moments:
    """Return the moments of each row of ``(N, V)`` logits; see `uadt.kernels.eager.moments`."""
    if logits.stride(-1) != 1:
        return eager.moments(logits, temperature, full=full)
    count, vocab = logits.shape
    out = torch.empty(count, 7, dtype=torch.float64, device="cpu")
    _library().uadt_moments(
        _KIND[logits.dtype],
        logits.data_ptr(),
        logits.stride(0),
        count,
        vocab,
        _LOG2E / temperature,
        full,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    top, total, first, second, squares, drop, possible = out.unbind(-1)
    ln2 = 1.0 / _LOG2E
    return Moments(top, total, first * ln2, second * ln2**2, squares, drop / temperature, possible)


def gradient(
    logits: Tensor, moments: Moments, k: Coefficients, temperature: float, out: Tensor
) -> None:
    """Write the gradient of each row; see `uadt.kernels.eager.gradient`."""
    if logits.stride(-1) != 1 or out.stride(-1) != 1:
        eager.gradient(logits, moments, k, temperature, out)
        return
    ln2 = 1.0 / _LOG2E
    zero = torch.zeros_like(k.k0)
    k2 = zero if k.k2 is None else k.k2 * ln2**2
    k3 = zero if k.k3 is None else k.k3
    coefficients = torch.stack([k.k0, k.k1 * ln2, k2, k3], dim=-1).float()
    top = moments.top.float()
    _library().uadt_gradient(
        _KIND[logits.dtype],
        logits.data_ptr(),
        logits.stride(0),
        *logits.shape,
        _LOG2E / temperature,
        top.data_ptr(),
        coefficients.data_ptr(),
        out.data_ptr(),
        out.stride(0),
        torch.get_num_threads(),
    )


def prepare() -> None:
    """Compile and load, to see whether there is a compiler."""
    _library()


@functools.cache
def _library() -> ctypes.CDLL:
    """Compile ``native.cpp`` unless that was done before, and load it.

    Raises:
        RuntimeError: If there is no C++ compiler, or it refuses; the words say why.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("no C++ compiler: neither CXX is set nor c++ or g++ found")
    target = _folder() / f"native-{_fingerprint(compiler)}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            built = Path(scratch) / target.name
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
            built.replace(target)  # at once, so that no other process loads half a file
    loaded = ctypes.CDLL(str(target))
    size, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    rows = [number, pointer, size, size, size, ctypes.c_float]
    loaded.uadt_moments.argtypes = [*rows, number, pointer, number]
    loaded.uadt_gradient.argtypes = [*rows, pointer, pointer, pointer, size, number]
    loaded.uadt_moments.restype = loaded.uadt_gradient.restype = None
    return loaded


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uadt"


def _fingerprint(compiler: str) -> str:
    """Tell apart what ``-march=native`` depends on: homes are shared by unlike machines."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    processor = sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    parts = [_SOURCE.read_bytes(), version, repr((_FLAGS, platform.machine(), processor)).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
