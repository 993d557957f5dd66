"""Faster kernels for training on a CPU, registered under PyTorch's own operators.

They compute the same results up to rounding and the choice of random numbers.

- **fp32 matrix products**: PyTorch uses MKL, which is limited to AVX2 on non-Intel processors. oneDNN, which PyTorch
  includes, uses AVX-512 on all processors that have it: about 2.3 times the speed on an AMD EPYC with one thread
  (`benchmarks/training_step.py` prints both).
- **Memory**: PyTorch returns freed memory to the system and gets it back zeroed, page by page, in the next step. That
  takes a tenth of an fp32 step. Here the process keeps it; the peak is the same.
- **Dropout**: PyTorch draws one random number per element on a single core, and saves the mask in fp32. Here one
  random byte per element is drawn and saved.
- **Attention**: PyTorch saves the probabilities before and after dropout and an fp32 mask for the backward pass. Here
  it saves the probabilities once, and one byte per element.

Kernels apply to the whole process, so [`use`] is a context manager. Attention is set per model: [`suit_attention`].
"""

import ctypes
import math
import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.models.electra.modeling_electra import ElectraPreTrainedModel, eager_attention_forward

from .compatibility import has_onednn_linear, onednn_linear, onednn_multiplies_bf16, softmax_gradient, unregister


# Below this many rows, the overhead of Python exceeds the gain of the faster kernel.
MIN_ROWS = 32

_library: torch.library.Library | None = None


@contextmanager
def use(enabled: bool = True) -> Iterator[None]:
    """Use the faster kernels in all threads of this process until the context ends. Contexts may be nested.

    From the first use on, the process keeps freed memory permanently.
    """
    global _library
    if not enabled or _library is not None:
        yield
        return
    _keep_freed_memory()
    _library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns that kernels are overridden
            _override("dropout", _dropout, "AutogradCPU")
            if prefers_onednn():
                _override("mm", _mm)
                _override("addmm", _addmm)
        yield
    finally:
        unregister(_library)
        _library = None


def suit_attention(model: PreTrainedModel, device: torch.device | str) -> None:
    """On a CPU, switch the model to plain attention, which is fastest at typical lengths (several times in bf16) and
    visible to FLOP counters. ELECTRA models get [`attention_forward`]. On other devices, do nothing."""
    if torch.device(device).type == "cpu":
        model.set_attn_implementation("electra_cpu" if isinstance(model, ElectraPreTrainedModel) else "eager")


