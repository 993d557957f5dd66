"""Turn labelled examples into model inputs."""

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
    """Tokenize examples and convert `labels` to training targets: regression values are shifted and scaled; a word's
    label is at its first token, with -100 at all others.

    Args:
        rows: output of [`labels.prepare`].
        task: the task of the examples.
        tokenizer: the model's tokenizer.
        max_length: in tokens; longer examples are truncated.

    Returns:
        A dataset with the tokenizer's columns and `labels`.
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
                f"dropped {lost:,} of {words:,} words: they are beyond {max_length} tokens, or have no tokens"
            )
    return found


def encode_words(batch: dict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict:
    """Tokenize lists of `words`. If the batch has `labels` of words, put each at the first token of its word."""
    found = tokenizer(batch["words"], is_split_into_words=True, truncation=True, max_length=max_length)
    if "labels" not in batch:
        return {**found}
    labels = []
    for row, (words, tags) in enumerate(zip(batch["words"], batch["labels"], strict=True)):
        places = pairwise([None, *word_numbers(tokenizer, found, row, words)])
        labels.append([-100 if word in (None, before) else tags[word] for before, word in places])
    return {**found, "labels": labels}


def word_numbers(tokenizer: PreTrainedTokenizerBase, encoded, row: int, words: list[str]) -> list[int | None]:
    """The index of each token's word, `None` for special tokens. Python tokenizers, such as the Japanese ones, do not
    report it, so it is derived by tokenizing each word on its own, as they do."""
    if tokenizer.is_fast:
        return encoded.word_ids(row)
    numbers = [number for number, word in enumerate(words) for _ in tokenizer.tokenize(word)]
    kept = len(encoded["input_ids"][row]) - tokenizer.num_special_tokens_to_add()
    numbers = numbers[:kept] if tokenizer.truncation_side == "right" else numbers[len(numbers) - kept :]
    # Pass negative numbers as ids, so that they differ from the ids of the special tokens that are added.
    places = tokenizer.build_inputs_with_special_tokens([-1 - number for number in numbers])
    return [-1 - place if place < 0 else None for place in places]


def collator_for(task: Task, tokenizer: PreTrainedTokenizerBase) -> Callable:
    """The collator that pads batches of the output of [`encode`]."""
    return (DataCollatorForTokenClassification if task.tags_words else DataCollatorWithPadding)(tokenizer)
