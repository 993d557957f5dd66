"""Muon for the weight matrices of the layers and ELECTRA's Adam for all other parameters, as one optimizer."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import numpy as np
import torch
from scipy.linalg import get_blas_funcs, get_lapack_funcs
from threadpoolctl import ThreadpoolController
from torch import nn

from . import cpu_kernels
from .compatibility import foreach_add_, foreach_lerp, foreach_lerp_, foreach_mul_, unscale_before
from .distributed import full_tensor, sharded_as
from .optimization import ElectraAdamW


# The value of `--optim`, unknown to Transformers.
MUON = "muon"
# Coefficients of the quintic iteration. `NS_STEPS` iterations map singular values in [0.002, 1] into [0.68, 1.21].
NS_COEFFICIENTS, NS_STEPS = (3.4445, -4.7750, 2.0315), 5
# Zolotarev's function s * x * (1 + w1 / (x^2 + p1) + w2 / (x^2 + p2)): the best approximation to 1 of its degree on
# [0.002, 1], which it maps into [0.845, 1.155].
ZOLOTAREV_SCALE = 0.9619399092431424
ZOLOTAREV_POLES = (1.896081800633895e-05, 9.186059628448026e-03)
ZOLOTAREV_WEIGHTS = (0.00958358040863938, 0.19260820402233858)
# Lower bound of the norm by which a matrix is divided.
LEAST_NORM = 1e-7
# The root mean square of Adam's updates, in units of the learning rate.
ADAM_RMS = 0.2
# Maximum number of CPU threads for which [`zolotarev`] (fewer operations, one matrix at a time) is faster than
# [`newton_schulz`] (products of whole stacks, which use all threads).
FEW_THREADS = 4
# Elements in one stack of matrices. On a CPU, larger stacks do not fit into the caches and gain nothing.
STACK_SIZE = {"cpu": 2**17}
DEFAULT_STACK_SIZE = 2**25


class ElectraMuon(ElectraAdamW):
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) for the given matrices, [`ElectraAdamW`]
    for all other parameters. The update of a matrix p with gradient g is:

        m = momentum * m + (1 - momentum) * g
        u = orthogonal((1 - momentum) * g + momentum * m)
        p = p - lr * (0.2 * sqrt(max(rows, columns)) * u + weight_decay * p)

    The factor makes updates as large as Adam's (Liu et al., 2025, https://arxiv.org/abs/2502.16982), so both share the
    learning rate, its schedule and the weight decay. The update equals that of `torch.optim.Muon` with Nesterov
    momentum and `adjust_lr_fn="match_rms_adamw"`, except that the orthogonal matrices are approximated by another
    method on some CPUs (see [`orthogonalize`]). Every process gathers and orthogonalizes matrices sharded by FSDP2.

    Args:
        params: parameters or parameter groups. A group with parameters for both optimizers is split in two.
        matrices: two-dimensional parameters for Muon. Those that are not in `params` are ignored.
        momentum: Muon's momentum, in [0, 1). Groups for Muon have this entry, groups for Adam do not.
        adam: further arguments of [`torch.optim.AdamW`]; `lr` and `weight_decay` apply to both.

    Raises:
        ValueError: if a parameter in `matrices` does not have two dimensions.
    """

    def __init__(self, params: Iterable, matrices: Iterable[nn.Parameter], momentum: float = 0.95, **adam):
        matrices, groups = set(matrices), list(params)
        for matrix in matrices:
            if matrix.ndim != 2:
                raise ValueError(f"`matrices` must have two dimensions, got a shape of {tuple(matrix.shape)}")
        groups = groups if isinstance(groups[0], dict) else [{"params": groups}]
        # Adam's groups first: the logged learning rate is that of the first group, which should contain the head.
        split = [
            {**group, **own, "params": [p for p in group["params"] if (p in matrices) == bool(own)]}
            for own in ({}, {"momentum": momentum})
            for group in groups
        ]
        super().__init__([group for group in split if group["params"]], **adam)
        unscale_before(self)  # Muon does not unscale fp16 gradients

    def __setstate__(self, state):
        """Hides Muon's groups from Adam, which expects its own state for each parameter."""
        super().__setstate__({**state, "param_groups": _adams(state["param_groups"])})
        self.param_groups = state["param_groups"]

    def step(self, closure=None):
        groups = self.param_groups
        self.param_groups = _adams(groups)
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if "momentum" in group:
                self._update_matrices(group)
        return loss

    @torch.no_grad()
    def _update_matrices(self, group: dict) -> None:
        lr, momentum = group["lr"], group["momentum"]
        for parameters in _stacks([p for p in group["params"] if p.grad is not None]):
            # Operations on lists: a GPU is bound by launches, and there are dozens of matrices.
            gradients = [parameter.grad for parameter in parameters]
            buffers = [self._momentum_buffer(parameter) for parameter in parameters]
            foreach_lerp_(buffers, gradients, 1 - momentum)
            directions = foreach_lerp(gradients, buffers, momentum)
            updates = orthogonalize(torch.stack(list(map(full_tensor, directions)))).to(parameters[0].dtype)
            foreach_mul_(parameters, 1 - lr * group["weight_decay"])
            rate = lr * ADAM_RMS * max(parameters[0].shape) ** 0.5
            foreach_add_(parameters, list(map(sharded_as, updates, parameters)), alpha=-rate)

    def _momentum_buffer(self, parameter: nn.Parameter) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def layer_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weight matrices of attention and feed-forward blocks in all encoder layers, those of a generator included.
    Embeddings and heads are excluded."""
    return [p for name, p in model.named_parameters() if p.ndim == 2 and re.search(r"\bencoder\.layer\.\d+\.", name)]


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Approximate the nearest (semi-)orthogonal matrices: by [`newton_schulz`], with products of whole stacks, or on a
    CPU with few threads by [`zolotarev`], with a fifth of the operations.

    Args:
        matrices (`torch.FloatTensor` of shape `(matrices, rows, columns)`).

    Returns:
        A tensor of the same shape, in the dtype of the computation. Zero matrices remain zero.
    """
    if matrices.device.type == "cpu" and torch.get_num_threads() <= FEW_THREADS:
        # Two BLAS threads save a tenth of the time on an idle machine. If another process is busy, they wait for each
        # other and take ten times as long.
        with _thread_pools().limit(limits=1, user_api="blas"):
            return torch.stack([zolotarev(matrix) for matrix in matrices])
    return newton_schulz(matrices)


