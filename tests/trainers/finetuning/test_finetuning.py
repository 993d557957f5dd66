"""`electra-exit finetune` as a user meets it: seeds, starts of every kind, and every mistake answered in one line."""

import json
import random

import numpy as np
import pytest
import torch
import yaml
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    ElectraConfig,
    ElectraForPreTraining,
    GPT2Config,
    pipeline,
)

from electra_exit import main as cli
from electra_exit import parsing
from modeling_electra_exit import ElectraEarlyExitForSequenceClassification
from modeling_electra_exit.trainers.data.reading import read_files
from modeling_electra_exit.trainers.finetuning import run as finetuning
from modeling_electra_exit.trainers.finetuning.arguments import FineTuningArguments, FineTuningDataArguments
from modeling_electra_exit.trainers.finetuning.encoding import encode
from modeling_electra_exit.trainers.finetuning.examples import read_examples
from modeling_electra_exit.trainers.finetuning.labels import prepare
from modeling_electra_exit.trainers.finetuning.scores import answers, scores
from modeling_electra_exit.trainers.finetuning.tasks import TASKS
from modeling_electra_exit.trainers.runtime.optimization import ElectraAdamW
from tests.conftest import WORDS, tiny_config, tiny_model


SIZES = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
         "intermediate_size": 64, "max_position_embeddings": 64}  # fmt: skip


def run(*argv) -> int:
    return cli.main(["finetune", *map(str, argv)])


