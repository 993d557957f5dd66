"""Token ids of packed sequences: how they are stored, read and counted."""

import itertools
import zlib
from collections.abc import Iterator

import numpy as np
import pyarrow.compute
from datasets import Dataset


def id_dtype(vocab_size: int) -> str:
    """The smallest integer type that holds every id."""
    return next(t for t in ("uint8", "uint16", "uint32") if vocab_size <= np.iinfo(t).max + 1)


def read_ids(sequences, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The ids of `rows` sequences at a time, one after the other, and the lengths of the sequences.

    Args:
        sequences: a data set of `datasets`, or one of torch (or a list) with a length; column `input_ids`.

    Raises:
        ValueError: if there are none, or of torch and without a length, so that they might never end.
    """
    if hasattr(sequences, "select_columns"):
        for chunk in sequences.select_columns("input_ids").with_format("arrow").iter(rows):
            column = chunk.column("input_ids")
            lengths = pyarrow.compute.list_value_length(column)
            yield pyarrow.compute.list_flatten(column).to_numpy(), lengths.to_numpy()
        return
    if not hasattr(sequences, "__len__"):
        raise ValueError(
            "a generator that counts the training text needs a `train_dataset` with a length, got "
            f"{type(sequences).__name__}"
        )
    ids = (np.asarray(sequences[i]["input_ids"], dtype=np.int64) for i in range(len(sequences)))
    while chunk := list(itertools.islice(ids, rows)):
        yield np.concatenate(chunk), np.array([len(row) for row in chunk])


def token_counts(sequences: Dataset, vocab_size: int) -> np.ndarray:
    """How often each id is in the column `input_ids`, as an `int64` array of shape `(vocab_size,)`."""
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
    """Tokens of packed sequences, special ones included."""
    return pyarrow.compute.sum(pyarrow.compute.list_value_length(packed.data.column("input_ids"))).as_py() or 0
