"""Faster kernels for training on a CPU, put under PyTorch's own operators.

Some of a CPU step's time goes to things that need far less of it. What replaces them computes the same; only rounding,
and which random numbers are drawn, differ.

- **fp32 matrix products** go to MKL, which keeps to AVX2 on processors that are not Intel's. oneDNN, which is inside
  PyTorch too, uses AVX-512 wherever there is any: about 2.3 times the speed on an AMD EPYC with one thread
  (`benchmarks/training_step.py` prints both).
- **Memory** that a step frees goes back to the system, and comes back page by page, zeroed, in the next: a tenth of an
  fp32 step. Kept, it costs nothing: the peak is the same.
- **Dropout** takes a random number an element, from one core, and keeps its mask as fp32. A random byte is enough to
  draw it and to keep.
- **Attention** keeps its probabilities twice, as they were and with dropout, beside a mask of fp32, until the
  gradients are computed. Once and a byte an element will do.

Kernels belong to the whole process, so they are put there for a while only: [`use`] is a context. Attention belongs to
a model: [`suit_attention`].
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
            _override("dropout", _dropout, "AutogradCPU")
            if prefers_onednn():
                _override("mm", _mm)
                _override("addmm", _addmm)
        yield
    finally:
        unregister(_library)
        _library = None


def suit_attention(model: PreTrainedModel, device: torch.device | str) -> None:
    """On a CPU, plain attention: at usual lengths it is the fastest, in bf16 several times so, and its operations are
    counted. An ELECTRA gets [`attention_forward`]. Elsewhere the model keeps what it has."""
    if torch.device(device).type == "cpu":
        model.set_attn_implementation("electra_cpu" if isinstance(model, ElectraPreTrainedModel) else "eager")


def prefers_onednn() -> bool:
    """Whether oneDNN multiplies fp32 matrices faster than MKL here: AVX-512 in a processor that is not Intel's.

    Told by what the processor is and not by the clock, so that a run and its continuation use the same kernels.
    """
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and has_onednn_linear()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and _vendor() not in ("GenuineIntel", "")
    )


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for matrix products in bf16. Where it has none, PyTorch takes tens of
    times as long for one as in fp32."""
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
    if platform.system() == "Linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # not in every C library
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
        # The gradient of a weight with more rows than columns: oneDNN is up to 2.6 times faster at its transpose.
        return onednn_linear(right.t(), left).t().contiguous()
    return onednn_linear(left, right.t())


def _addmm(bias, left, right, *, beta=1, alpha=1):
    if bias.shape != right.shape[1:] or (beta, alpha) != (1, 1) or not _suits_onednn(left, right):
        return NotImplemented
    return onednn_linear(left, right.t(), bias)


# ---- Dropout ----


def draw(shape: torch.Size, p: float) -> tuple[torch.Tensor, int]:
    """A random byte for each element of a tensor that dropout leaves with probability `1 - p` each, and the number of
    values of a byte, counted from the smallest, that let it stay.

    A byte decides in steps of 1/256. Which of the two steps beside `p` is taken is drawn too, once a tensor, so that
    the probability of an element is `p` itself; what stays is to be scaled by the step taken, which moves no mean.
    """
    staying = math.floor(256 * (1 - p) + float(torch.rand(())))
    words = torch.empty(-(-shape.numel() // 8), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    return words.view(torch.int8)[: shape.numel()].view(shape), staying


def can_draw(p: float) -> bool:
    """Whether [`draw`] can: not for probabilities so close to 0 or 1 that a byte cannot tell them from it."""
    return 1 / 256 <= p <= 255 / 256


def drop(values: torch.Tensor, noise: torch.Tensor, staying: int) -> torch.Tensor:
    """`values` with 0 for what does not stay."""
    # Compared into numbers: a product with booleans takes many times as long.
    return torch.le(noise, staying - 129, out=torch.empty(noise.shape, dtype=values.dtype)).mul_(values)


class Dropout(torch.autograd.Function):
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
    """softmax(scaling * query @ key^T + bias) @ value with dropout on the probabilities, and the gradients of `query`,
    `key` and `value`. Products are in their dtype, also under autocast.

    Args:
        query (`torch.FloatTensor` of shape `(items, queries, width)`).
        key, value (`torch.FloatTensor` of shape `(items, keys, width)`).
        bias (`torch.FloatTensor` of shape `(items, queries, keys)`, *optional*): overwritten.
        scaling, p (`float`): `p` is 0 or what [`draw`] can draw.

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
        # The scale of dropout goes into the products, which saves a pass over the scores.
        scale = 256 / ctx.staying
        grad_query = _product(grad_scores, key, ctx.scaling * scale)
        grad_key = _product(grad_scores.mT, query, ctx.scaling * scale)
        return grad_query, grad_key, _product(kept.mT, grad_output, scale), None, None, None


def _product(left, right, scale: float, out: torch.Tensor | None = None, beta: float = 0) -> torch.Tensor:
    """`scale * left @ right`, plus `beta` times what `out` holds, a matrix an item."""
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
    """Plain attention that keeps less for the gradients than Transformers' `eager_attention_forward`, and takes its
    place in models on a CPU (`attn_implementation="electra_cpu"`).

    Args:
        query (`torch.FloatTensor` of shape `(batch, heads, queries, width)`).
        key, value (`torch.FloatTensor` of shape `(batch, heads, keys, width)`).
        attention_mask (`torch.BoolTensor` of a shape that expands to `(batch, heads, queries, keys)`, *optional*):
            false where a key is not to be seen.
        dropout (`float`): of the probabilities, where `module` is in training mode.

    Returns:
        The output (batch, queries, heads, width), and the probabilities (batch, heads, queries, keys), without
        dropout and through which no gradient flows.
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
