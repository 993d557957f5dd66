"""A start from the corpus's statistics, against plain loops."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_electra_exit.trainers.pretraining import initialization
from tests.conftest import tiny_model


SPECIAL = [0, 2, 3]
ROWS = [[2, 5, 6, 7, 5, 6, 3, 8, 9, 3], [2, 5, 6, 8, 3], [2, 9, 8, 9, 8, 3]]


@pytest.fixture
def sequences():
    return Dataset.from_dict({"input_ids": ROWS})


def pairs_by_loops(size):
    counts = np.zeros((size, size))
    for row in ROWS:
        for i, left in enumerate(row):
            for j in range(i + 1, min(i + 1 + initialization.WINDOW, len(row))):
                if left not in SPECIAL and row[j] not in SPECIAL:
                    counts[left, row[j]] += 1 / (j - i)
                    counts[row[j], left] += 1 / (j - i)
    return counts


def test_pairs_match_plain_loops(sequences):
    np.testing.assert_allclose(initialization._pair_counts(sequences, 12, SPECIAL).toarray(), pairs_by_loops(12))


def test_embeddings_reproduce_the_mutual_information(sequences):
    counts = pairs_by_loops(12)
    rows = counts.sum(1)
    context = np.where(rows > 0, rows, 1) ** 0.75 * (rows > 0)
    information = np.zeros((12, 12))
    for a, b in np.argwhere(counts > 0):
        information[a, b] = max(0, math.log(counts[a, b] * context.sum() / (rows[a] * context[b])))
    vectors = initialization.cooccurrence_embeddings(sequences, 12, 11, SPECIAL)
    # With all singular values, the Gram matrix is the symmetric root of M M^T.
    left, values, _ = np.linalg.svd(information)
    np.testing.assert_allclose(vectors @ vectors.T, left @ np.diag(values) @ left.T, atol=1e-5)
    assert (vectors[[0, 1, 2, 3, 4, 10, 11]] == 0).all()


def test_initialize_from_corpus(sequences):
    model, twin = tiny_model(vocab_size=12), tiny_model(vocab_size=12)
    for each in (model, twin):
        initialization.initialize_from_corpus(each, sequences, SPECIAL, seed=5)
    words = model.electra.embeddings.word_embeddings.weight
    assert (words[[0, 1, 2, 3, 4, 10, 11]] == 0).all()
    assert words[5:10].abs().sum(1).min() > 0
    assert words.std(correction=0).item() == pytest.approx(model.config.initializer_range, rel=0.01)
    positions = model.electra.embeddings.position_embeddings.weight
    assert positions.square().mean().sqrt().item() == pytest.approx(model.config.initializer_range, rel=0.1)
    for layer in model.electra.encoder.layer:
        assert torch.equal(layer.attention.self.query.weight, layer.attention.self.key.weight)
        assert layer.attention.self.query.weight is not layer.attention.self.key.weight
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    # The generator's output layer is still tied to the word embeddings.
    assert model.generator.lm_head.weight is words


def test_a_shift_of_a_sinusoid_is_a_rotation():
    table = initialization.sinusoids(50, 8)
    products = table @ table.T
    # How alike two positions are depends on their distance alone, and neighbours are most alike.
    for distance in (1, 2, 5):
        values = products.diagonal(distance)
        torch.testing.assert_close(values, values[:1].expand_as(values), atol=1e-4, rtol=0)
    assert products[0, 0] > products[0, 1] > products[0, 2]
