"""Packing of tokenized documents into sequences: two segments of one document, or concatenated documents."""

import itertools
import logging
import os
import random
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute
import xxhash
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Sequence as SequenceFeature
from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from ..runtime.distributed import naming_dead_workers
from . import tokenization
from .reading import naming_cache_errors
from .sequences import count_tokens, id_dtype, token_counts
from .tokenization import pieces, script_of, vocabulary_size


logger = logging.getLogger(__name__)

SEGMENTS = ("two", "one")
# The cache of `datasets` identifies a call by the function's name and arguments. This argument prevents it from
# returning sequences packed by another version of the code.
CODE = "".join(xxhash.xxh3_64_hexdigest(Path(file).read_bytes()) for file in (__file__, tokenization.__file__))
# google-research/electra, `build_pretraining_dataset.py`: a tenth of the examples have one segment, and one in twenty
# has a random length of at least this many tokens of text.
ONE_SEGMENT_SHARE, SHORT_SHARE, SHORTEST = 0.1, 0.05, 5
# Documents per packing batch, and size of a stream's shuffle buffer in sequences.
PACKED_TOGETHER, SHUFFLED_TOGETHER = 1000, 10_000
# Pieces of text per call of the tokenizer.
ENCODED_TOGETHER = 128
# A warning is logged if the share of padding exceeds this.
MUCH_PADDING = 0.3

# A tokenized document: the ids of each line, `np.ndarray` of shape (tokens,), int64.
Lines = list[np.ndarray]


def string_together(documents: list[Lines], cls: int, sep: int, length: int) -> dict[str, list[np.ndarray]]:
    """Concatenate documents, with a [SEP] after each, and cut them into `[CLS] text [SEP]` of `length` tokens.

    Returns:
        `input_ids`: one `int64` array per sequence. The last one may be shorter.
    """
    ended = [part for lines in documents if any(map(len, lines)) for part in (*lines, [sep])]
    # The [SEP] after the last document is the one that closes the last sequence.
    stream = np.concatenate(ended)[:-1].astype(np.int64) if ended else np.empty(0, dtype=np.int64)
    room = length - 2
    return {
        "input_ids": [np.concatenate([[cls], stream[at : at + room], [sep]]) for at in range(0, len(stream), room)]
    }


def two_segments(documents: list[Lines], cls: int, sep: int, length: int, seed: int) -> dict[str, list[np.ndarray]]:
    """Cut documents into `[CLS] A [SEP] B [SEP]` of at most `length` tokens, some of them `[CLS] A [SEP]`. Token types
    are 0 up to the first [SEP] and 1 after it.

    After google-research/electra, `build_pretraining_dataset.py`: A and B are consecutive parts of one document, and B
    starts at a line boundary next to the middle. Unlike there, no text is dropped (every token is in exactly one
    example), and without a line boundary the cut is in the middle. Random numbers depend on `seed` and the document
    only.

    Returns:
        `input_ids`, `int64`, and `token_type_ids`, `uint8`: one array per example.
    """
    examples = {"input_ids": [], "token_type_ids": []}
    for lines in documents:
        text = np.concatenate(lines) if lines else np.empty(0, dtype=np.int64)
        for start, cut, end in _cuts(text, list(itertools.accumulate(map(len, lines))), length, seed):
            second = [text[cut:end], [sep]] if cut < end else []
            ids = np.concatenate([[cls], text[start:cut], [sep], *second])
            types = np.zeros(len(ids), dtype=np.uint8)
            types[cut - start + 2 :] = 1
            examples["input_ids"].append(ids)
            examples["token_type_ids"].append(types)
    return examples


def _cuts(text: np.ndarray, line_ends: list[int], length: int, seed: int) -> Iterator[tuple[int, int, int]]:
    """For each example of a document: its start, the start of its second segment, and its end."""
    uniform = random.Random(seed << 32 | zlib.crc32(text.tobytes())).random
    start = 0
    while start < len(text):
        # All numbers are drawn every time, so that one decision does not affect the others.
        one, short, place, later = uniform() < ONE_SEGMENT_SHARE, uniform() < SHORT_SHARE, uniform(), uniform() < 0.5
        target = SHORTEST + int(place * (length - SHORTEST + 1)) if short else length
        end = min(start + target, start + length - (2 if one else 3), len(text))
        yield start, end if one else _middle(start, end, line_ends, later), end
        start = end


