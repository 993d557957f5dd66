import csv
import gzip
import io
import json
import lzma
import os
import resource
import signal
import sys

import datasets
import numpy as np
import pytest
import yaml
from datasets import Dataset, DatasetDict

from electra_exit import main as cli
from modeling_electra_exit.trainers import DataArguments
from modeling_electra_exit.trainers.data import packing
from modeling_electra_exit.trainers.data import reading as data
from modeling_electra_exit.trainers.data.packing import pack
from modeling_electra_exit.trainers.data.preparation import load_tokenizer, prepare
from modeling_electra_exit.trainers.data.reading import load_documents, read_files
from modeling_electra_exit.trainers.errors import DataError, UsageError, WorkerError
from modeling_electra_exit.trainers.runtime.loading import read_tokenizer
from tests.conftest import write_corpus
from tests.trainers.cli.test_cli import RECIPE


TEXTS = ["The cat sleeps.", "", "A small dog runs\nover the house.", "   ", "Birds sing. " * 40]


def splits(texts):
    return DatasetDict({"train": Dataset.from_dict({"text": texts})})


def unpack(sequences, tokenizer):
    """The token stream that was packed, with a [SEP] after each document."""
    stream = []
    for ids in sequences:
        assert ids[0] == tokenizer.cls_token_id
        assert ids[-1] == tokenizer.sep_token_id
        stream += ids[1:-1]
    return [*stream, tokenizer.sep_token_id]


@pytest.mark.parametrize("length", [3, 8, 17, 64])
def test_no_token_is_lost_or_doubled(tokenizer, length):
    packed, counts = pack(splits(TEXTS), tokenizer, length, num_proc=1, segments="one")
    expected = []
    for text in TEXTS:
        if text.strip():
            expected += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
    sequences = packed["train"]["input_ids"]
    assert unpack(sequences, tokenizer) == expected
    assert all(len(ids) == length for ids in sequences[:-1])
    assert 3 <= len(sequences[-1]) <= length
    assert (counts["train"].documents, counts["train"].empty_documents) == (5, 2)
    assert counts["train"].sequences == len(sequences)
    assert counts["train"].tokens == sum(map(len, sequences))


def test_processes_change_nothing_but_where_thousands_end(tokenizer):
    documents = splits([f"cat dog {'bird ' * (i % 5)}" for i in range(2500)])
    alone, _ = pack(documents, tokenizer, 16, num_proc=1, segments="one")
    together, counts = pack(documents, tokenizer, 16, num_proc=2, segments="one")
    count = lambda packed: np.bincount(np.concatenate(packed["train"]["input_ids"]), minlength=40)[5:]  # noqa: E731
    assert (count(alone) == count(together)).all()
    assert counts["train"].documents == 2500


def test_ids_take_the_smallest_integer_type(tokenizer):
    packed, _ = pack(splits(TEXTS), tokenizer, 16)
    assert packed["train"].features["input_ids"].feature.dtype == "uint8"


