"""A start from the corpus's own statistics, so that a small model does not spend its tokens on a plateau.

A small ELECTRA from random weights predicts only the base rate for millions of tokens: before it can gain anything it
has to find, all at once, which tokens go together, where its neighbours are, and how to compare the two. Much of that
is cheap to know beforehand. Nothing here changes the architecture; only the values that training starts from.
"""

import logging

import numpy as np
import scipy.sparse
import torch
from datasets import Dataset
from sklearn.utils.extmath import randomized_svd


logger = logging.getLogger(__name__)

WINDOW = 4
# Enough for stable counts, and a bound on the time this takes.
MAX_TOKENS = 20_000_000
# Wavelengths of the position embeddings run from 2 pi to this many times as much: short, so that neighbours differ.
POSITION_BASE = 100.0


def initialize_from_corpus(model, sequences: Dataset, special_ids: list[int], seed: int = 0) -> None:
    """Set what a model starts from, in place; every part keeps the spread of `config.initializer_range`.

    - Word embeddings: the leading singular vectors of the positive pointwise mutual information between tokens that
      stand at most four apart (Levy and Goldberg, 2014), so that tokens of the same contexts start close together.
      Special tokens, and those the text does not hold, start at 0.
    - Position embeddings: sinusoids (Vaswani et al., 2017), in which a shift is a rotation.
    - Queries equal keys in every layer, so that attention starts on tokens like the one that asks, in content and in
      position, instead of everywhere.

    Args:
        model ([`ElectraEarlyExitForPreTraining`]).
        sequences (`Dataset`): packed training sequences, column `input_ids`.
        special_ids (`list[int]`): tokens that stand for no text.
        seed (`int`): of the randomised singular value decomposition.
    """
    config, embeddings = model.config, model.electra.embeddings
    scale = config.initializer_range
    logger.info("counting which tokens stand together")
    vectors = cooccurrence_embeddings(sequences, config.vocab_size, config.embedding_size, special_ids, seed)
    with torch.no_grad():
        embeddings.word_embeddings.weight.copy_(torch.from_numpy(vectors * (scale / vectors.std())))
        positions = embeddings.position_embeddings.weight
        # A sinusoid's mean square is 1/2.
        positions.copy_(sinusoids(*positions.shape) * scale * 2**0.5)
        for layer in model.electra.encoder.layer:
            attention = layer.attention.self
            attention.key.weight.copy_(attention.query.weight)


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Sines, then cosines, of the position at geometrically falling frequencies; fp32 of shape `(length, width)`."""
    half = (width + 1) // 2
    angles = torch.arange(float(length))[:, None] * POSITION_BASE ** (-torch.arange(float(half)) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


def cooccurrence_embeddings(
    sequences: Dataset, vocab_size: int, width: int, special_ids: list[int], seed: int = 0
) -> np.ndarray:
    """Singular vectors of the positive pointwise mutual information, weighted by the root of the singular values.

    Pairs count 1/distance (as in GloVe); context frequencies are smoothed by the power 3/4 (Levy et al., 2015).

    Returns:
        `np.ndarray` of shape `(vocab_size, width)`, fp32; rows of zeros for ids that were not seen.
    """
    counts = _pair_counts(sequences, vocab_size, special_ids)
    rows = np.asarray(counts.sum(axis=1)).ravel()
    context = np.where(rows > 0, rows, 1.0) ** 0.75 * (rows > 0)
    counts = counts.tocoo()
    information = np.log(counts.data * context.sum() / (rows[counts.row] * context[counts.col]))
    positive = information > 0
    matrix = scipy.sparse.csr_matrix(
        (information[positive], (counts.row[positive], counts.col[positive])), shape=(vocab_size, vocab_size)
    )
    rank = min(width, vocab_size - 1)
    left, values, _ = randomized_svd(matrix, rank, n_iter=4, random_state=seed)
    vectors = np.zeros((vocab_size, width), dtype=np.float32)
    vectors[:, :rank] = left * np.sqrt(values)
    vectors[rows == 0] = 0  # the decomposition leaves rounding errors there
    return vectors


def _pair_counts(sequences: Dataset, vocab_size: int, special_ids: list[int]) -> scipy.sparse.csr_matrix:
    """Symmetric counts of pairs at most [`WINDOW`] apart in a sequence, each 1/distance; none with a special token."""
    total, tokens = scipy.sparse.csr_matrix((vocab_size, vocab_size)), 0
    for batch in sequences.with_format("numpy").iter(20_000):
        rows = batch["input_ids"]
        length = max(len(row) for row in rows)
        # -1 pads, and stands for special tokens, so that no pair reaches across the end of a document.
        ids = np.full((len(rows), length), -1, dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        tokens += int((ids >= 0).sum())
        ids[np.isin(ids, special_ids)] = -1
        for distance in range(1, min(WINDOW, length - 1) + 1):
            left, right = ids[:, :-distance].ravel(), ids[:, distance:].ravel()
            real = (left >= 0) & (right >= 0)
            weights = np.full(int(real.sum()), 1.0 / distance)
            total = (
                total
                + scipy.sparse.coo_matrix((weights, (left[real], right[real])), shape=(vocab_size, vocab_size)).tocsr()
            )
        if tokens >= MAX_TOKENS:
            break
    return (total + total.T).tocsr()
