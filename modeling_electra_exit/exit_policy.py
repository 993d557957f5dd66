"""Token exit policies for pre-training: pure tensor functions without parameters, labels or model state.

Policies never see labels. A token kept *because* it was misclassified would leak its label to the deep layers, so a
policy reads only the model's predictions ([`Evidence`]) and random numbers.

Register your own signal or policy before you create a config that names it:

    from modeling_electra_exit.exit_policy import SIGNALS
    SIGNALS["margin"] = lambda evidence: -evidence.logits.abs()
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch


# Capacities are multiples of this many tokens: few distinct static shapes, and aligned ones for matrix units.
CAPACITY_MULTIPLE = 8


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


def row_noise(seeds: torch.Tensor, length: int, streams: int) -> torch.Tensor:
    """Uniform noise that depends only on the seed of each row.

    A sequence therefore gets the same noise in every batch, process and device. The numbers are the outputs of
    SplitMix64 (Steele, Lea and Flood, 2014, doi 10.1145/2714064.2660195) at `length` consecutive counters per stream.

    Args:
        seeds (`torch.LongTensor` of shape `(batch,)`): one seed per row.
        length (`int`): numbers per stream. A shorter row is a prefix of a longer one.
        streams (`int`): number of independent streams per seed.

    Returns:
        `torch.FloatTensor` of shape `(batch, length, streams)`, fp32, in (0, 1).
    """
    places = torch.arange(1, length + 1, device=seeds.device).unsqueeze(1)
    # Bitwise, because Inductor folds sums and products of ranges into index expressions, which Triton computes in 32
    # bits.
    counters = places | (torch.arange(streams, device=seeds.device) << 32)
    # Multiplications wrap around, as intended. Right shifts are arithmetic; the masks clear the sign bits.
    state = seeds[:, None, None] + counters * -0x61C8864680B583EB
    state = (state ^ ((state >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    state = (state ^ ((state >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    state = state ^ ((state >> 31) & 0x1FFFFFFFF)
    return (((state >> 41) & 0x7FFFFF).float() + 0.5) / 2**23


def gumbel(uniform: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise from uniform noise in (0, 1); same shape, fp32."""
    return -(-uniform.float().log()).log()


class Evidence(NamedTuple):
    """Inputs of a policy for the tokens still in the encoder. All fields have shape `(batch, tokens)` and no gradient.

    logits (`torch.FloatTensor`): the exit head's logits of "this token was replaced".
    gain (`torch.FloatTensor`, *optional*): predicted decrease of the loss from this exit head to the final one, in
        nats.
    protected, padding (`torch.BoolTensor`, *optional*): tokens that must continue, and tokens that must exit first.
    noise (`torch.FloatTensor`, *optional*): uniform in (0, 1), from the sequences' seeds; policies call [`uniform`].
    """

    logits: torch.Tensor
    gain: torch.Tensor | None = None
    protected: torch.Tensor | None = None
    padding: torch.Tensor | None = None
    noise: torch.Tensor | None = None

    def uniform(self) -> torch.Tensor:
        """The policy's random numbers, uniform in (0, 1), `(batch, tokens)`, fp32: `noise`, or else fresh ones."""
        if self.noise is not None:
            return self.noise
        return torch.rand_like(self.logits, dtype=torch.float32).clamp(1e-7, 1 - 1e-7)


def entropy_signal(evidence: Evidence) -> torch.Tensor:
    """Rank by entropy: the least certain tokens continue."""
    return binary_entropy(evidence.logits)


def sampled_entropy_signal(evidence: Evidence) -> torch.Tensor:
    """Sample without replacement, in proportion to entropy.

    The k largest values of `log w + g`, with independent standard Gumbel noise `g`, are a sample of k items drawn one
    by one with probabilities proportional to the weights w of the remaining items (the Gumbel-top-k trick, Kool et
    al., 2019, arXiv 1903.06059). Every token may continue, so deep layers are trained on all kinds of tokens.
    """
    return binary_entropy(evidence.logits).clamp_min(1e-9).log() + gumbel(evidence.uniform())


def expected_gain_signal(evidence: Evidence) -> torch.Tensor:
    """Rank by predicted gain: tokens whose loss deeper layers can lower continue, easy and hopeless ones exit."""
    return evidence.gain.float()


# Signals of the "topk" policy: name -> function(Evidence) -> scores (batch, tokens). The largest scores continue.
SIGNALS: dict[str, Callable[[Evidence], torch.Tensor]] = {
    "entropy": entropy_signal,
    "sampled_entropy": sampled_entropy_signal,
    "expected_gain": expected_gain_signal,
}