def write(path, kind):
    rows = [{"text": text, "other": i} for i, text in enumerate(TEXTS)]
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
        return
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if kind == "txt":
            file.write("\n\n".join(text for text in TEXTS if text.strip()))
        elif kind == "csv":
            writer = csv.DictWriter(file, ["text", "other"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "name", ["a.txt", "a.txt.gz", "a.txt.xz", "a.jsonl", "a.jsonl.xz", "a.csv", "a.csv.gz", "a.parquet"]
)
def test_every_kind_of_file(tmp_path, name):
    path = tmp_path / name
    write(path, name.split(".")[1])
    documents = load_documents(DataArguments(train_files=[str(path)], validation_fraction=0.3))
    texts = [*documents["train"]["text"], *documents["validation"]["text"]]
    assert sorted(t.strip() for t in texts if t and t.strip()) == sorted(t.strip() for t in TEXTS if t.strip())
    assert len(documents["validation"]) >= 1


def test_the_last_documents_are_held_out(corpus):
    everything = load_documents(DataArguments(train_files=[str(corpus)], validation_last=1))
    texts = [*everything["train"]["text"], *everything["validation"]["text"]]
    held_out = load_documents(DataArguments(train_files=[str(corpus)], validation_last=7))
    assert list(held_out["validation"]["text"]) == texts[-7:]
    assert list(held_out["train"]["text"]) == texts[:-7]


@pytest.mark.parametrize(("sample_by", "documents"), [("paragraph", 2), ("line", 4), ("document", 1)])
def test_what_a_document_of_a_text_file_is(tmp_path, sample_by, documents):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\nthree\nfour\n")
    other = tmp_path / "b.txt"
    other.write_text("five\n")
    args = DataArguments(train_files=[str(path)], validation_files=[str(other)], sample_by=sample_by)
    texts = [text for text in load_documents(args)["train"]["text"] if text]
    assert len(texts) == documents


def test_a_data_set_by_name_with_and_without_held_out_text(tmp_path):
    (tmp_path / "named").mkdir()
    write(tmp_path / "named" / "train.jsonl", "jsonl")
    name = str(tmp_path / "named")
    documents = load_documents(DataArguments(dataset_name=name, validation_fraction=0.4))
    assert (len(documents["train"]), len(documents["validation"])) == (3, 2)
    write(tmp_path / "named" / "validation.jsonl", "jsonl")
    documents = load_documents(DataArguments(dataset_name=name))
    assert (len(documents["train"]), len(documents["validation"])) == (5, 5)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "beside"),
    [("data[1].txt", "data1.txt"), ("a*b.txt", "axb.txt"), ("why?.txt", "whyx.txt"), ("**.txt", "c.txt")],
)
def test_a_file_name_is_not_a_pattern(tmp_path, name, beside, streaming):
    (tmp_path / name).write_text("This is the file whose name holds brackets.\n")
    (tmp_path / beside).write_text("This is another file.\nIt has two lines.\n")
    (tmp_path / "__held_out[ab].txt").write_text("held out\n")
    files = {"train_files": [str(tmp_path / name)], "validation_files": [str(tmp_path / "__held_out[ab].txt")]}
    documents = load_documents(DataArguments(**files, sample_by="line", streaming=streaming))
    assert [row["text"] for row in documents["train"]] == ["This is the file whose name holds brackets."]
    assert [row["text"] for row in documents["validation"]] == ["held out"]


WORDS_LIKE_NULL = ["null", "NA", "None", "nan", "the word null in a sentence"]


@pytest.mark.parametrize("streaming", [False, True])
def test_cells_of_a_text_column_are_taken_as_they_are_written(tmp_path, streaming):
    rows = [*WORDS_LIKE_NULL, None, "007", "1.50", "true", "2024-01-01"]
    for name in ("words", "numbers"):
        with open(tmp_path / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["number", "body"])
            writer.writerows(enumerate(rows if name == "words" else ["1", "2"]))
    files = {"train_files": [str(tmp_path / "words.csv")], "validation_files": [str(tmp_path / "numbers.csv")]}
    documents = load_documents(DataArguments(**files, text_column="body", streaming=streaming))
    assert [row["text"] for row in documents["train"]] == rows
    assert documents["validation"]["text"][:] == ["1", "2"]


def test_held_out_documents_are_held_out_and_the_same_every_time(corpus):
    args = DataArguments(train_files=[str(corpus)], validation_fraction=0.1)
    first, second = load_documents(args), load_documents(args)
    assert len(first["validation"]) == 6
    assert first["validation"]["text"] == second["validation"]["text"]
    assert not set(first["validation"]["text"]) & set(first["train"]["text"])


def test_a_trained_tokenizer_has_the_size_asked_for_and_survives_saving(corpus, tmp_path):
    documents = load_documents(DataArguments(train_files=[str(corpus)]))["train"]
    tokenizer = load_tokenizer(DataArguments(max_seq_length=32), 60, documents)
    assert len(tokenizer) <= 60
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(DataArguments(tokenizer_name=str(tmp_path)), 60, documents)
    text = "The small cat runs, then sings."
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in tokenizer(documents[0]["text"])["input_ids"]


