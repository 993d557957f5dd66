"""Text by name, by folder, by pattern, and from standard input."""

import io
import json
import shutil
from types import SimpleNamespace

import pytest

from electra_exit import quick
from modeling_electra_exit.trainers.data.files import few, spool_standard_input, text_files
from modeling_electra_exit.trainers.errors import DataError
from tests.conftest import write_corpus
from tests.trainers.cli.test_cli import recipe, run  # noqa: F401


@pytest.fixture
def tree(tmp_path):
    for name in ("texts/b.txt", "texts/a.txt.gz", "texts/deep/c.jsonl", "texts/deep/.hidden.txt", "texts/notes.md",
                 "texts/.git/d.txt", "empty/notes.md", "odd[1].txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("Some text.\n")
    return tmp_path


def test_folders_and_patterns_are_all_of_their_files_in_order(tree, monkeypatch):
    monkeypatch.chdir(tree)
    for given, expected in (
        (["texts"], ["texts/a.txt.gz", "texts/b.txt", "texts/deep/c.jsonl"]),
        (["texts/**/*.*l"], ["texts/deep/c.jsonl"]),
        (["texts/*.txt*", "texts/b.txt"], ["texts/a.txt.gz", "texts/b.txt"]),
        (["texts/b.txt", "texts"], ["texts/b.txt", "texts/a.txt.gz", "texts/deep/c.jsonl"]),
        (["odd[1].txt"], ["odd[1].txt"]),  # a file of that name, not a pattern
    ):
        assert text_files(given) == expected, given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("texts/**/*.parquet", "no file matches texts/**/*.parquet"),
        ("nowhere.txt", "no such file: nowhere.txt"),
        (
            "empty",
            "no file in empty ends in .txt, .jsonl, .json, .csv, .tsv, .parquet, optionally followed by .gz or .xz",
        ),
        ("-", "no such file: -"),  # without a run, whose folder keeps it
    ],
)
def test_what_is_not_there_is_named(tree, monkeypatch, capsys, given, message):
    monkeypatch.chdir(tree)
    with pytest.raises(DataError) as refused:
        text_files([given])
    assert str(refused.value) == message
    if given not in ("empty", "-"):  # the former needs the names of all files, the latter is for `pretrain`
        with pytest.raises(SystemExit):
            quick.check_flags(quick.Parser(prog="x"), ["--train_files", given])
        assert message in capsys.readouterr().err
    quick.check_flags(
        quick.Parser(prog="x"), ["--train_files", "texts", "texts/*.txt", "-", "--validation_files", "texts"]
    )


def test_of_many_files_a_sentence_names_some():
    assert few(["a", "b"]) == "a, b"
    assert few([*"abcdefgh"]) == "a, b, c and 5 more"


def piped(text: bytes) -> SimpleNamespace:
    return SimpleNamespace(buffer=io.BytesIO(text), isatty=lambda: False)


def test_standard_input_is_kept_until_other_text_comes(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    for source in (None, piped(b""), SimpleNamespace(isatty=lambda: True)):
        monkeypatch.setattr("sys.stdin", source)
        with pytest.raises(DataError, match="which is empty: use cat"):
            spool_standard_input(path)
    for given, kept in ((b"one", b"one"), (b"", b"one"), (b"two", b"two")):
        monkeypatch.setattr("sys.stdin", piped(given))
        spool_standard_input(path)
        assert path.read_bytes() == kept
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]


def test_a_run_on_standard_input_continues_without_it(recipe, corpus, tmp_path, monkeypatch, capsys):  # noqa: F811
    text, path = corpus.read_bytes(), recipe(train_files=["-"], save_total_limit=2)
    folder = tmp_path / "run"
    monkeypatch.setattr("sys.stdin", piped(b"\n\n"))
    assert run(path) == 2
    assert not folder.exists()
    monkeypatch.setattr("sys.stdin", piped(text))
    assert run(path) == 0, capsys.readouterr().err
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "metrics.json").unlink()
    shutil.rmtree(folder / "checkpoint-4")
    monkeypatch.setattr("sys.stdin", piped(text + b"\n\nMore of it.\n"))
    assert run(path) == 2
    assert "standard input has changed since the run" in capsys.readouterr().err
    for again in (piped(text), piped(b"")):
        monkeypatch.setattr("sys.stdin", again)
        (folder / "metrics.json").unlink(missing_ok=True)
        assert run(path) == 0, capsys.readouterr().err
        assert (folder / "model.safetensors").read_bytes() == weights
    assert "standard input" in json.loads((folder / "run.json").read_text())["inputs"]


def test_an_added_or_removed_file_changes_the_text_fingerprint(recipe, tmp_path, capsys):  # noqa: F811
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(2):
        write_corpus(texts / f"{number}.txt", documents=20, seed=number)
    path = recipe(train_files=[str(texts)], max_steps=2)
    assert run(path) == 0
    (tmp_path / "run" / "metrics.json").unlink()
    write_corpus(texts / "2.txt", documents=3, seed=2)
    assert run(path) == 2
    assert f"{texts / '2.txt'} has changed since the run" in capsys.readouterr().err
    (texts / "2.txt").unlink()
    (texts / "1.txt").rename(tmp_path / "1.txt")
    assert run(path) == 2
    assert f"{texts / '1.txt'} has changed since the run" in capsys.readouterr().err
