"""Thresholds on data whose answer is known, and the command as a user meets it."""

import json
import random
import shutil
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    BertJapaneseTokenizer,
    DataCollatorForTokenClassification,
    default_data_collator,
)

from electra_exit import main as cli
from modeling_electra_exit import (
    ElectraEarlyExitForMultipleChoice,
    ElectraEarlyExitForSequenceClassification,
    ElectraEarlyExitForTokenClassification,
)
from modeling_electra_exit.trainers import calibrate_exits
from modeling_electra_exit.trainers.finetuning import calibration
from modeling_electra_exit.trainers.finetuning.encoding import encode_words
from modeling_electra_exit.trainers.runtime.figures import can_draw
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
    found = calibrate_exits(model, data, max_accuracy_drop=0.08, criterion=criterion, one_for_all=one_for_all)
    assert found.full_accuracy - found.accuracy < found.drop_bound <= 0.08 + 1e-9
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
    curve = calibrate_exits(model, encoded(tokenizer), max_accuracy_drop=0.05).curve
    assert (curve[0].thresholds, curve[0].depth) == ([1.0, 1.0], 1.0)
    assert curve[-1].depth == pytest.approx(2 / 6)
    depths = [point.depth for point in curve]
    assert depths == sorted(depths, reverse=True)


def test_without_a_drop_to_spare_a_useless_exit_stays_closed():
    # Exit 0 is certain and wrong, exit 1 certain and right.
    certainty = np.array([[0.9, 0.95, 0.99, 0.97], [0.8, 0.9, 0.95, 0.99]])
    right = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    curve = calibration.speed_accuracy_curve(
        "confidence", certainty, right, np.arange(4), np.array([0.25, 0.5, 1.0]), False
    )
    cuts, accuracy, _, depth = min((point for point in curve if point[1] == 1), key=lambda point: point[-1])
    assert (cuts[0], accuracy, depth) == (1.0, 1.0, 0.5)
    assert curve[-1][1::2] == (0.0, 0.25)


def test_a_drop_that_chance_could_hide_is_not_taken(monkeypatch):
    # Faster by degrees: of two hundred answers none is lost; one is; ten are; and again none.
    full, examples = np.ones(200), np.arange(200)
    answers = {(0.8,): full, (0.6,): full - np.eye(200)[0], (0.4,): full - np.eye(200)[:10].sum(0), (0.2,): full}
    points = [calibration.Point([1.0], 1.0, calibration.drop_bound(full, full, examples), 1.0)]
    for thresholds, right in answers.items():
        bound = calibration.drop_bound(right, full, examples)
        points.append(calibration.Point(list(thresholds), right.mean(), bound, thresholds[0]))
    monkeypatch.setattr(calibration, "run", lambda model, batches, t: answers.get(tuple(t), full))

    def chosen(drop):
        return calibration.choose(None, None, points, full, examples, drop)[0].thresholds[0]

    # None lost of 200 bounds the drop at 0.015, one at 0.024, ten at 0.084. The last point is behind one that fails.
    assert [chosen(drop) for drop in (0.014, 0.016, 0.025, 0.08, 0.09)] == [1.0, 0.8, 0.6, 0.6, 0.2]


