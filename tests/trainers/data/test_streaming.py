"""Text that is tokenised while it is read: each document once a pass, in bounded memory, and resumable."""

import collections
import itertools
import json

import numpy as np
import pytest
import yaml
from datasets import Dataset, IterableDataset

from electra_exit import main as cli
from modeling_electra_exit import ElectraEarlyExitConfig
from modeling_electra_exit.trainers import DataArguments
from modeling_electra_exit.trainers.data.packing import pack
from modeling_electra_exit.trainers.data.reading import load_documents
from modeling_electra_exit.trainers.data.streaming import PackedStream
from modeling_electra_exit.trainers.errors import DataError
from modeling_electra_exit.trainers.generators.base import GeneratorContext
from modeling_electra_exit.trainers.generators.statistical import bigram_counts
from modeling_electra_exit.trainers.pretraining.collator import DataCollatorForReplacedTokenDetection
from modeling_electra_exit.trainers.pretraining.initialization import cooccurrence_embeddings
from tests.conftest import WORDS, write_corpus
from tests.trainers.cli.test_cli import RECIPE
from tests.trainers.pretraining.test_trainer import assert_same, make_trainer, weights


LENGTH = 16


def texts(count=100):
    """Each document another number of another word, so that documents can be told from their tokens' counts."""
    return [" ".join([WORDS[number % len(WORDS)]] * (number % 7 + 1)) for number in range(count)]


def stream(tokenizer, documents, length=LENGTH):
    return PackedStream(documents, tokenizer, length)


def of_texts(tokenizer, count=100, shards=1, length=LENGTH):
    return stream(tokenizer, Dataset.from_dict({"text": texts(count)}).to_iterable_dataset(shards), length)


def tokens(sequences):
    """How often each id is there; the tokens between documents are special, like those around sequences."""
    return collections.Counter(itertools.chain.from_iterable(sequence["input_ids"] for sequence in sequences))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("shards", [1, 2, 4])  # files: fewer than processes, as many, shared evenly, and not
def test_every_document_is_read_once_a_pass_by_one_process(tokenizer, processes, shards):
    packed = of_texts(tokenizer, shards=shards)
    expected = collections.Counter()
    for text in texts():
        expected.update(tokenizer(text, add_special_tokens=False)["input_ids"])
    passes = []
    for number in range(2):
        read = []
        for process in range(processes):
            shard = packed.shard(process, processes)
            shard.set_epoch(number)
            read.append([{name: column.tolist() for name, column in sequence.items()} for sequence in shard])
        seen = sum((tokens(sequences) for sequences in read), collections.Counter())
        for special in tokenizer.all_special_ids:
            seen.pop(special, None)
        assert seen == expected
        passes.append(read)
    assert passes[0] != passes[1]  # in another order


def test_a_process_reads_documents_of_its_own(tokenizer):
    """By files where these are shared evenly, else document by document."""
    words = Dataset.from_dict({"text": [*["cat"] * 50, *["dog"] * 50]})
    cat, dog = tokenizer.convert_tokens_to_ids(["cat", "dog"])
    by_files = stream(tokenizer, words.to_iterable_dataset(2))
    counts = [tokens(by_files.shard(process, 2)) for process in range(2)]
    assert sorted((count[cat], count[dog]) for count in counts) == [(0, 50), (50, 0)]
    by_documents = stream(tokenizer, words.to_iterable_dataset(1))
    counts = [tokens(by_documents.shard(process, 2)) for process in range(2)]
    assert [(count[cat], count[dog]) for count in counts] == [(25, 25), (25, 25)]


def test_memory_is_bounded(tokenizer):
    read = []

    def documents():
        for number in itertools.count():
            read.append(number)
            yield {"text": "the cat sings under the old tree"}

    packed = stream(tokenizer, IterableDataset.from_generator(documents))
    collator = DataCollatorForReplacedTokenDetection(tokenizer, LENGTH)
    batches = iter(packed.loader(4, collator, seed=0))
    next(batches)
    first = len(read)
    assert first < 30_000  # what chance chooses from, of text without an end
    for _ in range(100):
        next(batches)
    assert len(read) - first <= 2000


