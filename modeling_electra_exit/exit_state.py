"""Running statistics of the exits in pre-training, kept in buffers that are saved and resumed with the weights.

Labels enter here only after a step has routed its tokens. They affect later steps through one bit per exit: whether
its head is good enough to rank by. That bit cannot leak which tokens of a later step were replaced.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_electra_exit import ElectraEarlyExitConfig


# Decay of the running means per step: they average over about a hundred steps.
DECAY = 0.99


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of each token in nats, fp32. Arguments and result have shape `(batch, tokens)`."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")


def roc_auc(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Area under the ROC curve from ranks (Mann and Whitney, 1947), without host-device synchronization.

    Ties are broken by position, so the result is arbitrary for a head that predicts the same logit everywhere.

    Args:
        logits, labels (`torch.Tensor` of shape `(tokens,)`): tokens with labels other than 0 and 1 are ignored.

    Returns:
        `torch.FloatTensor` of shape `()`: the area, or 0.5 if a class is missing.
    """
    positive, negative = labels == 1, labels == 0
    counted = positive | negative
    # Ignored tokens get the lowest ranks, which shifts all other ranks equally.
    order = logits.float().masked_fill(~counted, -torch.inf).argsort()
    ranks = torch.arange(1, len(order) + 1, device=order.device)
    num_positive, num_negative = positive.sum(), negative.sum()
    pairs, left_out = num_positive * num_negative, len(order) - num_positive - num_negative
    wins = ((ranks - left_out) * positive[order]).sum() - num_positive * (num_positive + 1) / 2
    return torch.where(pairs > 0, wins / pairs.clamp_min(1), 0.5)


def class_errors(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Number of misclassified tokens of each class, with the base rate as the decision threshold.

    Most tokens are original, so at a threshold of 1/2 even an untrained head is rarely wrong. With the base rate as
    the threshold, a head that always predicts one class misclassifies all tokens of the other.

    Args:
        logits, labels (`torch.Tensor` of one shape): labels are 0 and 1.
        mask (`torch.BoolTensor` of the same shape): true for tokens that count.
        prior (`torch.Tensor` of shape `()`): share of replaced tokens.

    Returns:
        `torch.FloatTensor` of shape `(2, 2)`: for original and for replaced tokens, the number of errors and of
        tokens.
    """
    says_replaced = logits.float() > torch.logit(prior, eps=1e-6)
    counts = []
    for label in (0, 1):
        of_class = mask & (labels == label)
        counts.append(torch.stack([(of_class & (says_replaced != bool(label))).sum(), of_class.sum()]))
    return torch.stack(counts).float()


class ElectraEarlyExitState(nn.Module):
    """Running statistics of a model's exits. All fields are buffers and stay in fp32 whatever the dtype of the
    weights, because bf16 would round away updates of 1 %. E is the number of exits.

    auc (`(E,)`): ROC-AUC of each exit head on the tokens that reach it.
    replaced_rate (`()`): share of replaced tokens.
    left (`(E, 2, 2)`): decaying sums over the tokens that exited: for original and for replaced tokens, the exit
        head's errors and all tokens.
    """

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__()
        for name, value in self.initial(config).items():
            self.register_buffer(name, value)

    @staticmethod
    def initial(config: ElectraEarlyExitConfig) -> dict[str, torch.Tensor]:
        """Initial values of the buffers, by name."""
        exits = len(config.exit_layers)
        fp32 = {"dtype": torch.float32}  # while a checkpoint is loaded, the default dtype is that of its weights
        return {
            "auc": torch.full((exits,), 0.5, **fp32),
            "replaced_rate": torch.tensor(0.1, **fp32),
            "left": torch.zeros(exits, 2, 2, **fp32),
        }

    def _apply(self, fn, recurse=True):
        """Moves buffers between devices, but keeps them in fp32 when `model.to(dtype)` or DeepSpeed casts modules."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype != torch.float32:
                setattr(self, name, before[name].to(buffer.device))
        return self

    @torch.no_grad()
    def update(self, outputs, labels: torch.Tensor, token_mask: torch.Tensor | None, steps: int = 1):
        """Update the statistics by one training step, after its tokens were routed.

        The model calls this in each step of the `"topk"` policy, which reads the statistics. With other policies they
        are only logged, and the trainer calls this in every tenth step.

        Args:
            outputs ([`ElectraEarlyExitModelOutput`]): with `exit_logits`, `exit_positions` and `exit_selections`.
            labels (`torch.LongTensor` of shape `(batch, sequence)`): 1 where a token was replaced, else 0.
            token_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            steps (`int`): number of steps that this one represents, for the decay.
        """
        decay = DECAY**steps
        labels = labels if token_mask is None else labels.masked_fill(token_mask == 0, -1)
        rate = torch.stack([(labels == 1).sum(), (labels >= 0).sum()]).float()
        exits = zip(outputs.exit_logits, outputs.exit_positions, outputs.exit_selections, strict=True)
        sums = all_reduce(torch.cat([rate, *(self._exit_statistics(*each, labels) for each in exits)]))
        self.replaced_rate.lerp_(sums[0] / sums[1].clamp_min(1), 1 - decay)
        per_exit = sums[2:].view(len(self.auc), 6)
        self.auc.lerp_(per_exit[:, 0] / per_exit[:, 1], 1 - decay)
        self.left.mul_(decay).add_(per_exit[:, 2:].reshape_as(self.left))

    def _exit_statistics(self, logits, positions, selection, labels) -> torch.Tensor:
        """Statistics of one exit, `(6,)`: its AUC, a 1 that counts the processes, and its `left`, flattened."""
        here = labels.gather(1, positions)
        kept = selection.order[:, : selection.exploration.shape[1]]
        left = torch.ones_like(here, dtype=torch.bool).scatter(1, kept, False)
        auc = roc_auc(logits.reshape(-1), here.reshape(-1))
        errors = class_errors(logits, here, left, self.replaced_rate)
        return torch.cat([torch.stack([auc, torch.ones_like(auc)]), errors.flatten()])

    def error_on_left(self) -> torch.Tensor:
        """The exit heads' error rates on the tokens that exited, for original and for replaced tokens, `(E, 2)`."""
        return self.left[..., 0] / self.left[..., 1].clamp_min(1e-6)


def all_reduce(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over all processes of a distributed run, in place; otherwise `values` unchanged."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