@pytest.mark.parametrize("number", [1, 5, 60, 600, 20000])
def test_the_bound_of_answers_that_are_only_lost_is_clopper_and_pearsons(number):
    full, examples = np.ones(number), np.arange(number)
    for lost in {0, 1, 2, 3, 5, 10, 30} & set(range(number // 20 + 1)):
        bound = calibration.drop_bound(full - (examples < lost), full, examples)
        exact = stats.beta.ppf(0.95, lost + 1, number - lost)
        assert bound >= 0.99 * exact
        if number >= 600:
            assert bound <= 1.01 * exact


@pytest.mark.parametrize(
    ("number", "lost", "won"),
    [
        (100, 0.03, 0.0),
        (100, 0.04, 0.03),
        (600, 0.005, 0.0),
        (600, 0.02, 0.01),
        (600, 0.003, 0.002),
        (3000, 0.05, 0.05),
    ],
)
def test_the_bound_holds_in_95_of_100_samples(number, lost, won):
    chance = np.random.default_rng(0)
    counts = chance.multinomial(number, [lost, won, 1 - lost - won], size=2000)
    examples, holds = np.arange(number), []
    for losses, wins, _ in counts:
        full, answers = np.zeros(number), np.zeros(number)
        full[:losses] = answers[losses : losses + wins] = 1
        holds.append(calibration.drop_bound(answers, full, examples) >= lost - won)
    assert np.mean(holds) >= 0.94  # of 2000 samples, 0.95 has a standard error of 0.005


def test_tokens_of_one_text_are_one_piece_of_evidence():
    def bound(texts, length, **lost):
        full, examples = np.ones(texts * length), np.repeat(np.arange(texts), length)
        return calibration.drop_bound(full - lost.get("lost", 0), full, examples)

    assert bound(100, 50) == pytest.approx(bound(100, 1)) == pytest.approx(-np.log(0.05) / 100)
    together, apart = np.zeros(5000), np.zeros(5000)
    together[:50] = apart[::100] = 1  # all tokens of one text, or one of each second
    assert bound(100, 50, lost=together) == pytest.approx(bound(100, 1, lost=np.eye(100)[0]))
    assert bound(100, 50, lost=apart) < bound(100, 50, lost=together)
    # Texts of which one holds half of all tokens are not a hundred.
    sizes = np.array([100, *[1] * 100])
    items = np.repeat(np.arange(101), sizes)
    assert calibration.drop_bound(np.ones(200), np.ones(200), items) == pytest.approx(-np.log(0.05) * 10100 / 40000)


@pytest.mark.parametrize(("count", "drop", "needed"), [(1, 0.5, 6), (96, 0.02, 150), (96, 0.0, None)])
def test_fewer_examples_than_can_bound_the_drop_are_refused(folder, tokenizer, count, drop, needed):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(ValueError, match=rf"at least .* for {count} examples, .* got {drop}: ") as caught:
        calibrate_exits(model, encoded(tokenizer, count), max_accuracy_drop=drop)
    assert (f"give about {needed} examples" in str(caught.value)) == (needed is not None)


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
        data = Dataset.from_dict({"input_ids": torch.randint(5, 99, (36, 3, 9)).tolist(), "labels": [0, 1, 2] * 12})
        collate = default_data_collator
    else:
        ids = [torch.randint(5, 99, (length,)).tolist() for length in (9, 20, 5, 13) * 12]
        data = Dataset.from_dict({"input_ids": ids, "labels": [[-100] + [i % 3 for i in row[1:]] for row in ids]})
        collate = DataCollatorForTokenClassification(tokenizer)
    found = calibrate_exits(model, data, max_accuracy_drop=0.1, data_collator=collate)
    assert found.accuracy >= found.full_accuracy - 0.1 - 1e-6


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ({"exit_policy": "none"}, {}, "no exits .* fine-tune it with --exit_policy random"),
        ({}, {"criterion": "luck"}, "'patience'"),
        ({"num_labels": 1}, {}, "regression"),
        ({"untrained": True}, {}, r"`exit_layers` must not use untrained exit heads, .* layers \[2, 4\]"),
    ],
)
def test_misuse(tokenizer, overrides, options, message):
    untrained = overrides.pop("untrained", False)
    model = ElectraEarlyExitForSequenceClassification(tiny_config(**{"num_labels": 2, **overrides}))
    model = model if untrained else trained_exits(model)
    data = Dataset.from_dict(
        {"input_ids": [[5, 6, 7]] * 4, "labels": [0.0] * 4 if "num_labels" in overrides else [0] * 4}
    )
    with pytest.raises(ValueError, match=message):
        calibrate_exits(model, data, data_collator=default_data_collator, **options)


# ---- The command ----


