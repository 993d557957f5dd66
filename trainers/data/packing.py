"""From the token ids of documents to sequences: two segments of one document each, or documents strung together."""

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
# The cache of `datasets` knows a call by the function's name and arguments. Without this argument, sequences that an
# earlier version packed would be taken for those of this one.
CODE = "".join(xxhash.xxh3_64_hexdigest(Path(file).read_bytes()) for file in (__file__, tokenization.__file__))
# google-research/electra, `build_pretraining_dataset.py`: a tenth of the examples has one segment, and one in twenty a
# random length, from this many tokens of text up.
ONE_SEGMENT_SHARE, SHORT_SHARE, SHORTEST = 0.1, 0.05, 5
# Documents that are packed together, and sequences of a stream among which chance chooses the next.
PACKED_TOGETHER, SHUFFLED_TOGETHER = 1000, 10_000
# Pieces of text that a tokenizer is given at once.
ENCODED_TOGETHER = 128
# Padding above this share is told to the user.
MUCH_PADDING = 0.3

# What a document is tokenised to: the ids of each of its lines, `np.ndarray` of shape (tokens,), int64.
Lines = list[np.ndarray]


def string_together(documents: list[Lines], cls: int, sep: int, length: int) -> dict[str, list[np.ndarray]]:
    """`[CLS] text [SEP]` of `length` tokens, cut from documents with a [SEP] after each; the last may be shorter."""
    ended = [part for lines in documents if any(map(len, lines)) for part in (*lines, [sep])]
    # The last document's own [SEP] is the one that closes its sequence.
    stream = np.concatenate(ended)[:-1].astype(np.int64) if ended else np.empty(0, dtype=np.int64)
    room = length - 2
    return {
        "input_ids": [np.concatenate([[cls], stream[at : at + room], [sep]]) for at in range(0, len(stream), room)]
    }


