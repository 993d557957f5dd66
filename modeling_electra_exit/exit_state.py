"""What pre-training has measured about its exits: running statistics in buffers, saved and resumed with the weights.

Labels enter here, after a step has routed its tokens, and act on later steps only, through one bit an exit: is its
head good enough to rank by? That cannot tell a later step which of its own tokens were replaced.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_electra_exit import ElectraEarlyExitConfig


# Running means forget by this factor a step: they look back about a hundred steps.
DECAY = 0.99


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of each token, in nats and fp32; both arguments, and the result, (batch, tokens)."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")


def roc_auc(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Area under the ROC curve, by ranks (Mann and Whitney, 1947), without waiting for the device.

    Ties are broken in the order given, so a head that gives every token one and the same logit may get any value.

    Args:
        logits, labels (`torch.Tensor` of shape `(tokens,)`): labels 1 and 0; anything else is left out.

    Returns:
        `torch.FloatTensor` of shape `()`; 0.5 where a class is missing.
    """
    positive, negative = labels == 1, labels == 0
    counted = positive | negative
    # Tokens left out go to the bottom together, where they move all ranks alike.
    order = logits.float().masked_fill(~counted, -torch.inf).argsort()
    ranks = torch.arange(1, len(order) + 1, device=order.device)
    num_positive, num_negative = positive.sum(), negative.sum()
    pairs, left_out = num_positive * num_negative, len(order) - num_positive - num_negative
    wins = ((ranks - left_out) * positive[order]).sum() - num_positive * (num_positive + 1) / 2
    return torch.where(pairs > 0, wins / pairs.clamp_min(1), 0.5)


def class_errors(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """How many tokens of each class are called wrongly, with the base rate as the dividing line.

    Most tokens are original, so at probability 1/2 a head that has learned nothing is hardly ever wrong. Dividing at
    the base rate instead asks whether the head has moved a token's probability to the right side of what is known
    without looking: the head that always says "original" is wrong about one of the two classes entirely.

    Args:
        logits, labels, mask (`torch.Tensor` of one shape): labels 1 and 0; `mask` says which tokens count.
        prior (`torch.Tensor` of shape `()`): share of replaced tokens.

    Returns:
        `torch.FloatTensor` of shape `(2, 2)`: for original and for replaced tokens, the wrong ones and all.
    """
    says_replaced = logits.float() > torch.logit(prior, eps=1e-6)
    counts = []
    for label in (0, 1):
        of_class = mask & (labels == label)
        counts.append(torch.stack([(of_class & (says_replaced != bool(label))).sum(), of_class.sum()]))
    return torch.stack(counts).float()


class ElectraEarlyExitState(nn.Module):
    """Running statistics of the exits of one model. All fields are buffers, in fp32 whatever the weights are: a step
    moves a running mean by a hundredth, which bf16 rounds away. E is the number of exits.

    auc (`(E,)`): ROC-AUC of each exit head on the tokens that reach it.
    replaced_rate (`()`): share of replaced tokens.
    left (`(E, 2, 2)`): of the tokens that exited, by the exit head, for original and replaced tokens: wrong ones and
        all, as decaying sums.
    """

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__()
        for name, value in self.initial(config).items():
            self.register_buffer(name, value)

    @staticmethod
    def initial(config: ElectraEarlyExitConfig) -> dict[str, torch.Tensor]:
        """The value each buffer starts from."""
        exits = len(config.exit_layers)
        fp32 = {"dtype": torch.float32}  # the default is that of the weights while a checkpoint is loaded
        return {
            "auc": torch.full((exits,), 0.5, **fp32),
            "replaced_rate": torch.tensor(0.1, **fp32),
            "left": torch.zeros(exits, 2, 2, **fp32),
        }

    def _apply(self, fn, recurse=True):
        """Moves to a device like any module, and stays in fp32 where `model.to(dtype)`, or DeepSpeed, casts it."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype != torch.float32:
                setattr(self, name, before[name].to(buffer.device))
        return self

    @torch.no_grad()
    def update(self, outputs, labels: torch.Tensor, token_mask: torch.Tensor | None, steps: int = 1):
        """Take in one training step, after its tokens were routed.

        The model calls this in each step of the `"topk"` policy, which reads the result. With any other policy it is
        for logs alone, and left to whoever wants it: the trainer does it in every tenth step.

        Args:
            outputs: with `exit_logits`, `exit_positions` and `exit_selections` of the exits.
            labels (`torch.LongTensor` of shape `(batch, sequence)`).
            token_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            steps (`int`): how many steps this one stands for.
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
        """Of one exit, (6,): AUC and 1 (summed over processes they give the mean), and `left`, flattened."""
        here = labels.gather(1, positions)
        kept = selection.order[:, : selection.exploration.shape[1]]
        left = torch.ones_like(here, dtype=torch.bool).scatter(1, kept, False)
        auc = roc_auc(logits.reshape(-1), here.reshape(-1))
        errors = class_errors(logits, here, left, self.replaced_rate)
        return torch.cat([torch.stack([auc, torch.ones_like(auc)]), errors.flatten()])

    def error_on_left(self) -> torch.Tensor:
        """Share of the original and of the replaced tokens that left which the exit head got wrong, (E, 2)."""
        return self.left[..., 0] / self.left[..., 1].clamp_min(1e-6)


def all_reduce(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes of a distributed run; the values themselves in any other."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
