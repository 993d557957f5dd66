"""Two segments of one document, as ELECTRA's: shares, boundaries, types, and that nothing is lost or mixed."""

import itertools
import re

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from modeling_electra_exit.trainers import DataCollatorForReplacedTokenDetection
from modeling_electra_exit.trainers.data import packing
from modeling_electra_exit.trainers.data.packing import pack
from modeling_electra_exit.trainers.data.streaming import PackedStream
from tests.conftest import WORDS


CLS, SEP = 2, 3


def two(documents, length=64, seed=0):
    """The examples of documents that are given as the lengths of their lines; their ids count up from 10."""
    following, made = itertools.count(10), []
    for lines in documents:
        made.append([np.array(list(itertools.islice(following, size)), dtype=np.int64) for size in lines])
    packed = packing.two_segments(made, CLS, SEP, length, seed)
    return made, [ids.tolist() for ids in packed["input_ids"]], [row.tolist() for row in packed["token_type_ids"]]


def parts(ids):
    """The text of each segment of an example."""
    assert ids[0] == CLS
    assert ids[-1] == SEP
    return [list(part) for is_sep, part in itertools.groupby(ids[1:], lambda i: i == SEP) if not is_sep]


LINES = [7] * 2000  # a long document whose lines end often


def test_nine_tenths_have_two_segments_and_one_in_twenty_is_short():
    _, examples, _ = two([LINES] * 10)
    count = len(examples)
    assert count > 2000
    double = np.mean([len(parts(ids)) == 2 for ids in examples])
    assert abs(double - 0.9) < 3.3 * (0.09 / count) ** 0.5
    # A twentieth is of one of the 60 lengths from 5 up, of which two or three are cut to what fits.
    short = np.mean([len(ids) < 64 for ids in examples])
    expected = 0.05 * 57 / 60
    assert abs(short - expected) < 3.3 * (expected / count) ** 0.5 + 10 / count  # the ends of ten documents
    lengths = {sum(map(len, parts(ids))) for ids in examples}
    assert min(lengths) >= 1
    assert len(lengths) > 40


def test_every_token_is_in_one_example_and_documents_do_not_mix():
    made, examples, _ = two([[3, 50, 2], [1], [], [200], [40] * 30, [0, 0], [2, 0, 2]])
    assert [i for ids in examples for part in parts(ids) for i in part] == [
        i for lines in made for line in lines for i in line.tolist()
    ]
    owner = {i: number for number, lines in enumerate(made) for line in lines for i in line.tolist()}
    assert all(len({owner[i] for part in parts(ids) for i in part}) == 1 for ids in examples)


@pytest.mark.parametrize("length", [5, 6, 17, 64])
def test_types_are_those_of_a_pair(length):
    _, examples, types = two([LINES, [1], [2], [3]], length)
    for ids, row in zip(examples, types, strict=True):
        assert len(row) == len(ids) <= length
        first, *second = parts(ids)
        assert row == [0] * (len(first) + 2) + [1] * (len(second[0]) + 1 if second else 0)


def test_a_second_segment_begins_with_a_line_near_the_middle():
    made, examples, _ = two([LINES])
    begins = {int(line[0]) for line in made[0]}
    firsts = [parts(ids)[0] for ids in examples if len(parts(ids)) == 2 and len(ids) == 64]
    seconds = [parts(ids)[1] for ids in examples if len(parts(ids)) == 2 and len(ids) == 64]
    assert all(second[0] in begins for second in seconds)
    sizes = np.array([len(first) for first in firsts])
    assert abs(sizes - 31).max() <= 7
    assert 0.4 < np.mean(sizes > 31) < 0.6  # the line that crosses the middle is of one or the other


def test_a_document_of_one_line_is_cut_in_the_middle():
    _, examples, _ = two([[10_000]])
    pairs = [parts(ids) for ids in examples if len(parts(ids)) == 2]
    assert len(pairs) > 100
    assert all(len(first) - len(second) in (0, 1) for first, second in pairs)


