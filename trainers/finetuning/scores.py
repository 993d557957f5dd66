"""How good answers to a task are, and how good answers are that need no model."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from .tasks import ENDS, INSIDE, WHOLE, Task


def answers(task: Task, logits: torch.Tensor) -> torch.Tensor:
    """What a model answers: numbers of classes (examples,), or (examples, tokens) for tags; a 0 or 1 for each label
    (examples, labels); for a regression what it has learned (examples,)."""
    if task.is_regression:
        return logits.float().squeeze(-1)
    return (logits > 0).long() if task.kind == "multi_label" else logits.argmax(dim=-1)


def scores(task: Task, found: Sequence, labels: Sequence) -> dict[str, float]:
    """All metrics of a task.

    Args:
        found: as [`answers`] gives them.
        labels: of the same shape, of what a model learns; -100 for a token that has none.
    """
    if task.tags_words:
        rows = list(_labelled(task, found, labels))
        flat = [np.concatenate([np.asarray(row[side]) for row in rows]) for side in (1, 0)]
        measured = {
            name: _entity_f1(task, rows) if name == "entity_f1" else METRICS[name](*flat) for name in task.metrics
        }
    else:
        measured = {name: METRICS[name](np.asarray(labels), np.asarray(found)) for name in task.metrics}
    # Of what was learned; in the labels' own unit it is `scale` times that. Correlations do not change.
    return {name: float(value) * (task.scale if name == "rmse" else 1.0) for name, value in measured.items()}


def _labelled(task: Task, found: Sequence, labels: Sequence) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each text, the answers and the labels of the tokens that have one."""
    for answer, label in zip(found, labels, strict=True):
        has_label = np.asarray(label) != -100
        yield np.asarray(answer)[has_label], np.asarray(label)[has_label]


def _entity_f1(task: Task, rows: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Micro-averaged F1 of chunks, which count where their place and their type are right, as conlleval's."""
    hits = answered = wanted = 0
    for row in rows:
        ours, gold = (chunks([task.labels[number] for number in side]) for side in row)
        hits, answered, wanted = hits + len(ours & gold), answered + len(ours), wanted + len(gold)
    return 2 * hits / max(1, answered + wanted)


def chunks(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, begin and end of each chunk that the tags of a text mark. A chunk may begin with any mark, and ends where
    the type changes."""
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
        # Undefined for a model that gives one answer to everything, which has learned nothing.
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
    """What answers score on `validation` that look at no text, or for tags at one word alone.

    Args:
        train, validation: as [`examples.read_examples`] gives them.
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
