"""Replacements sampled beforehand: their distribution, their form, and the command from end to end."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from electra_exit import main as cli
from modeling_electra_exit import ElectraEarlyExitForMaskedLM
from modeling_electra_exit.trainers import DataCollatorForReplacedTokenDetection, ElectraEarlyExitTrainingArguments
from modeling_electra_exit.trainers.errors import DataError
from modeling_electra_exit.trainers.generators.base import GeneratorContext
from modeling_electra_exit.trainers.generators.cached import Cached, attach_replacements
from modeling_electra_exit.trainers.generators.registry import build_generator
from modeling_electra_exit.trainers.pretraining.cached_replacements import write_cache
from tests.conftest import tiny_config
from tests.trainers.cli.test_cli import recipe  # noqa: F401  a fixture
from tests.trainers.generators.test_generators import (
    IN_COLLATOR,
    corpus_of,
    is_drawn_from,
    labels_by_plain_loops,
    saved_masked_lm,
)


def cache(tokenizer, folder, name, sequences, draws, **arguments):
    args = ElectraEarlyExitTrainingArguments(str(folder / "out"), use_cpu=True, **arguments)
    context = GeneratorContext(tiny_config(generator_type=name, vocab_size=len(tokenizer)), sequences, tokenizer, args)
    generator = build_generator(context.config, sequences, tokenizer, args)
    packed = DatasetDict({"train": sequences, "validation": sequences.select(range(2))})
    report = write_cache(generator, packed, context, draws, folder / "cache")
    return generator, attach_replacements(packed, folder / "cache"), report


@pytest.mark.parametrize("name", ["unigram", "bigram"])
def test_cached_replacements_have_the_distribution_of_the_generator(tokenizer, tmp_path, name):
    sequences = corpus_of(tokenizer, rows=20)
    generator, packed, _ = cache(tokenizer, tmp_path, name, sequences, 400)
    row, chance = np.array(sequences[0]["input_ids"]), np.random.default_rng(0)
    table = np.array(packed["train"][0]["replacements"]).reshape(30, 400)
    for position in (1, 15, 28):
        drawn = generator(row, np.full(100_000, position), chance)
        assert is_drawn_from(table[position], np.bincount(drawn, minlength=120).astype(float))
        again = Cached(None)(row, np.full(5000, position), chance, replacements=table.ravel())
        assert is_drawn_from(again, np.bincount(table[position], minlength=120).astype(float))


def test_cached_replacements_of_a_masked_language_model(tokenizer, tmp_path):
    """Every token is predicted once, from a sequence in which it is masked, or left as ELECTRA leaves some."""
    model = ElectraEarlyExitForMaskedLM.of(saved_masked_lm(tmp_path, tokenizer))
    row = [tokenizer.cls_token_id, 20, 30, 40, tokenizer.sep_token_id]  # so short that each is masked alone
    sequences = Dataset.from_dict({"input_ids": [row] * 2})
    _, packed, _ = cache(tokenizer, tmp_path, "frozen", sequences, 20_000, generator_folder=str(tmp_path))
    table = np.array(packed["train"][0]["replacements"]).reshape(5, -1)
    for position in (1, 2, 3):
        shown = torch.tensor([row, row])
        shown[1, position] = tokenizer.mask_token_id
        masked = torch.zeros_like(shown, dtype=torch.bool)
        masked[:, position] = True
        with torch.no_grad():
            expected = model(shown).logits[masked].softmax(-1).double().numpy()
        assert sum(is_drawn_from(table[position], probabilities) for probabilities in expected) == 1


@pytest.mark.parametrize("name", IN_COLLATOR)
def test_form_and_labels(tokenizer, tmp_path, name):
    sequences = corpus_of(tokenizer)
    _, packed, report = cache(tokenizer, tmp_path, name, sequences, 3)
    assert str(packed["train"].features["replacements"].feature.dtype) == "uint8"
    special = set(tokenizer.all_special_ids)
    equal = total = 0
    for row, table in zip(packed["train"]["input_ids"], packed["train"]["replacements"], strict=True):
        assert len(table) == 3 * len(row)
        for place, token in enumerate(row):
            drawn = table[3 * place : 3 * place + 3]
            if token in special:
                assert drawn == [token] * 3
            else:
                equal, total = equal + drawn.count(token), total + 3
    found = report["splits"]["train"]
    assert found["equal_rate"] == pytest.approx(equal / total)
    assert (found["tokens"], found["sequences"]) == (1200, 40)
    assert found["bytes"] == (tmp_path / "cache" / "train.arrow").stat().st_size >= 3600
    collate = DataCollatorForReplacedTokenDetection(tokenizer, 32, replacements=Cached(None))
    batch = collate(list(packed["train"]))
    replaced, chosen = labels_by_plain_loops(sequences["input_ids"], batch, special, tokenizer.pad_token_id)
    assert chosen == 160
    assert replaced > 80
    collate.set_epoch(1)
    assert (collate(list(packed["train"]))["input_ids"] != batch["input_ids"]).any()


def test_replacements_of_other_sequences_are_refused(tokenizer, tmp_path):
    cache(tokenizer, tmp_path, "unigram", corpus_of(tokenizer), 1)
    other = DatasetDict({"train": corpus_of(tokenizer, rows=41), "validation": corpus_of(tokenizer, rows=2)})
    with pytest.raises(DataError, match="for other train sequences than these"):
        attach_replacements(other, tmp_path / "cache")
    with pytest.raises(DataError, match=r"no cache\.json"):
        attach_replacements(other, tmp_path)
    with pytest.raises(DataError, match="requires --generator_folder"):
        attach_replacements(other, None)


def test_the_whole_path(recipe, tmp_path, capsys):  # noqa: F811
    path, folder = recipe(generator_type="unigram"), tmp_path / "cache"
    assert cli.main(["cache-replacements", path, "--folder", str(folder), "--draws", "2"]) == 0
    printed = capsys.readouterr().out
    assert "2 replacements per token, sampled by `unigram`" in printed
    assert "bytes per token" in printed
    tokens = json.loads((folder / "cache.json").read_text())["splits"]["train"]["tokens"]
    assert f"train: {tokens:,} tokens in" in printed
    flags = ["--generator_type", "cached", "--generator_folder", str(folder)]
    assert cli.main(["pretrain", path, *flags]) == 0
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measured["data"]["counts"]["train"]["tokens"] == tokens
    assert 0.05 < measured["evaluation"]["replaced_rate"] < 0.16
    assert "sampled once in advance" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--draws", "0"], "--draws must be at least 1, got 0"),
        (["--generator_type", "mlm"], "generator_type 'mlm' cannot be sampled in advance"),
        (["--generator_tipe", "mlm"], "unknown field `generator_tipe`; did you mean `generator_type`?"),
    ],
)
def test_mistakes_are_one_line(recipe, tmp_path, capsys, flags, message):  # noqa: F811
    folder = tmp_path / "cache"
    assert cli.main(["cache-replacements", recipe(), "--folder", str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not folder.exists()
