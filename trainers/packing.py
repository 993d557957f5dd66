"""From the token ids of documents to sequences: two segments of one document each, or documents strung together."""

import random
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import numpy as np


SEGMENTS = ("two", "one")
# google-research/electra, `build_pretraining_dataset.py`: a tenth of the examples has one segment, and one in twenty a
# random length, from this many tokens of text up.
ONE_SEGMENT_SHARE, SHORT_SHARE, SHORTEST = 0.1, 0.05, 5

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
        for start, cut, end in _cuts(text, list(accumulate(map(len, lines))), length, seed):
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
