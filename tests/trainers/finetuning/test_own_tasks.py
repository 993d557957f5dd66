"""A task of one's own, from its file to a calibrated model that predicts; and every mistake answered in one line."""

import csv
import json
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer

from electra_exit import main as cli
from modeling_electra_exit import (
    ElectraEarlyExitConfig,
    ElectraEarlyExitForPreTraining,
    ElectraEarlyExitForSequenceClassification,
    ElectraEarlyExitForTokenClassification,
)
from modeling_electra_exit.trainers.errors import UsageError
from modeling_electra_exit.trainers.finetuning.starting import Start
from modeling_electra_exit.trainers.finetuning.tasks import TASKS, Task
from tests.conftest import WORDS, tiny_config, tiny_model, trained_exits


def run(command, *argv) -> int:
    return cli.main([command, *map(str, argv)])


@pytest.fixture
def start(tmp_path):
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    model = tiny_model(num_hidden_layers=3, exit_layers=[1], exit_capacities=[0.5], initializer_range=0.1)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def texts(count, seed=0, words=6) -> list[list[str]]:
    choose = random.Random(seed)
    return [choose.choices(WORDS, k=words) for _ in range(count)]


def mood(words) -> str:
    return "Ärger" if "cat" in words else "Freude; groß" if "dog" in words else "übrig"


