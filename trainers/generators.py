"""Generators that run in the data collator: they propose replacements and cost the training step nothing.

`generator_type` in the config names one.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import pyarrow.compute
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from modeling_electra_exit import ElectraEarlyExitConfig


class Replacements(Protocol):
    """What the collator asks for replacements."""

    def __call__(self, row: np.ndarray, positions: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Replacements for `row[positions]`.

        Args:
            row (`int64` array of shape `(tokens,)`): one sequence with its special tokens, uncorrupted.
            positions (`int64` array of shape `(replaced,)`): where to replace; never a special token.
            generator (`np.random.Generator`): the only source of chance, so that a resumed run repeats it.

        Returns:
            `int64` array of shape `(replaced,)`. A replacement may equal the original; it then counts as original.
        """


class TokenDistribution:
    """Draws replacements from one distribution, whatever the context.

    Args:
        weights (`np.ndarray` of shape `(vocab_size,)`): at least 0 each, not all 0; need not sum to 1.
    """

    def __init__(self, weights: np.ndarray):
        if not weights.sum() > 0:
            raise ValueError("no token has a weight above 0, so there is nothing to draw")
        self.cumulative = np.cumsum(weights / weights.sum())

    def __call__(self, row, positions, generator):
        # Scaled by the last entry, because rounding leaves the sum of the probabilities beside 1.
        drawn = generator.random(len(positions)) * self.cumulative[-1]
        return np.searchsorted(self.cumulative, drawn, side="right")


def uniform(config: ElectraEarlyExitConfig, counts: np.ndarray) -> TokenDistribution:
    """Every token of the training text alike."""
    return TokenDistribution((counts > 0).astype(float))


def unigram(config: ElectraEarlyExitConfig, counts: np.ndarray) -> TokenDistribution:
    """Every token in proportion to its count in the training text, to the power of `config.generator_alpha`."""
    return TokenDistribution(np.where(counts > 0, counts.astype(float) ** config.generator_alpha, 0.0))


# name -> function(config, how often each id of the vocabulary is in the training text, special ids 0) -> Replacements
GENERATORS: dict[str, Callable[[ElectraEarlyExitConfig, np.ndarray], Replacements]] = {
    "uniform": uniform,
    "unigram": unigram,
}


def build_replacements(
    config: ElectraEarlyExitConfig, sequences: Dataset, tokenizer: PreTrainedTokenizerBase
) -> Replacements | None:
    """The generator that `config` names, for packed `sequences`; `None` where it does not run in the collator."""
    if config.generator_type not in GENERATORS:
        return None
    counts = token_counts(sequences, config.vocab_size)
    counts[tokenizer.all_special_ids] = 0
    return GENERATORS[config.generator_type](config, counts)


def token_counts(sequences: Dataset, vocab_size: int) -> np.ndarray:
    """How often each id is in the column `input_ids`, as an `int64` array of shape `(vocab_size,)`."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for chunk in sequences.with_format("arrow").iter(10_000):
        counts += np.bincount(pyarrow.compute.list_flatten(chunk.column("input_ids")).to_numpy(), minlength=vocab_size)
    return counts
