"""Generators based on statistics of the training text."""

import numpy as np
import scipy.sparse
from datasets import Dataset

from ..data.sequences import read_ids
from .base import GeneratorContext, Replacements


class TokenDistribution(Replacements):
    """Draws replacements from a fixed distribution, independent of the context.

    Args:
        weights (`np.ndarray` of shape `(vocab_size,)`): at least 0 each, not all 0; need not sum to 1.

    Raises:
        ValueError: if all weights are 0.
    """

    def __init__(self, weights: np.ndarray):
        if not weights.sum() > 0:
            raise ValueError("no token has a weight above 0, so none can be drawn")
        self.cumulative = np.cumsum(weights / weights.sum())

    def __call__(self, row, positions, generator, **columns):
        # Scaled by the last entry, because the sum of the probabilities differs from 1 by rounding.
        drawn = generator.random(len(positions)) * self.cumulative[-1]
        return np.searchsorted(self.cumulative, drawn, side="right")


def uniform(context: GeneratorContext) -> TokenDistribution:
    """The generator "uniform": all tokens of the training text have the same probability."""
    return TokenDistribution((context.counts > 0).astype(float))


def unigram(context: GeneratorContext) -> TokenDistribution:
    """The generator "unigram": probabilities are proportional to the token counts in the training text, raised to the
    power `config.generator_alpha`."""
    counts = context.counts.astype(float)
    return TokenDistribution(np.where(counts > 0, counts**context.config.generator_alpha, 0.0))


class Bigram(Replacements):
    """Draws each replacement given the original token to its left, with absolute discounting (Ney et al., 1994).

    P(w | v) = max(c(v, w) - d, 0) / c(v) + d n(v) / c(v) P(w), where c counts pairs of neighbors, n(v) is the number
    of distinct tokens that follow v, d is [`DISCOUNT`], and P(w) is the distribution of `unigram`, which receives the
    discounted mass. After special tokens and tokens without successors, the probability is P(w).

    Sampling is exact and needs only nonzero counts: it first decides whether to back off, and otherwise draws among
    the successors of v by inverting the cumulative distribution.
    """

    DISCOUNT = 0.75

    def __init__(self, context: GeneratorContext):
        pairs = bigram_counts(context.sequences, context.config.vocab_size, context.tokenizer.all_special_ids)
        followed = np.asarray(pairs.sum(axis=1)).ravel()
        successors = np.diff(pairs.indptr)
        self.back_off = np.where(followed > 0, self.DISCOUNT * successors / np.maximum(followed, 1), 1.0)
        self.unigram = unigram(context)
        # One array for all rows; within a row it increases by the discounted counts.
        self.cumulative = np.concatenate([[0.0], np.cumsum(pairs.data - self.DISCOUNT)])
        self.starts, self.successors = pairs.indptr, pairs.indices

    def __call__(self, row, positions, generator, **columns):
        left = row[positions - 1]
        replacements = self.unigram(row, positions, generator)
        drawn = generator.random((2, len(positions)))
        counted = np.flatnonzero(drawn[0] >= self.back_off[left])
        low, high = self.cumulative[self.starts[left[counted]]], self.cumulative[self.starts[left[counted] + 1]]
        found = np.searchsorted(self.cumulative, low + drawn[1, counted] * (high - low), side="right") - 1
        # Rounding may reach the next row's first pair.
        replacements[counted] = self.successors[np.minimum(found, self.starts[left[counted] + 1] - 1)]
        return replacements


class Shuffle(Replacements):
    """Permutes the chosen tokens of a sequence along one random cycle, so that every chosen token moves.

    Tokens are permuted within the sequence, not the batch. The corruption of a sequence therefore does not depend on
    its batch, process or worker, and tokens of the same text are harder to detect.
    """

    def __init__(self, context: GeneratorContext):
        pass

    def __call__(self, row, positions, generator, **columns):
        cycle = generator.permutation(len(positions))
        replacements = np.empty(len(positions), dtype=np.int64)
        replacements[cycle] = row[positions[np.roll(cycle, 1)]]
        return replacements


def bigram_counts(sequences: Dataset, vocab_size: int, special_ids: list[int]) -> scipy.sparse.csr_matrix:
    """Counts of adjacent pairs within sequences, `int64` of shape `(vocab_size, vocab_size)`: rows are first tokens,
    columns second ones. Pairs with a special token are not counted."""
    special = np.zeros(vocab_size, dtype=bool)
    special[special_ids] = True
    total = scipy.sparse.csr_matrix((vocab_size, vocab_size), dtype=np.int64)
    for ids, lengths in read_ids(sequences, 100_000):
        ids, ends = ids.astype(np.int32), np.cumsum(lengths)
        counted = ~(special[ids[:-1]] | special[ids[1:]])
        counted[ends[:-1] - 1] = False  # pairs across sequences
        pairs = (ids[:-1][counted], ids[1:][counted])
        total += scipy.sparse.coo_matrix((np.ones(len(pairs[0]), np.int64), pairs), total.shape).tocsr()
    return total
