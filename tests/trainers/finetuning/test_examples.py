"""Which columns are meant, which task they set, and which examples are held out."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from modeling_electra_exit.trainers.errors import DataError
from modeling_electra_exit.trainers.finetuning.arguments import FineTuningDataArguments
from modeling_electra_exit.trainers.finetuning.columns import find_columns, find_texts
from modeling_electra_exit.trainers.finetuning.examples import hold_out, read_examples
from modeling_electra_exit.trainers.finetuning.labels import prepare, readable
from modeling_electra_exit.trainers.finetuning.tasks import Columns, Task


COUNT = 8
TEXTS = [f"the {n} cats sleep" for n in range(COUNT)]
WORDS = [text.split() for text in TEXTS]
CLASSES = ["a", "b"] * (COUNT // 2)
TABLES = {
    "named": ({"id": TEXTS, "text": TEXTS, "label": CLASSES}, ("text", None, ("label",))),
    "by what they hold": ({"Nr": list(range(COUNT)), "Satz": TEXTS, "Art": CLASSES}, ("Satz", None, ("Art",))),
    "the only other": ({"text": TEXTS, "x": [str(n) for n in range(COUNT)]}, ("text", None, ("x",))),
    "fractions": ({"id": list(range(COUNT)), "t": TEXTS, "y": [n / 3 for n in range(COUNT)]}, ("t", None, ("y",))),
    "as text": ({"t": TEXTS, "y": [f"{n},5" for n in range(COUNT)]}, ("t", None, ("y",))),
    "pair": ({"premise": TEXTS, "hypothesis": TEXTS, "label": CLASSES}, ("premise", "hypothesis", ("label",))),
    "words and tags": ({"id": TEXTS, "tokens": WORDS, "ner_tags": WORDS}, ("tokens", None, ("ner_tags",))),
    "words beside their text": ({"text": TEXTS, "words": WORDS, "tags": WORDS}, ("words", None, ("tags",))),
    "several labels": ({"text": TEXTS, "genres": WORDS}, ("text", None, ("genres",))),
    "spaces": ({"key": [f"k{n}" for n in range(COUNT)], "body": TEXTS, "label": CLASSES}, ("body", None, ("label",))),
}


@pytest.mark.parametrize("name", TABLES)
def test_columns_are_guessed_where_one_is_meant(name):
    table, expected = TABLES[name]
    found = find_columns(Dataset.from_dict(table), "the data", Columns(), Columns(), None)
    assert (found.text, found.pair, found.labels) == expected
    if "words" not in name:
        assert find_texts(Dataset.from_dict(table), "the data", Columns(), Columns(), False).texts == found.texts


def test_the_case_of_a_column_name_does_not_matter():
    table = {"Id": TEXTS, "Text": TEXTS, "LABEL": CLASSES, "other": CLASSES}
    found = find_columns(Dataset.from_dict(table), "the data", Columns(), Columns(), None)
    assert (found.text, found.labels) == ("Text", ("LABEL",))
    pairs = {"Sentence1": TEXTS, "Sentence2": TEXTS, "Label": CLASSES}
    assert find_columns(Dataset.from_dict(pairs), "the data", Columns(), Columns(), None).texts == (
        "Sentence1",
        "Sentence2",
    )


@pytest.mark.parametrize(
    ("file", "label", "name"),
    [
        ("reviews/mood.csv", "label", "mood"),
        ("reviews/train.csv", "stars", "stars"),
        ("reviews/train-00000.csv", "label", "reviews"),
        ("reviews/TRAIN.csv", "Label", "reviews"),
        ("data/train.csv", "label", "task"),
        ("training_of_staff/data.csv", "label", "training_of_staff"),
    ],
)
def test_a_task_is_named_after_its_label_or_folder(tmp_path, monkeypatch, file, label, name):
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(f"text,{label}\n" + "the cat sleeps,a\na dog sings,b\n" * 20)
    assert read_examples(FineTuningDataArguments(train_file=str(path))).task.name == name
    if name == "reviews":  # a home folder is named for its owner
        monkeypatch.setenv("HOME", str(path.parent))
        assert read_examples(FineTuningDataArguments(train_file=str(path))).task.name == "task"


@pytest.mark.parametrize("kind", ["classification", "tagging", "multi_label", "several columns", "pair"])
def test_rows_without_a_text_or_a_label_are_left_out_and_counted(kind, caplog):
    task = Task("mine", "classification", Columns("text", None, ("label",)), ("a", "b"), ("accuracy",))
    table, gaps = {"text": TEXTS, "label": CLASSES}, {"text": [None, " "], "label": [None, ""]}
    if kind == "tagging":
        task = replace(task, kind="tagging", columns=Columns("words", None, ("tags",)))
        table = {"words": WORDS, "tags": [["a"] * len(words) for words in WORDS]}
        gaps = {"words": [[], ["a", " "]], "tags": [None, None]}
    elif kind == "multi_label":
        task, table["label"] = replace(task, kind="multi_label"), [["a"], []] * (COUNT // 2)
        gaps["label"] = [None, None]
    elif kind == "several columns":
        task = replace(task, kind="multi_label", columns=Columns("text", None, ("a", "b")))
        table, gaps = {"text": TEXTS, "a": [0, 1] * 4, "b": [1, 0] * 4}, {"text": [None, " "], "b": [None, None]}
    elif kind == "pair":
        task = replace(task, columns=Columns("text", "other", ("label",)))
        table["other"], gaps["other"] = TEXTS, [None, ""]
    whole = prepare(Dataset.from_dict(table), task, "the data")
    assert not caplog.records
    for column, empty in gaps.items():
        caplog.clear()
        holed = {name: [*values[:2], *values, values[-1]] for name, values in table.items()}
        holed[column][:2] = empty
        assert list(prepare(Dataset.from_dict(holed), task, "the data")) == [*whole, whole[-1]]
        (record,) = caplog.records
        assert record.getMessage() == (
            f"2 of {COUNT + 3} rows of the data lack a text or a label and are dropped: row 1 lacks `{column}`"
        )


ROWS = [(f"Am {n}. Tag „gut“; wirklich, oder", "gut" if n % 2 else "schlecht") for n in range(12)]
TABLES_AS_WRITTEN = {
    "semicolons": ("Satz;Urteil\n" + "".join(f'"{text}";{label}\n' for text, label in ROWS)).encode(),
    "a byte order mark and Windows' line ends": b"\xef\xbb\xbf"
    + ("Satz,Urteil\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS)).replace("\n", "\r\n").encode(),
    "spaces around names and labels": (
        " Satz ; Urteil\n" + "".join(f'"{text}"; {label} \n' for text, label in ROWS)
    ).encode(),
    "empty lines and an empty column": (
        "Satz;Urteil;\n\n" + "\n".join(f'"{text}";{label};\n' for text, label in ROWS)
    ).encode(),
    "a row without a label and one without a text": (
        "Satz;Urteil\nnoch offen;\n;gut\n" + "".join(f'"{text}";{label}\n' for text, label in ROWS)
    ).encode(),
}


@pytest.mark.parametrize("name", TABLES_AS_WRITTEN)
def test_tables_as_people_write_them(tmp_path, name):
    (tmp_path / "table.csv").write_bytes(TABLES_AS_WRITTEN[name])
    found = read_examples(FineTuningDataArguments(train_file=str(tmp_path / "table.csv"), validation_fraction=0.2))
    assert found.task.labels == ("gut", "schlecht")
    rows = [row for split in found.splits.values() for row in split]
    assert Counter((row["text"], found.task.labels[row["labels"]]) for row in rows) == Counter(ROWS)


TAGGED = [[("Anna", "B-PER"), ("wohnt", "O"), ("in", "O"), ("Köln", "B-LOC"), (".", "O")]] * 8
CONLL_AS_WRITTEN = {
    "four columns and documents": lambda word, tag: f"{word} NN B-NP {tag}",
    "tabs": lambda word, tag: f"{word}\tNN\tB-NP\t{tag}",
    "spaces at the end": lambda word, tag: f"{word} {tag}  ",
    "several spaces": lambda word, tag: f"{word}     {tag}",
}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", CONLL_AS_WRITTEN)
def test_tagged_words_as_people_write_them(tmp_path, name, mark, line_end):
    line = CONLL_AS_WRITTEN[name]
    blocks = ["\n".join(line(*pair) for pair in sentence) for sentence in TAGGED]
    if name.startswith("four"):
        blocks.insert(0, "-DOCSTART- -X- -X- O")
        blocks.insert(4, "-DOCSTART- -X- O O")
    text = mark + "\n\n".join(blocks) + "\n"
    (tmp_path / "ner.txt").write_bytes(text.replace("\n", line_end).encode())
    found = read_examples(FineTuningDataArguments(train_file=str(tmp_path / "ner.txt"), validation_fraction=0.2))
    rows = [row for split in found.splits.values() for row in split]
    assert [
        list(zip(row["words"], (found.task.labels[n] for n in row["labels"]), strict=True)) for row in rows
    ] == TAGGED


BOTH = {"text": TEXTS, "label": CLASSES}


@pytest.mark.parametrize(
    ("table", "asked", "message"),
    [
        ({**BOTH, "title": TEXTS}, {"text": "body"}, "must have the column `body`, got text, label, title"),
        (
            {"title": TEXTS, "body": TEXTS, "label": CLASSES},
            {},
            "with --text_column: it has the columns title, body, label; candidates: title",
        ),
        (
            {"text": TEXTS, "a": CLASSES, "b": CLASSES},
            {},
            "with --label_column: it has the columns text, a, b; candidates: a, b",
        ),
        (
            {**BOTH, "class": CLASSES},
            {},
            "with --label_column: it has the columns text, label, class; candidates: label, class",
        ),
        ({"x": list(range(COUNT)), "label": CLASSES}, {}, "with --text_column: it has the columns x, label"),
        (
            BOTH,
            {"text": "text", "labels": ("text",)},
            "the column `text` of the data must be only one of text, second",
        ),
        (BOTH, {"text": "text", "pair": "text"}, "must be only one of text, second text and label"),
        (BOTH, {"pair": "text"}, "with --text_column: it has the columns text, label"),
        (BOTH, {"pair": "more"}, "must have the column `more`, got text, label"),
    ],
)
def test_ambiguous_columns_are_rejected_in_one_sentence(table, asked, message):
    with pytest.raises(DataError) as caught:
        find_columns(Dataset.from_dict(table), "the data", Columns(**asked), Columns(), None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def examples_of(tmp_path, rows: Dataset, **flags):
    rows.to_parquet(tmp_path / "mine.parquet")
    return read_examples(FineTuningDataArguments(train_file=str(tmp_path / "mine.parquet"), **flags))


@pytest.mark.parametrize(
    ("labels", "kind", "names", "first"),
    [
        ([3, 1, 2, 1] * 5, "classification", ("1", "2", "3"), 2),
        ([10, 9, -1, 9] * 5, "classification", ("-1", "9", "10"), 2),
        ([True, False] * 10, "classification", ("false", "true"), 1),
        (["5", "4,5"] * 10, "regression", ("label",), 5.0),
        ([0.5, 1.0] * 10, "regression", ("label",), 0.5),
        (["no", "O"] * 10, "classification", ("O", "no"), 1),
        ([["x", "y"], []] * 10, "multi_label", ("x", "y"), [1.0, 1.0]),
        ([[0, 1, 1], [1, 0, 0]] * 10, "multi_label", ("0", "1", "2"), [0.0, 1.0, 1.0]),
        ([[7], [7, 12]] * 10, "multi_label", ("7", "12"), [1.0, 0.0]),
    ],
)
def test_the_task_follows_from_the_labels(tmp_path, labels, kind, names, first):
    texts = [f"text {n}" for n in range(len(labels))]
    rows = Dataset.from_dict({"text": texts, "label": labels})
    found = examples_of(tmp_path, rows, validation_fraction=0.2)
    assert (found.task.kind, found.task.labels, found.task.name) == (kind, names, "mine")
    numbers = {row["text"]: row["labels"] for split in found.splits.values() for row in split}
    assert numbers["text 0"] == first
    assert len(numbers) == len(labels)
    assert found.held_out
    if kind == "regression":
        values = found.splits["train"]["labels"][:]
        assert (found.task.shift, found.task.scale) == pytest.approx((np.mean(values), np.std(values)))


def test_numbers_may_be_learned_as_such(tmp_path):
    rows = Dataset.from_dict({"text": [f"text {n}" for n in range(20)], "label": [1, 2, 3, 4, 5] * 4})
    found = examples_of(tmp_path, rows, task_type="regression")
    assert found.splits["train"].features["labels"].dtype == "float32"


def test_class_names_come_from_the_label_column(tmp_path):
    names = ["zebra", "ant"]
    classes = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    rows = Dataset.from_dict({"text": TEXTS, "label": [0, 1] * (COUNT // 2)}, classes)
    found = examples_of(tmp_path, rows, validation_fraction=0.25)
    assert found.task.labels == ("ant", "zebra")
    numbers = {row["text"]: row["labels"] for split in found.splits.values() for row in split}
    assert [numbers[text] for text in TEXTS] == [1, 0] * (COUNT // 2)
    tags = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "X"]))})
    rows = Dataset.from_dict({"tokens": WORDS, "tags": [[0, 1, 0, 0]] * COUNT}, tags)
    assert examples_of(tmp_path, rows, validation_fraction=0.25).task.labels == ("O", "X")


def task(kind, labels=("a", "b", "c")):
    return Task("mine", kind, Columns("text", None, ("label",)), labels, ())


def test_of_every_class_the_same_share_is_held_out():
    labels = [0] * 100 + [1] * 50 + [2] * 10 + [3]
    np.random.default_rng(0).shuffle(labels)
    kept, held = hold_out(labels, task("classification"), 0.1, 0, "the data")
    assert sorted(kept + held) == list(range(161))
    counts = Counter(labels[n] for n in held)
    assert [counts[0], counts[1], counts[2], counts[3]] == [10, 5, 1, 0]
    assert hold_out(labels, task("classification"), 0.1, 0, "")[1] == held
    assert hold_out(labels, task("classification"), 0.1, 1, "")[1] != held


def test_a_label_that_one_example_has_is_trained_on():
    for seed in range(20):
        kept, held = hold_out([0] * 9 + [1], task("classification"), 0.5, seed, "the data")
        assert 9 in kept
        kept, _ = hold_out([[0, 0], [0, 2], [0, 1], [1, 0]] * 3 + [[0, 3]], task("tagging"), 0.5, seed, "")
        assert 12 in kept
        kept, _ = hold_out([[1.0, 0.0]] * 9 + [[1.0, 1.0]], task("multi_label"), 0.5, seed, "")
        assert 9 in kept
        assert held


def test_values_are_held_out_over_their_whole_range():
    values = np.random.default_rng(0).normal(size=200).tolist()
    _, held = hold_out(values, task("regression"), 0.1, 0, "the data")
    ranks = np.argsort(np.argsort(values))[held]
    assert sorted(ranks) == list(range(9, 200, 10))


def test_what_is_held_out_can_be_read_again():
    for kind, columns, labels in (
        ("classification", {"text": ["x y", "z"]}, {"label": ["a", "c"]}),
        ("multi_label", {"text": ["x y", "z"]}, {"labels": [["a", "c"], []]}),
        ("regression", {"text": ["x y", "z"], "text_pair": ["p", "q"]}, {"label": [0.1, 2.5]}),
        ("tagging", {"tokens": [["x", "y"], ["z"]]}, {"tags": [["a", "b"], ["c"]]}),
    ):
        rows = Dataset.from_dict({**columns, **labels})
        mine = replace(task(kind), columns=Columns(*columns, *[None] * (2 - len(columns)), tuple(labels)))
        assert list(readable(prepare(rows, mine, "the data"), mine)) == list(rows)
