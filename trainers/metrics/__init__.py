"""Metrics as `evaluate` modules that are part of the package and load offline."""

from collections.abc import Callable
from pathlib import Path

import evaluate
import numpy as np
from transformers import EvalPrediction

from modeling_electra_exit import ElectraEarlyExitConfig


# Metrics that are also reported for every exit head.
PER_EXIT = ("roc_auc", "average_precision", "calibration_error")


def load(name: str) -> evaluate.EvaluationModule:
    """Load the metric in the file `name`.py of this folder.

    Raises:
        ValueError: if there is no such metric.
    """
    path = Path(__file__).with_name(f"{name}.py")
    if not path.is_file() or name.startswith("_"):
        known = sorted(p.stem for p in path.parent.glob("[!_]*.py"))
        raise ValueError(f"`name` must be one of {', '.join(known)}, got {name}")
    return evaluate.load(str(path), keep_in_memory=True)  # otherwise it writes all predictions to a disk cache


def replaced_token_detection(config: ElectraEarlyExitConfig) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` function for [`ElectraEarlyExitTrainer`].

    It returns the metric `replaced_token_detection` for the final head, and [`PER_EXIT`] for each exit head, named
    `roc_auc_layer_4` and so on. Its argument has logits (sequences, tokens, 1 + exits), the final head's first, and
    labels (sequences, tokens), -100 at padding.
    """

    metric = load("replaced_token_detection")  # loaded here so that a failure does not end a run in its evaluation

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        real = np.asarray(prediction.label_ids) != -100
        logits, labels = np.asarray(prediction.predictions)[real], np.asarray(prediction.label_ids)[real]
        results = metric.compute(predictions=logits[:, 0], references=labels)
        if config.has_exit_heads:
            for column, layer in enumerate(config.exit_layers, 1):
                at_exit = metric.compute(predictions=logits[:, column], references=labels)
                results |= {f"{name}_layer_{layer}": at_exit[name] for name in PER_EXIT}
        return {name: value for name, value in results.items() if value is not None}

    return compute