@pytest.fixture(scope="module")
def tokenizer():
    """Of fixed ids: one that is trained numbers its words anew in every process, and what a model learns with it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


@pytest.fixture
def glue(tmp_path):
    """Tiny tasks that can be learned: is there a cat in it; do both speak of it; how many cats are there."""
    choose = random.Random(0)
    for split, size in (("train", 96), ("validation", 32)):
        texts = [" ".join(choose.choices(WORDS[2:], k=6)) for _ in range(2 * size)]
        pairs = list(zip(texts[:size], texts[size:], strict=True))
        rows = {
            "sst2": [{"sentence": text, "label": int("cat" in text)} for text, _ in pairs],
            "mrpc": [{"sentence1": a, "sentence2": b, "label": int("cat" in a and "cat" in b)} for a, b in pairs],
            "stsb": [
                {"sentence1": a, "sentence2": b, "label": (a.count("cat") + b.count("cat")) / 2} for a, b in pairs
            ],
        }
        for task, examples in rows.items():
            write_rows(tmp_path / "glue" / task / f"{split}.jsonl", examples)
    return tmp_path / "glue"


@pytest.fixture
def start(tmp_path, tokenizer):
    for part in (tiny_model(), tokenizer):
        part.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def flags(glue, tmp_path, **changes):
    fields = {"data_dir": glue, "output_dir": tmp_path / "out", "num_train_epochs": 1, "use_cpu": "true"}
    return [token for name, value in {**fields, **changes}.items() for token in (f"--{name}", value)]


def metrics_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_seeds_their_folders_and_their_spread(start, glue, tmp_path, capsys):
    assert run(start, "--task", "mrpc", *flags(glue, tmp_path), "--seeds", 3, 1) == 0
    summary, printed = metrics_of(tmp_path / "out"), capsys.readouterr().out
    for name in ("accuracy", "f1"):
        scores = [metrics_of(tmp_path / "out" / f"seed-{seed}")["evaluation"][name] for seed in (3, 1)]
        spread = summary["evaluation"][name]
        assert spread["scores"] == scores
        assert spread["mean"] == pytest.approx(np.mean(scores))
        assert spread["median"] == pytest.approx(np.median(scores))
        assert spread["standard_deviation"] == pytest.approx(np.std(scores, ddof=1))
        assert f"{spread['mean']:.4f} +- {spread['standard_deviation']:.4f}" in printed
    one = metrics_of(tmp_path / "out" / "seed-1")
    assert one["train_examples"] == 2 * 96  # both orders
    assert one["steps"] == 6
    weights = [
        ElectraEarlyExitForSequenceClassification.from_pretrained(tmp_path / "out" / f"seed-{seed}").state_dict()
        for seed in (3, 1)
    ]
    assert not torch.equal(*(w["classifier.dense.weight"] for w in weights))
    # Nothing pickled, and no folder of ours named in what would be pushed.
    assert not list((tmp_path / "out").rglob("*.bin"))
    assert str(tmp_path) not in (tmp_path / "out" / "seed-1" / "config.json").read_text()


def test_it_learns_and_the_folder_classifies(start, glue, tmp_path):
    settings = {"num_train_epochs": 30, "learning_rate": 5e-4, "layerwise_lr_decay": 1.0}
    assert run(start, "--task", "sst2", *flags(glue, tmp_path, **settings)) == 0
    assert metrics_of(tmp_path / "out")["evaluation"]["accuracy"]["mean"] >= 0.9
    folder = str(tmp_path / "out" / "seed-42")
    classify = pipeline("text-classification", model=folder, tokenizer=folder)
    rows = [json.loads(line) for line in (glue / "sst2" / "validation.jsonl").read_text().splitlines()]
    answers = [answer["label"] for answer in classify([row["sentence"] for row in rows])]
    names = ("negative", "positive")
    assert np.mean([answer == names[row["label"]] for answer, row in zip(answers, rows, strict=True)]) >= 0.9
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert config.finetuning_task == "sst2"


def test_the_seed_alone_decides(start, glue, tmp_path):
    """Whatever ran before: alone, or after another seed."""
    for name, seeds in (("one", [5]), ("two", [2, 5])):
        assert run(start, "--task", "sst2", *flags(glue, tmp_path, output_dir=tmp_path / name), "--seeds", *seeds) == 0
    first, second = (
        ElectraEarlyExitForSequenceClassification.from_pretrained(tmp_path / name / "seed-5").state_dict()
        for name in ("one", "two")
    )
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_seed_that_is_done_is_not_done_again(start, glue, tmp_path, monkeypatch, capsys):
    arguments = (start, "--task", "sst2", *flags(glue, tmp_path), "--seeds", 0, 1)
    assert run(*arguments) == 0
    assert run(*arguments) == 2
    assert "already holds a finished run" in capsys.readouterr().err
    before = metrics_of(tmp_path / "out")
    (tmp_path / "out" / "metrics.json").unlink()  # as if interrupted after the first seed
    (tmp_path / "out" / "seed-1" / "metrics.json").unlink()
    seeds = []
    train = finetuning.train
    monkeypatch.setattr(finetuning, "train", lambda *args: seeds.append(args[-1].seed) or train(*args))
    assert run(*arguments) == 0
    assert seeds == [1]
    assert metrics_of(tmp_path / "out") == before


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_plain_checkpoints_are_converted(glue, tmp_path, tokenizer, kind):
    torch.manual_seed(0)
    plain = {"bert": lambda: BertModel(BertConfig(**SIZES)),
             "electra": lambda: ElectraForPreTraining(ElectraConfig(**SIZES, embedding_size=16))}[kind]()  # fmt: skip
    for part in (plain, tokenizer):
        part.save_pretrained(tmp_path / kind)
    assert run(tmp_path / kind, "--task", "stsb", *flags(glue, tmp_path, learning_rate=1e-20)) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "seed-42")
    assert type(model) is ElectraEarlyExitForSequenceClassification
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    source = plain.base_model.state_dict()
    name = "encoder.layer.3.output.dense.weight"
    torch.testing.assert_close(model.electra.state_dict()[name], source[name])  # it started from there
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "seed-42")("a cat") == tokenizer("a cat")


def test_a_recipe_of_ones_own(start, glue, tmp_path):
    recipe = {"model": str(start), "task": "sst2", "data_dir": "/nowhere", "output_dir": str(tmp_path / "out"),
              "max_steps": 2, "max_train_examples": 40, "use_cpu": True, "classifier_dropout": 0.3}  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    files = [str(glue / "sst2" / f"{split}.jsonl") for split in ("train", "validation")]
    # Files on the command line take the place of the recipe's folder.
    assert run(tmp_path / "mine.yaml", "--train_file", files[0], "--validation_file", files[1]) == 0
    result = metrics_of(tmp_path / "out" / "seed-42")
    assert (result["steps"], result["train_examples"]) == (2, 40)
    assert json.loads((tmp_path / "out" / "seed-42" / "config.json").read_text())["classifier_dropout"] == 0.3


def test_only_examples_that_are_drawn_are_tokenised(start, glue, tmp_path, monkeypatch):
    encoded = []

    def counted(rows, *args):
        encoded.append(len(rows))
        return encode(rows, *args)

    monkeypatch.setattr(finetuning, "encode", counted)
    few = {"max_train_examples": 8, "max_steps": 1}
    assert run(start, "--task", "mrpc", "--seeds", "1", "2", *flags(glue, tmp_path, **few)) == 0
    assert encoded == [32, 8, 8, 8, 8]  # a draw a seed, and its pairs the other way round


def test_packaged_recipes_are_electras():
    for name, learning_rate, decay in (("small", 3e-4, 0.8), ("base", 1e-4, 0.8), ("large", 5e-5, 0.9)):
        _, data_args, args, _ = parsing.parse([f"glue-{name}", "--task", "rte"], parsing.FINETUNE)
        assert (args.learning_rate, args.layerwise_lr_decay, args.train_batch_size) == (learning_rate, decay, 32)
        assert (args.adam_epsilon, args.adam_bias_correction, args.weight_decay) == (1e-6, False, 0.01)
        assert args.seeds == list(range(10))
        assert (args.num_train_epochs, TASKS["rte"].epochs, TASKS["cola"].epochs) == (None, 10, 3)
        assert data_args.max_seq_length == 128
        assert args.lr_scheduler_type == "electra"


def test_the_learning_rate_moves_as_electras(start, glue, tmp_path):
    assert run(start, "--task", "sst2", *flags(glue, tmp_path, num_train_epochs=4, logging_steps=1)) == 0
    log = json.loads((tmp_path / "out" / "seed-42" / "trainer_state.json").read_text())["log_history"]
    logged = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert logged == pytest.approx([1e-4 * (1 - t / 12) * min(1, t / 1.2) for t in range(12)], rel=1e-6)


def test_similarities_are_learned_as_shares_of_the_largest(tokenizer, glue):
    rows = read_files([str(glue / "stsb" / "train.jsonl")])
    rows = prepare(rows, TASKS["stsb"], "the data")
    encoded = encode(rows, TASKS["stsb"], tokenizer, 32)
    assert encoded.features["labels"].dtype == "float32"
    np.testing.assert_allclose(encoded["labels"], np.array(rows["labels"]) / 5, rtol=1e-6)
    assert max(encoded["labels"]) > 0
    # Correlations do not see it.
    answers, labels = np.array([0.1, 0.4, 0.2]), np.array([1.0, 4.5, 3.0])
    assert scores(TASKS["stsb"], answers, labels) == pytest.approx(scores(TASKS["stsb"], answers, labels / 5))


def test_learning_rates_a_layer(tmp_path):
    """google-research/electra: lr * decay ** (n + 2 - depth); LayerNorms and biases do not decay."""
    model = ElectraEarlyExitForSequenceClassification(tiny_config(norm_position="pre", num_hidden_layers=4,
                                                                  exit_layers=[2], exit_capacities=[0.5]))  # fmt: skip
    args = FineTuningArguments(str(tmp_path), learning_rate=1.0, layerwise_lr_decay=0.5, use_cpu=True, report_to=[])
    optimizer = finetuning.FineTuningTrainer(model, args).create_optimizer()
    assert type(optimizer) is ElectraAdamW
    found = {
        parameter: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {
        "electra.embeddings.word_embeddings.weight": (0.5**6, 0.01),
        "electra.embeddings.LayerNorm.weight": (0.5**6, 0.0),
        "electra.embeddings_project.weight": (0.5**6, 0.01),
        "electra.encoder.layer.0.attention.self.query.weight": (0.5**5, 0.01),
        "electra.encoder.layer.0.attention.self.query.bias": (0.5**5, 0.0),
        "electra.encoder.layer.3.output.dense.weight": (0.5**2, 0.01),
        "electra.encoder.norm.weight": (0.5**2, 0.0),
        "classifier.dense.weight": (1.0, 0.01),
        "classifier.out_proj.bias": (1.0, 0.0),
    }
    assert optimizer.param_groups[0]["lr"] == 1.0  # what is logged
    parameters = dict(model.named_parameters())
    assert found.keys() == set(parameters.values())
    assert {name: found[parameters[name]] for name in expected} == expected


MISTAKES = {
    "a folder of tasks": (["{start}", "--data_dir", "x"], "`data_dir` requires a GLUE `task` (cola, "),
    "unknown task": (["{start}", "--task", "squad"], "`task` must be one of cola, "),
    "no model": (["glue-small", "--task", "sst2"], "`model` must be a folder or a Hub id, got None"),
    "no such model": (["/nowhere", "--task", "sst2"], "no model in `/nowhere`"),
    "other architecture": (["{gpt2}", "--task", "sst2"],
                           "must be one of 'electra_early_exit', 'electra', 'bert', got 'gpt2'"),
    "head of three labels": (["{three}", "--task", "sst2"], "for the task sst2 must be 2, got 3"),
    "head of another kind": (["{multi}", "--task", "sst2"],
                             "must be 'single_label_classification', got 'multi_label_classification'"),
    "regression on a classifier": (["{three}", "--task", "stsb"], "`num_labels` of "),
    "no tokenizer": (["{bare}", "--task", "sst2"], "no tokenizer in "),
    "decay": (["{start}", "--task", "sst2", "--layerwise_lr_decay", "0"], "`layerwise_lr_decay` must be in (0, 1]"),
    "seeds": (["{start}", "--task", "sst2", "--seeds", "1", "1"], "`seeds` must be distinct, got [1, 1]"),
    "push": (["{start}", "--task", "sst2", "--push_to_hub"], "`push_to_hub` must be False for fine-tuning"),
    "unknown field": (["{start}", "--taks", "sst2"], "unknown field `taks`; did you mean `task`?"),
    "pre-training's field": (["{start}", "--task", "sst2", "--mlm_probability", "0.2"], "unknown field `mlm_prob"),
    "one file": (["{start}", "--task", "sst2", "--validation_file", "{start}/config.json"],
                 "`train_file` must be given with"),
    "no data": (["{start}"], "`train_file`, `dataset_name` or a GLUE `task` (cola, "),
    "a task's type": (["{start}", "--task", "sst2", "--task_type", "regression"],
                      "`task_type` must be None with `task` sst2, got 'regression'"),
    "no such data": (["{start}", "--task", "rte"], "no such file: "),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_touch_nothing(start, glue, tmp_path, tokenizer, capsys, name):
    arguments, message = MISTAKES[name]
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    tiny_model().save_pretrained(tmp_path / "bare")
    for folder, fields in (("three", {"num_labels": 3}), ("multi", {"problem_type": "multi_label_classification"})):
        for part in (ElectraEarlyExitForSequenceClassification(tiny_config(**fields)), tokenizer):
            part.save_pretrained(tmp_path / folder)
    arguments = [a.format(**{f: tmp_path / f for f in ("start", "gpt2", "bare", "three", "multi")}) for a in arguments]
    more = flags(glue, tmp_path)
    assert run(*arguments, *(more[2:] if name in ("one file", "no data") else more)) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("electra-exit finetune: error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


ROWS = [{"sentence1": "a cat", "sentence2": "the dog", "label": label} for label in (0, 1, 1)]


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("sst2", ROWS, "the train data of sst2 must have the column `sentence`, got sentence1, sentence2, label"),
        ("mrpc", [{"sentence1": "a", "sentence2": "b"}], "must have the column `label`, got sentence1, sentence2"),
        ("mrpc", [*ROWS, {**ROWS[0], "label": 2}],
         "the column `label` of the train data of mrpc must hold 0 (not_equivalent), 1 (equivalent), got 2"),
        ("mrpc", [{**row, "label": "yes"} for row in ROWS], "equivalent), got 'yes'"),
        ("mrpc", [{**row, "label": row["label"] + 0.5} for row in ROWS], "equivalent), got 0.5"),
        ("mrpc", [*ROWS, *[{**ROWS[0], "label": None}] * 3],
         "3 of 6 rows of the train data of mrpc lack a text or a label: row 4 lacks `label`"),
        ("mrpc", [{**row, "sentence1": 7} for row in ROWS], "the column `sentence1` of the train data of mrpc must"),
        ("mrpc", [{**row, "sentence1": ["a"]} for row in ROWS],
         "the column `sentence1` of the train data of mrpc must hold text, got List"),
        ("stsb", [*ROWS, {**ROWS[0], "label": 5.5}],
         "the column `label` of the train data of stsb must hold numbers from 0 to 5, got 5.5"),
        ("stsb", [*ROWS, {**ROWS[0], "label": -1}], "must hold numbers from 0 to 5, got -1"),
        ("stsb", [{**row, "label": "about 3"} for row in ROWS],
         "the column `label` of the train data of stsb must hold numbers from 0 to 5, got 'about 3'"),
        ("mrpc", [*ROWS, *[{**ROWS[0], "sentence2": " "}] * 4], "4 of 7 rows of the train data of mrpc lack"),
    ],
)  # fmt: skip
def test_examples_that_do_not_fit_the_task(start, glue, tmp_path, capsys, task, rows, message):
    write_rows(glue / task / "train.jsonl", rows)
    assert run(start, "--task", task, *flags(glue, tmp_path)) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert message in error
    assert not (tmp_path / "out").exists()


def test_words_and_numbers_in_a_csv_are_text(tmp_path):
    rows = ["null", "NA", "None", "nan", "the word null in a sentence", "42"]
    for split in ("train", "validation"):
        text = "sentence,label\n" + "".join(f"{row},{number % 2}\n" for number, row in enumerate(rows))
        (tmp_path / f"{split}.csv").write_text(text)
    files = {f"{split}_file": str(tmp_path / f"{split}.csv") for split in ("train", "validation")}
    examples = read_examples(FineTuningDataArguments(task="sst2", **files)).splits
    assert examples["train"]["text"][:] == rows
    assert examples["train"]["labels"][:] == [0, 1, 0, 1, 0, 1]


def test_labels_of_any_number_type_fit(start, glue, tmp_path):
    """What JSON makes of 1 and 1.0 is the writer's whim."""
    for split in ("train", "validation"):
        path = glue / "stsb" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_rows(path, [{**row, "label": round(row["label"])} for row in rows])
        path = glue / "sst2" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_rows(path, [{**row, "label": float(row["label"])} for row in rows])
    for task in ("stsb", "sst2"):
        assert run(start, "--task", task, *flags(glue, tmp_path, output_dir=tmp_path / task)) == 0


