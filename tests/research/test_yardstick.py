"""The probe on made-up sentences whose names a state tells, and on states that tell nothing."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel

from modeling_electra_exit.trainers.errors import UsageError
from modeling_electra_exit.trainers.runtime.files import read_json
from research import yardstick
from tests.conftest import WORDS, tiny_model


NAMES = {"cat", "dog", "bird"}


@pytest.fixture
def data(tmp_path):
    draw = np.random.default_rng(0)
    for split, count in (("train", 80), ("test", 40)):
        rows = []
        for _ in range(count):
            words = [str(word) for word in draw.choice(WORDS, size=6)]
            rows.append({"tokens": words, "ner_tags": ["B-x" if word in NAMES else "O" for word in words]})
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    def save(name, reads_words=True, **fields):
        torch.manual_seed(0)
        model = tiny_model(
            vocab_size=len(tokenizer), exit_policy="none", num_hidden_layers=2, norm_position="pre", **fields
        )
        if not reads_words:
            torch.nn.init.zeros_(model.get_input_embeddings().weight)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def test_a_model_that_tells_words_is_told_from_one_that_does_not(data, checkpoint, capsys):
    blind, seeing = checkpoint("blind", reads_words=False), checkpoint("seeing")
    out = data / "results.json"
    assert yardstick.main([blind, seeing, "--data", str(data), "--json", str(out)]) == 0
    results = read_json(out)
    chance = results[blind]["share_of_entities"]
    assert results[blind]["average_precision"] == pytest.approx(chance, abs=0.1)
    assert results[seeing]["average_precision"] > chance + 0.3
    assert results[seeing]["difference"] > 3 * results[seeing]["difference_standard_error"] > 0
    assert results[blind]["difference_standard_error"] == 0
    assert f"chance: {chance:.4f}" in capsys.readouterr().out


def test_words_without_a_token_or_a_position_have_zeros(checkpoint, tokenizer):
    model = AutoModel.from_pretrained(checkpoint("short", max_position_embeddings=8)).eval()
    words = ["cat", "", *["dog"] * 9]
    states = yardstick.word_states(model, tokenizer, [(words, np.zeros(len(words)))])
    assert states.shape == (11, 32)
    assert states.any(axis=1).tolist() == [True, False, *[True] * 5, *[False] * 4]


def test_a_text_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no such file: .*train\.jsonl"):
        yardstick.main(["model", "--data", str(tmp_path)])
