"""Storage, reading and counting of the token ids of packed sequences."""

import itertools
import zlib
from collections.abc import Iterator

import numpy as np
import pyarrow.compute
from datasets import Dataset


def id_dtype(vocab_size: int) -> str:
    """Name of the smallest integer type for ids below `vocab_size`."""
    return next(t for t in ("uint8", "uint16", "uint32") if vocab_size <= np.iinfo(t).max + 1)


def read_ids(sequences, rows: int, column: str = "input_ids") -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over chunks of `rows` sequences: their concatenated ids, and the length of each sequence.

    Args:
        sequences: with the column `input_ids`; a data set of `datasets`, or a list or torch data set with a length.
        rows: sequences per chunk.
        column: another column to read instead.

    Raises:
        ValueError: if a torch data set has no length, as it may be infinite.
    """
    if hasattr(sequences, "select_columns"):
        for chunk in sequences.select_columns(column).with_format("arrow").iter(rows):
            values = chunk.column(column)
            lengths = pyarrow.compute.list_value_length(values)
            yield pyarrow.compute.list_flatten(values).to_numpy(), lengths.to_numpy()
        return
    if not hasattr(sequences, "__len__"):
        raise ValueError(
            "a generator with statistics of the training text requires a `train_dataset` with a length, got "
            f"{type(sequences).__name__}"
        )
    ids = (np.asarray(sequences[i][column], dtype=np.int64) for i in range(len(sequences)))
    while chunk := list(itertools.islice(ids, rows)):
        yield np.concatenate(chunk), np.array([len(row) for row in chunk])


def read_real_ids(sequences, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As [`read_ids`], without padding: tokens where the column `attention_mask`, if there is one, is 0."""
    chunks = read_ids(sequences, rows)
    if "attention_mask" not in (getattr(sequences, "column_names", None) or next(iter(sequences))):
        yield from chunks
        return
    for (ids, lengths), (mask, _) in zip(chunks, read_ids(sequences, rows, "attention_mask"), strict=True):
        real = mask != 0
        before, ends = np.concatenate([[0], np.cumsum(real)]), np.cumsum(lengths)
        yield ids[real], before[ends] - before[ends - lengths]


def token_counts(sequences: Dataset, vocab_size: int) -> np.ndarray:
    """Frequency of each id in the column `input_ids`, an `int64` array of shape `(vocab_size,)`."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for ids, _ in read_ids(sequences, 10_000):
        counts += np.bincount(ids, minlength=vocab_size)
    return counts


def checksum(sequences: Dataset) -> int:
    """CRC-32 of all ids of packed sequences, in order."""
    value = 0
    for chunk in sequences.select_columns("input_ids").with_format("arrow").iter(10_000):
        ids = pyarrow.compute.list_flatten(chunk.column("input_ids")).to_numpy()
        value = zlib.crc32(ids.astype(np.int64).tobytes(), value)
    return value


def count_tokens(packed: Dataset) -> int:
    """Number of tokens in packed sequences, special tokens included."""
    return pyarrow.compute.sum(pyarrow.compute.list_value_length(packed.data.column("input_ids"))).as_py() or 0