def test_the_same_text_gives_the_same_tokenizer(corpus):
    documents = load_documents(DataArguments(train_files=[str(corpus)]))["train"]
    vocabularies = [load_tokenizer(DataArguments(), 70, documents).get_vocab() for _ in range(5)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_prepare_goes_the_whole_way(corpus):
    packed, tokenizer, counts = prepare(DataArguments(train_files=[str(corpus)], max_seq_length=32), 80)
    assert set(packed) == {"train", "validation"}
    assert counts["train"]["documents"] + counts["validation"]["documents"] == 60
    assert max(map(max, packed["train"]["input_ids"])) < len(tokenizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of --demo_corpus, --dataset_name, --train_files; got none"),
        ({"demo_corpus": True, "train_files": ["a.txt"]}, "got --demo_corpus, --train_files"),
        ({"train_files": ["/nowhere/a.txt"]}, "no such file: /nowhere/a.txt"),
        ({"train_files": ["{tmp}/a.doc"]}, r"unknown type of file .*a.doc: the name must end in .txt"),
        ({"train_files": ["{tmp}/a.txt", "{tmp}/a.jsonl"]}, "must be of one kind"),
        (
            {"train_files": ["{tmp}/a.jsonl"], "text_column": "body"},
            "must have the column `body`, got text; choose one with",
        ),
        ({"train_files": ["{tmp}/a::b.txt"]}, r"rename .*a::b.txt: `::` and `\$` in a file name"),
        ({"train_files": ["{tmp}/$HOME.txt"]}, r"rename .*HOME.txt"),
        ({"train_files": ["{tmp}/broken.jsonl"]}, r"cannot read .*broken.jsonl as json"),
        ({"train_files": ["{tmp}/one.txt"]}, r"1 document\(s\), so none can be held out"),
        ({"train_files": ["{tmp}/a.txt"], "validation_fraction": 1.0}, "strictly between 0 and 1, got 1.0"),
        ({"train_files": ["{tmp}/a.txt"], "validation_last": 999}, "--validation_last must be at least 1 and below"),
        ({"dataset_name": "no-such/data-set"}, "cannot load the data set `no-such/data-set`"),
    ],
)
def test_unreadable_files_are_reported_in_one_line(tmp_path, arguments, message):
    plain = {"a.doc": "x", "a.txt": "one\n\ntwo", "one.txt": "one", "a.jsonl": '{"text": "x"}\n'}
    for name, text in {**plain, "a::b.txt": "x", "$HOME.txt": "x"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "broken.jsonl").write_text('{"text": "x"\nnonsense')
    if "train_files" in arguments:
        arguments = {**arguments, "train_files": [f.format(tmp=tmp_path) for f in arguments["train_files"]]}
    with pytest.raises(DataError, match=message) as error:
        load_documents(DataArguments(**arguments))
    assert "\n" not in str(error.value)


def test_text_that_is_all_blank_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"holds no text: 3 documents \(3 empty\)"):
        pack(splits(["", "  ", "\n"]), tokenizer, 16)


def test_sequences_without_room_are_refused(tokenizer):
    with pytest.raises(DataError, match="at least 3"):
        pack(splits(TEXTS), tokenizer, 2, segments="one")
    with pytest.raises(DataError, match="at least 5"):
        pack(splits(TEXTS), tokenizer, 4)
    with pytest.raises(DataError, match="--segments must be one of two, one, got three"):
        pack(splits(TEXTS), tokenizer, 16, segments="three")


def test_a_tokenizer_that_is_not_there(corpus):
    documents = load_documents(DataArguments(train_files=[str(corpus)]))["train"]
    with pytest.raises(DataError, match="cannot load the tokenizer `/nowhere`"):
        load_tokenizer(DataArguments(tokenizer_name="/nowhere"), 60, documents)