def test_each_pass_has_masks_of_its_own(tokenizer):
    packed = of_texts(tokenizer, 12)
    collator = DataCollatorForReplacedTokenDetection(tokenizer, LENGTH)
    passes, size = {}, len(list(packed.sequences()))
    for batch in itertools.islice(packed.loader(1, collator, seed=0), 2 * size):
        passes.setdefault(int(collator._epoch), []).append(batch["noise_seeds"].item())
    assert [len(passes[number]) for number in (0, 1)] == [size, size]
    assert not set(passes[0]) & set(passes[1])


def test_statistics_of_a_stream_are_those_of_stored_sequences(tokenizer):
    documents = Dataset.from_dict({"text": texts()})
    stored = pack({"train": documents}, tokenizer, LENGTH, num_proc=1)[0]["train"]
    streamed = of_texts(tokenizer).sequences()
    config = ElectraEarlyExitConfig(vocab_size=len(tokenizer))
    counts = [GeneratorContext(config, sequences, tokenizer).counts for sequences in (stored, streamed)]
    assert np.array_equal(*counts)
    assert counts[0].sum() > 0
    pairs = [bigram_counts(sequences, len(tokenizer), tokenizer.all_special_ids) for sequences in (stored, streamed)]
    assert (pairs[0] != pairs[1]).nnz == 0
    vectors = [
        cooccurrence_embeddings(sequences, len(tokenizer), 8, tokenizer.all_special_ids)
        for sequences in (stored, streamed)
    ]
    assert np.array_equal(*vectors)


def test_an_interrupted_stream_continues_exactly(tokenizer, tmp_path):
    def trainer(folder, **settings):
        made = make_trainer(tokenizer, folder, max_steps=7, save_strategy="steps", save_steps=5, **settings)
        made.train_dataset = of_texts(tokenizer, 6, length=64)  # a pass is less than one batch
        return made

    straight = trainer(tmp_path / "straight")
    straight.train()
    assert int(straight.data_collator._epoch) > 1
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-5"))
    assert_same(weights(straight), weights(resumed))
    assert int(resumed.data_collator._epoch) == int(straight.data_collator._epoch)


@pytest.fixture
def recipe(tmp_path):
    def write(**changes):
        train, held_out = write_corpus(tmp_path / "train.txt"), write_corpus(tmp_path / "held_out.txt", 10, seed=1)
        files = {"train_files": [str(train)], "validation_files": [str(held_out)], "streaming": True}
        quiet = {"output_dir": str(tmp_path / "run"), "report_to": "none", "disable_tqdm": True}
        fields = {**RECIPE, **files, **quiet, **changes}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in fields.items() if value is not None}))
        return str(path)

    return write


def test_a_run_from_a_stream(recipe, tmp_path):
    assert cli.main(["pretrain", recipe(generator_type="unigram", corpus_init=True)]) == 0
    assert "train" not in json.loads((tmp_path / "run" / "metrics.json").read_text())["data"]["counts"]
    assert "read as a stream;\n10 documents were held out" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"validation_files": None}, "--streaming requires --validation_files"),
        ({"max_steps": -1}, "--max_steps must be positive with --streaming"),
        ({"dataloader_num_workers": 1}, "--dataloader_num_workers must be 0 with --streaming"),
        ({"generator_type": "cached", "generator_folder": "x"}, "omit --streaming"),
        ({"text_column": "body"}, "must have the column `body`, got text"),
    ],
)
def test_what_a_stream_cannot_give_is_refused(recipe, tmp_path, capsys, changes, reason):
    assert cli.main(["pretrain", recipe(**changes)]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_stream_reads_what_files_hold(tmp_path):
    (tmp_path / "held_out.jsonl").write_text('{"body": "a cat"}\n')
    (tmp_path / "train.jsonl").write_text('{"id": 1, "body": "a dog"}\n{"id": 2, "body": null}\n')
    arguments = DataArguments(
        train_files=[str(tmp_path / "train.jsonl")],
        validation_files=[str(tmp_path / "held_out.jsonl")],
        text_column="body",
        streaming=True,
    )
    documents = load_documents(arguments)
    assert list(documents["train"]) == [{"text": "a dog"}, {"text": None}]
    (tmp_path / "train.jsonl").write_text('{"body": 3}\n')
    with pytest.raises(DataError, match="must hold text"):
        load_documents(arguments)


def test_a_stream_without_text_is_refused(tokenizer):
    empty = stream(tokenizer, Dataset.from_dict({"text": ["", " "]}).to_iterable_dataset())
    with pytest.raises(DataError, match="no text in the stream"):
        next(iter(empty))
