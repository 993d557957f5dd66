"""Exit criteria for inference with fine-tuned heads, computed from logits alone.

An item (a sequence or a token) has one or more categorical predictions: one for a classifier, one per label for a
multi-label task, two (start and end) for a span. Its certainty is that of the least certain prediction.
"""

from collections.abc import Sequence

import torch


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """Smallest over an item's predictions of the largest class probability.

    Args:
        logits (`torch.FloatTensor` of shape `(..., predictions, classes)`).

    Returns:
        `torch.FloatTensor` of shape `(...)`, fp32.
    """
    return logits.float().softmax(dim=-1).amax(dim=-1).amin(dim=-1)


def prediction_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Largest entropy, in nats, over an item's predictions.

    Args:
        logits (`torch.FloatTensor` of shape `(..., predictions, classes)`).

    Returns:
        `torch.FloatTensor` of shape `(...)`, fp32.
    """
    return torch.special.entr(logits.float().softmax(dim=-1)).sum(dim=-1).amax(dim=-1)


class ConfidenceRule:
    """Exit if the confidence is above the exit's threshold."""

    def __init__(self, thresholds: Sequence[float]):
        self.thresholds = thresholds

    def __call__(self, number: int, logits: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Which of the items that reach exit `number` exit there.

        Args:
            number (`int`): the exit, counted from 0.
            logits (`torch.FloatTensor` of shape `(..., predictions, classes)`): the exit head's logits.
            items (`torch.LongTensor` of shape `(...)`): indices of these items: of sequences `(active,)`, or positions
                of tokens `(batch, active)`. At the first exit, all items in order.

        Returns:
            `torch.BoolTensor` of shape `(...)`, true for items that exit.
        """
        return confidence(logits) > self.thresholds[number]

    def needs_head(self, number: int) -> bool:
        """Whether the result depends on the head of exit `number`. Otherwise the head is not computed."""
        return self.thresholds[number] < 1


class EntropyRule(ConfidenceRule):
    """Exit if the entropy is below the exit's threshold (DeeBERT, Xin et al., 2020, arXiv 2004.12993)."""

    def __call__(self, number: int, logits: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return prediction_entropy(logits) < self.thresholds[number]

    def needs_head(self, number: int) -> bool:
        return self.thresholds[number] > 0


class PatienceRule(ConfidenceRule):
    """Exit after `threshold` exits in a row have predicted the same as the preceding one (PABEE, Zhou et al., 2020,
    arXiv 2006.04152). An instance keeps the predictions of each item and serves a single forward pass."""

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
        # The first exit has no predecessor to agree with, and a head's prediction is compared at the following exits.
        return any(later >= self.thresholds[later] for later in range(number, len(self.thresholds)))


# Inference exit criteria: name -> rule class. A rule is created for each forward pass, from one threshold per exit.
CRITERIA: dict[str, type[ConfidenceRule]] = {
    "confidence": ConfidenceRule,
    "entropy": EntropyRule,
    "patience": PatienceRule,
}