def write_csv(path, header, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def write_conll(path, sentences, columns=lambda word: [word, "NN", "B-NP", "B-ANI" if word == "cat" else "O"]):
    blocks = ["".join(" ".join(columns(word)) + "\n" for word in sentence) for sentence in sentences]
    path.write_text("-DOCSTART- -X- -X- O\n\n" + "\n".join(blocks))
    return path


def settings(tmp_path, **changes):
    fields = {"output_dir": tmp_path / "out", "num_train_epochs": 1, "use_cpu": "true", "report_to": "none"}
    return [token for name, value in {**fields, **changes}.items() for token in (f"--{name}", value)]


LEARNING = {"num_train_epochs": 12, "learning_rate": 5e-3, "layerwise_lr_decay": 1.0, "validation_fraction": 0.2}


def json_of(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_german_labels_and_semicolons_from_the_file_to_predictions(start, tmp_path, capsys):
    rows = [[" ".join(words).replace(" ", "; ", 1), mood(words), n] for n, words in enumerate(texts(120))]
    data = write_csv(tmp_path / "stimmung.csv", ["Satz", "Stimmung", "Nr"], rows)
    assert run("finetune", start, "--train_file", data, *settings(tmp_path, **LEARNING)) == 0
    printed = capsys.readouterr().out
    summary, folder = json_of(tmp_path / "out" / "metrics.json"), tmp_path / "out" / "seed-42"
    labels = [label for _, label, _ in rows]
    majority = summary["baselines"]["majority class"]["accuracy"]
    assert majority == pytest.approx(max(map(labels.count, set(labels))) / 120, abs=0.06)  # held out of each alike
    assert summary["evaluation"]["accuracy"]["mean"] >= majority + 0.2
    assert f"majority class {majority:.4f}" in printed
    assert f"best: {folder}" in printed
    config = json_of(folder / "config.json")
    assert config["label2id"] == {"Freude; groß": 0, "Ärger": 1, "übrig": 2}
    assert config["problem_type"] == "single_label_classification"
    for command in (["card"], ["push", "me/mine"], ["calibrate", data], ["score", data]):
        assert run(command[0], tmp_path / "out", *command[1:]) == 2
        assert f"holds one model per seed of a fine-tuning run; the best one is {folder}" in capsys.readouterr().err
    # The examples that were held out calibrate; the model predicts the names.
    held_out = tmp_path / "out" / "held_out.jsonl"
    assert len(held_out.read_text().splitlines()) == 24
    assert run("calibrate", folder, held_out, "--max_accuracy_drop", 0.2) == 0
    assert run("score", folder, data, "--output", tmp_path / "scores.jsonl") == 0
    found = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert np.mean([entry["label"] == label for entry, label in zip(found, labels, strict=True)]) >= majority + 0.2
    assert {entry["exit_layer"] for entry in found} <= {1, 3}
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1)
    capsys.readouterr()
    assert run("evaluate", folder, "--validation_file", data, *settings(tmp_path, output_dir=tmp_path / "again")) == 0
    assert json_of(tmp_path / "again" / "evaluation.json")["tasks"]["stimmung"]["how"] == "as it is"
    # What it was trained on, and what it measured, is in the card; where it lay on this machine is not.
    assert run("card", folder) == 0
    card = (folder / "README.md").read_text(encoding="utf-8")
    for text in (
        "Fine-tuned from `start` on 96 examples of `stimmung`", "stimmung.csv; text: Satz; label: Stimmung",
        f"| majority class | {majority:.4f} |", "AutoModelForSequenceClassification.from_pretrained",
        "- type: accuracy", "The config has calibrated thresholds",
    ):  # fmt: skip
        assert text in card
    assert str(tmp_path) not in card + (folder / "metrics.json").read_text() + (folder / "config.json").read_text()


def test_conll_with_four_columns_from_the_file_to_predictions(start, tmp_path, capsys):
    (tmp_path / "animals").mkdir()  # which names the task: the names of file and tags say nothing
    train = write_conll(tmp_path / "animals" / "train.txt", texts(96))
    dev = write_conll(tmp_path / "animals" / "dev.conll", texts(24, seed=1))
    files = ("--train_file", train, "--validation_file", dev)
    assert run("finetune", start, *files, *settings(tmp_path, **LEARNING)) == 0
    summary, folder = json_of(tmp_path / "out" / "metrics.json"), tmp_path / "out" / "seed-42"
    assert summary["evaluation"]["entity_f1"]["mean"] >= 0.9
    assert summary["baselines"]["majority tag"]["entity_f1"] == 0
    assert summary["baselines"]["most frequent tag of each word"]["entity_f1"] == 1
    assert run("calibrate", folder, dev, "--max_accuracy_drop", 0.2) == 0
    capsys.readouterr()
    (tmp_path / "plain.txt").write_text("the cat sings\n\na dog\n")
    assert run("score", folder, tmp_path / "plain.txt") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["words"] for entry in found] == [["the", "cat", "sings"], [], ["a", "dog"]]
    assert [entry["tags"] for entry in found] == [["O", "B-ANI", "O"], [], ["O", "O"]]
    assert all(len(entry["exit_layers"]) == len(entry["words"]) for entry in found)
    assert run("score", folder, dev) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["words"] == texts(1, seed=1)[0]
    long = write_conll(tmp_path / "long.conll", texts(1, seed=2, words=200))  # the model has 128 positions
    assert run("score", folder, long) == 0
    assert [tag is None for tag in json.loads(capsys.readouterr().out)["tags"]] == [False] * 126 + [True] * 74
    assert run("evaluate", folder, "--validation_file", dev, *settings(tmp_path, output_dir=tmp_path / "again")) == 0
    assert "entity_f1" in json_of(tmp_path / "again" / "evaluation.json")["tasks"]["animals"]["evaluation"]


def test_a_regression_predicts_in_the_unit_of_its_labels(start, tmp_path, capsys):
    rows = [[" ".join(words), f"{1000 + 100 * words.count('cat')},5"] for words in texts(96)]
    data = write_csv(tmp_path / "preise.csv", ["Text", "Preis"], rows, delimiter=";")  # as spreadsheets write them
    assert run("finetune", start, "--train_file", data, *settings(tmp_path, **LEARNING)) == 0
    summary, folder = json_of(tmp_path / "out" / "metrics.json"), tmp_path / "out" / "seed-42"
    mean = summary["baselines"]["mean"]
    assert mean["pearson"] == 0
    assert summary["evaluation"]["pearson"]["mean"] >= 0.8
    assert summary["evaluation"]["rmse"]["mean"] < mean["rmse"] < 200
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**tokenizer(["a cat cat cat", "a dog"], return_tensors="pt", padding=True))
        at_exit = model(**tokenizer("a dog", return_tensors="pt"), exit_layer=1).logits
    assert 950 < outputs.logits[1] < outputs.logits[0] < 1500
    assert 900 < at_exit < 1500
    capsys.readouterr()
    assert run("score", folder, data) == 0
    values = [json.loads(line)["value"] for line in capsys.readouterr().out.splitlines()]
    wanted = [float(price.replace(",", ".")) for _, price in rows]
    rmse = np.sqrt(np.mean(np.square(np.subtract(values, wanted))))
    assert run("evaluate", folder, "--validation_file", data, *settings(tmp_path, output_dir=tmp_path / "again")) == 0
    measured = json_of(tmp_path / "again" / "evaluation.json")["tasks"]["preise"]["evaluation"]
    assert measured["rmse"]["mean"] == pytest.approx(rmse, rel=1e-3)
    assert run("calibrate", folder, tmp_path / "out" / "held_out.jsonl") == 2
    assert "is a regression model, which has no confidence to exit on" in capsys.readouterr().err


