import json

import pytest

from tests.conftest import write_corpus


def test_text_becomes_sequences_at_a_speed(load, tmp_path):
    write_corpus(tmp_path / "corpus.txt")
    text, found = tmp_path / "corpus.txt", tmp_path / "found.json"
    load("data_preparation", text, "--repeats", 2, "--json", found).main()
    records = json.loads(found.read_text())
    cases = ("tokenizer", "tokenizer.lists", "pack", "pack.one", "pack.again")
    assert [record["name"] for record in records] == [f"data_preparation/{case}" for case in cases]
    assert all(record["value"] > 0 and len(record["samples"]) == 2 for record in records)


def test_a_text_that_is_not_there_ends_in_one_line(load, tmp_path):
    with pytest.raises(SystemExit) as stop:
        load("data_preparation", tmp_path / "none.txt").main()
    assert "none.txt" in stop.value.code
    assert "\n" not in stop.value.code
