"""Faster kernels for training on a CPU, put under PyTorch's own operators.

Some of a CPU step's time goes to things that need far less of it. What replaces them computes the same; only rounding,
and which random numbers are drawn, differ.

- **fp32 matrix products** go to MKL, which keeps to AVX2 on processors that are not Intel's. oneDNN, which is inside
  PyTorch too, uses AVX-512 wherever there is any: about 2.3 times the speed on an AMD EPYC with one thread
  (`benchmarks/training_step.py` prints both).
- **Memory** that a step frees goes back to the system, and comes back page by page, zeroed, in the next: a tenth of an
  fp32 step. Kept, it costs nothing: the peak is the same.
- **Dropout masks** take a whole random number an element. Sixteen bits of one will do.

Kernels belong to the whole process, so they are put there for a while only: [`use`] is a context.
"""

import ctypes
import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


# Below this many rows the way through Python costs more than the faster kernel saves.
MIN_ROWS = 32

_library: torch.library.Library | None = None


@contextmanager
def use(wanted: bool = True) -> Iterator[None]:
    """Use the faster kernels, in all threads of this process, until the context ends. Contexts may be nested.

    Memory that is freed stays with the process from the first use on, for good.
    """
    global _library
    if not wanted or _library is not None:
        yield
        return
    _keep_freed_memory()
    _library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings(action="ignore"):  # that kernels are overridden is the purpose
            _override("bernoulli_.float", _bernoulli)
            if prefers_onednn():
                _override("mm", _mm)
                _override("addmm", _addmm)
        yield
    finally:
        _library._destroy()
        _library = None


def suit_attention(model: PreTrainedModel, device: torch.device | str) -> None:
    """On a CPU, plain attention: at usual lengths it is the fastest, in bf16 several times so, and its operations are
    counted. Elsewhere the model keeps what it has."""
    if torch.device(device).type == "cpu":
        model.set_attn_implementation("eager")


def prefers_onednn() -> bool:
    """Whether oneDNN multiplies fp32 matrices faster than MKL here: AVX-512 in a processor that is not Intel's.

    Told by what the processor is and not by the clock, so that a run and its continuation use the same kernels.
    """
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and _vendor() not in ("GenuineIntel", "")
    )


def _vendor() -> str:
    if platform.system() != "Linux":
        return ""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        found = re.search(r"^vendor_id\s*:\s*(\w+)", file.read(), re.MULTILINE)
    return found[1] if found else ""


# Parameters of glibc's `mallopt` (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def _keep_freed_memory() -> None:
    if platform.system() == "Linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # not in every C library
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)


def _override(name: str, kernel) -> None:
    original = torch.library.get_kernel(f"aten::{name}", "CPU")

    def overriding(keys, *args, **kwargs):
        result = kernel(*args, **kwargs)
        return original.call_boxed(keys, *args, **kwargs) if result is NotImplemented else result

    _library.impl(name, overriding, "CPU", with_keyset=True)


def _suits_onednn(*matrices: torch.Tensor) -> bool:
    return matrices[0].shape[0] >= MIN_ROWS and all(
        matrix.dtype is torch.float32 and matrix.numel() and (matrix.is_contiguous() or matrix.t().is_contiguous())
        for matrix in matrices
    )


def _mm(left, right):
    if not _suits_onednn(left, right):
        return NotImplemented
    if left.shape[0] > right.shape[1] and not left.is_contiguous():
        # The gradient of a weight with more rows than columns: oneDNN is up to 2.6 times faster at its transpose.
        return torch.ops.mkldnn._linear_pointwise(right.t(), left, None, "none", [], "").t().contiguous()
    return torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")


def _addmm(bias, left, right, *, beta=1, alpha=1):
    if bias.shape != right.shape[1:] or (beta, alpha) != (1, 1) or not _suits_onednn(left, right):
        return NotImplemented
    return torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")


def _bernoulli(tensor, p=0.5, *, generator=None):
    """1 with probability `p`, rounded to a multiple of 2^-16, else 0."""
    threshold = round(p * 2**16) - 2**15
    if not -(2**15) < threshold < 2**15:
        return NotImplemented
    count = tensor.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=tensor.device)
    bits.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    return torch.lt(bits.view(torch.int16)[:count].view(tensor.shape), threshold, out=tensor)