def test_several_labels_from_lists_and_from_columns(start, tmp_path, capsys):
    names = ("cat", "dog")
    rows = [(" ".join(words), [name for name in names if name in words]) for words in texts(60)]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps({"text": t, "labels": x}) + "\n" for t, x in rows))
    write_csv(tmp_path / "columns.csv", ["text", *names], [[t, *(int(n in x) for n in names)] for t, x in rows])
    metrics = []
    for file, flags in (("lists.jsonl", []), ("columns.csv", ["--label_column", *names])):
        out = settings(tmp_path, output_dir=tmp_path / file.split(".")[0])
        assert run("finetune", start, "--train_file", tmp_path / file, *flags, *out) == 0
        metrics.append(json_of(tmp_path / file.split(".")[0] / "metrics.json"))
        config = json_of(tmp_path / file.split(".")[0] / "seed-42" / "config.json")
        assert (config["problem_type"], config["label2id"]) == ("multi_label_classification", {"cat": 0, "dog": 1})
    assert metrics[0]["evaluation"] == metrics[1]["evaluation"]  # the same task, written in two ways
    assert metrics[0]["baselines"].keys() == {"most frequent labels"}
    capsys.readouterr()
    folder = tmp_path / "lists" / "seed-42"
    assert run("score", folder, tmp_path / "columns.csv") == 0
    entry = json.loads(capsys.readouterr().out.splitlines()[0])
    assert entry["labels"] == [name for name, probability in entry["probabilities"].items() if probability >= 0.5]
    # The columns of a label each are found by their names, in whatever order.
    again = settings(tmp_path, output_dir=tmp_path / "again")
    scores = []
    for order in (names, names[::-1]):
        file = ("--validation_file", tmp_path / "columns.csv")
        assert run("evaluate", folder, *file, *again, "--label_column", *order) == 0
        scores.append(json_of(tmp_path / "again" / "evaluation.json")["tasks"]["lists"]["evaluation"])
    assert scores[0] == scores[1]


def test_a_model_keeps_the_order_of_its_labels_and_no_thresholds(start, tmp_path):
    """Else a head that goes on learning would begin with its classes mixed up."""
    tokenizer = AutoTokenizer.from_pretrained(start)
    names = {"id2label": {0: "übrig", 1: "Ärger", 2: "Freude; groß"},
             "label2id": {"übrig": 0, "Ärger": 1, "Freude; groß": 2}}  # fmt: skip
    calibrated = {"inference_exit_thresholds": [0.5, 0.5], "inference_exit_temperatures": [1.0, 2.0]}
    model = trained_exits(ElectraEarlyExitForSequenceClassification(tiny_config(num_labels=3, **names, **calibrated)))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "before")
    data = write_csv(tmp_path / "data.csv", ["text", "label"], [[" ".join(words), mood(words)] for words in texts(40)])
    few = settings(tmp_path, max_steps=1)
    assert run("finetune", tmp_path / "before", "--train_file", data, *few) == 0
    config = json_of(tmp_path / "out" / "seed-42" / "config.json")
    assert config["label2id"] == names["label2id"]
    assert config["inference_exit_thresholds"] is config["inference_exit_temperatures"] is None