def write_examples(path, **columns):
    texts, labels = made_up(72)
    rows = [
        {"sentence": text, "label": label, "idx": i} for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    path.write_text("\n".join(json.dumps({**row, **columns}) for row in rows))
    return path


def test_the_command_stores_thresholds_and_draws(folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    run, rewritten = tmp_path / "run", []
    shutil.copytree(folder, run / "seed-1")
    (run / "report.html").write_text("of the fine-tuning")
    monkeypatch.setattr("modeling_electra_exit.trainers.sharing.report.write_report", rewritten.append)
    folder = run / "seed-1"
    examples = write_examples(tmp_path / "held_out.jsonl")
    assert cli.main(["calibrate", str(folder), str(examples), "--max_accuracy_drop", "0.05"]) == 0
    assert "examples/s" in capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())
    found = json.loads((folder / "calibration.json").read_text())
    assert config["inference_exit_thresholds"] == found["thresholds"]
    assert (folder / "calibration.png").read_bytes()[:4] == b"\x89PNG"
    assert rewritten == [run.resolve()], "the report of the fine-tuning shows the exits"


def test_the_command_stores_thresholds_and_says_once_that_it_cannot_draw(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    can_draw.cache_clear()
    (folder / "calibration.png").write_text("of an earlier calibration")
    examples = write_examples(tmp_path / "held_out.jsonl")
    for _ in range(2):
        assert cli.main(["calibrate", str(folder), str(examples), "--max_accuracy_drop", "0.05"]) == 0
    can_draw.cache_clear()
    assert json.loads((folder / "config.json").read_text())["inference_exit_thresholds"]
    assert not (folder / "calibration.png").exists()
    said = [record.getMessage() for record in caplog.records if "matplotlib" in record.getMessage()]
    assert said == ["no figure is drawn: matplotlib is not installed (pip install 'electra-early-exit[demo]')"]


@pytest.mark.parametrize(
    ("columns", "flags", "message"),
    [
        ({}, ["--label_column", "gold"], "must have the column `gold`, got sentence, label, idx"),
        ({"label": 7}, [], "must hold the labels of the model (no, yes), got 7"),
        ({"label": "maybe"}, [], "must hold the labels of the model (no, yes), got 'maybe'"),
        (
            {"text": "a text"},
            [],
            "with --text_column: it has the columns sentence, label, idx, text; candidates: sentence, text",
        ),
        ({}, [], "must be at least 0.0416 for 72 examples, "),
        ({"label": [0, 1]}, [], "must have one label in each row for classification, got a list of labels"),
        ({}, ["--max_accuracy_drop", "2"], "must be above 0 and below 1, got 2.0"),
    ],
)
def test_mistakes_are_answered_in_one_line(folder, tmp_path, capsys, columns, flags, message):
    examples = write_examples(tmp_path / "held_out.jsonl", **columns)
    assert cli.main(["calibrate", str(folder), str(examples), *flags]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]  # the lines before are progress bars
    assert error.startswith("electra-exit calibrate: error: ")
    assert message in error


def test_the_command_calibrates_a_classifier_of_words(tokenizer, tmp_path, capsys):
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
        ({"tags": ["B-DOG"] * len(texts[0])}, "must hold the labels of the model (O, B-CAT), got 'B-DOG'"),
        ({"tags": ["O"]}, f"got {len(texts[0])} words in `tokens` and 1 labels in `tags`"),
        ({"tags": "O"}, "must have a list of labels in each row for tagging, got one label"),
        ({"words": texts[0]}, "with --text_column: it has the columns tokens, tags, words"),
    ):
        examples.write_text("\n".join(json.dumps({**row, **wrong}) for row in rows[:1]))
        assert cli.main([*command, "--label_column", "tags"]) == 2
        assert message in capsys.readouterr().err.strip().split("\n")[-1]


def test_the_command_calibrates_a_classifier_with_several_labels(tokenizer, tmp_path, capsys):
    names = {"num_labels": 3, "id2label": {0: "cat", 1: "dog", 2: "old"}, "label2id": {"cat": 0, "dog": 1, "old": 2}}
    model = trained_exits(
        ElectraEarlyExitForSequenceClassification(
            tiny_config(vocab_size=len(tokenizer), problem_type="multi_label_classification", **names)
        )
    )
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    texts = made_up(48)[0]
    present = [[name for name in names["label2id"] if name in text.split()] for text in texts]
    examples = tmp_path / "held_out.jsonl"
    command = ["calibrate", str(tmp_path / "model"), str(examples), "--max_accuracy_drop", "0.1"]
    found = []
    for labels in (present, [[int(name in row) for name in names["label2id"]] for row in present]):
        rows = [{"text": text, "label": row} for text, row in zip(texts, labels, strict=True)]
        examples.write_text("\n".join(map(json.dumps, rows)))
        assert cli.main(command) == 0
        found.append(json.loads((tmp_path / "model" / "calibration.json").read_text()))
    with torch.no_grad():
        logits = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    right = (logits > 0) == torch.tensor([[name in row for name in names["label2id"]] for row in present])
    assert found[0]["full_accuracy"] == found[1]["full_accuracy"] == pytest.approx(right.float().mean().item())
    capsys.readouterr()
    for wrong, message in (
        (["bird"], "must hold lists of names among cat, dog, old, or lists with a 0 or 1 for each of the 3 labels"),
        ([0, 1], "or lists with a 0 or 1 for each of the 3 labels, got [0, 1]"),
        ([0, 2], "or lists with a 0 or 1 for each of the 3 labels, got [0, 2]"),
        ("cat", "must have a list of labels in each row for multi_label, got one label"),
    ):
        examples.write_text("\n".join(json.dumps({"text": text, "label": wrong}) for text in texts))
        assert cli.main(command) == 2
        assert message in capsys.readouterr().err.strip().split("\n")[-1]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tokenizer_written_in_python_finds_the_first_token_of_each_word(tmp_path, side):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ねこ", "は", "ねむ", "##る", "cat", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    tokenizer = BertJapaneseTokenizer(
        str(tmp_path / "vocab.txt"), word_tokenizer_type="basic", subword_tokenizer_type="wordpiece",
        truncation_side=side,
    )  # fmt: skip
    assert not tokenizer.is_fast
    words, tags = ["ねこ", "cats", "はは", "は", "ねむる"], [0, 1, 2, 3, 4]
    found = encode_words({"words": [words], "labels": [tags]}, tokenizer, 7)
    kept, labels = {
        "right": (["ねこ", "cat", "##s", "[UNK]", "は"], [0, 1, -100, 2, 3]),
        "left": (["##s", "[UNK]", "は", "ねむ", "##る"], [1, 2, 3, 4, -100]),
    }[side]
    assert tokenizer.convert_ids_to_tokens(found["input_ids"][0]) == ["[CLS]", *kept, "[SEP]"]
    assert found["labels"] == [[-100, *labels, -100]]


def test_a_word_has_its_label_once(tokenizer):
    words = ["cat", "catcat", "dog"]  # of which the second is no entry of the vocabulary, and several tokens
    found = encode_words({"words": [words], "labels": [[0, 1, 1]]}, tokenizer, 128)
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
        ("README.md", "# Examples", "unknown type of file "),
    ],
)
def test_a_file_that_cannot_be_read_is_named(folder, tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert cli.main(["calibrate", str(folder), str(tmp_path / name)]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert message in error
    assert name in error


def test_only_a_fine_tuned_classifier_is_calibrated(tmp_path, capsys):
    examples = write_examples(tmp_path / "x.jsonl")
    assert cli.main(["calibrate", str(tmp_path), str(examples)]) == 2
    assert "holds no model: it has no config.json" in capsys.readouterr().err
    ElectraEarlyExitForMultipleChoice(tiny_config()).save_pretrained(tmp_path)
    assert cli.main(["calibrate", str(tmp_path), str(examples)]) == 2
    assert "holds ElectraEarlyExitForMultipleChoice; give" in capsys.readouterr().err