def to_best_device(model: PreTrainedModel) -> torch.device:
    """Move the model to the accelerator if there is one, with the attention that suits it. Returns the device."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model.to(device)
    suit_attention(model, device)
    return device


def prefers_onednn() -> bool:
    """Whether oneDNN is expected to multiply fp32 matrices faster than MKL: on non-Intel processors with AVX-512.

    Decided by the processor, not by a timing, so that a resumed run uses the same kernels.
    """
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and has_onednn_linear()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and _vendor() not in ("GenuineIntel", "")
    )


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for bf16 matrix products. Without them, a product takes PyTorch tens of
    times as long as in fp32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        return onednn_multiplies_bf16()
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _vendor() -> str:
    if platform.system() != "Linux":
        return ""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        found = re.search(r"^vendor_id\s*:\s*(\w+)", file.read(), re.MULTILINE)
    return found[1] if found else ""


# Parameters of glibc's `mallopt` (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def _keep_freed_memory() -> None:
    if platform.system() == "Linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # some C libraries lack it
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)


def _override(name: str, kernel, key: str = "CPU") -> None:
    original = torch.library.get_kernel(f"aten::{name}", key)

    def overriding(keys, *args, **kwargs):
        result = kernel(*args, **kwargs)
        return original.call_boxed(keys, *args, **kwargs) if result is NotImplemented else result

    _library.impl(name, overriding, key, with_keyset=True)


def _suits_onednn(*matrices: torch.Tensor) -> bool:
    return matrices[0].shape[0] >= MIN_ROWS and all(
        matrix.dtype is torch.float32 and matrix.numel() and (matrix.is_contiguous() or matrix.t().is_contiguous())
        for matrix in matrices
    )


def _mm(left, right):
    if not _suits_onednn(left, right):
        return NotImplemented
    if left.shape[0] > right.shape[1] and not left.is_contiguous():
        # The gradient of a weight with more rows than columns: oneDNN computes its transpose up to 2.6 times faster.
        return onednn_linear(right.t(), left).t().contiguous()
    return onednn_linear(left, right.t())


def _addmm(bias, left, right, *, beta=1, alpha=1):
    if bias.shape != right.shape[1:] or (beta, alpha) != (1, 1) or not _suits_onednn(left, right):
        return NotImplemented
    return onednn_linear(left, right.t(), bias)


# ---- Dropout ----


def draw(shape: torch.Size, p: float) -> tuple[torch.Tensor, int]:
    """Random bytes for dropout with probability `p`, and the number of byte values, counted from the smallest, for
    which an element is kept.

    A byte resolves probabilities in steps of 1/256. One of the two steps next to `p` is drawn for each tensor, so that
    the probability for each element is exactly `p`. Kept elements must be scaled by the drawn step, which keeps the
    mean unbiased.

    Returns:
        `torch.CharTensor` of shape `shape`, and an `int` from 1 to 256.
    """
    staying = math.floor(256 * (1 - p) + float(torch.rand(())))
    words = torch.empty(-(-shape.numel() // 8), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    return words.view(torch.int8)[: shape.numel()].view(shape), staying


def can_draw(p: float) -> bool:
    """Whether [`draw`] supports `p`: not if it is too close to 0 or 1 for the resolution of a byte."""
    return 1 / 256 <= p <= 255 / 256


def drop(values: torch.Tensor, noise: torch.Tensor, staying: int) -> torch.Tensor:
    """`values` with dropped elements set to 0, not scaled."""
    # The comparison writes floats, because a product with booleans takes many times as long.
    return torch.le(noise, staying - 129, out=torch.empty(noise.shape, dtype=values.dtype)).mul_(values)


class Dropout(torch.autograd.Function):
    """Dropout that saves one byte per element for the backward pass."""

    @staticmethod
    def forward(ctx, states, p):
        noise, ctx.staying = draw(states.shape, p)
        ctx.save_for_backward(noise)
        return drop(states, noise, ctx.staying).mul_(256 / ctx.staying)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        return drop(grad_output, *ctx.saved_tensors, ctx.staying).mul_(256 / ctx.staying), None


def _dropout(states, p, train):
    if not train or not can_draw(p) or not states.is_floating_point() or torch.compiler.is_compiling():
        return NotImplemented
    return Dropout.apply(states, p)


# ---- Attention ----


class Attention(torch.autograd.Function):
    """softmax(scaling * query @ key^T + bias) @ value with dropout on the probabilities. Differentiable with respect
    to `query`, `key` and `value`. Products use the dtype of the inputs, also under autocast.

    Args:
        query (`torch.FloatTensor` of shape `(items, queries, width)`).
        key, value (`torch.FloatTensor` of shape `(items, keys, width)`).
        bias (`torch.FloatTensor` of shape `(items, queries, keys)`, *optional*): overwritten.
        scaling (`float`): factor on the scores.
        p (`float`): dropout probability, 0 or one that [`can_draw`] accepts.

    Returns:
        The output (items, queries, width), and the probabilities before dropout (items, queries, keys).
    """

    @staticmethod
    def forward(ctx, query, key, value, bias, scaling, p):
        with torch.autocast("cpu", enabled=False):
            scores = query.new_empty(*query.shape[:2], key.shape[1]) if bias is None else bias
            _product(query, key.mT, scaling, out=scores, beta=0 if bias is None else 1)
            probabilities = kept = torch.softmax(scores, dim=-1, out=scores)
            noise, ctx.staying = draw(scores.shape, p) if p else (None, 256)
            if p:
                kept = drop(probabilities, noise, ctx.staying)
            output = _product(kept, value, 256 / ctx.staying)
        ctx.save_for_backward(query, key, value, probabilities, noise)
        ctx.scaling = scaling
        ctx.mark_non_differentiable(probabilities)
        return output, probabilities

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output, _):
        query, key, value, probabilities, noise = ctx.saved_tensors
        kept, grad_scores = probabilities, torch.bmm(grad_output, value.mT)
        if noise is not None:
            kept, grad_scores = (drop(values, noise, ctx.staying) for values in (kept, grad_scores))
        grad_scores = softmax_gradient(grad_scores, probabilities)
        # The dropout scale is applied in the products, which saves a pass over the scores.
        scale = 256 / ctx.staying
        grad_query = _product(grad_scores, key, ctx.scaling * scale)
        grad_key = _product(grad_scores.mT, query, ctx.scaling * scale)
        return grad_query, grad_key, _product(kept.mT, grad_output, scale), None, None, None


def _product(left, right, scale: float, out: torch.Tensor | None = None, beta: float = 0) -> torch.Tensor:
    """`scale * left @ right + beta * out` for batches of matrices, written to `out` if given."""
    out = left.new_empty(*left.shape[:2], right.shape[2]) if out is None else out
    return torch.baddbmm(out, left, right, beta=beta, alpha=scale, out=out)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention that saves less memory for the backward pass than Transformers' `eager_attention_forward`. It
    replaces that function in models on a CPU (`attn_implementation="electra_cpu"`).

    Args:
        query (`torch.FloatTensor` of shape `(batch, heads, queries, width)`).
        key, value (`torch.FloatTensor` of shape `(batch, heads, keys, width)`).
        attention_mask (`torch.BoolTensor` of a shape that expands to `(batch, heads, queries, keys)`, *optional*):
            false where a key is masked.
        scaling (`float`): factor on the scores.
        dropout (`float`): dropout probability of the attention probabilities, if `module` is in training mode.

    Returns:
        The output (batch, queries, heads, width), and the probabilities (batch, heads, queries, keys) before dropout,
        not differentiable.
    """
    shape = (*query.shape[:3], key.shape[2])
    bias = None
    if attention_mask is not None:
        bias = torch.zeros(attention_mask.shape, dtype=query.dtype, device=query.device)
        bias = bias.masked_fill_(~attention_mask, torch.finfo(query.dtype).min)
    p = dropout if module.training else 0.0
    if torch.compiler.is_compiling() or not (p == 0 or can_draw(p)):
        return eager_attention_forward(module, query, key, value, bias, scaling, dropout)
    bias = None if bias is None else bias.expand(shape).reshape(-1, *shape[2:]).contiguous()
    items = [states.reshape(-1, *states.shape[2:]) for states in (query, key, value)]
    output, probabilities = Attention.apply(*items, bias, scaling, p)
    return output.view(query.shape).transpose(1, 2), probabilities.view(shape)


AttentionInterface.register("electra_cpu", attention_forward)
AttentionMaskInterface.register("electra_cpu", sdpa_mask)