def test_counts_are_logged(tokenizer, caplog):
    with caplog.at_level("INFO", logger="modeling_electra_exit"):
        pack(splits(TEXTS), tokenizer, 16)
    assert "train: 5 documents (2 empty)" in caplog.text


@pytest.mark.parametrize(
    "text", ["the cat runs " * 5000, "a" * 50_000, " " * 30_000 + "dog", "\n".join(["bird"] * 20_000)]
)
def test_a_long_text_is_tokenised_in_pieces_that_change_nothing(tokenizer, text):
    known = "sings " * 10
    packed, _ = pack(splits([text, known]), tokenizer, 64, num_proc=1, segments="one")
    whole = tokenizer([text, known], add_special_tokens=False)["input_ids"]
    stream = unpack(packed["train"]["input_ids"], tokenizer)
    if " " in text or "\n" in text:  # a word without end is unknown, once or piece by piece
        assert stream == [i for ids in whole for i in [*ids, tokenizer.sep_token_id]]
    else:
        assert stream[-len(whole[1]) - 1 :] == [*whole[1], tokenizer.sep_token_id]


GOOD = [{"text": f"the cat {i} runs"} for i in range(20)]
# What a file may hold, and what is said of it; nothing where it is simply read.
FILES = {
    "empty.txt": (b"", "there is no text in"),
    "nul.txt": (b"\0" * 1000, "there is no text in"),
    "binary.txt": (bytes(range(128, 256)) * 20, r"cannot read .* it is not UTF-8 \(byte 0\); convert it"),
    "invalid.txt": (b"the cat\n\n\xff runs", r"it is not UTF-8 \(byte 9\); .* iconv -f WINDOWS-1252 -t UTF-8"),
    "utf16.txt": ("the cat runs".encode("utf-16"), "for example with: iconv -f UTF-16 -t UTF-8"),
    "numbers.jsonl": (b'{"text": 1}\n{"text": 2}', "the column `text` of the train data must hold text, got"),
    "lists.jsonl": (b'{"text": ["a"]}\n{"text": ["b"]}', "the column `text` of the train data must hold text, got"),
    "other.jsonl": (b'{"txt": "a"}', "must have the column `text`, got txt"),
    "extra.jsonl": ("\n".join(json.dumps({**row, "id": i, "tags": [i]}) for i, row in enumerate(GOOD)).encode(), None),
    "nulls.jsonl": ("\n".join(json.dumps(row) for row in [{"text": None}, *GOOD]).encode(), None),
    "emoji.txt": ("\n\n".join(["\U0001f600 \U0001f1e9\U0001f1ea \U0001f469\u200d\U0001f467"] * 20).encode(), None),
    "rtl.txt": ("\n\n".join(["שלום עולם مرحبا"] * 20).encode(), None),
    "nul_between.txt": (b"\n\n".join([b"the c\0at runs"] * 20), None),
    "empties.jsonl": ("\n".join(['{"text": ""}'] * 100_000 + [json.dumps(row) for row in GOOD]).encode(), None),
}


@pytest.mark.parametrize("name", FILES)
def test_whatever_a_file_holds_is_read_or_refused_in_one_sentence(tmp_path, name):
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    args = DataArguments(train_files=[str(tmp_path / name)], max_seq_length=16, num_proc=1, validation_last=5)
    if message is None:
        packed, tokenizer, counts = prepare(args, 60)
        assert counts["train"]["sequences"] == len(packed["train"]) > 0
        assert max(map(max, packed["train"]["input_ids"])) < len(tokenizer)
    else:
        with pytest.raises(DataError, match=message) as error:
            prepare(args, 60)
        assert "\n" not in str(error.value)


def write_tokenizer(folder, entries, **settings):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 512, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WITH_HOLES = [*SPECIAL, "the", "cat", "the", "sits", "cat", "here", "##s"]