def test_metrics_against_numbers_by_hand():
    found = answers(TASKS["sst2"], torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [3.0, 1.0]])).numpy()
    assert found.tolist() == [0, 1, 1, 0]
    labels = np.array([0, 1, 0, 0])
    assert scores(TASKS["sst2"], found, labels) == {"accuracy": 0.75}
    assert scores(TASKS["mrpc"], found, labels) == pytest.approx({"accuracy": 0.75, "f1": 2 / 3})
    # (tp tn - fp fn) / sqrt((tp+fp)(tp+fn)(tn+fp)(tn+fn)) = (2 - 0) / sqrt(2 * 1 * 3 * 2)
    assert scores(TASKS["cola"], found, labels) == pytest.approx({"matthews_correlation": 2 / 12**0.5})
    found = answers(TASKS["stsb"], torch.tensor([[1.0], [2.0], [3.0], [10.0]])).numpy()
    stsb = scores(TASKS["stsb"], found, np.array([1.0, 2.0, 3.0, 4.0]))
    assert stsb["spearman"] == pytest.approx(1.0)
    assert stsb["pearson"] == pytest.approx(14 / (5 * 50) ** 0.5)  # covariance 14, squares 5 and 50
    assert scores(TASKS["stsb"], np.ones(3), np.array([1.0, 2.0, 3.0])) == {"pearson": 0.0, "spearman": 0.0}