def test_chance_is_that_of_the_document_and_the_seed():
    made, examples, _ = two([LINES, [500]])
    alone = packing.two_segments(made[1:], CLS, SEP, 64, 0)["input_ids"]
    assert [ids.tolist() for ids in alone] == examples[-len(alone) :]
    assert two([LINES])[1] == two([LINES])[1]
    assert two([LINES])[1] != two([LINES], seed=1)[1]


def texts(count=2500):
    """Documents of one to five lines."""
    choose = np.random.default_rng(0)
    return [
        "\n".join(" ".join(choose.choice(WORDS, choose.integers(1, 30))) for _ in range(choose.integers(1, 6)))
        for _ in range(count)
    ]


def rows(sequences):
    return [{name: np.asarray(column).tolist() for name, column in row.items()} for row in sequences]


def test_a_stream_gives_what_is_stored_whatever_the_processes(tokenizer):
    documents = Dataset.from_dict({"text": texts()})
    stored = [
        pack(DatasetDict(train=documents), tokenizer, 32, num_proc=processes, seed=3)[0]["train"]
        for processes in (1, 2)
    ]
    assert rows(stored[0]) == rows(stored[1])
    assert stored[0].features["token_type_ids"].feature.dtype == "uint8"
    streams = [PackedStream(documents.to_iterable_dataset(shards), tokenizer, 32, packing_seed=3) for shards in (1, 4)]
    for stream in streams:
        assert rows(stream.sequences()) == rows(stored[0])
    shards = [streams[1].shard(process, 2) for process in range(2)]
    key = lambda row: row["input_ids"]  # noqa: E731
    assert sorted((row for shard in shards for row in rows(shard)), key=key) == sorted(rows(stored[0]), key=key)


def test_lines_are_where_the_text_has_them(tokenizer):
    text = "the cat runs\n" * 300
    packed, _ = pack(DatasetDict(train=Dataset.from_dict({"text": [text] * 2})), tokenizer, 32)
    the = tokenizer.convert_tokens_to_ids("the")
    seconds = [
        row["input_ids"][row["token_type_ids"].index(1)]
        for row in packed["train"]
        if 1 in row["token_type_ids"] and len(row["input_ids"]) == 32  # a line fits into half of these
    ]
    assert len(seconds) > 20
    assert set(seconds) == {the}


def test_one_segment_has_no_types(tokenizer):
    packed, _ = pack(DatasetDict(train=Dataset.from_dict({"text": texts(20)})), tokenizer, 32, segments="one")
    assert packed["train"].column_names == ["input_ids"]


def test_a_batch_has_the_types_of_its_sequences(tokenizer):
    packed, _ = pack(DatasetDict(train=Dataset.from_dict({"text": texts(20)})), tokenizer, 32)
    features = [packed["train"][i] for i in range(8)]
    batch = DataCollatorForReplacedTokenDetection(tokenizer, 40)(features)
    assert batch["token_type_ids"].shape == batch["input_ids"].shape == (8, 40)
    for feature, types in zip(features, batch["token_type_ids"].tolist(), strict=True):
        assert types == feature["token_type_ids"] + [0] * (40 - len(feature["input_ids"]))


def test_much_padding_is_logged(tokenizer, caplog):
    documents = DatasetDict(train=Dataset.from_dict({"text": ["the cat runs"] * 10}))
    pack(documents, tokenizer, 64)
    assert re.search(r"train: 9\d% of the positions will be padding.*--segments one to concatenate them", caplog.text)
    caplog.clear()
    documents = DatasetDict(train=Dataset.from_dict({"text": ["the cat runs"] * 18}))
    packed, counts = pack(documents, tokenizer, 64, segments="one")
    assert counts["train"].tokens < 0.7 * 64 * len(packed["train"]) == 0.7 * 64 * 2  # what the remedy has left over
    assert "padding" not in caplog.text
