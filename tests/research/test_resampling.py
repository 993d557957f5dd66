"""Bootstrap resamples against those that scikit-learn measures."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from research.resampling import RESAMPLES, resampled


def test_resamples_are_of_whole_units_and_measured_as_scikit_learn_does():
    draw = np.random.default_rng(3)
    labels = [draw.random(size) < 0.3 for size in draw.integers(1, 9, size=30)]
    scores = [np.round(draw.normal(size=len(of)) + of, 1) for of in labels]  # many equal scores
    found, draw = resampled(scores, labels), np.random.default_rng(0)
    for number in range(RESAMPLES):
        chosen = draw.integers(30, size=30)
        flat, true = (np.concatenate([of[i] for i in chosen]) for of in (scores, labels))
        assert found["roc_auc"][number] == pytest.approx(roc_auc_score(true, flat))
        assert found["average_precision"][number] == pytest.approx(average_precision_score(true, flat))


def test_a_resample_with_one_class_has_no_value():
    found = resampled([np.array([0.1]), np.array([0.2])], [np.array([True]), np.array([False])])
    assert 0 < np.isnan(found["roc_auc"]).sum() < RESAMPLES
