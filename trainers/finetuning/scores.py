"""The metrics of a task, and baselines that need no model."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from .tasks import ENDS, INSIDE, WHOLE, Task


def answers(task: Task, logits: torch.Tensor) -> torch.Tensor:
    """Predictions from logits: class indices (examples,), or (examples, tokens) for tags; a 0 or 1 per label
    (examples, labels); for regression, values in the shifted and scaled unit of training (examples,)."""
    if task.is_regression:
        return logits.float().squeeze(-1)
    return (logits > 0).long() if task.kind == "multi_label" else logits.argmax(dim=-1)


def scores(task: Task, found: Sequence, labels: Sequence) -> dict[str, float]:
    """Compute all metrics of a task.

    Args:
        task: the task.
        found: predictions, from [`answers`].
        labels: targets of the same shape; -100 for tokens without a label.
    """
    if task.tags_words:
        rows = list(_labelled(task, found, labels))
        flat = [np.concatenate([np.asarray(row[side]) for row in rows]) for side in (1, 0)]
        measured = {
            name: _entity_f1(task, rows) if name == "entity_f1" else METRICS[name](*flat) for name in task.metrics
        }
    else:
        measured = {name: METRICS[name](np.asarray(labels), np.asarray(found)) for name in task.metrics}
    # The targets are shifted and scaled, so RMSE is converted to the labels' unit. Correlations do not change.
    return {name: float(value) * (task.scale if name == "rmse" else 1.0) for name, value in measured.items()}


def _labelled(task: Task, found: Sequence, labels: Sequence) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each text, the predictions and the labels of the tokens that have a label."""
    for answer, label in zip(found, labels, strict=True):
        has_label = np.asarray(label) != -100
        yield np.asarray(answer)[has_label], np.asarray(label)[has_label]


def _entity_f1(task: Task, rows: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Micro-averaged F1 of chunks. A chunk is correct if its boundaries and its type match, as in conlleval."""
    hits = answered = wanted = 0
    for row in rows:
        ours, gold = (chunks([task.labels[number] for number in side]) for side in row)
        hits, answered, wanted = hits + len(ours & gold), answered + len(ours), wanted + len(gold)
    return 2 * hits / max(1, answered + wanted)


def chunks(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The type, start and end of each chunk in the tags of a text. A chunk may start with any mark, and ends where the
    type changes."""
    found: set[tuple[str, int, int]] = set()
    kind, start = None, 0
    for place, tag in enumerate([*tags, "O"]):
        mark, _, its_kind = tag.partition("-")
        goes_on = mark in (INSIDE, *ENDS) and its_kind == kind
        if kind is not None and not goes_on:
            found.add((kind, start, place))
            kind = None
        if mark != "O" and not goes_on:
            kind, start = its_kind, place
        if mark in (*ENDS, *WHOLE):
            found.add((kind, start, place + 1))
            kind = None
    return found


def _correlation(function: Callable) -> Callable:
    def correlation(labels, answers):
        # Undefined if all predictions are equal; such a model scores 0.
        return function(answers, labels)[0] if np.ptp(answers) and np.ptp(labels) else 0.0

    return correlation


def _f1(average: str) -> Callable:
    return lambda labels, answers: f1_score(labels, answers, average=average, zero_division=0.0)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "macro_f1": _f1("macro"),
    "micro_f1": _f1("micro"),
    "matthews_correlation": matthews_corrcoef,
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
    "rmse": lambda labels, answers: np.sqrt(np.square(labels.astype(float) - answers).mean()),
}


def baselines(task: Task, train: Dataset, validation: Dataset) -> dict[str, dict[str, float]]:
    """The scores on `validation` of constant predictions and, for tags, of predictions from each word alone.

    Args:
        task: the task.
        train, validation: splits from [`examples.read_examples`].

    Returns:
        For each baseline, its metrics by name.
    """
    labels = validation["labels"][:]
    if task.tags_words:
        return _tag_baselines(task, train, validation)
    if task.is_regression:
        name, answer = "mean", float(np.mean(train["labels"][:]))
    elif task.kind == "multi_label":
        name, answer = "most frequent labels", list(Counter(map(tuple, train["labels"])).most_common(1)[0][0])
    else:
        name, answer = "majority class", Counter(train["labels"]).most_common(1)[0][0]
    if task.is_regression:
        labels, answer = ((np.asarray(each) - task.shift) / task.scale for each in (labels, answer))
    return {name: scores(task, np.asarray([answer] * len(labels)), labels)}


def _tag_baselines(task: Task, train: Dataset, validation: Dataset) -> dict[str, dict[str, float]]:
    of_word: dict[str, Counter] = {}
    for words, tags in zip(train["words"], train["labels"], strict=True):
        for word, tag in zip(words, tags, strict=True):
            of_word.setdefault(word, Counter())[tag] += 1
    majority = sum(of_word.values(), Counter()).most_common(1)[0][0]
    usual = {word: counts.most_common(1)[0][0] for word, counts in of_word.items()}
    labels = validation["labels"][:]
    found = {
        "majority tag": [[majority] * len(tags) for tags in labels],
        "most frequent tag of each word": [[usual.get(word, majority) for word in row] for row in validation["words"]],
    }
    return {name: scores(task, answers, labels) for name, answers in found.items()}
