"""Bootstrap resampling of binary classifications whose errors are correlated within a unit, such as a sentence."""

from collections.abc import Sequence

import numpy as np


RESAMPLES = 200


def resampled(scores: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """ROC-AUC and average precision on bootstrap resamples of the units.

    The resamples depend only on the number of units, so those of two classifiers of the same units are paired, and the
    standard deviation of their differences is the standard error of the difference.

    Args:
        scores: the scores of each unit's items, higher for the positive class.
        labels: their true classes, boolean or 0/1.

    Returns:
        `roc_auc` and `average_precision`, as in scikit-learn, each of shape `(RESAMPLES,)`. `nan` for a resample that
        lacks one of the classes.
    """
    draw, count = np.random.default_rng(0), len(scores)
    unit = np.repeat(np.arange(count), [len(of) for of in scores])
    flat, true = np.concatenate(scores), np.concatenate(labels).astype(bool)
    order = np.argsort(-flat, kind="stable")
    flat, true, unit = flat[order], true[order], unit[order]
    # Items with equal scores are one threshold.
    ends = np.append(np.flatnonzero(np.diff(flat)), len(flat) - 1)
    found = {"roc_auc": [], "average_precision": []}
    for _ in range(RESAMPLES):
        weights = np.bincount(draw.integers(count, size=count), minlength=count)[unit]
        positives = np.concatenate([[0], np.cumsum(weights * true)[ends]])
        negatives = np.concatenate([[0], np.cumsum(weights * ~true)[ends]])
        precision = positives / np.maximum(positives + negatives, 1)
        area = np.sum(np.diff(negatives) * (positives[1:] + positives[:-1]) / 2)
        with np.errstate(invalid="ignore"):
            found["roc_auc"].append(area / (positives[-1] * negatives[-1]))
            found["average_precision"].append(np.sum(np.diff(positives) * precision[1:]) / positives[-1])
    return {metric: np.array(values) for metric, values in found.items()}
