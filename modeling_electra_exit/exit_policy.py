"""Which tokens continue and which exit: pure tensor functions, free of parameters, labels and model state.

Nothing that ranks tokens ever sees a label. A token that is kept *because* it was wrong would tell the deep layers its
label, so a policy may look at what the model predicts ([`Evidence`]) and at random numbers, and at nothing else.

Add a signal or a policy of your own before the config that names it is made:

    from modeling_electra_exit.exit_policy import SIGNALS
    SIGNALS["margin"] = lambda evidence: -evidence.logits.abs()
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch


# Capacities are multiples of this many tokens, so that shapes are few, static and friendly to matrix units.
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
    """Uniform noise that is a function of the row's seed and of nothing else.

    The noise of a sequence is therefore the same in every batch and process and on every device. The numbers are the
    outputs of SplitMix64 (Steele, Lea and Flood, 2014, doi 10.1145/2714064.2660195) at as many counters.

    Args:
        seeds (`torch.LongTensor` of shape `(batch,)`).
        length (`int`): a shorter row is the beginning of a longer one.
        streams (`int`): how many independent streams of one seed.

    Returns:
        `torch.FloatTensor` of shape `(batch, length, streams)`, fp32, in (0, 1).
    """
    places = torch.arange(1, length + 1, device=seeds.device).unsqueeze(1)
    counters = places + torch.arange(0, streams << 32, 1 << 32, device=seeds.device)
    # Multiplications wrap around, as they should. Right shifts drag the sign along, which the masks take off.
    state = seeds[:, None, None] + counters * -0x61C8864680B583EB
    state = (state ^ ((state >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    state = (state ^ ((state >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    state = state ^ ((state >> 31) & 0x1FFFFFFFF)
    return (((state >> 41) & 0x7FFFFF).float() + 0.5) / 2**23


def gumbel(uniform: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise from uniform noise in (0, 1), fp32."""
    return -(-uniform.float().log()).log()


class Evidence(NamedTuple):
    """What may decide about the tokens still in the encoder; every field of shape `(batch, tokens)`, without gradient.

    logits (`torch.FloatTensor`): the exit head's, of "this token was replaced".
    gain (`torch.FloatTensor`, *optional*): predicted fall of the loss from this exit head to the final one, in nats.
    protected, padding (`torch.BoolTensor`, *optional*): tokens that must continue, and tokens that must not.
    noise (`torch.FloatTensor`, *optional*): uniform in (0, 1), drawn for each sequence by itself; ask [`uniform`].
    """

    logits: torch.Tensor
    gain: torch.Tensor | None = None
    protected: torch.Tensor | None = None
    padding: torch.Tensor | None = None
    noise: torch.Tensor | None = None

    def uniform(self) -> torch.Tensor:
        """The source of chance of a policy, `(batch, tokens)`, fp32, in (0, 1)."""
        if self.noise is not None:
            return self.noise
        return torch.rand_like(self.logits, dtype=torch.float32).clamp(1e-7, 1 - 1e-7)


def entropy_signal(evidence: Evidence) -> torch.Tensor:
    """The least certain tokens continue."""
    return binary_entropy(evidence.logits)


def sampled_entropy_signal(evidence: Evidence) -> torch.Tensor:
    """Sample without replacement, in proportion to entropy.

    The k largest of `log w + g`, with independent standard Gumbel noise `g`, are a sample of k items drawn one after
    the other with probabilities proportional to the weights w of those that remain (the Gumbel-top-k trick, Kool et
    al., 2019, arXiv 1903.06059). Every token may continue, so deep layers are trained on all kinds of tokens.
    """
    return binary_entropy(evidence.logits).clamp_min(1e-9).log() + gumbel(evidence.uniform())


def expected_gain_signal(evidence: Evidence) -> torch.Tensor:
    """Keep the tokens whose loss deeper layers are predicted to lower most; easy and hopeless ones exit."""
    return evidence.gain.float()