def two_segments(documents: list[Lines], cls: int, sep: int, length: int, seed: int) -> dict[str, list[np.ndarray]]:
    """`[CLS] A [SEP] B [SEP]` of at most `length` tokens, with types 0 up to the first [SEP] and 1 after it; some are
    `[CLS] A [SEP]`.

    After google-research/electra, `build_pretraining_dataset.py`: A and B follow each other in one document, and B
    begins with a line, the last or the first around the middle. Unlike there, nothing is left out of an example (every
    token is in exactly one), and where no line ends the cut is in the middle. Chance comes from `seed` and the
    document alone.
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
    """Where each example of a document begins, where its second segment does, and where it ends."""
    chance = random.Random(seed << 32 | zlib.crc32(text.tobytes())).random
    start = 0
    while start < len(text):
        # All are drawn every time, so that one decision does not move the others.
        one, short, place, later = chance() < ONE_SEGMENT_SHARE, chance() < SHORT_SHARE, chance(), chance() < 0.5
        wanted = SHORTEST + int(place * (length - SHORTEST + 1)) if short else length
        end = min(start + wanted, start + length - (2 if one else 3), len(text))
        yield start, end if one else _middle(start, end, line_ends, later), end
        start = end


def _middle(start: int, end: int, line_ends: list[int], later: bool) -> int:
    """The first end of a line after the middle, or the last one up to it; the middle where there is none."""
    middle = start + (end - start + 1) // 2
    at = bisect_right(line_ends, middle) - (not later)
    found = line_ends[at] if 0 <= at < len(line_ends) else end
    return found if start < found < end else middle


@dataclass
class SplitCounts:
    """What became of the documents of one split. `tokens` are all, special ones included; `unknown` those for which
    the tokenizer has no other id than [UNK]'s."""

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
    """Tokenise and pack, every token into exactly one sequence. The result is cached by `datasets`; ids are stored in
    the smallest integer type that holds them.

    Args:
        documents: splits with a column `text`; `None` counts as empty.
        num_proc: processes; `None` for one a core.
        segments: "two" makes `[CLS] A [SEP] B [SEP]` of one document, as [`packing.two_segments`] says. "one" strings
            documents together, a [SEP] after each, and cuts that into `[CLS] text [SEP]` of `max_seq_length` tokens;
            the last one of every thousand documents may be shorter.
        seed: of the chance in the former.

    Returns:
        The splits, and the counts of each. Their columns are `input_ids` and, with two segments, `token_type_ids`.

    Raises:
        DataError: if a split holds no tokens, or hardly any that the tokenizer knows, or `max_seq_length` leaves no
            room between the special tokens.
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
                f"{name}: {padding:.0%} of the positions will be padding, as documents are short and do not share a "
                "sequence; --segments one strings them together, or --sample_by makes longer ones of a .txt file"
            )
    return packed, counts


def _settings(tokenizer, max_seq_length: int, segments: str, seed: int) -> dict:
    """What [`_pack_batch`] wants to be told.

    Raises:
        DataError: for sequences without room.
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
    """Refuse text that the tokenizer does not know: special tokens, [UNK] among them, are never replaced.

    Args:
        counts (`np.ndarray` of shape `(vocabulary,)`): how often each id is in the packed split.
        documents: of the split, with `text`; read for the message only.

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
    remedy = "choose another --tokenizer_name, or leave it out" if tokenizer.name_or_path else "raise --vocab_size"
    raise DataError(
        f"the tokenizer {which} does not know the {name} split, whose letters are mostly {letters or 'none'}: "
        f"{1 - known / max(1, text):.1%} of the tokens are [UNK], which is never replaced; {remedy}"
    )


def _unknown_id(tokenizer) -> list[int]:
    return [] if tokenizer.unk_token_id is None else [tokenizer.unk_token_id]


def packed_features(tokenizer: PreTrainedTokenizerBase, segments: str = "two") -> Features:
    """What packed sequences are stored as."""
    ids = {"input_ids": SequenceFeature(Value(id_dtype(vocabulary_size(tokenizer))))}
    types = {"token_type_ids": SequenceFeature(Value("uint8"))}
    return Features(ids | types if segments == "two" else ids)


def _pack_batch(
    batch: dict[str, list], tokenizer, max_seq_length: int, segments: str, seed: int, code: str = ""
) -> dict[str, list[np.ndarray]]:
    texts = [text for text in batch["text"] if text and not text.isspace()]
    # Only where a segment may begin does it matter where a line does.
    lines = [text.splitlines(keepends=True) if segments == "two" else [text] for text in texts]
    encoded = iter(_encode(list(itertools.chain.from_iterable(lines)), tokenizer))
    documents = [list(itertools.islice(encoded, len(own))) for own in lines]
    special = tokenizer.cls_token_id, tokenizer.sep_token_id
    if segments == "two":
        return two_segments(documents, *special, max_seq_length, seed)
    return string_together(documents, *special, max_seq_length)


def _encode(texts: list[str], tokenizer) -> list[np.ndarray]:
    """The ids of each text, `np.ndarray` of shape (tokens,), int64. Some pieces at a time: a tokenizer's notes on a
    token take hundreds of bytes."""
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
    # The Rust tokenizer itself: Transformers makes lists of offsets and more, which for short lines takes longer.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(parts, add_special_tokens=False)]


def _count(documents: Dataset, packed: Dataset, unknown: int) -> SplitCounts:
    empty = sum(not text or text.isspace() for text in _texts(documents))
    return SplitCounts(len(documents), empty, count_tokens(packed), len(packed), unknown)


def _text_bytes(documents: Dataset) -> int:
    """The size of the texts in UTF-8."""
    sizes = (
        pyarrow.compute.sum(pyarrow.compute.binary_length(batch.column("text"))).as_py()
        for batch in documents.with_format("arrow").iter(1000)
        if not pyarrow.types.is_null(batch.schema.field("text").type)
    )
    return sum(size or 0 for size in sizes)


def _texts(documents: Dataset) -> Iterator[str | None]:
    for batch in documents.iter(1000):
        yield from batch["text"]
