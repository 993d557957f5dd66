"""ELECTRA's Adam, learning rate schedule and layer-wise learning rate decay."""

import re

import torch
from transformers import PreTrainedModel

from .compatibility import overflowed


# The value of `--lr_scheduler_type`.
ELECTRA_SCHEDULE = "electra"


class ElectraAdamW(torch.optim.AdamW):
    """AdamW without bias correction, as in google-research/electra (`model/optimization.py`):

        m = b1 * m + (1 - b1) * g;   v = b2 * v + (1 - b2) * g^2
        p = p - lr * (m / (sqrt(v) + eps) + weight_decay * p)

    torch's kernels, fused ones included, always correct the bias: at step t they multiply the step size by
    sqrt(1 - b2^t) / (1 - b1^t) and divide eps by sqrt(1 - b2^t). To cancel this exactly, each group's learning rate,
    eps and weight decay are rescaled during the step.

    Args: as in [`torch.optim.AdamW`].
    """

    def step(self, closure=None):
        originals = [{name: group[name] for name in ("lr", "eps", "weight_decay")} for group in self.param_groups]
        skips = overflowed(self)
        try:
            for group in self.param_groups:
                if skips or not group["params"]:  # DeepSpeed ZeRO-3 steps once per group, with all others empty
                    continue
                # Stored in the group, so that it is saved and resumed with the optimizer.
                group["steps_taken"] = group.get("steps_taken", 0) + 1
                beta1, beta2 = group["betas"]
                correction1 = 1 - beta1 ** group["steps_taken"]
                correction2 = (1 - beta2 ** group["steps_taken"]) ** 0.5
                group["lr"] = group["lr"] * correction1 / correction2
                group["eps"] = group["eps"] / correction2
                group["weight_decay"] = group["weight_decay"] * correction2 / correction1
            return super().step(closure)
        finally:
            for group, original in zip(self.param_groups, originals, strict=True):
                group.update(original)


def electra_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: float, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """ELECTRA's learning rate schedule: after t of T steps, with W warm-up steps, as in google-research/electra
    (`model/optimization.py`):

        lr * (1 - t / T) * min(1, t / W)

    The maximum is lr * (1 - W / T). (Transformers' `linear` schedule reaches lr, and decays from the end of the
    warm-up.)

    Args:
        optimizer: the learning rates of its groups are `lr`.
        warmup_steps (`float`): W; below 1, a share of `total_steps`.
        total_steps (`int`): T.
    """
    warmup = warmup_steps if warmup_steps >= 1 else warmup_steps * total_steps

    def factor(step: int) -> float:
        return max(0.0, 1 - step / total_steps) * (min(1.0, step / warmup) if warmup else 1.0)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def decay_by_layer(optimizer: torch.optim.Optimizer, model: PreTrainedModel, decay: float) -> None:
    """Apply layer-wise learning rate decay in place, as in google-research/electra (`_get_layer_lrs`):

        lr * decay ** (n + 2 - depth)

    for n layers. The depth is 0 for the embeddings, i for layer i (counted from 1), and n + 2 for the task head.

    Args:
        optimizer: a new optimizer of the model's parameters; each of its groups is split by depth.
        model: an ELECTRA model.
        decay: factor per layer, in (0, 1].
    """
    layers = model.config.num_hidden_layers

    def depth(name: str) -> int:
        if not name.startswith(f"{model.base_model_prefix}."):
            return layers + 2
        layer = re.search(r"\bencoder\.layer\.(\d+)\.", name)
        # Encoder parameters outside the layers (the final LayerNorm of `norm_position="pre"`) count as the last layer.
        return int(layer[1]) + 1 if layer else layers if ".encoder." in name else 0

    depths = {parameter: depth(name) for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        # The head first: the logged learning rate is that of the first group, and should be the undecayed one.
        for at in sorted({depths[parameter] for parameter in group["params"]}, reverse=True):
            parameters = [parameter for parameter in group["params"] if depths[parameter] == at]
            groups.append({**group, "params": parameters, "lr": group["lr"] * decay ** (layers + 2 - at)})
    optimizer.param_groups = groups