def _middle(start: int, end: int, line_ends: list[int], later: bool) -> int:
    """The first line boundary after the middle if `later`, else the last one up to it. Without one, the middle."""
    middle = start + (end - start + 1) // 2
    at = bisect_right(line_ends, middle) - (not later)
    found = line_ends[at] if 0 <= at < len(line_ends) else end
    return found if start < found < end else middle


@dataclass
class SplitCounts:
    """Counts of one split. `tokens` includes special tokens; `unknown` counts [UNK]."""

    documents: int = 0
    empty_documents: int = 0
    tokens: int = 0
    sequences: int = 0
    unknown: int = 0

    def __str__(self):
        return (
            f"{self.documents:,} documents ({self.empty_documents:,} empty) -> {self.tokens:,} tokens "
            f"({self.unknown / max(1, self.tokens):.2%} unknown) -> {self.sequences:,} sequences"
        )


@naming_cache_errors()
def pack(
    documents: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    num_proc: int | None = None,
    segments: str = "two",
    seed: int = 0,
) -> tuple[DatasetDict, dict[str, SplitCounts]]:
    """Tokenize and pack documents, every token into exactly one sequence. The result is cached by `datasets`; ids are
    stored in the smallest sufficient integer type.

    Args:
        documents: splits with a column `text`; `None` counts as empty.
        tokenizer: with [CLS], [SEP] and [PAD].
        max_seq_length: tokens per sequence, special tokens included.
        num_proc: number of processes; `None` for one per core.
        segments: "two" for `[CLS] A [SEP] B [SEP]` from one document, see [`packing.two_segments`]. "one" for
            `[CLS] text [SEP]` of `max_seq_length` tokens from concatenated documents with a [SEP] after each; the last
            sequence of every thousand documents may be shorter.
        seed: seed of "two".

    Returns:
        The packed splits with the columns `input_ids` and, for "two", `token_type_ids`; and the counts of each split.

    Raises:
        DataError: if a split has no text; if the tokenizer knows at most half of its tokens; if `max_seq_length` has
            no room for text; or if the cache cannot be written.
        WorkerError: if a process has died.
    """
    settings = _settings(tokenizer, max_seq_length, segments, seed) | {"code": CODE}
    packed, counts = DatasetDict(), {}
    for name, split in documents.items():
        workers = min(num_proc or os.cpu_count(), max(1, len(split) // PACKED_TOGETHER))
        start = time.perf_counter()
        with naming_dead_workers("--num_proc"):
            packed[name] = split.map(
                _pack_batch,
                batched=True,
                batch_size=PACKED_TOGETHER,
                remove_columns=split.column_names,
                fn_kwargs=settings,
                features=packed_features(tokenizer, segments),
                num_proc=workers if workers > 1 else None,
                desc=f"packing {name}",
            )
        seconds = time.perf_counter() - start
        ids = token_counts(packed[name], vocabulary_size(tokenizer))
        counts[name] = _count(split, packed[name], int(ids[_unknown_id(tokenizer)].sum()))
        size = _text_bytes(split) / 1e6
        logger.info(f"{name}: {counts[name]}; {size:.1f} MB of text in {seconds:.1f} s ({size / seconds:.1f} MB/s)")
        if counts[name].tokens == 0:
            raise DataError(f"the {name} split holds no text: {counts[name]}")
        check_known(ids, tokenizer, split, name)
        padding = 1 - counts[name].tokens / (counts[name].sequences * max_seq_length)
        if segments == "two" and padding > MUCH_PADDING and len(packed[name]) > 1:
            logger.warning(
                f"{name}: {padding:.0%} of the positions will be padding, because documents are short and do not "
                "share sequences; use --segments one to concatenate them, or --sample_by for longer ones from .txt "
                "files"
            )
    return packed, counts


def _settings(tokenizer, max_seq_length: int, segments: str, seed: int) -> dict:
    """Arguments of [`_pack_batch`].

    Raises:
        DataError: for an unknown value of `segments`, or a `max_seq_length` without room for text.
    """
    if segments not in SEGMENTS:
        raise DataError(f"--segments must be one of {', '.join(SEGMENTS)}, got {segments}")
    least, example = (
        (5, "[CLS], a token, [SEP], a token, [SEP]") if segments == "two" else (3, "[CLS], a token, [SEP]")
    )
    if max_seq_length < least:
        raise DataError(f"--max_seq_length must be at least {least} ({example}), got {max_seq_length}")
    return {"tokenizer": tokenizer, "max_seq_length": max_seq_length, "segments": segments, "seed": seed}


def check_known(counts: np.ndarray, tokenizer: PreTrainedTokenizerBase, documents: Iterable[dict], name: str) -> None:
    """Check that the tokenizer knows most of the text. Special tokens, including [UNK], are never replaced.

    Args:
        counts (`np.ndarray` of shape `(vocabulary,)`): frequency of each id in the packed split.
        tokenizer: the tokenizer of the split.
        documents: the documents of the split, with `text`; read only for the message.
        name: name of the split.

    Raises:
        DataError: if at most half of the text's tokens are known.
    """
    around = list({tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id})
    text = counts.sum() - counts[around].sum()
    known = counts.sum() - counts[tokenizer.all_special_ids].sum()
    if known > text / 2:
        return
    letters = script_of((document["text"] or "")[:1000] for document in itertools.islice(documents, 100))
    which = f"`{tokenizer.name_or_path}`" if tokenizer.name_or_path else "trained here"
    remedy = "choose another --tokenizer_name, or omit it" if tokenizer.name_or_path else "increase --vocab_size"
    raise DataError(
        f"the tokenizer {which} does not know the {name} split, whose letters are mostly {letters or 'none'}: "
        f"{1 - known / max(1, text):.1%} of the tokens are [UNK], which is never replaced; {remedy}"
    )


def _unknown_id(tokenizer) -> list[int]:
    return [] if tokenizer.unk_token_id is None else [tokenizer.unk_token_id]


def packed_features(tokenizer: PreTrainedTokenizerBase, segments: str = "two") -> Features:
    """Columns and types of packed sequences."""
    ids = {"input_ids": SequenceFeature(Value(id_dtype(vocabulary_size(tokenizer))))}
    types = {"token_type_ids": SequenceFeature(Value("uint8"))}
    return Features(ids | types if segments == "two" else ids)


def _pack_batch(
    batch: dict[str, list], tokenizer, max_seq_length: int, segments: str, seed: int, code: str = ""
) -> dict[str, list[np.ndarray]]:
    texts = [text for text in batch["text"] if text and not text.isspace()]
    # Line boundaries matter only for the start of a second segment.
    lines = [text.splitlines(keepends=True) if segments == "two" else [text] for text in texts]
    encoded = iter(_encode(list(itertools.chain.from_iterable(lines)), tokenizer))
    documents = [list(itertools.islice(encoded, len(own))) for own in lines]
    special = tokenizer.cls_token_id, tokenizer.sep_token_id
    if segments == "two":
        return two_segments(documents, *special, max_seq_length, seed)
    return string_together(documents, *special, max_seq_length)


def _encode(texts: list[str], tokenizer) -> list[np.ndarray]:
    """The ids of each text, `np.ndarray` of shape (tokens,), int64. Texts are encoded in small batches, because a
    tokenizer's output takes hundreds of bytes per token."""
    cut = [list(pieces([text])) for text in texts]
    parts, ids = list(itertools.chain.from_iterable(cut)), []
    for first in range(0, len(parts), ENCODED_TOGETHER):
        ids += _ids_of(parts[first : first + ENCODED_TOGETHER], tokenizer)
    following = iter(ids)
    return [
        np.fromiter(itertools.chain.from_iterable(itertools.islice(following, len(own))), dtype=np.int64)
        for own in cut
    ]


def _ids_of(parts: list[str], tokenizer) -> list[list[int]]:
    if not tokenizer.is_fast:
        return tokenizer(parts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    # Calls the Rust tokenizer directly: Transformers also builds lists of offsets, which dominates for short lines.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(parts, add_special_tokens=False)]


def _count(documents: Dataset, packed: Dataset, unknown: int) -> SplitCounts:
    empty = sum(not text or text.isspace() for text in _texts(documents))
    return SplitCounts(len(documents), empty, count_tokens(packed), len(packed), unknown)


def _text_bytes(documents: Dataset) -> int:
    """Size of the texts in UTF-8, in bytes."""
    sizes = (
        pyarrow.compute.sum(pyarrow.compute.binary_length(batch.column("text"))).as_py()
        for batch in documents.with_format("arrow").iter(1000)
        if not pyarrow.types.is_null(batch.schema.field("text").type)
    )
    return sum(size or 0 for size in sizes)


def _texts(documents: Dataset) -> Iterator[str | None]:
    for batch in documents.iter(1000):
        yield from batch["text"]
