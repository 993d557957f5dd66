"""The tasks of GLUE (Wang et al., 2019): columns and labels as the data set on the Hub has them, and metrics."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


@dataclass(frozen=True)
class Task:
    """A task of classification, or of regression.

    Args:
        columns: of text.
        labels: the names of the classes in the order of their numbers; a single name is that of a regression.
        metrics: keys of [`METRICS`], the one that counts first.
        epochs: how long ELECTRA fine-tunes on it (google-research/electra, `configure_finetuning.py`).
        symmetric: ELECTRA trains on both orders of a pair.
        validation: the name of the validation split on the Hub.
        largest: the largest label of a regression. Models learn and predict shares of it, as ELECTRA's.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    epochs: float = 3.0
    symmetric: bool = False
    validation: str = "validation"
    largest: float = 1.0

    @property
    def is_regression(self) -> bool:
        return len(self.labels) == 1

    def scores(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """All metrics of logits (examples, labels) against labels (examples,)."""
        answers = predictions.squeeze(-1) if self.is_regression else predictions.argmax(axis=-1)
        return {name: float(METRICS[name](labels, answers)) for name in self.metrics}


def _correlation(function: Callable) -> Callable:
    def correlation(labels, answers):
        # Undefined for a model that gives one answer to everything, which has learned nothing.
        return function(answers, labels)[0] if np.ptp(answers) and np.ptp(labels) else 0.0

    return correlation


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews_correlation": matthews_corrcoef,
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
}

PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

TASKS = {
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
    "sst2": Task(("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": Task(PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1"), symmetric=True),
    "stsb": Task(PAIR, ("similarity",), ("pearson", "spearman"), epochs=10.0, symmetric=True, largest=5.0),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": Task(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",),
                 validation="validation_matched"),
    "qnli": Task(("question", "sentence"), ENTAILMENT, ("accuracy",)),
    "rte": Task(PAIR, ENTAILMENT, ("accuracy",), epochs=10.0),
}  # fmt: skip
