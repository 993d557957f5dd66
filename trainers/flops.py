"""Floating-point operations of a step, counted exactly: two for each multiply-add of a matrix product.

Counted are the matrix products (projections, attention, feed-forward, heads), as `torch.utils.flop_counter` counts
them. Look-ups, normalisation, activations and softmax are not, as usual.
"""

from dataclasses import dataclass

from modeling_electra_exit import ElectraEarlyExitConfig
from modeling_electra_exit.exit_policy import capacity


# Forward, and two products of the same size backward: the gradient of the input and that of the weight.
TRAINING_FACTOR = 3


@dataclass
class StepFlops:
    """Operations of one step of a batch.

    blocks (`float`): the discriminator's layers, the part that exits make smaller.
    heads (`float`): the discriminator's other products: embedding projection, final head, exit heads.
    generator (`float`): everything the generator multiplies.
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
    """Tokens of a sequence that each layer computes, one number a layer."""
    active, counts = sequence_length, []
    exits = zip(config.exit_layers, config.exit_keep, strict=True)
    keep = dict(exits) if exits_active and config.has_exit_heads else {}
    for layer in range(config.num_hidden_layers):
        if layer == config.num_hidden_layers - config.exit_reentry_layers:
            active = sequence_length
        counts.append(active)
        if layer + 1 in keep:
            active = min(active, capacity(keep[layer + 1], sequence_length))
    return counts


def context_tokens(config: ElectraEarlyExitConfig, sequence_length: int, exits_active: bool) -> list[int]:
    """Tokens of a sequence that each layer attends to, one number a layer."""
    active = active_tokens(config, sequence_length, exits_active)
    if config.exit_context == "all":
        return [sequence_length] * len(active)
    if config.exit_context == "none":
        return active
    return [sequence_length if layer in config.exit_layers else count for layer, count in enumerate(active)]


def layer_flops(hidden_size: int, intermediate_size: int, queries: int, keys: int) -> float:
    """Forward operations of one layer for one sequence: `queries` tokens computed, `keys` tokens attended to."""
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
) -> StepFlops:
    """Operations of one step.

    Args:
        batch_size, sequence_length (`int`): of the batch, padding included (it is computed like everything else).
        exits_active (`bool`): whether tokens exit in this step.
        num_masked (`int`, *optional*): masked tokens a sequence. Left out: `mlm_probability` of them.
        training (`bool`): forward and backward pass, or forward alone.
    """
    hidden, tokens = config.hidden_size, sequence_length
    active = active_tokens(config, tokens, exits_active)
    context = context_tokens(config, tokens, exits_active)
    blocks = sum(layer_flops(hidden, config.intermediate_size, q, k) for q, k in zip(active, context, strict=True))
    head = 2 * (hidden * hidden + hidden)
    heads = tokens * head + _projection(config.embedding_size, hidden, tokens)
    if config.has_exit_heads:
        heads += sum(active[layer - 1] * head for layer in config.exit_layers)

    generator = 0.0
    if config.generator_type == "mlm":
        small = config.generator_config()
        masked = round(config.mlm_probability * tokens) if num_masked is None else num_masked
        generator = small.num_hidden_layers * layer_flops(small.hidden_size, small.intermediate_size, tokens, tokens)
        generator += _projection(config.embedding_size, small.hidden_size, tokens)
        generator += 2 * masked * config.embedding_size * (small.hidden_size + config.vocab_size)
    return StepFlops(blocks, heads, generator) * (batch_size * (TRAINING_FACTOR if training else 1))


def _projection(embedding_size: int, hidden_size: int, tokens: int) -> float:
    return 0.0 if embedding_size == hidden_size else 2 * tokens * embedding_size * hidden_size


def kept_share(config: ElectraEarlyExitConfig, sequence_length: int) -> list[float]:
    """Share of the sequence that each layer computes while exits are active, one number a layer."""
    return [count / sequence_length for count in active_tokens(config, sequence_length, True)]
