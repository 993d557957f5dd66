"""Labelled examples as a model reads them."""

import logging
from collections.abc import Callable
from itertools import pairwise

from datasets import Dataset
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding, PreTrainedTokenizerBase

from ..data.reading import naming_cache_errors
from .tasks import Task


logger = logging.getLogger(__name__)


@naming_cache_errors()
def encode(rows: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Examples as a model reads them, and `labels` as it learns them: a regression's shifted and scaled, a word's at
    its first token and -100 at all others.

    Args:
        rows: as [`examples.prepare`] gives them.
        max_length: in tokens; longer examples are cut.
    """
    texts = [name for name in rows.column_names if name != "labels"]

    def encoded(batch):
        if task.tags_words:
            return encode_words(batch, tokenizer, max_length)
        found = tokenizer(*(batch[name] for name in texts), truncation=True, max_length=max_length)
        if task.is_regression:
            found["labels"] = [(label - task.shift) / task.scale for label in batch["labels"]]
        return found

    found = rows.map(encoded, batched=True, remove_columns=texts, desc="tokenising")
    if task.tags_words:
        words = sum(map(len, rows["labels"]))
        if lost := words - sum(label != -100 for row in found["labels"] for label in row):
            logger.warning(
                f"{lost:,} of {words:,} words are left out: they are beyond {max_length} tokens, or have no token"
            )
    return found


def encode_words(batch: dict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict:
    """Lists of `words` as tokens, and where there are `labels` of words, these at the first token of each."""
    found = tokenizer(batch["words"], is_split_into_words=True, truncation=True, max_length=max_length)
    if "labels" not in batch:
        return {**found}
    labels = []
    for row, (words, tags) in enumerate(zip(batch["words"], batch["labels"], strict=True)):
        places = pairwise([None, *word_numbers(tokenizer, found, row, words)])
        labels.append([-100 if word in (None, before) else tags[word] for before, word in places])
    return {**found, "labels": labels}


def word_numbers(tokenizer: PreTrainedTokenizerBase, encoded, row: int, words: list[str]) -> list[int | None]:
    """Of which word each token of a row is, `None` for special tokens. Tokenizers that are written in Python, such as
    those with a Japanese analyser, do not say; they take the words one by one."""
    if tokenizer.is_fast:
        return encoded.word_ids(row)
    numbers = [number for number, word in enumerate(words) for _ in tokenizer.tokenize(word)]
    kept = len(encoded["input_ids"][row]) - tokenizer.num_special_tokens_to_add()
    numbers = numbers[:kept] if tokenizer.truncation_side == "right" else numbers[len(numbers) - kept :]
    # Numbers in the place of ids, of which those of special tokens are no list's own.
    places = tokenizer.build_inputs_with_special_tokens([-1 - number for number in numbers])
    return [-1 - place if place < 0 else None for place in places]


def collator_for(task: Task, tokenizer: PreTrainedTokenizerBase) -> Callable:
    """Pads a batch of what [`encode`] gives."""
    return (DataCollatorForTokenClassification if task.tags_words else DataCollatorWithPadding)(tokenizer)
