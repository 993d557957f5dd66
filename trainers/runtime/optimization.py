"""ELECTRA's Adam, its schedule of the learning rate, and its learning rate a layer."""

import re

import torch
from transformers import PreTrainedModel

from .compatibility import overflowed


# What `--lr_scheduler_type` calls it.
ELECTRA_SCHEDULE = "electra"


class ElectraAdamW(torch.optim.AdamW):
    """AdamW without bias correction, as google-research/electra (`model/optimization.py`) has it:

        m = b1 * m + (1 - b1) * g;   v = b2 * v + (1 - b2) * g^2
        p = p - lr * (m / (sqrt(v) + eps) + weight_decay * p)

    torch's kernels (fused ones included) always correct the bias, which at step t multiplies the step size by
    sqrt(1 - b2^t) / (1 - b1^t) and divides eps by sqrt(1 - b2^t). So each group's learning rate, eps and decay are
    rescaled for the duration of the step to cancel that exactly.

    Args: those of [`torch.optim.AdamW`].
    """

    def step(self, closure=None):
        originals = [{name: group[name] for name in ("lr", "eps", "weight_decay")} for group in self.param_groups]
        skips = overflowed(self)
        try:
            for group in self.param_groups:
                if skips or not group["params"]:  # DeepSpeed's ZeRO-3 steps once a group, and empties the others
                    continue
                # Kept in the group, so that it is saved with the optimizer and resumes.
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
    """The learning rate after t of T steps, with W of them to warm up, as google-research/electra
    (`model/optimization.py`) has it:

        lr * (1 - t / T) * min(1, t / W)

    So it peaks at lr * (1 - W / T). (Transformers' `linear` begins to fall at the end of the warm-up, from all of lr.)

    Args:
        optimizer: whose groups' learning rates are `lr`.
        warmup_steps (`float`): W; below 1, a share of `total_steps`.
        total_steps (`int`): T.
    """
    warmup = warmup_steps if warmup_steps >= 1 else warmup_steps * total_steps

    def factor(step: int) -> float:
        return max(0.0, 1 - step / total_steps) * (min(1.0, step / warmup) if warmup else 1.0)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def decay_by_layer(optimizer: torch.optim.Optimizer, model: PreTrainedModel, decay: float) -> None:
    """Lower the learning rate towards the input, in place, as google-research/electra (`_get_layer_lrs`) has it:

        lr * decay ** (n + 2 - depth)

    for n layers; the depth of the embeddings is 0, of layer i (counted from 1) i, and of everything else, which the
    task brings, n + 2.

    Args:
        optimizer: fresh; each of its groups is split by depth.
        model: an ELECTRA, whose parameters it has.
    """
    layers = model.config.num_hidden_layers

    def depth(name: str) -> int:
        if not name.startswith(f"{model.base_model_prefix}."):
            return layers + 2
        layer = re.search(r"\bencoder\.layer\.(\d+)\.", name)
        # What stands in the encoder after its layers (the last LayerNorm of `norm_position="pre"`) learns as the last.
        return int(layer[1]) + 1 if layer else layers if ".encoder." in name else 0

    depths = {parameter: depth(name) for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        # The head first: the rate that is logged is that of the first group, and so the one that was asked for.
        for at in sorted({depths[parameter] for parameter in group["params"]}, reverse=True):
            parameters = [parameter for parameter in group["params"] if depths[parameter] == at]
            groups.append({**group, "params": parameters, "lr": group["lr"] * decay ** (layers + 2 - at)})
    optimizer.param_groups = groups
