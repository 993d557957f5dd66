"""Floating-point operations (FLOPs) of a step, in two conventions.

[`step_flops`] counts two operations for each multiply-add of a matrix product (projections, attention, feed-forward,
heads), as `torch.utils.flop_counter` does, and none for look-ups, normalization, activations and softmax.
[`step_flops_as_published`] uses the convention of ELECTRA's authors, for comparison with their tables.
"""

from dataclasses import dataclass

from modeling_electra_exit import ElectraEarlyExitConfig
from modeling_electra_exit.exit_policy import capacity, sample_size


# One product in the forward pass and two of the same size in the backward pass, for the gradients of input and weight.
TRAINING_FACTOR = 3


def without_exits(config: ElectraEarlyExitConfig) -> ElectraEarlyExitConfig:
    """The config of the same model without exits, the baseline for savings."""
    return ElectraEarlyExitConfig(**{**config.to_dict(), "exit_policy": "none"})


@dataclass
class StepFlops:
    """FLOPs of one step on a batch.

    blocks (`float`): of the discriminator's layers, the part that exits reduce.
    heads (`float`): of the discriminator's other products: embedding projection, final head, exit heads.
    generator (`float`): of all products of the generator.
    """

    blocks: float
    heads: float
    generator: float

    @property
    def discriminator(self) -> float:
        return self.blocks + self.heads

    @property
    def total(self) -> float:
        return self.discriminator + self.generator

    def __add__(self, other: "StepFlops") -> "StepFlops":
        return StepFlops(self.blocks + other.blocks, self.heads + other.heads, self.generator + other.generator)

    def __mul__(self, factor: float) -> "StepFlops":
        return StepFlops(self.blocks * factor, self.heads * factor, self.generator * factor)


def active_tokens(config: ElectraEarlyExitConfig, sequence_length: int, exits_active: bool) -> list[int]:
    """Number of tokens of a sequence that each layer computes, one entry per layer."""
    active, counts = sequence_length, []
    exits = zip(config.exit_layers, config.exit_capacities, strict=True)
    keep = dict(exits) if exits_active and config.has_exit_heads else {}
    for layer in range(config.num_hidden_layers):
        if layer == config.num_hidden_layers - config.exit_reentry_layers:
            active = sequence_length
        counts.append(active)
        if layer + 1 in keep:
            active = min(active, capacity(keep[layer + 1], sequence_length))
    return counts


def context_tokens(config: ElectraEarlyExitConfig, sequence_length: int, exits_active: bool) -> list[int]:
    """Number of tokens of a sequence that each layer attends to, one entry per layer."""
    active = active_tokens(config, sequence_length, exits_active)
    if config.exit_context == "all":
        return [sequence_length] * len(active)
    if config.exit_context == "none":
        return active
    return [sequence_length if layer in config.exit_layers else count for layer, count in enumerate(active)]


def layer_tokens(config: ElectraEarlyExitConfig, sequence_length: int, exits_active: bool) -> list[tuple[int, int]]:
    """Numbers of tokens of a sequence that each layer computes and attends to, one pair per layer."""
    given = config, sequence_length, exits_active
    return list(zip(active_tokens(*given), context_tokens(*given), strict=True))


def head_tokens(config: ElectraEarlyExitConfig, sequence_length: int, exits_active: bool, training: bool) -> list[int]:
    """Number of tokens of a sequence that each exit head reads, one entry per exit."""
    if not config.has_exit_heads:
        return []
    if training and not exits_active:
        return [sample_size(config.exit_full_depth_share, sequence_length)] * len(config.exit_layers)
    active = active_tokens(config, sequence_length, exits_active)
    return [active[layer - 1] for layer in config.exit_layers]


def layer_flops(hidden_size: int, intermediate_size: int, queries: int, keys: int) -> float:
    """Forward FLOPs of one layer for one sequence: `queries` tokens computed, `keys` tokens attended to."""
    projections = 2 * hidden_size * hidden_size * (2 * queries + 2 * keys)
    attention = 2 * 2 * queries * keys * hidden_size
    feed_forward = 2 * 2 * queries * hidden_size * intermediate_size
    return projections + attention + feed_forward