# How the "topk" policy ranks tokens: name -> function(Evidence) -> scores (batch, tokens), larger means "continue".
SIGNALS: dict[str, Callable[[Evidence], torch.Tensor]] = {
    "entropy": entropy_signal,
    "sampled_entropy": sampled_entropy_signal,
    "expected_gain": expected_gain_signal,
}


class Ranking(NamedTuple):
    """A policy's decision about `tokens` candidates a row.

    scores (`torch.FloatTensor` of shape `(batch, tokens)`): finite; larger means "continue".
    num_kept (`int`): how many of each row continue.
    """

    scores: torch.Tensor
    num_kept: int


def topk_policy(evidence: Evidence, num_kept: int, config) -> Ranking:
    """As many as the capacity says, ranked by `config.exit_signal`."""
    return Ranking(SIGNALS[config.exit_signal](evidence), num_kept)


def random_policy(evidence: Evidence, num_kept: int, config) -> Ranking:
    """As many, by uniform noise alone (random-LTD, Yao et al., 2022, arXiv 2211.11586): the control for every other
    policy."""
    return Ranking(evidence.uniform(), num_kept)


def entropy_excess(evidence: Evidence, config) -> torch.Tensor:
    """How far the entropy is above `config.exit_entropy_threshold`: one number, or one each for tokens called original
    and replaced."""
    threshold = config.exit_entropy_threshold
    original, replaced = threshold if isinstance(threshold, list | tuple) else (threshold, threshold)
    return binary_entropy(evidence.logits) - torch.where(evidence.logits > 0, replaced, original)


def above_threshold(evidence: Evidence, config) -> torch.Tensor:
    """Which tokens continue under a threshold, (batch, tokens): the unsure and the protected, never padding."""
    continues = entropy_excess(evidence, config) > 0
    if evidence.protected is not None:
        continues = continues | evidence.protected
    if evidence.padding is not None:
        continues = continues & ~evidence.padding
    return continues


def threshold_policy(evidence: Evidence, num_kept: int, config) -> Ranking:
    """All [`above_threshold`], and as many more as make the number a multiple of [`CAPACITY_MULTIPLE`], the same for
    every row.

    The number depends on the data, so this policy waits for the device once an exit.
    """
    wanted = int(above_threshold(evidence, config).sum(dim=1).max())
    # Scored by the excess, so that the places that rounding up leaves free go to the nearest.
    return Ranking(entropy_excess(evidence, config), min(round_up(wanted), evidence.logits.shape[1]))


# The policies that drop tokens: name -> function(Evidence, num_kept that the capacity allows, config) -> Ranking.
# "none" is legal in a config too and never gets here.
POLICIES: dict[str, Callable[..., Ranking]] = {
    "topk": topk_policy,
    "random": random_policy,
    "threshold": threshold_policy,
}


def round_up(tokens: float) -> int:
    """The next multiple of [`CAPACITY_MULTIPLE`]."""
    # The tiny tolerance keeps 0.28 * 200 = 56.00000000000001 from costing another 8 tokens.
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
    """`share * tokens`, rounded up: how many of `tokens` a sample of that share has."""
    return max(1, math.ceil(share * tokens - 1e-9))


def systematic_sample(starts: torch.Tensor, num_sampled: int, length: int) -> torch.Tensor:
    """Evenly spaced positions from a random one on, so that each of them has the same chance.

    Args:
        starts (`torch.Tensor` of shape `(batch, 1)`): uniform in [0, 1).
        num_sampled (`int`): at most `length`.

    Returns:
        `torch.LongTensor` of shape `(batch, num_sampled)`: different positions below `length`.
    """
    spaced = torch.arange(num_sampled, device=starts.device) * length // num_sampled
    return ((starts * length).long() + spaced) % length


