"""Prepared data as a data set on the Hub: pushed by the command, read by a stranger."""

import json

import pytest
from datasets import Dataset, DatasetDict

from modeling_electra_exit.trainers.errors import PushError
from modeling_electra_exit.trainers.sharing.push_dataset import push_dataset
from tests.trainers.sharing.test_hub import contents, empty, in_a_process, run_commands


READ = """
import json, sys
sys.modules["modeling_electra_exit"] = None
from datasets import load_dataset
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer
found = []
for repository in json.loads(sys.argv[1]):
    folder = snapshot_download(repository, repo_type="dataset")
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/tokenizer")
    data = load_dataset(folder)
    found.append({split: rows.to_dict() for split, rows in data.items()})
    found[-1]["text"] = tokenizer.decode(tokenizer("the cat").input_ids)
    assert load_dataset(repository).keys() == data.keys()
print(json.dumps(found))
"""

ROWS = {"train": {"input_ids": [[2, 7, 8, 3], [2, 9, 3]]}, "validation": {"input_ids": [[2, 3]]}}


@pytest.fixture
def prepared(tmp_path, tokenizer):
    """The same data in both forms."""
    data = DatasetDict({split: Dataset.from_dict(columns) for split, columns in ROWS.items()})
    data.save_to_disk(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "cached").mkdir()
    for split, rows in data.items():
        rows.map(lambda row: row, cache_file_name=str(tmp_path / "cached" / f"{split}.arrow"))
    (tmp_path / "cached" / "cache.json").write_text(json.dumps({"generator_type": "unigram", "draws": 4}))
    tokenizer.save_pretrained(tmp_path / "vocabulary")
    return tmp_path


def test_what_was_pushed_is_read_without_the_plugin(prepared, loopback):
    before = contents(prepared)
    hub = empty(loopback)
    saved = ["push-dataset", "saved", "alice/saved", "--license", "cc0-1.0", "--language", "en"]
    saved += ["--description", "Made up."]
    cached = ["push-dataset", "cached", "alice/cached", "--tokenizer", "vocabulary", "--private"]
    assert run_commands(hub, prepared, saved, cached, saved) == [0, 0, 0]
    assert contents(prepared) == before
    found = in_a_process(READ, hub, prepared, json.dumps(["alice/saved", "alice/cached"]))
    assert [{split: rows[split] for split in ROWS} for rows in found] == [ROWS, ROWS]
    assert [rows["text"] for rows in found] == ["[CLS] the cat [SEP]"] * 2

    commits = hub.repositories["dataset", "alice/saved"].commits()
    assert [commit.title for commit in commits] == [
        "Upload dataset",
        "Upload dataset: card",
    ]  # the third changed nothing
    vocabulary = {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
    assert set(commits[0].files) == {".gitattributes", "train.parquet", "validation.parquet", *vocabulary}
    card = commits[1].files["README.md"].content.decode()
    for fragment in ("license: cc0-1.0", "- split: train\n    path: train.parquet", "| train | 2 | 7 in `input_ids` |",
                     "Made up.", f'"alice/saved", repo_type="dataset", revision="{commits[0].sha}"'):  # fmt: skip
        assert fragment in card
    repository = hub.repositories["dataset", "alice/cached"]
    assert repository.private
    files = repository.head().files
    assert set(files) == {".gitattributes", "README.md", "train.arrow", "validation.arrow", "cache.json", *vocabulary}
    card = files["README.md"].content.decode()
    for fragment in ("The generator `unigram` sampled 4 replacements for every token.", "No license has been stated",
                     "The source of the text was not recorded."):  # fmt: skip
        assert fragment in card
    for name, content in hub.everything_pushed():
        assert str(prepared).encode() not in content, name


def test_folders_that_hold_something_else_are_refused(prepared):
    with pytest.raises(PushError, match="vocabulary holds no prepared data"):
        push_dataset(prepared / "vocabulary", prepared / "vocabulary", "alice/none")
    with pytest.raises(PushError, match="cached holds no tokenizer"):
        push_dataset(prepared / "cached", prepared / "cached", "alice/none")
