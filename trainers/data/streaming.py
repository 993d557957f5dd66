"""Streaming: training sequences that are tokenized and packed while the text is read."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from accelerate import PartialState
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from .packing import PACKED_TOGETHER, SHUFFLED_TOGETHER, _pack_batch, _settings, check_known, packed_features
from .tokenization import vocabulary_size


class PackedStream(torch.utils.data.IterableDataset):
    """An endless stream of training sequences, tokenized and packed while the text is read, epoch after epoch.

    Each process reads its own documents, all of them in every epoch. If the number of files is a multiple of the
    number of processes, each process reads its own files. Sequences are drawn from a shuffle buffer of
    [`SHUFFLED_TOGETHER`]. Their order depends only on the text and the seed, so that a resumed run can skip the
    sequences already seen.

    Args:
        documents (`IterableDataset`): with the single column `text`.
        tokenizer, max_seq_length: as in [`pack`].
        segments, packing_seed: as `segments` and `seed` in [`pack`].

    Raises:
        DataError: for an unknown value of `segments`, or a `max_seq_length` without room for text; while iterating, if
            there is no text for this process.
    """

    def __init__(
        self,
        documents: IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        max_seq_length: int,
        segments: str = "two",
        packing_seed: int = 0,
    ):
        self.documents = documents
        self._settings = _settings(tokenizer, max_seq_length, segments, packing_seed)
        self.seed, self.begin_pass = 0, lambda number: None

    def loader(self, batch_size: int, collator, seed: int) -> torch.utils.data.DataLoader:
        """The loader of this process. It passes each epoch's number to the collator, for new masks; the collator must
        therefore run in this process, not in a worker."""
        self.seed, self.begin_pass = seed, collator.set_epoch
        return torch.utils.data.DataLoader(self, batch_size, collate_fn=collator)

    def sequences(self) -> IterableDataset:
        """One epoch of the whole text in order, with the columns of [`pack`], for statistics."""
        return self._pack(self.documents)

    def shard(self, process: int, processes: int) -> IterableDataset:
        """An epoch of one of several processes; `set_epoch` on the result selects the epoch."""
        if self.documents.num_shards % processes == 0:
            documents = split_dataset_by_node(self.documents, process, processes)
        else:  # the library would split the packed sequences, so that each process tokenizes all documents
            documents = self.documents.filter(lambda _, number: number % processes == process, with_indices=True)
        return self._pack(documents).shuffle(self.seed, buffer_size=SHUFFLED_TOGETHER)

    def _pack(self, documents: IterableDataset) -> IterableDataset:
        return documents.map(
            _pack_batch,
            batched=True,
            batch_size=PACKED_TOGETHER,
            remove_columns=["text"],
            fn_kwargs=self._settings,
            features=packed_features(self._settings["tokenizer"], self._settings["segments"]),
        )

    def check_known(self) -> None:
        """[`check_known`] for the first sequences.

        Raises:
            DataError: if the tokenizer knows at most half of their tokens.
        """
        tokenizer = self._settings["tokenizer"]
        counts = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
        for sequence in self.sequences().take(PACKED_TOGETHER):
            counts += np.bincount(sequence["input_ids"], minlength=len(counts))
        if counts.any():
            check_known(counts, tokenizer, self.documents, "train")

    def __iter__(self) -> Iterator[dict]:
        shard = self.shard(PartialState().process_index, PartialState().num_processes)
        for number in itertools.count():
            shard.set_epoch(number)
            self.begin_pass(number)
            sequence = None
            for sequence in shard:
                yield sequence
            if sequence is None:
                raise DataError(f"there is no text in the stream for process {PartialState().process_index}")