class Ranking(NamedTuple):
    """A policy's ranking of the tokens still in the encoder.

    scores (`torch.FloatTensor` of shape `(batch, tokens)`): finite; the largest continue.
    num_kept (`int`): number of tokens of each row that continue.
    """

    scores: torch.Tensor
    num_kept: int


def topk_policy(evidence: Evidence, num_kept: int, config) -> Ranking:
    """Keep `num_kept` tokens, ranked by `config.exit_signal`."""
    return Ranking(SIGNALS[config.exit_signal](evidence), num_kept)


def random_policy(evidence: Evidence, num_kept: int, config) -> Ranking:
    """Keep `num_kept` tokens drawn uniformly (random-LTD, Yao et al., 2022, arXiv 2211.11586). The control for every
    other policy."""
    return Ranking(evidence.uniform(), num_kept)


def entropy_excess(evidence: Evidence, config) -> torch.Tensor:
    """Entropy less `config.exit_entropy_threshold`, in nats, `(batch, tokens)`. A pair of thresholds applies to tokens
    predicted to be original and replaced, respectively."""
    threshold = config.exit_entropy_threshold
    original, replaced = threshold if isinstance(threshold, list | tuple) else (threshold, threshold)
    return binary_entropy(evidence.logits) - torch.where(evidence.logits > 0, replaced, original)


def above_threshold(evidence: Evidence, config) -> torch.Tensor:
    """Mask of the tokens that continue under a threshold, `(batch, tokens)`: uncertain and protected tokens, but never
    padding."""
    continues = entropy_excess(evidence, config) > 0
    if evidence.protected is not None:
        continues = continues | evidence.protected
    if evidence.padding is not None:
        continues = continues & ~evidence.padding
    return continues


def threshold_policy(evidence: Evidence, num_kept: int, config) -> Ranking:
    """Keep all tokens that are [`above_threshold`].

    Every row keeps the same number: the maximum over the batch, rounded up to a multiple of [`CAPACITY_MULTIPLE`]. It
    depends on the data, so each exit costs one host-device synchronization.
    """
    needed = int(above_threshold(evidence, config).sum(dim=1).max())
    # Ranked by the excess, so that free places go to the tokens closest to the threshold.
    return Ranking(entropy_excess(evidence, config), min(round_up(needed), evidence.logits.shape[1]))


# Policies that drop tokens: name -> function(Evidence, num_kept of the capacity, config) -> Ranking. A config also
# accepts "none", which needs no function.
POLICIES: dict[str, Callable[..., Ranking]] = {
    "topk": topk_policy,
    "random": random_policy,
    "threshold": threshold_policy,
}


def round_up(tokens: float) -> int:
    """`tokens` rounded up to a multiple of [`CAPACITY_MULTIPLE`], at least one multiple."""
    # Without the tolerance, 0.28 * 200 = 56.00000000000001 would round up to 64.
    return max(1, math.ceil(tokens / CAPACITY_MULTIPLE - 1e-9)) * CAPACITY_MULTIPLE


def capacity(keep: float, sequence_length: int) -> int:
    """Number of tokens of a sequence that continue: `keep * sequence_length`, rounded up to [`CAPACITY_MULTIPLE`].

    Args:
        keep (`float`): share of the sequence, in (0, 1].
        sequence_length (`int`): tokens in the sequence before any exit, padding included.

    Returns:
        `int`: between 1 and `sequence_length`.
    """
    return min(sequence_length, round_up(keep * sequence_length))


def sample_size(share: float, tokens: int) -> int:
    """Size of a sample of `share` of `tokens`: the product rounded up, at least 1."""
    return max(1, math.ceil(share * tokens - 1e-9))


def systematic_sample(starts: torch.Tensor, num_sampled: int, length: int) -> torch.Tensor:
    """Evenly spaced positions from a random start, so that every position is equally likely.

    Args:
        starts (`torch.Tensor` of shape `(batch, 1)`): uniform in [0, 1).
        num_sampled (`int`): at most `length`.
        length (`int`): tokens per row.

    Returns:
        `torch.LongTensor` of shape `(batch, num_sampled)`: distinct positions below `length`.
    """
    spaced = torch.arange(num_sampled, device=starts.device) * length // num_sampled
    return ((starts * length).long() + spaced) % length


class Selection(NamedTuple):
    """The tokens of each row that continue: the result of [`select`] and [`draw`].

    order (`torch.LongTensor` of shape `(batch, tokens)`): a permutation of the tokens: first those that continue, then
        those that exit, both in the order of the text.
    exploration (`torch.BoolTensor` of shape `(batch, num_kept)`): true for continuing tokens that were drawn
        regardless of their score: a uniform sample of the tokens that are neither protected nor padding.
    """

    order: torch.Tensor
    exploration: torch.Tensor