@pytest.mark.parametrize("tags_words", [False, True])
def test_a_checkpoint_is_read_once_and_new_weights_follow_from_the_seed(start, tags_words, monkeypatch):
    task = TASKS["mrpc"] if not tags_words else Task("words", "tagging", None, ("O", "B"), ("accuracy",))
    head = ElectraEarlyExitForTokenClassification if tags_words else ElectraEarlyExitForSequenceClassification
    expected = []
    for seed in (3, 1):
        torch.manual_seed(seed)
        expected.append(head.from_pretrained(start, num_labels=2, dtype=torch.float32))
    once = Start(str(start), task)
    monkeypatch.setattr(head, "from_pretrained", lambda *_, **__: pytest.fail("read before"))
    assert any(name.startswith("classifier") for name in once.new)
    assert any(name.startswith("exit_modules") for name in once.new)
    assert not any(name.startswith("electra.") for name in once.new)
    for seed, model in zip((3, 1), expected, strict=True):
        found = once.model_for(seed).state_dict()
        assert [name for name, weight in model.state_dict().items() if not torch.equal(weight, found[name])] == []
    assert not torch.equal(*(model.state_dict()[sorted(once.new)[-1]] for model in expected))


GOOD = [["a cat", "yes"], ["the dog", "no"], ["a bird", "yes"], ["the old dog", "no"]] * 5


def test_fields_of_exits_are_refused_where_the_checkpoint_has_none(tmp_path):
    tiny_model(exit_policy="none", exit_layers=[], exit_capacities=[]).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="--exit_layers requires exits"):
        Start(str(tmp_path), TASKS["mrpc"], {"exit_layers": [1]})
    assert (
        Start(str(tmp_path), TASKS["mrpc"], {"exit_layers": [1], "exit_policy": "random"}).model.exit_heads is not None
    )


@pytest.mark.parametrize(
    "fields",
    [{}, {"exit_layers": [], "exit_capacities": [], "exit_reentry_layers": 1}],  # as pre-trained; as written before
)
def test_a_model_of_two_layers_gets_an_exit_after_the_first(tmp_path, fields):
    config = ElectraEarlyExitConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                    exit_policy="none", **fields)  # fmt: skip
    ElectraEarlyExitForPreTraining(config).save_pretrained(tmp_path)
    model = trained_exits(Start(str(tmp_path), TASKS["mrpc"], {"exit_policy": "random"}).model).eval()
    model.config.inference_exit_thresholds = [0.0]  # every example is certain enough
    assert model(torch.arange(5, 15)[None]).exit_layers.tolist() == [1]


def test_a_model_of_one_layer_cannot_have_exits(tmp_path):
    tiny_model(num_hidden_layers=1, exit_policy="none").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=f"--exit_policy random requires at least two layers, but {tmp_path} has 1"):
        Start(str(tmp_path), TASKS["mrpc"], {"exit_policy": "random"})


def test_a_policy_without_exit_layers_is_refused(start):
    with pytest.raises(UsageError, match="--exit_layers must name layers between 1 and 2 with"):
        Start(str(start), TASKS["mrpc"], {"exit_policy": "random", "exit_layers": []})


