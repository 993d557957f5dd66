import math

import numpy as np
import pytest
from transformers import EvalPrediction

from modeling_electra_exit.trainers import metrics
from tests.conftest import tiny_config


def test_hand_computed_values():
    results = metrics.load("replaced_token_detection").compute(
        predictions=[2.0, -1.0, 0.5, -3.0], references=[1, 0, 0, 1]
    )
    # Pairs (replaced, original) in the right order: 2 > -1, 2 > 0.5, not -3 > -1, not -3 > 0.5.
    assert results["roc_auc"] == pytest.approx(0.5)
    # Ranked 2 (replaced), 0.5, -1, -3 (replaced): precision 1 at the first, 2/4 at the last.
    assert results["average_precision"] == pytest.approx((1 + 0.5) / 2)
    assert results["recall_on_replaced"] == 0.5
    assert results["replaced_rate"] == 0.5
    probabilities = [1 / (1 + math.exp(-x)) for x in (2.0, -1.0, 0.5, -3.0)]
    gaps = [abs(p - y) for p, y in zip(probabilities, [1, 0, 0, 1], strict=True)]  # four bins, one token each
    assert results["calibration_error"] == pytest.approx(sum(gaps) / 4)


def test_saying_original_every_time_is_not_rewarded():
    metric = metrics.load("replaced_token_detection")
    results = metric.compute(predictions=[-5.0] * 100, references=[1] * 10 + [0] * 90)
    assert results["roc_auc"] == 0.5
    assert results["average_precision"] == pytest.approx(0.1)
    assert results["recall_on_replaced"] == 0


def test_one_class_has_no_auc():
    results = metrics.load("replaced_token_detection").compute(predictions=[1.0, 2.0], references=[0, 0])
    assert results["roc_auc"] is results["average_precision"] is results["recall_on_replaced"] is None


def test_padding_is_left_out_and_every_exit_is_judged():
    logits = np.zeros((2, 3, 3), dtype=np.float32)
    labels = np.array([[1, 0, -100], [0, 1, -100]])
    logits[..., 0] = np.where(labels == 1, 3, -3)
    logits[..., 1] = np.where(labels == 1, -3, 3)
    logits[:, 2] = 99  # padding
    results = metrics.replaced_token_detection(tiny_config())(EvalPrediction(logits, labels))
    assert results["roc_auc"] == 1.0
    assert results["roc_auc_layer_2"] == 0.0
    assert results["roc_auc_layer_4"] == 0.5
    assert results["replaced_rate"] == 0.5


def test_an_unknown_metric_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="`name` must be one of replaced_token_detection, got accuracy"):
        metrics.load("accuracy")
