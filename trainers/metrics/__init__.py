"""Metrics as `evaluate` modules that travel with the package and load offline."""

from collections.abc import Callable
from pathlib import Path

import evaluate
import numpy as np
from transformers import EvalPrediction

from modeling_electra_exit import ElectraEarlyExitConfig


# What is reported of every exit head too.
PER_EXIT = ("roc_auc", "average_precision", "calibration_error")


def load(name: str) -> evaluate.EvaluationModule:
    """The metric in the file `name`.py beside this one.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    path = Path(__file__).with_name(f"{name}.py")
    if not path.is_file() or name.startswith("_"):
        known = sorted(p.stem for p in path.parent.glob("[!_]*.py"))
        raise ValueError(f"no metric `{name}`; there are: {', '.join(known)}")
    return evaluate.load(str(path), keep_in_memory=True)  # else it writes all predictions into a cache on the disk


def replaced_token_detection(config: ElectraEarlyExitConfig) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` for [`ElectraEarlyExitTrainer`]: the metric of that name for the final head, and its
    ROC-AUC, average precision and calibration error for each exit head, as `roc_auc_layer_4` and so on.

    The function takes logits (sequences, tokens, 1 + exits), the final head's first, and labels (sequences, tokens) in
    which -100 marks padding.
    """

    metric = load("replaced_token_detection")  # now: what cannot be loaded must not end a run in its first evaluation

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