class Selection(NamedTuple):
    """What [`select`] decided, for `tokens` candidates a row of which `num_kept` continue.

    order (`torch.LongTensor` of shape `(batch, tokens)`): a permutation of the candidates: those that continue first,
        then those that exit, each group in the order of the text.
    exploration (`torch.BoolTensor` of shape `(batch, num_kept)`): which of those that continue were drawn at random,
        whatever their score: a uniform sample of the candidates that are neither protected nor padding.
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

    Protected tokens come first, then the exploration sample, then the highest scores. Padding comes last, and
    continues only where a row has fewer real tokens than places (shapes stay static).

    Args:
        scores (`torch.Tensor` of shape `(batch, tokens)`): finite; larger means "continue".
        num_kept (`int`): between 1 and `tokens`.
        protected (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*): tokens that must continue.
        padding (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*): tokens that must exit first.
        exploration (`float`): share of the places, in [0, 1], that goes to tokens drawn uniformly at random.
        exploration_noise (`torch.FloatTensor` of shape `(batch, tokens)`, *optional*): uniform noise in [0, 1] that
            draws the exploration sample. Left out: from torch's generator.

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
    """Choose the `num_kept` tokens of every row by chance alone: each candidate is as likely to continue as any other.

    Args:
        noise (`torch.FloatTensor` of shape `(batch, tokens)`): uniform in (0, 1); the largest continue.
        num_kept, protected, padding: as in [`select`].

    Returns:
        [`Selection`] whose exploration tokens are all that were drawn: they are a uniform sample already.
    """
    order = _order(noise, num_kept, protected, padding)
    kept, settled = order[:, :num_kept], _settled(protected, padding)
    return Selection(order, torch.ones_like(kept, dtype=torch.bool) if settled is None else ~settled.gather(1, kept))


def _order(scores, num_kept, protected, padding) -> torch.Tensor:
    """The `order` of a [`Selection`]: protected tokens continue first, then the highest `scores`, and padding last."""
    tokens = scores.shape[1]
    if not 1 <= num_kept <= tokens:
        raise ValueError(f"num_kept must be between 1 and the number of tokens ({tokens}), got {num_kept}")
    scores = scores.float()
    if protected is not None:
        scores = scores.masked_fill(protected, torch.inf)
    if padding is not None:
        scores = scores.masked_fill(padding, -torch.inf)  # whatever is protected
    exits = torch.ones_like(scores, dtype=torch.uint8).scatter(1, _ranked(scores)[:, :num_kept], 0)
    # A stable sort puts those that continue first and leaves both groups in the order of the text.
    return exits.argsort(dim=1, stable=True)


def _settled(protected: torch.Tensor | None, padding: torch.Tensor | None) -> torch.Tensor | None:
    """The tokens that are no candidates, (batch, tokens): protected ones and padding. `None` where there are none."""
    if protected is None or padding is None:
        return padding if protected is None else protected
    return protected | padding


def _explored(scores, num_kept, protected, padding, exploration, noise) -> torch.Tensor:
    """The exploration sample of [`select`], a mask (batch, tokens)."""
    noise = torch.rand_like(scores) if noise is None else noise
    size = round(exploration * num_kept)
    if (settled := _settled(protected, padding)) is not None:
        noise = noise.masked_fill(settled, -1.0)
    if protected is not None:
        # Never more exploration tokens than protected ones leave places for: which of them fits would not be chance.
        certain = protected if padding is None else protected & ~padding
        size = (num_kept - certain.sum(dim=1, keepdim=True)).clamp(0, size)
    places = torch.arange(scores.shape[1], device=scores.device) < size
    order = _ranked(noise)
    explored = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, places.expand_as(order))
    return explored if settled is None else explored & ~settled


def _ranked(scores: torch.Tensor) -> torch.Tensor:
    """The positions (batch, tokens) of the largest scores first.

    A stable sort: equal scores count in the order of the text on every device, and `topk` promises no order.
    """
    return scores.argsort(dim=1, descending=True, stable=True)