MISTAKES = {
    "no exits": (["--train_file", "{good}", "--exit_policy", "none", "--exit_layers", "1"],
                 "--exit_layers requires exits, but `exit_policy` is none"),
    "typo": (["--train_file", "{good}", "--lable_column", "label"], "unknown field `lable_column`; did you mean"),
    "no such file": (["--train_file", "nowhere.csv"], "no such file: nowhere.csv"),
    "other file": (["--train_file", "{folder}/start/config.yaml"], "unknown type of file "),
    "missing column": (["--train_file", "{good}", "--text_column", "body"],
                       "good.csv must have the column `body`, got text, label"),
    "one class": (["--train_file", "{one}"], "`label` of {one} must hold at least two labels, got only 'yes'"),
    "label of validation alone": (["--train_file", "{good}", "--validation_file", "{other}"],
                                  "{other} must hold the labels of the training data (no, yes), got 'maybe'"),
    "empty texts": (["--train_file", "{empty}"], "2 of 4 rows of {empty} lack a text or a label: row 3 lacks `text`"),
    "NaN": (["--train_file", "{nan}"], "the column `label` of {nan} must hold numbers, got 'nan'"),
    "no labels": (["--train_file", "{good}", "--validation_file", "{unlabelled}"], "20 of 30 rows of {unlabelled} "
                  "lack a text or a label: row 11 lacks `label`"),
    "no header": (["--train_file", "{headless}"], "{headless} must begin with a header"),
    "ambiguous": (["--train_file", "{many}"], "the text column of {many} with --text_column: it has the "
                  "columns title, body, label; candidates: title, body"),
    "numbers": (["--train_file", "{ids}", "--label_column", "id"],
                "the column `id` of {ids} has 30 different values in 30 rows, too many for"),
    "type": (["--train_file", "{good}", "--task_type", "tagging"], "`text` of {good} must hold lists of words"),
    "words": (["--train_file", "{good}", "--task_type", "regression"], "must hold numbers, got 'yes'"),
    "constant": (["--train_file", "{constant}"],
                 "`label` of {constant} must hold at least two different numbers, got only 1.5"),
    "fraction": (["--train_file", "{good}", "--validation_fraction", "1.5"], "`validation_fraction` must be strictly"),
    "too few": (["--train_file", "{few}"], "{few} has 4 rows, too few to hold out any; give --validation_file"),
    "width": (["--train_file", "{ragged}"], "line 3 of {ragged} must have 2 columns, as the first line, got 3"),
    "no sentence": (["--train_file", "{blank}"], "{blank} holds no sentences"),
    "bytes": (["--train_file", "{latin}"], "cannot read {latin} as csv: it is not UTF-8 (byte 12); convert it"),
    "spreadsheet": (["--train_file", "{sep}"], "cannot read {sep} as csv: its first line is a separator instruction "
                    "for spreadsheets; remove it"),
    "head of another kind": (["--train_file", "{good}", "--model", "{three}"],
                             "`num_labels` of {three} for the task good must be 2, got 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_touch_nothing(start, tmp_path, capsys, name):
    tables = {
        "good": GOOD, "one": [[text, "yes"] for text, _ in GOOD], "other": [*GOOD, ["a house", "maybe"]],
        "empty": [*GOOD[:2], ["  ", "yes"], ["", "no"]], "nan": [["a cat", "1.5"], ["a dog", "nan"], ["a bird", "2"]],
        "unlabelled": [*GOOD[:10], *([["a house", ""]] * 20)],
        "constant": [[text, "1.5"] for text, _ in GOOD], "few": GOOD[:4],
    }  # fmt: skip
    paths = {table: write_csv(tmp_path / f"{table}.csv", ["text", "label"], rows) for table, rows in tables.items()}
    for table, header, rows in (
        ("headless", ["a house", "Ärger"], [[" ".join(words), mood(words)] for words in texts(30)]),
        ("many", ["title", "body", "label"], [[a, f"{a} {a}", b] for a, b in GOOD]),
        ("ids", ["text", "id"], [[" ".join(words), n] for n, words in enumerate(texts(30))]),
    ):
        paths[table] = write_csv(tmp_path / f"{table}.csv", header, rows)
    for table, content in (("ragged", "a O\ncat B\ntwo words O\n"), ("blank", "\n\n")):
        paths[table] = tmp_path / f"{table}.conll"
        paths[table].write_text(content)
    paths["latin"] = tmp_path / "latin.csv"
    paths["latin"].write_bytes("text,label\nmüde,ja\nwach,nein\n".encode("latin-1"))
    paths["sep"] = tmp_path / "sep.csv"
    paths["sep"].write_text("sep=;\ntext;label\na cat;yes\n")
    (start / "config.yaml").write_text("a: b")
    ElectraEarlyExitForSequenceClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path / "three")
    paths |= {"folder": tmp_path, "three": tmp_path / "three"}
    flags, message = MISTAKES[name]
    assert run("finetune", start, *(flag.format(**paths) for flag in flags), *settings(tmp_path)) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("electra-exit finetune: error: ")
    assert message.format(**paths) in error
    assert not (tmp_path / "out").exists()
