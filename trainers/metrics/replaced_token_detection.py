"""Replaced-token detection as an `evaluate` metric. Loads offline from this file: `evaluate.load(path)`."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score
from sklearn.metrics import roc_auc_score


_DESCRIPTION = """
Quality of a discriminator at detecting replaced tokens. Accuracy is omitted, because most tokens are original: always
predicting "original" scores 85 to 94 %.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: logits of "this token was replaced", one per token; probabilities if `from_logits` is false.
    references: 1 for a replaced token, 0 for an original one.
    from_logits: whether `predictions` are logits.
Returns:
    roc_auc: area under the ROC curve; `None` if only one class is present.
    average_precision: area under the precision-recall curve, which is `replaced_rate` for random predictions; `None`
        if only one class is present.
    recall_on_replaced: share of the replaced tokens with a probability of at least 0.5; `None` if there are none.
    replaced_rate: share of replaced tokens, the base rate.
    calibration_error: expected calibration error over 15 equal-width bins of the probability (Naeini et al., 2015).
"""

_BINS = 15


class ReplacedTokenDetection(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float32"), "references": datasets.Value("int32")}
            ),
        )

    def _compute(self, predictions, references, from_logits=True):
        scores = np.asarray(predictions, dtype=np.float64)
        labels = np.asarray(references)
        probabilities = 1 / (1 + np.exp(-scores)) if from_logits else scores
        replaced = labels == 1
        both = 0 < replaced.sum() < len(labels)
        return {
            "roc_auc": float(roc_auc_score(labels, scores)) if both else None,
            "average_precision": float(average_precision_score(labels, scores)) if both else None,
            "recall_on_replaced": float((probabilities[replaced] >= 0.5).mean()) if replaced.any() else None,
            "replaced_rate": float(replaced.mean()),
            "calibration_error": _calibration_error(probabilities, replaced),
        }


def _calibration_error(probabilities, replaced):
    bins = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    gaps = np.abs(np.bincount(bins, probabilities - replaced, minlength=_BINS))
    return float(gaps.sum() / counts.sum())