def test_a_vocabulary_with_repeated_lines_is_packed(tmp_path):
    """Ids up to 11 for 10 entries; and up to 259 for 250, which 8 bits hold no longer."""
    (tmp_path / "a.txt").write_text("the cat sits here\n\n" * 20)
    many = [*SPECIAL, *["the"] * 11, *[f"w{i}" for i in range(240)], "cat", "sits", "here", "##s"]
    for number, (entries, size, dtype) in enumerate(((WITH_HOLES, 10, "uint8"), (many, 250, "uint16"))):
        name = write_tokenizer(tmp_path / str(number), entries)
        args = DataArguments(train_files=[str(tmp_path / "a.txt")], tokenizer_name=name, validation_last=5)
        packed, tokenizer, counts = prepare(args, 120)
        assert len(tokenizer) == size
        assert packed["train"].features["input_ids"].feature.dtype == dtype
        ids = packed["train"]["input_ids"][0]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "the cat sits here"
        assert max(ids) == entries.index("here")
        assert counts["train"]["unknown"] == 0


GEORGIAN = ["თბილისი არის საქართველოს დედაქალაქი, 2020 წელს."] * 10


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("segments", ["two", "one"])
def test_a_tokenizer_that_does_not_know_the_script_is_refused(tmp_path, segments, streaming):
    english = write_tokenizer(tmp_path / "english", [*SPECIAL, "the", "cat", ",", ".", "2020"])
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(GEORGIAN), encoding="utf-8")
    args = DataArguments(
        train_files=[str(tmp_path / "train.txt")],
        validation_files=[str(tmp_path / "held_out.txt")],
        tokenizer_name=english,
        segments=segments,
        streaming=streaming,
    )
    message = (
        r"the tokenizer `.*english` does not know the train split, whose letters are mostly GEORGIAN: 62.5% of the"
    )
    with pytest.raises(DataError, match=message):
        prepare(args, 100)


def test_a_vocabulary_without_room_for_the_script_is_refused():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 500)))
    documents = splits([text] * 3)
    tokenizer = load_tokenizer(DataArguments(), 60, documents["train"])
    with pytest.raises(DataError, match=r"the tokenizer trained here does not know .* CJK: 8.*; increase --vocab_s"):
        pack(documents, tokenizer, 16)


def test_unknown_tokens_are_counted_and_logged(tokenizer, caplog):
    with caplog.at_level("INFO", logger="modeling_electra_exit"):
        _, counts = pack(splits(["the cat runs \u10d0"] * 5), tokenizer, 16, segments="one")
    assert counts["train"].unknown == 5
    assert f"({5 / counts['train'].tokens:.2%} unknown)" in caplog.text


def test_an_analyser_that_is_not_installed_is_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fugashi", None)
    japanese = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}
    name = write_tokenizer(tmp_path / "japanese", WITH_HOLES, **japanese)
    args = DataArguments(train_files=[str(corpus)], tokenizer_name=name)
    with pytest.raises(DataError, match=r"cannot load the tokenizer `.*japanese`: .*fugashi"):
        prepare(args, 100)
    with pytest.raises(UsageError, match=r"no tokenizer in `.*japanese`: .*fugashi"):
        read_tokenizer(name)


@pytest.mark.parametrize("settings", [{}, {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "basic",
                                           "subword_tokenizer_type": "character"}])  # fmt: skip
