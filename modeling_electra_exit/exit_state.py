"""What pre-training has measured about its exits: running statistics in buffers, saved and resumed with the weights.

Labels enter here, after a step has routed its tokens, and act on later steps only: through one bit an exit (is its
head good enough to rank by?), through the capacity of an exit, and through the running loss of a vocabulary id. None
of them can tell a later step which of its own tokens were replaced.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_electra_exit import ElectraEarlyExitConfig


# Running means forget with this factor a step: they look back about a hundred steps.
DECAY = 0.99
# The loss of a vocabulary id not seen yet, in nats: the entropy of a 10 % base rate, neither easy nor hard.
UNSEEN_LOSS = 0.325


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
    # Tokens left out go to the bottom together, where they move all ranks alike.
    ranks = logits.float().masked_fill(~(positive | negative), -torch.inf).argsort().argsort() + 1
    ranks = ranks - (~(positive | negative)).sum()
    pairs = positive.sum() * negative.sum()
    wins = (ranks * positive).sum() - positive.sum() * (positive.sum() + 1) / 2
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
    audit (`(E, 2, 2, 2)`): on the audit tokens that the score alone would have let go, for the exit head and the final
        head, for original and replaced tokens: wrong ones and all, as decaying sums.
    left (`(E, 2, 2)`): the same sums for the exit head, on the tokens that did leave.
    keep (`(E,)`): share of the sequence that continues past each exit, where an error target moves it.
    token_loss (`(vocab_size,)`): running mean of the final loss of each vocabulary id, in nats; only for that signal.
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
        values = {
            "auc": torch.full((exits,), 0.5, **fp32),
            "replaced_rate": torch.tensor(0.1, **fp32),
            "audit": torch.zeros(exits, 2, 2, 2, **fp32),
            "left": torch.zeros(exits, 2, 2, **fp32),
            "keep": torch.tensor([float(keep) for keep in config.exit_keep], **fp32),
        }
        if config.exit_signal == "token_loss":
            values["token_loss"] = torch.full((config.vocab_size,), UNSEEN_LOSS, **fp32)
        return values

    def _apply(self, fn, recurse=True):
        """Moves to a device like any module, and stays in fp32 where `model.to(dtype)`, or DeepSpeed, casts it."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype != torch.float32:
                setattr(self, name, before[name].to(buffer.device))
        return self

    @torch.no_grad()
    def resize_vocabulary(self, vocab_size: int):
        """Follow a change of the vocabulary's size: new ids count as not seen yet."""
        if hasattr(self, "token_loss"):
            new = self.token_loss.new_full((vocab_size,), UNSEEN_LOSS)
            common = min(vocab_size, len(self.token_loss))
            new[:common] = self.token_loss[:common]
            self.token_loss = new

    @torch.no_grad()
    def update(self, outputs, labels: torch.Tensor, token_mask: torch.Tensor | None, input_ids: torch.Tensor | None):
        """Take in one training step, after its tokens were routed.

        Args:
            outputs: with `logits` (batch, sequence) of the final head and `exit_logits`, `exit_positions`,
                `exit_selections` of the exits.
            labels (`torch.LongTensor` of shape `(batch, sequence)`).
            token_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            input_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): what the discriminator read.
        """
        labels = labels if token_mask is None else labels.masked_fill(token_mask == 0, -1)
        statistics = [self._exit_statistics(outputs, labels, i) for i in range(len(outputs.exit_logits))]
        rate = torch.stack([(labels == 1).sum(), (labels >= 0).sum()]).float()
        flat = all_reduce(torch.cat([rate, *(torch.cat([s.reshape(-1) for s in group]) for group in statistics)]))
        self.replaced_rate.lerp_(flat[0] / flat[1].clamp_min(1), 1 - DECAY)
        per_exit = flat[2:].view(len(statistics), 14)
        self.auc.lerp_(per_exit[:, 0] / per_exit[:, 1], 1 - DECAY)
        self.audit.mul_(DECAY).add_(per_exit[:, 2:10].reshape_as(self.audit))
        self.left.mul_(DECAY).add_(per_exit[:, 10:].reshape_as(self.left))
        if hasattr(self, "token_loss") and input_ids is not None:
            self._update_token_loss(outputs.logits, labels, input_ids)

    def _exit_statistics(self, outputs, labels, index: int) -> list[torch.Tensor]:
        """Of one exit: AUC and 1 (summed over processes they give the mean), `audit` (2, 2, 2), `left` (2, 2)."""
        logits, positions = outputs.exit_logits[index], outputs.exit_positions[index]
        order, refused = outputs.exit_selections[index].order, outputs.exit_selections[index].refused
        here = labels.gather(1, positions)
        kept = order[:, : refused.shape[1]]
        audited = torch.zeros_like(here, dtype=torch.bool).scatter(1, kept, refused)
        left = torch.ones_like(audited).scatter(1, kept, False)
        auc = roc_auc(logits.reshape(-1), here.reshape(-1))
        audit = torch.stack(
            [
                class_errors(head, here, audited, self.replaced_rate)
                for head in (logits, outputs.logits.gather(1, positions))
            ]
        )
        return [auc, torch.ones_like(auc), audit, class_errors(logits, here, left, self.replaced_rate)]

    def _update_token_loss(self, logits, labels, input_ids):
        real = labels >= 0
        losses = token_losses(logits, labels.clamp_min(0))
        sums = torch.zeros(2, len(self.token_loss), device=losses.device)
        sums[0].index_add_(0, input_ids.reshape(-1), (losses * real).reshape(-1))
        sums[1].index_add_(0, input_ids.reshape(-1), real.float().reshape(-1))
        total, count = all_reduce(sums)
        # A frequent id forgets by the step, a rare one by its occurrences.
        weight = (1 - DECAY) * count.clamp_max(1)
        self.token_loss.lerp_(total / count.clamp_min(1), weight)

    def error_gap(self) -> torch.Tensor:
        """How much more often the exit head errs than the final head on the audit tokens that exits are for, (E,): the
        mean over the two classes, so that the rare one counts as much as the common one."""
        errors = self.audit[..., 0] / self.audit[..., 1].clamp_min(1e-6)
        return (errors[:, 0] - errors[:, 1]).mean(dim=1)

    def error_on_left(self) -> torch.Tensor:
        """Share of the original and of the replaced tokens that left which the exit head got wrong, (E, 2)."""
        return self.left[..., 0] / self.left[..., 1].clamp_min(1e-6)


def all_reduce(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes of a distributed run; the values themselves in any other."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