def select(
    scores: torch.Tensor,
    num_kept: int,
    protected: torch.Tensor | None = None,
    padding: torch.Tensor | None = None,
    exploration: float = 0.0,
    exploration_noise: torch.Tensor | None = None,
) -> Selection:
    """Choose the `num_kept` tokens of every row that continue.

    Protected tokens come first, then the exploration sample, then the highest scores. Padding comes last: it continues
    only in rows with fewer than `num_kept` real tokens, because shapes are static.

    Args:
        scores (`torch.Tensor` of shape `(batch, tokens)`): finite; the largest continue.
        num_kept (`int`): between 1 and `tokens`.
        protected (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*): tokens that must continue.
        padding (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*): tokens that must exit first.
        exploration (`float`): share of `num_kept`, in [0, 1], that goes to tokens drawn uniformly at random.
        exploration_noise (`torch.FloatTensor` of shape `(batch, tokens)`, *optional*): uniform noise in [0, 1] for
            the exploration sample. If omitted, drawn from torch's generator.

    Returns:
        [`Selection`].

    Raises:
        ValueError: if `num_kept` is not between 1 and the number of tokens.
    """
    if exploration == 0:
        order = _order(scores, num_kept, protected, padding)
        return Selection(order, torch.zeros_like(order[:, :num_kept], dtype=torch.bool))
    explored = _explored(scores, num_kept, protected, padding, exploration, exploration_noise)
    # Protected tokens outrank the exploration sample, which outranks every other score.
    ranked = scores.float().masked_fill(explored, torch.finfo(torch.float32).max)
    order = _order(ranked, num_kept, protected, padding)
    return Selection(order, explored.gather(1, order[:, :num_kept]))


def draw(
    noise: torch.Tensor,
    num_kept: int,
    protected: torch.Tensor | None = None,
    padding: torch.Tensor | None = None,
) -> Selection:
    """Choose `num_kept` tokens of every row uniformly at random, after the protected ones.

    Args:
        noise (`torch.FloatTensor` of shape `(batch, tokens)`): uniform in (0, 1); the largest continue.
        num_kept, protected, padding: as in [`select`].

    Returns:
        [`Selection`]. All drawn tokens count as exploration tokens, because they are a uniform sample.

    Raises:
        ValueError: if `num_kept` is not between 1 and the number of tokens.
    """
    order = _order(noise, num_kept, protected, padding)
    kept, settled = order[:, :num_kept], _settled(protected, padding)
    return Selection(order, torch.ones_like(kept, dtype=torch.bool) if settled is None else ~settled.gather(1, kept))


def _order(scores, num_kept, protected, padding) -> torch.Tensor:
    """The `order` of a [`Selection`] with protected tokens first, then the highest `scores`, and padding last."""
    tokens = scores.shape[1]
    if not 1 <= num_kept <= tokens:
        raise ValueError(f"num_kept must be between 1 and the number of tokens ({tokens}), got {num_kept}")
    scores = scores.float()
    if protected is not None:
        scores = scores.masked_fill(protected, torch.inf)
    if padding is not None:
        scores = scores.masked_fill(padding, -torch.inf)  # takes precedence over `protected`
    exits = torch.ones_like(scores, dtype=torch.uint8).scatter(1, _ranked(scores)[:, :num_kept], 0)
    # A stable sort puts continuing tokens first and keeps both groups in the order of the text.
    return exits.argsort(dim=1, stable=True)


def _settled(protected: torch.Tensor | None, padding: torch.Tensor | None) -> torch.Tensor | None:
    """Mask (batch, tokens) of the tokens that are not candidates: protected ones and padding. `None` if both are."""
    if protected is None or padding is None:
        return padding if protected is None else protected
    return protected | padding


def _explored(scores, num_kept, protected, padding, exploration, noise) -> torch.Tensor:
    """Mask (batch, tokens) of the exploration sample of [`select`]."""
    noise = torch.rand_like(scores) if noise is None else noise
    size = round(exploration * num_kept)
    if (settled := _settled(protected, padding)) is not None:
        noise = noise.masked_fill(settled, -1.0)
    if protected is not None:
        # At most as many exploration tokens as fit beside the protected ones; dropping some would bias the sample.
        certain = protected if padding is None else protected & ~padding
        size = (num_kept - certain.sum(dim=1, keepdim=True)).clamp(0, size)
    places = torch.arange(scores.shape[1], device=scores.device) < size
    order = _ranked(noise)
    explored = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, places.expand_as(order))
    return explored if settled is None else explored & ~settled


def _ranked(scores: torch.Tensor) -> torch.Tensor:
    """Positions (batch, tokens) in descending order of their scores.

    Uses a stable sort, which breaks ties by position on every device. `torch.topk` does not define the order of ties.
    """
    return scores.argsort(dim=1, descending=True, stable=True)
