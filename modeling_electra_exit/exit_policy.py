"""Who continues and who exits: pure tensor functions, free of parameters, labels and model state.

Nothing in this file ever sees a label. A token that is kept *because* it was wrong would tell the deep layers its
label, so a policy may look at what the model predicts and at random numbers, and at nothing else.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch


# Capacities are multiples of this many tokens, so that shapes are few, static and friendly to matrix units.
CAPACITY_MULTIPLE = 16


def binary_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy, in nats, of the Bernoulli distribution with the given logits.

    Args:
        logits (`torch.Tensor`): any shape, any floating dtype.

    Returns:
        `torch.Tensor`: the same shape, fp32, between 0 and ln 2.
    """
    logits = logits.float()
    # H(p) = softplus(x) - x * sigmoid(x): finite for every finite logit, where p * log(p) is not.
    return torch.nn.functional.softplus(logits) - logits * torch.sigmoid(logits)


def entropy_signal(logits: torch.Tensor) -> torch.Tensor:
    """Rank by entropy: the least certain tokens continue. Shapes as in [`binary_entropy`]."""
    return binary_entropy(logits)


def sampled_entropy_signal(logits: torch.Tensor) -> torch.Tensor:
    """Sample without replacement, in proportion to entropy.

    The k largest of `log w + g`, with independent standard Gumbel noise `g`, are a sample of k items drawn one after
    the other with probabilities proportional to the weights w of those that remain (the Gumbel-top-k trick, Kool et
    al., 2019, arXiv 1903.06059). Every token keeps some chance to continue, so that deep layers are starved of none.
    """
    gumbel = -torch.empty_like(logits, dtype=torch.float32).exponential_().log()
    return binary_entropy(logits).clamp_min(1e-9).log() + gumbel


# How the "budget" policy ranks tokens: name -> function of the exit logits (batch, tokens), larger means "continue".
SIGNALS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "entropy": entropy_signal,
    "sampled_entropy": sampled_entropy_signal,
}


def budget_policy(logits: torch.Tensor, signal: str) -> torch.Tensor:
    """Rank by what the exit head is unsure of, as `signal` (a key of [`SIGNALS`]) says."""
    return SIGNALS[signal](logits)


def random_policy(logits: torch.Tensor, signal: str) -> torch.Tensor:
    """Rank at random (random-LTD, Yao et al., 2022, arXiv 2211.11586): the control every other policy has to beat."""
    return torch.rand_like(logits, dtype=torch.float32)


# The policies that drop tokens: name -> function(exit logits (batch, tokens), signal) -> scores (batch, tokens).
# "none" is legal in a config too and never gets here.
POLICIES: dict[str, Callable[[torch.Tensor, str], torch.Tensor]] = {
    "budget": budget_policy,
    "random": random_policy,
}


def capacity(keep: float, sequence_length: int) -> int:
    """Number of tokens of a sequence that continue: `keep * sequence_length`, rounded up to [`CAPACITY_MULTIPLE`].

    Args:
        keep (`float`): share of the sequence, in (0, 1].
        sequence_length (`int`): tokens in the sequence before any exit, padding included.

    Returns:
        `int`: between 1 and `sequence_length`.
    """
    # The tiny tolerance keeps 0.1 * 160 = 16.000000000000004 from costing another 16 tokens.
    multiples = math.ceil(keep * sequence_length / CAPACITY_MULTIPLE - 1e-9)
    return min(sequence_length, max(1, multiples) * CAPACITY_MULTIPLE)


class Selection(NamedTuple):
    """What [`select`] decided, for `tokens` candidates a row of which `num_kept` continue.

    order (`torch.LongTensor` of shape `(batch, tokens)`): a permutation of the candidates: those that continue first,
        then those that exit, each group in the order of the text.
    audit (`torch.BoolTensor` of shape `(batch, num_kept)`): which of those that continue were drawn at random, and so
        are an unbiased sample of the candidates that the score alone would have let go.
    """

    order: torch.Tensor
    audit: torch.Tensor


def select(
    scores: torch.Tensor,
    num_kept: int,
    protected: torch.Tensor | None = None,
    padding: torch.Tensor | None = None,
    audit_fraction: float = 0.0,
) -> Selection:
    """Choose the `num_kept` tokens of every row that continue.

    Protected tokens come first, then the highest scores, then the audit sample; padding comes last, and continues only
    where a row has fewer real tokens than places (shapes stay static).

    Args:
        scores (`torch.Tensor` of shape `(batch, tokens)`): finite; larger means "continue".
        num_kept (`int`): between 1 and `tokens`.
        protected (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*): tokens that must continue.
        padding (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*): tokens that must exit first.
        audit_fraction (`float`): share of the places, in [0, 1], that goes to tokens drawn uniformly at random from
            those the scores did not choose.

    Raises:
        ValueError: if `num_kept` is not between 1 and the number of tokens.
    """
    tokens = scores.shape[1]
    if not 1 <= num_kept <= tokens:
        raise ValueError(f"num_kept must be between 1 and the number of tokens ({tokens}), got {num_kept}")
    scores = scores.float()
    if protected is not None:
        scores = scores.masked_fill(protected, torch.inf)
    if padding is not None:
        scores = scores.masked_fill(padding, -torch.inf)

    num_audit = round(audit_fraction * num_kept)
    audited = kept = torch.zeros_like(scores, dtype=torch.bool)
    if num_audit < num_kept:
        kept = kept.scatter(1, scores.topk(num_kept - num_audit, dim=1).indices, True)
    if num_audit > 0:
        lottery = torch.rand_like(scores)
        if protected is not None:  # with many special tokens and a large audit share, some may still be waiting here
            lottery = lottery.masked_fill(protected, torch.inf)
        if padding is not None:
            lottery = lottery - padding.float()  # below every real token, above those already kept
        lottery = lottery.masked_fill(kept, -torch.inf)
        audited = audited.scatter(1, lottery.topk(num_audit, dim=1).indices, True)
    # A stable sort of "exits" puts those that continue first and leaves both groups in the order of the text.
    order = torch.argsort((~(kept | audited)).to(torch.uint8), dim=1, stable=True)
    return Selection(order, audited.gather(1, order[:, :num_kept]))
