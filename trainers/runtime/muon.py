"""Muon for the matrices of the layers, ELECTRA's Adam for everything else, as one optimizer."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from . import cpu_kernels
from .distributed import full_tensor, sharded_as
from .optimization import ElectraAdamW


# What `--optim` calls it. Transformers has no such name.
MUON = "muon"
# Of the quintic iteration; `NS_STEPS` of them bring singular values from 0.002 to 1 to between 0.68 and 1.21.
NS_COEFFICIENTS, NS_STEPS = (3.4445, -4.7750, 2.0315), 5
# The root mean square of Adam's updates, in learning rates.
ADAM_RMS = 0.2
# Numbers in one stack of matrices: more do not fit into the caches of a CPU, whose products gain nothing from it then.
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
    momentum and `adjust_lr_fn="match_rms_adamw"` does, matrices of one shape together, and in the precision of
    [`iteration_dtype`] instead of always in bf16. A matrix that FSDP2 shards is gathered to be orthogonalized, by
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
        self._step_supports_amp_scaling = False  # fused Adam unscales fp16 gradients itself, and Muon does not

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


def iteration_dtype(device: torch.device) -> torch.dtype:
    """bf16, which the iteration gets by with, where the device multiplies it faster than fp32."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = device.type == "cpu" and cpu_kernels.multiplies_bf16()
    return torch.bfloat16 if able else torch.float32


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices, nearly: `NS_STEPS` steps of Newton and Schulz's iteration, with the
    coefficients of Jordan et al. Singular values of at least 0.002 of a matrix's norm end between 0.68 and 1.21.

    Args:
        matrices (`torch.FloatTensor` of shape `(matrices, rows, columns)`).

    Returns:
        A tensor of the same shape, in [`iteration_dtype`]. A matrix of zeros stays one.
    """
    a, b, c = NS_COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(iteration_dtype(matrices.device))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(NS_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


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