def test_a_run_with_a_vocabulary_with_holes_or_a_python_tokenizer(corpus, tmp_path, capsys, settings):
    """To its last line: the sentence with a swapped word wants to know which word a token is of."""
    entries = [*WITH_HOLES, *"abcdefghijklmnoprstuvw.", *[f"##{c}" for c in "abcdefghijklmnoprstuvw"]]
    name = write_tokenizer(tmp_path / "tokenizer", entries, **settings)
    fields = {**RECIPE, "train_files": [str(corpus)], "tokenizer_name": name, "output_dir": str(tmp_path / "run"),
              "report_to": "none", "disable_tqdm": True, "max_steps": 2}  # fmt: skip
    fields.pop("vocab_size", None)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    assert cli.main(["pretrain", str(tmp_path / "recipe.yaml")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["vocab_size"] == len(entries)
    assert "Load it:" in capsys.readouterr().out


def test_text_is_packed_again_by_other_code(corpus, tokenizer, monkeypatch):
    documents = load_documents(DataArguments(train_files=[str(corpus)]))
    (packed, _), (cached, _) = pack(documents, tokenizer, 16), pack(documents, tokenizer, 16)
    monkeypatch.setattr(packing, "CODE", "another version's")
    (again, _) = pack(documents, tokenizer, 16)
    assert packed["train"]._fingerprint == cached["train"]._fingerprint != again["train"]._fingerprint
    assert packed["train"][:] == again["train"][:]


def test_a_damaged_cache_is_named_and_made_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write_corpus(tmp_path / "text.txt")
    before = list(data.read_files([str(path)])["text"])
    (arrow,) = (tmp_path / "cache").rglob("*.arrow")
    content = arrow.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"[]" * 500, None):
        arrow.unlink()  # not written over: the library has mapped it into memory
        if damaged is not None:
            arrow.write_bytes(damaged)
        caplog.clear()
        assert list(data.read_files([str(path)])["text"]) == before
        assert f"the prepared text in {arrow.parent} is damaged (" in caplog.text
    (arrow.parent / "dataset_info.json").write_text("")
    with pytest.raises(DataError, match=f"prepared text below {tmp_path}/cache/text is damaged .*; remove it"):
        data.read_files([str(path)])


@pytest.mark.parametrize("packing", [False, True])
def test_a_cache_that_cannot_be_written_is_named(tmp_path, tokenizer, monkeypatch, packing):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write_corpus(tmp_path / "text.txt")
    documents = data.read_files([str(path)]) if packing else None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(DataError, match=f"could not be written to {tmp_path}/cache: File too large; free"):
            pack({"train": documents}, tokenizer, 16) if packing else data.read_files([str(path)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_forbidden_cache_is_named_and_a_forbidden_text_is_not_taken_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write_corpus(tmp_path / "text.txt")

    def forbid(place):
        def load(*args, **kwargs):
            raise PermissionError(13, "Permission denied", str(place))

        for name in ("load_dataset", "load_dataset_builder"):
            monkeypatch.setattr(data, name, load)

    forbid(tmp_path / "cache" / "text")
    with pytest.raises(DataError, match=f"could not be written to {tmp_path}/cache: Permission denied; free space"):
        data.read_files([str(path)])
    forbid(path)
    with pytest.raises(DataError, match=f"cannot read {path} as text: .Errno 13. Permission denied"):
        data.read_files([str(path)])


def test_a_killed_process_of_packing_is_named(tmp_path, tokenizer, monkeypatch):
    documents = Dataset.from_dict({"text": ["the cat"] * 2500})
    monkeypatch.setattr(packing, "_encode", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(WorkerError, match="was killed, perhaps because memory ran out; a smaller --num_proc"):
        pack({"train": documents}, tokenizer, 16, num_proc=2)


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", ","), ("a.csv.gz", "\t"), ("a.tsv", "\t")])
def test_the_columns_of_a_table_are_separated_as_its_header_says(tmp_path, name, separator):
    """With a byte order mark, as spreadsheets write them, and the other separators in the text."""
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator).writerows([["text", "n"], ["a, b; c\td", 1], ["müde; 2, 3", 2]])
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wb") as file:
        file.write(buffer.getvalue().encode("utf-8-sig"))
    rows = read_files([str(tmp_path / name)], text_columns=["text"])
    assert rows["text"][:] == ["a, b; c\td", "müde; 2, 3"]
    assert rows["n"][:] == [1, 2]


def test_files_with_different_separators_are_not_mixed(tmp_path):
    for name, separator in (("a.csv", ","), ("b.csv", ";")):
        (tmp_path / name).write_text(f"text{separator}n\nx{separator}1\n")
    with pytest.raises(DataError, match="all files of a split must have the same separator, got "):
        read_files([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])
