"""Initialization from corpus statistics, which shortens the initial plateau of small models.

From random weights, a small ELECTRA predicts only the base rate for millions of tokens: it must learn at the same time
which tokens co-occur, where neighboring tokens are, and how to compare them. Much of that is cheap to compute in
advance. Only initial values change, not the architecture.
"""

import logging

import numpy as np
import scipy.sparse
import torch
from datasets import Dataset
from sklearn.utils.extmath import randomized_svd


logger = logging.getLogger(__name__)

WINDOW = 4
# Maximum number of tokens to count: enough for stable counts, and a bound on the time.
MAX_TOKENS = 20_000_000
# Wavelengths of the position embeddings range from 2 pi to 2 pi times this: short, so that neighbors differ.
POSITION_BASE = 100.0


def initialize_from_corpus(model, sequences: Dataset, special_ids: list[int], seed: int = 0) -> None:
    """Initialize a model in place from corpus statistics. All parts keep the scale of `config.initializer_range`.

    - Word embeddings: the leading singular vectors of the positive pointwise mutual information between tokens at most
      [`WINDOW`] positions apart (Levy and Goldberg, 2014), so that tokens with similar contexts start close together.
      Special tokens, and tokens that do not occur, start at 0.
    - Position embeddings: sinusoids (Vaswani et al., 2017), in which a shift is a rotation.
    - Query and key projections are equal in every layer, so that attention initially favors tokens with similar
      content and position instead of being uniform.

    Args:
        model ([`ElectraEarlyExitForPreTraining`]): the model to initialize.
        sequences (`Dataset`): packed training sequences, with the column `input_ids`.
        special_ids (`list[int]`): ids of special tokens.
        seed (`int`): seed of the randomized singular value decomposition.
    """
    config, embeddings = model.config, model.electra.embeddings
    scale = config.initializer_range
    logger.info("counting token co-occurrences")
    vectors = cooccurrence_embeddings(sequences, config.vocab_size, config.embedding_size, special_ids, seed)
    with torch.no_grad():
        embeddings.word_embeddings.weight.copy_(torch.from_numpy(vectors * (scale / vectors.std())))
        positions = embeddings.position_embeddings.weight
        # The mean square of a sinusoid is 1/2.
        positions.copy_(sinusoids(*positions.shape) * scale * 2**0.5)
        for layer in model.electra.encoder.layer:
            attention = layer.attention.self
            attention.key.weight.copy_(attention.query.weight)


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Sines, then cosines, of the position at geometrically decreasing frequencies; fp32, `(length, width)`."""
    half = (width + 1) // 2
    angles = torch.arange(float(length))[:, None] * POSITION_BASE ** (-torch.arange(float(half)) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


def cooccurrence_embeddings(
    sequences: Dataset, vocab_size: int, width: int, special_ids: list[int], seed: int = 0
) -> np.ndarray:
    """Singular vectors of the positive pointwise mutual information, weighted by the square root of the singular
    values.

    Pairs are weighted by 1/distance (as in GloVe). Context frequencies are smoothed by the power 3/4 (Levy et al.,
    2015).

    Returns:
        `np.ndarray` of shape `(vocab_size, width)`, fp32; rows of ids that do not occur are 0.
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
    vectors[rows == 0] = 0  # removes rounding errors of the decomposition
    return vectors


def _pair_counts(sequences: Dataset, vocab_size: int, special_ids: list[int]) -> scipy.sparse.csr_matrix:
    """Symmetric counts of pairs at most [`WINDOW`] apart in a sequence, weighted by 1/distance. Pairs with a special
    token are not counted."""
    total, tokens = scipy.sparse.csr_matrix((vocab_size, vocab_size)), 0
    for batch in sequences.with_format("numpy").iter(20_000):
        rows = batch["input_ids"]
        length = max(len(row) for row in rows)
        # -1 marks padding and special tokens, so that no pair crosses the end of a sequence.
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
