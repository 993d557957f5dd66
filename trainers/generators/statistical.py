"""Generators that need nothing but statistics of the training text."""

import numpy as np
import scipy.sparse
from datasets import Dataset

from ..data.sequences import read_ids
from .base import GeneratorContext, Replacements


class TokenDistribution(Replacements):
    """Draws replacements from one distribution, whatever the context.

    Args:
        weights (`np.ndarray` of shape `(vocab_size,)`): at least 0 each, not all 0; need not sum to 1.
    """

    def __init__(self, weights: np.ndarray):
        if not weights.sum() > 0:
            raise ValueError("no token has a weight above 0, so there is nothing to draw")
        self.cumulative = np.cumsum(weights / weights.sum())

    def __call__(self, row, positions, generator, **columns):
        # Scaled by the last entry, because rounding leaves the sum of the probabilities beside 1.
        drawn = generator.random(len(positions)) * self.cumulative[-1]
        return np.searchsorted(self.cumulative, drawn, side="right")


def uniform(context: GeneratorContext) -> TokenDistribution:
    """Every token of the training text alike."""
    return TokenDistribution((context.counts > 0).astype(float))


def unigram(context: GeneratorContext) -> TokenDistribution:
    """Every token in proportion to its count in the training text, to the power of `config.generator_alpha`."""
    counts = context.counts.astype(float)
    return TokenDistribution(np.where(counts > 0, counts**context.config.generator_alpha, 0.0))


class Bigram(Replacements):
    """Draws each replacement given the original token to its left, with absolute discounting (Ney et al., 1994).

    P(w | v) = max(c(v, w) - d, 0) / c(v) + d n(v) / c(v) P(w), where c counts pairs of neighbors, n(v) how many
    different tokens follow v, d is [`DISCOUNT`], and P(w) is `unigram`'s distribution: the mass taken from the counts
    is what backs off. After a special token, or one without successors, all of it does.

    Drawing is exact and takes only the counts that are not 0: first whether to back off, then, by the inverse of the
    cumulative distribution, among v's successors.
    """

    DISCOUNT = 0.75

    def __init__(self, context: GeneratorContext):
        pairs = bigram_counts(context.sequences, context.config.vocab_size, context.tokenizer.all_special_ids)
        followed = np.asarray(pairs.sum(axis=1)).ravel()
        successors = np.diff(pairs.indptr)
        self.back_off = np.where(followed > 0, self.DISCOUNT * successors / np.maximum(followed, 1), 1.0)
        self.unigram = unigram(context)
        # One array for all rows: within a row it rises by the discounted counts.
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
    """The chosen tokens of a sequence change places with each other, along one random cycle: none keeps its place.

    Within the sequence and not the batch: so the corruption of a sequence stays a function of that sequence, whatever
    batch, process or worker it lands in; and a token of the same text is harder to find than one of another.
    """

    def __init__(self, context: GeneratorContext):
        pass

    def __call__(self, row, positions, generator, **columns):
        cycle = generator.permutation(len(positions))
        replacements = np.empty(len(positions), dtype=np.int64)
        replacements[cycle] = row[positions[np.roll(cycle, 1)]]
        return replacements


def bigram_counts(sequences: Dataset, vocab_size: int, special_ids: list[int]) -> scipy.sparse.csr_matrix:
    """How often the second id follows the first within a sequence, `(vocab_size, vocab_size)`, in one pass over the
    data; no pair with a special token is counted."""
    special = np.zeros(vocab_size, dtype=bool)
    special[special_ids] = True
    total = scipy.sparse.csr_matrix((vocab_size, vocab_size), dtype=np.int64)
    for ids, lengths in read_ids(sequences, 100_000):
        ids, ends = ids.astype(np.int32), np.cumsum(lengths)
        counted = ~(special[ids[:-1]] | special[ids[1:]])
        counted[ends[:-1] - 1] = False  # from one sequence to the next
        pairs = (ids[:-1][counted], ids[1:][counted])
        total += scipy.sparse.coo_matrix((np.ones(len(pairs[0]), np.int64), pairs), total.shape).tocsr()
    return total