def step_flops(
    config: ElectraEarlyExitConfig,
    batch_size: int,
    sequence_length: int,
    exits_active: bool,
    num_masked: int | None = None,
    training: bool = True,
    layers: list[tuple[int, int]] | None = None,
) -> StepFlops:
    """FLOPs of one step.

    Args:
        config ([`ElectraEarlyExitConfig`]): sizes, exits and generator.
        batch_size (`int`): sequences in the batch.
        sequence_length (`int`): tokens per sequence, padding included, which is computed like other tokens.
        exits_active (`bool`): whether tokens exit in this step.
        num_masked (`int`, *optional*): masked tokens per sequence. If omitted, `mlm_probability` of the tokens.
        training (`bool`): whether to count the backward pass.
        layers (`list[tuple[int, int]]`, *optional*): tokens that each layer computes and attends to. If omitted, those
            of the config's exits, [`layer_tokens`].

    Returns:
        [`StepFlops`] of the batch.
    """
    hidden, tokens = config.hidden_size, sequence_length
    layers = layers or layer_tokens(config, tokens, exits_active)
    blocks = sum(layer_flops(hidden, config.intermediate_size, *of_layer) for of_layer in layers)
    head = 2 * (hidden * hidden + hidden)
    heads = tokens * head + _projection(config.embedding_size, hidden, tokens)
    if config.has_exit_heads:
        per_token = head
        if config.has_gain_heads:
            # The regressors' input is detached: its gradient, one of the wide layer's three products, is not computed.
            per_token += head - (2 * hidden * hidden / TRAINING_FACTOR if training else 0)
        heads += sum(head_tokens(config, tokens, exits_active, training)) * per_token

    generator = 0.0
    if config.generator_type == "mlm":
        small = config.generator_config()
        masked = round(config.mlm_probability * tokens) if num_masked is None else num_masked
        generator = small.num_hidden_layers * layer_flops(small.hidden_size, small.intermediate_size, tokens, tokens)
        generator += _projection(config.embedding_size, small.hidden_size, tokens)
        generator += 2 * masked * config.embedding_size * (small.hidden_size + config.vocab_size)
    if config.generator_type == "self":
        chosen = round(config.mlm_probability * tokens) if num_masked is None else num_masked
        head = 2 * chosen * config.embedding_size * (hidden + config.vocab_size)
        # In training, as many proposals are sampled, in a forward pass only.
        generator = head + (head / TRAINING_FACTOR if training else 0)
    return StepFlops(blocks, heads, generator) * (batch_size * (TRAINING_FACTOR if training else 1))


def _projection(embedding_size: int, hidden_size: int, tokens: int) -> float:
    return 0.0 if embedding_size == hidden_size else 2 * tokens * embedding_size * hidden_size


# ---- The convention of the ELECTRA paper ----
# google-research/electra, `flops_computation.py`: elementwise operations count in addition to matrix products; an
# embedding look-up counts as a product with a one-hot vector; the backward pass counts as much as the forward pass.

_DROPOUT, _LAYER_NORM, _ACTIVATION, _SOFTMAX = 4, 5, 8, 5
_PUBLISHED_TRAINING_FACTOR = 2


def step_flops_as_published(
    config: ElectraEarlyExitConfig,
    batch_size: int,
    sequence_length: int,
    exits_active: bool,
    layers: list[tuple[int, int]] | None = None,
) -> float:
    """FLOPs of one training step, generator included, in the convention of the ELECTRA paper.

    The authors' script gives 1.294e18 for all of ELECTRA-Small's pre-training and 6.425e19 for ELECTRA-Base's.

    Args: as in [`step_flops`].
    """
    tokens = sequence_length
    layers = layers or layer_tokens(config, tokens, exits_active)
    forward = sum(_published_layer(config, queries, keys) for queries, keys in layers)
    forward += tokens * (_published_embedding(config, tokens) + _published_detection_head(config))
    if config.has_exit_heads:
        per_token = _published_detection_head(config) * (1 + config.has_gain_heads)
        forward += sum(head_tokens(config, tokens, exits_active, True)) * per_token
    if config.generator_type == "mlm":
        small = config.generator_config()
        forward += small.num_hidden_layers * _published_layer(small, tokens, tokens)
        forward += tokens * _published_embedding(small, tokens)
        forward += round(config.mlm_probability * tokens) * _published_language_head(small)
    return float(forward * batch_size * _PUBLISHED_TRAINING_FACTOR)


def _published_layer(config, queries: int, keys: int) -> float:
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    product = 2 * hidden * hidden + hidden  # with bias
    after = _DROPOUT * hidden + hidden + _LAYER_NORM * hidden  # dropout, residual and normalization
    attention = 2 * 2 * hidden * keys + (_SOFTMAX + _DROPOUT + 1) * keys * heads
    feed_forward = 2 * 2 * hidden * inner + (_ACTIVATION + 1) * inner + hidden
    return queries * (2 * product + attention + after + feed_forward + after) + keys * 2 * product


def _published_embedding(config, tokens: int) -> float:
    """Per token."""
    size = config.embedding_size
    lookups = 2 * size * config.vocab_size + 2 * size * (tokens + 2)
    project = 0 if size == config.hidden_size else 2 * config.hidden_size * size + config.hidden_size
    return lookups + (2 + _LAYER_NORM + _DROPOUT) * size + project


def _published_language_head(config) -> float:
    """Per masked token."""
    size, vocabulary = config.embedding_size, config.vocab_size
    transform = 2 * config.hidden_size * size + (1 + _ACTIVATION + _LAYER_NORM) * size
    return transform + 2 * size * vocabulary + (_SOFTMAX + 2) * vocabulary


def _published_detection_head(config) -> float:
    """Per token."""
    hidden = config.hidden_size
    return 2 * hidden * hidden + (1 + _ACTIVATION + 2) * hidden
