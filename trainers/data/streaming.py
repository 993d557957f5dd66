"""Training sequences that are tokenised and packed while the text is read."""

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
    """Training sequences that are tokenised and packed while they are read, pass after pass, without an end.

    Each process reads documents of its own (files of its own, where the processes share them evenly), all of them in
    every pass, and memory holds some thousand sequences at a time, of which chance chooses the next. What comes when
    follows from the text and the seed alone, so that a resumed run gets to where it was by reading again.

    Args:
        documents (`IterableDataset`): with the one column `text`.
        segments, packing_seed: as `segments` and `seed` of [`pack`].

    Raises:
        DataError: for sequences without room.
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
        """Batches of this process. The collator learns of every pass, for new masks; it must not be in a worker."""
        self.seed, self.begin_pass = seed, collator.set_epoch
        return torch.utils.data.DataLoader(self, batch_size, collate_fn=collator)

    def sequences(self) -> IterableDataset:
        """One pass over all the text, in order, with the columns of [`pack`]: for statistics."""
        return self._pack(self.documents)

    def shard(self, process: int, processes: int) -> IterableDataset:
        """A pass of one process; which one it is, `set_epoch` says."""
        if self.documents.num_shards % processes == 0:
            documents = split_dataset_by_node(self.documents, process, processes)
        else:  # where the library would split what comes out in the end, and each process tokenise it all
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
        """As [`check_known`], of the first sequences. Raises: DataError."""
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
