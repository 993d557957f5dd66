"""Metrics and baselines against numbers by hand, and against plain loops."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_electra_exit.trainers.finetuning.scores import answers, baselines, chunks, scores
from modeling_electra_exit.trainers.finetuning.tasks import Columns, Task, marks_chunks, metrics_of


def task(kind, labels, **more):
    return Task("mine", kind, Columns("text", None, ("label",)), labels, metrics_of(kind, labels), **more)


TAGS = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-PER I-PER O", {("PER", 1, 3)}),
        ("B-PER B-PER I-LOC", {("PER", 0, 1), ("PER", 1, 2), ("LOC", 2, 3)}),
        ("I-PER I-PER B-PER", {("PER", 0, 2), ("PER", 2, 3)}),  # IOB1
        ("S-PER B-LOC I-LOC E-LOC S-LOC", {("PER", 0, 1), ("LOC", 1, 4), ("LOC", 4, 5)}),  # IOBES
        ("U-PER L-LOC O B-X L-X", {("PER", 0, 1), ("LOC", 1, 2), ("X", 3, 5)}),  # BILOU
        ("B I O B", {("", 0, 2), ("", 3, 4)}),  # without types
        ("O O", set()),
    ],
)
def test_chunks_by_hand(tags, expected):
    assert chunks(tags.split()) == expected


def test_entities_count_where_place_and_type_are_right():
    gold = np.array([[2, 4, 0, 1, -100], [0, 2, 0, -100, -100]])  # PER of two words, LOC; PER
    found = np.array([[2, 4, 0, 2, 1], [0, 2, 4, 1, 1]])  # right; another type; one word too many
    measured = scores(task("tagging", TAGS), found, gold)
    assert measured["entity_f1"] == pytest.approx(2 * 1 / (3 + 3))
    assert measured["accuracy"] == pytest.approx(5 / 7)
    nothing = np.zeros((1, 3), int)
    assert scores(task("tagging", TAGS), nothing, nothing) == {"entity_f1": 0.0, "accuracy": 1.0}


def test_which_tags_mark_chunks():
    assert marks_chunks(TAGS)
    assert marks_chunks(("O", "B", "I"))
    assert not marks_chunks(("NOUN", "VERB", "X"))
    assert not marks_chunks(("O", "B-PER", "NOUN"))
    assert metrics_of("tagging", ("NOUN", "VERB")) == ("accuracy", "macro_f1")


def test_what_a_model_answers():
    logits = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 3.0, -0.5]])
    assert answers(task("classification", ("a", "b", "c")), logits).tolist() == [0, 1]
    assert answers(task("multi_label", ("a", "b", "c")), logits).tolist() == [[1, 0, 1], [0, 1, 0]]
    assert answers(task("regression", ("x",)), logits[:, :1]).tolist() == [1.0, -1.0]
    assert answers(task("tagging", TAGS), logits[None]).tolist() == [[0, 1]]


def test_several_labels_by_hand():
    gold, found = np.array([[1, 0], [1, 1], [0, 0]]), np.array([[1, 0], [0, 1], [0, 1]])
    measured = scores(task("multi_label", ("a", "b")), found, gold)
    assert measured["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert measured["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_the_error_of_a_regression_is_in_the_unit_of_its_labels():
    measured = scores(task("regression", ("x",), shift=100.0, scale=10.0), np.array([0.0, 1.0]), np.array([0.3, 0.6]))
    assert measured["rmse"] == pytest.approx(10 * ((0.09 + 0.16) / 2) ** 0.5)


def test_baselines_by_hand():
    def rows(labels, **columns):
        return Dataset.from_dict({**columns, "labels": labels})

    found = baselines(task("classification", ("a", "b")), rows([1, 1, 0]), rows([1, 0, 0, 0]))
    assert found == {"majority class": {"accuracy": 0.25, "macro_f1": pytest.approx((0 + 0.4) / 2)}}
    found = baselines(task("regression", ("x",), shift=2.0, scale=4.0), rows([1.0, 3.0]), rows([2.0, 5.0]))
    assert found == {"mean": {"pearson": 0.0, "spearman": 0.0, "rmse": pytest.approx((9 / 2) ** 0.5)}}
    found = baselines(task("multi_label", ("a", "b")), rows([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), rows([[1.0, 1.0]]))
    assert found["most frequent labels"]["micro_f1"] == pytest.approx(2 / 3)
    train = rows([[1, 0, 0], [0, 1]], words=[["Rome", "is", "May"], ["In", "Rome"]])
    found = baselines(task("tagging", TAGS), train, rows([[1, 0, 2]], words=[["Rome", "in", "May"]]))
    assert found["majority tag"] == {"entity_f1": 0.0, "accuracy": pytest.approx(1 / 3)}
    assert found["most frequent tag of each word"]["accuracy"] == pytest.approx(2 / 3)
    assert found["most frequent tag of each word"]["entity_f1"] == pytest.approx(2 * 1 / (1 + 2))