def iteration_dtype(device: torch.device) -> torch.dtype:
    """The dtype for [`newton_schulz`]: bf16, which is precise enough, on devices that support it; else fp32."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = device.type == "cpu" and cpu_kernels.multiplies_bf16()
    return torch.bfloat16 if able else torch.float32


def newton_schulz(matrices: torch.Tensor) -> torch.Tensor:
    """`NS_STEPS` Newton-Schulz iterations with the coefficients of Jordan et al., in [`iteration_dtype`]. Singular
    values of at least 0.002 of a matrix's norm are mapped into [0.68, 1.21].

    Args and returns: as in [`orthogonalize`].
    """
    a, b, c = NS_COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(iteration_dtype(matrices.device))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(LEAST_NORM)
    for _ in range(NS_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def zolotarev(matrix: torch.Tensor) -> torch.Tensor:
    """Apply Zolotarev's rational function of type (5, 4) to the singular values (Nakatsukasa and Freund, 2016,
    https://doi.org/10.1137/140990334), as partial fractions of the Gram matrix G of a matrix of norm 1:

        scale * (1 + w1 * (G + p1)^-1 + w2 * (G + p2)^-1) @ matrix

    It multiplies by the matrix twice, the iteration ten times. Singular values of at least 0.002 of the matrix's norm
    are mapped into [0.845, 1.155]; smaller ones are multiplied by up to 507 (by up to 485 in the iteration).

    Args:
        matrix (`torch.FloatTensor` of shape `(rows, columns)`): on a CPU.

    Returns:
        A tensor of the same shape, in fp32, or in fp64 for a matrix in fp64.
    """
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32)).contiguous()
    syrk, trsm, symm, potrf = _routines(matrix.dtype)
    transposed = matrix.numpy().T  # not a copy: BLAS expects column-major matrices
    wide = matrix.shape[0] <= matrix.shape[1]
    gram = syrk(1.0, transposed, trans=wide, lower=True)
    diagonal = np.einsum("ii->i", gram).copy()
    norm = max(diagonal.sum(), LEAST_NORM**2) ** 0.5
    identity = np.eye(len(gram), dtype=gram.dtype, order="F")
    root = identity * (ZOLOTAREV_SCALE / norm)
    for pole, weight in zip(ZOLOTAREV_POLES, ZOLOTAREV_WEIGHTS, strict=True):
        np.fill_diagonal(gram, diagonal + pole * norm**2)
        factor, _ = potrf(gram, lower=True)
        inverse = trsm(1.0, factor, identity, lower=True)
        syrk(ZOLOTAREV_SCALE * weight * norm, inverse, trans=True, lower=True, beta=1.0, c=root, overwrite_c=True)
    return torch.from_numpy(symm(1.0, root, transposed, side=wide, lower=True).T)


@cache
def _routines(dtype: torch.dtype) -> tuple[Callable, ...]:
    """SciPy's BLAS and LAPACK routines. Those of torch do not exploit symmetry, and MKL is several times slower on
    non-Intel processors."""
    precision = np.float64 if dtype is torch.float64 else np.float32
    return (
        *get_blas_funcs(("syrk", "trsm", "symm"), dtype=precision),
        *get_lapack_funcs(("potrf",), dtype=precision),
    )


@cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


def _adams(groups: list[dict]) -> list[dict]:
    return [group for group in groups if "momentum" not in group]


def _stacks(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Group parameters by shape, in stacks of limited size: batched products of small matrices are faster."""
    shapes = defaultdict(list)
    for parameter in parameters:
        shapes[parameter.shape].append(parameter)
    for alike in shapes.values():
        size = STACK_SIZE.get(alike[0].device.type, DEFAULT_STACK_SIZE)
        count = max(1, size // alike[0].numel())
        yield from (alike[start : start + count] for start in range(0, len(alike), count))
