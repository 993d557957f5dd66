"""Inference with fine-tuned heads: when an item is certain enough to exit. Pure functions of logits.

An item (a sequence or a token) gets one or more categorical predictions: one of a classifier, one a label of a
multi-label task, two (start and end) of a span. It is as certain as the least certain of them.
"""

from collections.abc import Sequence

import torch


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """The largest probability of each prediction, and the smallest of these; from logits (..., predictions, classes)
    to (...), fp32."""
    return logits.float().softmax(dim=-1).amax(dim=-1).amin(dim=-1)


def prediction_entropy(logits: torch.Tensor) -> torch.Tensor:
    """The entropy of each prediction, in nats, and the largest of these; from logits (..., predictions, classes) to
    (...), fp32."""
    return torch.special.entr(logits.float().softmax(dim=-1)).sum(dim=-1).amax(dim=-1)


class ConfidenceRule:
    """Exit with a confidence above the exit's threshold."""

    def __init__(self, thresholds: Sequence[float]):
        self.thresholds = thresholds

    def __call__(self, number: int, logits: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Which of the items that reach exit `number` exit there.

        Args:
            logits (`torch.FloatTensor` of shape `(..., predictions, classes)`): the exit head's.
            items (`torch.LongTensor` of shape `(...)`): which they are: numbers of sequences `(active,)`, or positions
                of tokens `(batch, active)`. All of them, in order, at the first exit.

        Returns:
            `torch.BoolTensor` of shape `(...)`.
        """
        return confidence(logits) > self.thresholds[number]

    def needs_head(self, number: int) -> bool:
        """Whether the head of exit `number` matters. It is not computed where it does not."""
        return self.thresholds[number] < 1


class EntropyRule(ConfidenceRule):
    """Exit with an entropy below the exit's threshold (DeeBERT, Xin et al., 2020, arXiv 2004.12993)."""

    def __call__(self, number: int, logits: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return prediction_entropy(logits) < self.thresholds[number]

    def needs_head(self, number: int) -> bool:
        return self.thresholds[number] > 0


class PatienceRule(ConfidenceRule):
    """Exit when as many exits in a row as the threshold says have agreed with the one before them (PABEE, Zhou et
    al., 2020, arXiv 2006.04152). One object serves one forward pass: it remembers what each item was predicted to be.
    """

    def __init__(self, thresholds: Sequence[float]):
        super().__init__(thresholds)
        self.predictions: torch.Tensor | None = None
        self.agreements: torch.Tensor | None = None

    def __call__(self, number: int, logits: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        predictions = logits.argmax(dim=-1)
        if number == 0:
            self.predictions, self.agreements = predictions, torch.zeros_like(items)
            return torch.zeros_like(items, dtype=torch.bool)
        rows = torch.arange(items.shape[0], device=items.device).unsqueeze(1)
        place = (items,) if items.dim() == 1 else (rows, items)
        agrees = (self.predictions[place] == predictions).all(dim=-1)
        agreements = torch.where(agrees, self.agreements[place] + 1, 0)
        self.predictions = self.predictions.index_put(place, predictions)
        self.agreements = self.agreements.index_put(place, agreements)
        return agreements >= self.thresholds[number]

    def needs_head(self, number: int) -> bool:
        # The first exit has nothing to agree with, and a head's prediction counts at the exits that follow.
        return any(later >= self.thresholds[later] for later in range(number, len(self.thresholds)))


# When an item exits a fine-tuned model: name -> class of rules, made for one forward pass from one threshold an exit.
CRITERIA: dict[str, type[ConfidenceRule]] = {
    "confidence": ConfidenceRule,
    "entropy": EntropyRule,
    "patience": PatienceRule,
}
