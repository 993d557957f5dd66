"""Generators of the collator: what they draw, and that their labels are true."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_electra_exit.trainers import DataCollatorForReplacedTokenDetection
from modeling_electra_exit.trainers.generators import GENERATORS, TokenDistribution, build_replacements, token_counts
from tests.conftest import tiny_config


def corpus_of(tokenizer, rows=40, length=30):
    generator = np.random.default_rng(0)
    # Some tokens are much more frequent than others.
    ids = 5 + np.minimum(generator.geometric(0.1, (rows, length)), len(tokenizer) - 6)
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    return Dataset.from_dict({"input_ids": ids.tolist()})


def test_counts(tokenizer):
    sequences = corpus_of(tokenizer)
    flat = [token for row in sequences["input_ids"] for token in row]
    counts = token_counts(sequences, 120)
    assert [flat.count(token) for token in range(120)] == counts.tolist()


@pytest.mark.parametrize(("name", "alpha"), [("uniform", 1.0), ("unigram", 1.0), ("unigram", 0.5)])
def test_distributions(tokenizer, name, alpha):
    sequences = corpus_of(tokenizer)
    config = tiny_config(generator_type=name, generator_alpha=alpha)
    replacements = build_replacements(config, sequences, tokenizer)
    counts = token_counts(sequences, 120).astype(float)
    counts[tokenizer.all_special_ids] = 0
    weights = (counts > 0) if name == "uniform" else np.where(counts > 0, counts**alpha, 0)
    drawn = replacements(np.zeros(1), np.zeros(60_000), np.random.default_rng(1))
    found = np.bincount(drawn, minlength=120)
    expected = weights / weights.sum() * 60_000
    assert found[expected == 0].sum() == 0
    likely = expected > 5
    chi_square = ((found - expected) ** 2 / np.maximum(expected, 1e-9))[likely].sum()
    degrees = likely.sum() - 1
    assert chi_square < degrees + 4.5 * (2 * degrees) ** 0.5  # far beyond p = 0.001


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="nothing to draw"):
        TokenDistribution(np.zeros(5))


def test_a_generator_inside_the_model_needs_none_in_the_collator(tokenizer):
    assert build_replacements(tiny_config(generator_type="mlm"), corpus_of(tokenizer), tokenizer) is None


@pytest.mark.parametrize("name", GENERATORS)
def test_labels_against_plain_loops(tokenizer, name):
    sequences = corpus_of(tokenizer)
    replacements = build_replacements(tiny_config(generator_type=name), sequences, tokenizer)
    collate = DataCollatorForReplacedTokenDetection(tokenizer, 32, seed=3, replacements=replacements)
    batch = collate(list(sequences))
    special = set(tokenizer.all_special_ids)
    equal = replaced = 0
    for row, ids, labels, mask in zip(
        sequences, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        for position in range(32):
            if position >= 30:
                assert (ids[position], labels[position], mask[position]) == (tokenizer.pad_token_id, 0, 0)
                continue
            original = row["input_ids"][position]
            assert labels[position] == int(ids[position] != original)
            replaced += int(labels[position])
            if original in special:
                assert ids[position] == original
            equal += ids[position] == original
    # Of 4 chosen in a row of 30 some draw what was there.
    assert 0.5 * 4 * 40 < replaced < 4 * 40
    # What a sequence becomes depends on the seed, the epoch and itself alone.
    again = collate(list(sequences.select([7, 3])))
    assert torch.equal(again["input_ids"], batch["input_ids"][[7, 3]])
    collate.set_epoch(1)
    assert not torch.equal(collate(list(sequences))["input_ids"], batch["input_ids"])
