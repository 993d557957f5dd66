import json

from tests.benchmarks.test_step_benchmarks import FOLDER, run
from tests.conftest import write_corpus


def test_text_becomes_sequences_at_a_speed(tmp_path):
    write_corpus(tmp_path / "corpus.txt")
    text, found = tmp_path / "corpus.txt", tmp_path / "found.json"
    done = run(FOLDER / "data_preparation.py", text, "--repeats", 2, "--json", found)
    assert done.returncode == 0, done.stderr
    records = json.loads(found.read_text())
    cases = ("tokenizer", "tokenizer.lists", "pack", "pack.one", "pack.again")
    assert [record["name"] for record in records] == [f"data_preparation/{case}" for case in cases]
    assert all(record["value"] > 0 and len(record["samples"]) == 2 for record in records)


def test_a_text_that_is_not_there_ends_in_one_line(tmp_path):
    done = run(FOLDER / "data_preparation.py", tmp_path / "none.txt")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "none.txt" in done.stderr
