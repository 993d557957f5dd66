"""Muon for the matrices of the layers, ELECTRA's Adam for everything else, as one optimizer."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import numpy as np
import torch
from scipy.linalg import get_blas_funcs, get_lapack_funcs
from torch import nn

from . import cpu_kernels
from .compatibility import unscale_before
from .distributed import full_tensor, sharded_as
from .optimization import ElectraAdamW


# What `--optim` calls it. Transformers has no such name.
MUON = "muon"
# Of the quintic iteration; `NS_STEPS` of them bring singular values from 0.002 to 1 to between 0.68 and 1.21.
NS_COEFFICIENTS, NS_STEPS = (3.4445, -4.7750, 2.0315), 5
# Of Zolotarev's function s * x * (1 + w1 / (x^2 + p1) + w2 / (x^2 + p2)). No other of its degree is as close to 1 for
# singular values from 0.002 to 1: it is between 0.845 and 1.155.
ZOLOTAREV_SCALE = 0.9619399092431424
ZOLOTAREV_POLES = (1.896081800633895e-05, 9.186059628448026e-03)
ZOLOTAREV_WEIGHTS = (0.00958358040863938, 0.19260820402233858)
# A matrix of a smaller norm is enlarged no further.
LEAST_NORM = 1e-7
# The root mean square of Adam's updates, in learning rates.
ADAM_RMS = 0.2
# Threads of a CPU up to which fewer operations, one matrix after the other, outweigh products that all threads share.
FEW_THREADS = 4
# Numbers in one stack of matrices. More do not fit into the caches of a CPU, whose products gain nothing from it then.
STACK_SIZE = {"cpu": 2**17}
DEFAULT_STACK_SIZE = 2**25


class ElectraMuon(ElectraAdamW):
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) for some matrices, and for all other
    parameters [`ElectraAdamW`]:

        m = momentum * m + (1 - momentum) * g
        u = orthogonal((1 - momentum) * g + momentum * m)
        p = p - lr * (0.2 * sqrt(max(rows, columns)) * u + weight_decay * p)

    The factor makes an update as large as one of Adam's (Liu et al., 2025, https://arxiv.org/abs/2502.16982), so one
    learning rate, its schedule and weight decay suit both. It computes what `torch.optim.Muon` with Nesterov's
    momentum and `adjust_lr_fn="match_rms_adamw"` does, with another approximation of the same orthogonal matrices on
    some CPUs (see [`orthogonalize`]). A matrix that FSDP2 shards is gathered to be orthogonalized, by
    every process.

    Args:
        params: parameters or groups of them; a group is split in two where it holds matrices of both kinds.
        matrices: the parameters, of two dimensions, that Muon updates. Those that are not in `params` are ignored.
        momentum: of Muon, in [0, 1). A group that has it is Muon's.
        adam: further arguments of [`torch.optim.AdamW`]; `lr` and `weight_decay` are Muon's too.

    Raises:
        ValueError: if a matrix does not have two dimensions.
    """

    def __init__(self, params: Iterable, matrices: Iterable[nn.Parameter], momentum: float = 0.95, **adam):
        matrices, groups = set(matrices), list(params)
        for matrix in matrices:
            if matrix.ndim != 2:
                raise ValueError(f"`matrices` must have two dimensions, got a shape of {tuple(matrix.shape)}")
        groups = groups if isinstance(groups[0], dict) else [{"params": groups}]
        # Adam's first: the rate that is logged is that of the first group, which holds the head.
        split = [
            {**group, **own, "params": [p for p in group["params"] if (p in matrices) == bool(own)]}
            for own in ({}, {"momentum": momentum})
            for group in groups
        ]
        super().__init__([group for group in split if group["params"]], **adam)
        unscale_before(self)  # Muon does not unscale fp16 gradients

    def __setstate__(self, state):
        """Adam looks for what it keeps of each parameter; so it does not see Muon's."""
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
            directions = []
            for parameter in parameters:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                directions.append(full_tensor(parameter.grad.lerp(state["momentum_buffer"], momentum)))
            updates = orthogonalize(torch.stack(directions))
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - lr * group["weight_decay"])
                rate = lr * ADAM_RMS * max(parameter.shape) ** 0.5
                parameter.add_(sharded_as(update.to(parameter.dtype), parameter), alpha=-rate)


def layer_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of attention and feed-forward blocks, in the layers of the encoder and of a generator in the model:
    not embeddings, nor heads, whose rows are not alike."""
    return [p for name, p in model.named_parameters() if p.ndim == 2 and re.search(r"\bencoder\.layer\.\d+\.", name)]


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices, nearly: by [`newton_schulz`], which is products of whole stacks, or on a
    CPU with few threads by [`zolotarev`], which takes a fifth of the operations.

    Args:
        matrices (`torch.FloatTensor` of shape `(matrices, rows, columns)`).

    Returns:
        A tensor of the same shape, in the precision it was computed in. A matrix of zeros stays one.
    """
    if matrices.device.type == "cpu" and torch.get_num_threads() <= FEW_THREADS:
        return torch.stack([zolotarev(matrix) for matrix in matrices])
    return newton_schulz(matrices)


def iteration_dtype(device: torch.device) -> torch.dtype:
    """bf16, which [`newton_schulz`] gets by with, where the device multiplies it faster than fp32."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = device.type == "cpu" and cpu_kernels.multiplies_bf16()
    return torch.bfloat16 if able else torch.float32


def newton_schulz(matrices: torch.Tensor) -> torch.Tensor:
    """`NS_STEPS` steps of Newton and Schulz's iteration, with the coefficients of Jordan et al., in
    [`iteration_dtype`]. Singular values of at least 0.002 of a matrix's norm end between 0.68 and 1.21.

    Args and returns: those of [`orthogonalize`].
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
    """Zolotarev's rational function of type (5, 4), of the singular values (Nakatsukasa and Freund, 2016,
    https://doi.org/10.1137/140990334), as partial fractions of the Gram matrix G of a matrix of norm 1:

        scale * (1 + w1 * (G + p1)^-1 + w2 * (G + p2)^-1) @ matrix

    So it multiplies with the matrix twice, and not ten times as the iteration does. Singular values of at least 0.002
    of the matrix's norm end between 0.845 and 1.155; smaller ones are enlarged 507 times (by the iteration 485 times).

    Args:
        matrix (`torch.FloatTensor` of shape `(rows, columns)`): on a CPU.

    Returns:
        A tensor of the same shape, in fp32 or the precision of the matrix, if that is higher.
    """
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32)).contiguous()
    syrk, trsm, symm, potrf = _routines(matrix.dtype)
    transposed = matrix.numpy().T  # no copy: BLAS wants columns in one piece
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
    """SciPy's: those that torch has do not use symmetry, and are several times slower on processors for which MKL was
    not made."""
    precision = np.float64 if dtype is torch.float64 else np.float32
    return (
        *get_blas_funcs(("syrk", "trsm", "symm"), dtype=precision),
        *get_lapack_funcs(("potrf",), dtype=precision),
    )


def _adams(groups: list[dict]) -> list[dict]:
    return [group for group in groups if "momentum" not in group]


def _stacks(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one shape, not too many at a time: small products are faster together."""
    shapes = defaultdict(list)
    for parameter in parameters:
        shapes[parameter.shape].append(parameter)
    for alike in shapes.values():
        size = STACK_SIZE.get(alike[0].device.type, DEFAULT_STACK_SIZE)
        count = max(1, size // alike[0].numel())
        yield from (alike[start : start + count] for start in range(0, len(alike), count))
