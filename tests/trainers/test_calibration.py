"""Thresholds on data whose answer is known, and the command as a user meets it."""

import json
import math
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, DataCollatorForTokenClassification, default_data_collator

from modeling_electra_exit import (
    ElectraEarlyExitForMultipleChoice,
    ElectraEarlyExitForSequenceClassification,
    ElectraEarlyExitForTokenClassification,
)
from modeling_electra_exit.trainers import calibrate_exits, calibration, cli
from tests.conftest import WORDS, tiny_config, trained_exits


def trained_classifier(tokenizer, steps=60):
    """Told to find the word "cat"; two exits, and a few steps."""
    torch.manual_seed(0)
    model = ElectraEarlyExitForSequenceClassification(
        tiny_config(vocab_size=len(tokenizer), num_labels=2, exit_loss_weight=1.0, initializer_range=0.1)
    )
    model.config.label2id = {"no": 0, "yes": 1}
    model.config.id2label = {0: "no", 1: "yes"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        texts, labels = made_up(32, seed=step + 100)
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        model.train()(**batch, labels=torch.tensor(labels)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def made_up(count, seed=0):
    choose = random.Random(seed)
    texts = [choose.choices(WORDS, k=choose.randint(3, 12)) for _ in range(count)]
    return [" ".join(words) for words in texts], [int("cat" in words) for words in texts]


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine-tuned")
    trained_classifier(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def encoded(tokenizer, count=96):
    texts, labels = made_up(count)
    return Dataset.from_dict({**tokenizer(texts), "labels": labels})


@pytest.mark.parametrize("criterion", ["confidence", "entropy", "patience"])
@pytest.mark.parametrize("one_for_all", [False, True])
def test_calibration_keeps_accuracy_and_is_saved(folder, tokenizer, tmp_path, criterion, one_for_all):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    data = encoded(tokenizer)
    found = calibrate_exits(model, data, max_accuracy_drop=0.02, criterion=criterion, one_for_all=one_for_all)
    assert found.full_accuracy - found.accuracy + found.drop_error <= 0.02 + 1e-9
    assert found.full_accuracy > 0.6
    assert found.depth < 1
    assert found.examples_per_second > 0
    if one_for_all or criterion == "patience":
        assert len(set(found.thresholds)) == 1
    for error in (*found.calibration_error_before, *found.calibration_error_after):
        assert 0 <= error <= 1
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.inference_exit_criterion == criterion
    assert loaded.config.inference_exit_thresholds == found.thresholds
    assert loaded.config.inference_exit_temperatures == found.temperatures
    # What was predicted from the full depth's logits is what the exits do.
    texts, labels = made_up(96)
    outputs = loaded.eval()(**tokenizer(texts, padding=True, return_tensors="pt"))
    assert (outputs.logits.argmax(-1) == torch.tensor(labels)).float().mean().item() == pytest.approx(found.accuracy)
    assert outputs.exit_layers.float().mean().item() / 6 == pytest.approx(found.depth)


def test_the_curve_runs_from_full_depth_to_the_first_exit(folder, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    curve = calibrate_exits(model, encoded(tokenizer)).curve
    assert (curve[0].thresholds, curve[0].depth) == ([1.0, 1.0], 1.0)
    assert curve[-1].depth == pytest.approx(2 / 6)
    depths = [point.depth for point in curve]
    assert depths == sorted(depths, reverse=True)


def test_without_a_drop_to_spare_a_useless_exit_stays_closed():
    # Exit 0 is certain and wrong, exit 1 certain and right.
    certainty = np.array([[0.9, 0.95, 0.99, 0.97], [0.8, 0.9, 0.95, 0.99]])
    right = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    curve = calibration.speed_accuracy_curve("confidence", certainty, right, np.array([0.25, 0.5, 1.0]), False)
    cuts, *rest = min((point for point in curve if point[1] == 1), key=lambda point: point[-1])
    assert (cuts[0], *rest) == (1.0, 1.0, 0.0, 0.5)
    assert curve[-1][1:] == (0.0, 0.0, 0.25)


def test_a_drop_that_chance_could_hide_is_not_taken(monkeypatch):
    # Faster by degrees: of a hundred answers, one is lost; three are and two are won; nobody leaves.
    full = np.array([1.0] * 90 + [0.0] * 10)
    answers = {(0.5,): full - np.eye(100)[0], (0.2,): full - np.eye(100)[:3].sum(0) + np.eye(100)[-2:].sum(0)}
    points = [calibration.Point([1.0], 0.9, 0.0, 1.0)]
    for thresholds, right in answers.items():
        error = math.sqrt(sum((f - r - (full - right).mean()) ** 2 for f, r in zip(full, right, strict=True))) / 100
        assert calibration.drop_error(right, full) == pytest.approx(error)
        points.append(calibration.Point(list(thresholds), right.mean(), error, thresholds[0]))
    monkeypatch.setattr(calibration, "run", lambda model, batches, t: answers.get(tuple(t), full))
    chosen = [calibration.choose(None, None, points, full, drop)[0].thresholds for drop in (0.04, 0.025, 0.01)]
    assert chosen == [[0.2], [0.5], [1.0]]  # the drop is 0.01 for both, its error 0.022 and 0.010


def test_temperature_undoes_a_scale():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 1, 3, generator=generator)
    labels = torch.multinomial(logits.flatten(0, 1).softmax(-1), 1, generator=generator)
    assert calibration.best_temperature(logits * 4, labels) == pytest.approx(4, rel=0.1)
    before, after = (calibration.expected_calibration_error(each, labels) for each in (logits * 4, logits))
    assert after < 0.05 < before


def test_agreements_count_in_a_row():
    exits = [F.one_hot(torch.tensor(answers), 3)[:, None].float() for answers in ([0, 1], [0, 2], [0, 2], [1, 2])]
    counts = calibration.certainties("patience", exits)
    assert counts.tolist() == [[0, 0], [1, 0], [2, 1], [0, 2]]


@pytest.mark.parametrize("model_class", [ElectraEarlyExitForTokenClassification, ElectraEarlyExitForMultipleChoice])
def test_other_tasks(model_class, tokenizer):
    torch.manual_seed(0)
    model = trained_exits(model_class(tiny_config(num_labels=3))).eval()
    if model_class is ElectraEarlyExitForMultipleChoice:
        data = Dataset.from_dict({"input_ids": torch.randint(5, 99, (24, 3, 9)).tolist(), "labels": [0, 1, 2] * 8})
        collate = default_data_collator
    else:
        ids = [torch.randint(5, 99, (length,)).tolist() for length in (9, 20, 5, 13) * 4]
        data = Dataset.from_dict({"input_ids": ids, "labels": [[-100] + [i % 3 for i in row[1:]] for row in ids]})
        collate = DataCollatorForTokenClassification(tokenizer)
    found = calibrate_exits(model, data, max_accuracy_drop=0.1, data_collator=collate)
    assert found.accuracy >= found.full_accuracy - 0.1 - 1e-6


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ({"exit_policy": "none"}, {}, "no exits"),
        ({}, {"criterion": "luck"}, "'patience'"),
        ({"num_labels": 1}, {}, "regression"),
    ],
)
def test_misuse(tokenizer, overrides, options, message):
    model = ElectraEarlyExitForSequenceClassification(tiny_config(**{"num_labels": 2, **overrides}))
    data = Dataset.from_dict(
        {"input_ids": [[5, 6, 7]] * 4, "labels": [0.0] * 4 if "num_labels" in overrides else [0] * 4}
    )
    with pytest.raises(ValueError, match=message):
        calibrate_exits(model, data, data_collator=default_data_collator, **options)


# ---- The command ----


def write_examples(path, **columns):
    texts, labels = made_up(48)
    rows = [
        {"sentence": text, "label": label, "idx": i} for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    path.write_text("\n".join(json.dumps({**row, **columns}) for row in rows))
    return path


def test_the_command_stores_thresholds_and_draws(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    examples = write_examples(tmp_path / "held_out.jsonl")
    assert cli.main(["calibrate", str(folder), str(examples), "--max_accuracy_drop", "0.05"]) == 0
    assert "examples/s" in capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())
    found = json.loads((folder / "calibration.json").read_text())
    assert config["inference_exit_thresholds"] == found["thresholds"]
    assert (folder / "calibration.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("columns", "flags", "message"),
    [
        ({}, ["--label_column", "gold"], "no column gold; it has sentence, label, idx"),
        ({"label": 7}, [], "labels that the model has not: [7]"),
        ({"label": "maybe"}, [], "labels that the model has not: ['maybe']"),
        ({"a": "x", "b": "y"}, [], "one or two columns of strings"),
        ({}, ["--max_accuracy_drop", "2"], "must be in [0, 1)"),
    ],
)
def test_mistakes_are_answered_in_one_line(folder, tmp_path, capsys, columns, flags, message):
    pytest.importorskip("matplotlib")
    examples = write_examples(tmp_path / "held_out.jsonl", **columns)
    assert cli.main(["calibrate", str(folder), str(examples), *flags]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]  # the lines before are progress bars
    assert error.startswith("electra-exit calibrate: error: ")
    assert message in error


def test_the_command_calibrates_a_classifier_of_words(tokenizer, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    labels = {"num_labels": 2, "id2label": {0: "O", 1: "B-CAT"}, "label2id": {"O": 0, "B-CAT": 1}}
    model = trained_exits(ElectraEarlyExitForTokenClassification(tiny_config(vocab_size=len(tokenizer), **labels)))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = [text.split() for text in made_up(48)[0]]
    rows = [{"tokens": words, "tags": ["B-CAT" if word == "cat" else "O" for word in words]} for words in texts]
    examples = tmp_path / "held_out.jsonl"
    command = ["calibrate", str(tmp_path / "model"), str(examples), "--max_accuracy_drop", "0.1"]
    examples.write_text("\n".join(map(json.dumps, rows)))
    assert cli.main([*command, "--label_column", "tags"]) == 0
    found = json.loads((tmp_path / "model" / "calibration.json").read_text())
    words = sum(map(len, texts))
    assert found["full_accuracy"] * words == pytest.approx(round(found["full_accuracy"] * words), abs=1e-2)
    assert (
        json.loads((tmp_path / "model" / "config.json").read_text())["inference_exit_thresholds"]
        == found["thresholds"]
    )
    capsys.readouterr()
    for wrong, message in (
        ({"tags": ["B-DOG"] * len(texts[0])}, "labels that the model has not: ['B-DOG']"),
        ({"tags": ["O"]}, f"{len(texts[0])} words in tokens, and 1 labels in tags"),
        ({"more": texts[0]}, "name one column of lists of words"),
    ):
        examples.write_text("\n".join(json.dumps({**row, **wrong}) for row in rows[:1]))
        assert cli.main([*command, "--label_column", "tags"]) == 2
        assert message in capsys.readouterr().err.strip().split("\n")[-1]


def test_a_word_has_its_label_once(tokenizer):
    config = tiny_config(num_labels=2)
    config.label2id = {"O": 0, "X": 1}
    words = ["cat", "catcat", "dog"]  # of which the second is no entry of the vocabulary, and several tokens
    batch = {"tokens": [words], "tags": [["O", "X", 1]]}
    found = calibration.encode_words(batch, ["tokens"], "tags", tokenizer, config)
    first = {}
    for place, word in enumerate(tokenizer([words], is_split_into_words=True).word_ids(0)):
        first.setdefault(word, place)
    expected = [-100] * len(found["input_ids"][0])
    for word, label in enumerate((0, 1, 1)):
        expected[first[word]] = label
    assert found["labels"] == [expected]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "no such file: "),
        ("held_out.jsonl", "no JSON at all", "cannot read "),
        ("held_out.jsonl", "", "there is no text in "),
        ("README.md", "# Examples", "cannot tell what "),
    ],
)
def test_a_file_that_cannot_be_read_is_named(folder, tmp_path, capsys, name, content, message):
    pytest.importorskip("matplotlib")
    if content is not None:
        (tmp_path / name).write_text(content)
    assert cli.main(["calibrate", str(folder), str(tmp_path / name)]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert message in error
    assert name in error


def test_only_a_fine_tuned_classifier_is_calibrated(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["calibrate", str(tmp_path), "x.jsonl"]) == 2
    assert "no model in" in capsys.readouterr().err
    ElectraEarlyExitForMultipleChoice(tiny_config()).save_pretrained(tmp_path)
    assert cli.main(["calibrate", str(tmp_path), "x.jsonl"]) == 2
    assert "holds ElectraEarlyExitForMultipleChoice; give" in capsys.readouterr().err
