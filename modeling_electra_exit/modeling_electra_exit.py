"""ELECTRA with early exits: encoder, model, and the joint pre-training objective.

A training step reads top to bottom in `ElectraEarlyExitForPreTraining.forward`: the generator corrupts the text, and
the discriminator detects the replaced tokens. After an exit layer, `ElectraEarlyExitEncoder.forward` computes only the
tokens that continue. The fine-tuning heads are in `modeling_heads.py`, the standalone generator in
`modeling_masked_lm.py`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.electra.modeling_electra import (
    ElectraDiscriminatorPredictions,
    ElectraEmbeddings,
    ElectraGeneratorPredictions,
    ElectraLayer,
    ElectraPreTrainedModel,
    ElectraSelfAttention,
    eager_attention_forward,
)
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_electra_exit import ElectraEarlyExitConfig
from .conversion import FromPlain, PlainPreTraining
from .exit_policy import (
    POLICIES,
    Evidence,
    Selection,
    above_threshold,
    capacity,
    draw,
    round_up,
    row_noise,
    sample_size,
    select,
    systematic_sample,
)
from .exit_state import ElectraEarlyExitState, token_losses
from .generator_head import PredictMaskedTokens, sample_tokens


if TYPE_CHECKING:  # never executed; the imports make Transformers copy these files into every checkpoint
    from .modeling_heads import ElectraEarlyExitForSequenceClassification  # noqa: F401
    from .modeling_masked_lm import ElectraEarlyExitForMaskedLM  # noqa: F401


logger = logging.get_logger(__name__)


class PermuteTokens(torch.autograd.Function):
    """Permute the tokens (batch, tokens, width) of every row by a [`Permutation`], passed as its two fields. The
    backward pass applies the inverse permutation.

    The backward pass of `torch.gather` must support repeated indices. A permutation has none, so both passes copy
    whole rows: several times faster on a CPU, and deterministic on a GPU.
    """

    @staticmethod
    def forward(ctx, hidden_states, rows, inverse):
        ctx.save_for_backward(inverse)
        return hidden_states.flatten(0, 1).index_select(0, rows).view_as(hidden_states)

    @staticmethod
    def backward(ctx, grad_output):
        (inverse,) = ctx.saved_tensors
        return grad_output.flatten(0, 1).index_select(0, inverse).view_as(grad_output), None, None


class Permutation(NamedTuple):
    """A permutation of the tokens of every row, and its inverse, for [`PermuteTokens`].

    rows, inverse (`torch.LongTensor` of shape `(batch * tokens,)`): indices into the flattened batch.
    """

    rows: torch.Tensor
    inverse: torch.Tensor

    @classmethod
    def of(cls, order: torch.Tensor) -> "Permutation":
        """The permutation that arranges the tokens of each row in `order` (batch, tokens)."""
        places = torch.arange(order.numel(), device=order.device)
        rows = (order + places.view_as(order)[:, :1]).flatten()
        return cls(rows, torch.empty_like(places).scatter_(0, rows, places))

    def reversed(self) -> "Permutation":
        return Permutation(self.inverse, self.rows)


def first_tokens(token_mask: torch.Tensor) -> torch.Tensor:
    """Position of the first token of each sequence, `torch.LongTensor` of shape `(batch,)`, for padding on either
    side. `token_mask` has shape `(batch, sequence)` and is 0 at padding."""
    return (token_mask != 0).long().argmax(dim=1)


def in_graph() -> bool:
    """Whether `torch.compile`, `torch.export`, `torch.jit.trace` or an ONNX exporter is tracing this forward pass.

    Shapes and branches of a traced graph must not depend on the data. Exits then give the same answers, but all layers
    are computed.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def warn_of_evaluation_mode(loss: torch.Tensor):
    """Warn once if `loss` has gradients in evaluation mode, where exits are not trained."""
    if loss.requires_grad and not torch.compiler.is_compiling():
        logger.warning_once(
            "The loss requires gradients, but the model is in evaluation mode, which does not train exits and "
            "computes no gradients for layers behind inference exits. Call `model.train()` before training, or "
            "evaluate under `torch.no_grad()`."
        )


def fetch(*numbers: torch.Tensor) -> list[int]:
    """Copy scalar tensors to the host in one transfer: the only synchronization at an inference exit."""
    return torch.stack(numbers).tolist()


def full_attention_mask(
    config: ElectraEarlyExitConfig, embeddings: torch.Tensor, token_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """The attention mask of full-length layers, in the format of `config`'s attention implementation.

    Transformers checks whether a mask hides anything, and drops it if not. That pays off on a CPU; on other devices
    the check would synchronize with the host. For sdpa the boolean mask broadcasts over queries instead of being
    materialized.

    Args:
        embeddings (`torch.FloatTensor` of shape `(batch, sequence, width)`).
        token_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding. A mask of more
            dimensions is converted as by Transformers.
    """
    if token_mask is None or token_mask.dim() != 2 or token_mask.device.type == "cpu":
        return create_bidirectional_mask(config, embeddings, token_mask)
    if config._attn_implementation == "sdpa":
        return token_mask.bool()[:, None, None, :]
    return create_bidirectional_mask(config, embeddings, token_mask, allow_is_bidirectional_skip=False)


def take_tokens(hidden_states: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The tokens of each row of `hidden_states` (batch, tokens, width) at the positions `order` (batch, taken)."""
    batch, tokens, width = hidden_states.shape
    rows = order + torch.arange(0, batch * tokens, tokens, device=order.device).unsqueeze(1)
    return hidden_states.reshape(batch * tokens, width).index_select(0, rows.reshape(-1)).view(batch, -1, width)


class GlorotLinear(nn.Linear):
    """A linear layer with Glorot uniform initialization, the TensorFlow default. google-research/electra uses it for
    the projection of the embeddings and the last layer of a detection head, and a normal distribution elsewhere."""


class ElectraEarlyExitDetectionHead(ElectraDiscriminatorPredictions):
    """ELECTRA's discriminator head: maps states (batch, tokens, hidden) to logits (batch, tokens)."""

    def __init__(self, config):
        super().__init__(config)
        self.dense_prediction = GlorotLinear(config.hidden_size, 1)


class ElectraEarlyExitSelfAttention(ElectraSelfAttention):
    """ELECTRA's self-attention with optional `frozen_states` (batch, frozen tokens, hidden): states of exited tokens
    that serve as additional keys and values."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        frozen_states: torch.Tensor | None = None,
        attn_implementation: str | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        context = hidden_states if frozen_states is None else torch.cat([hidden_states, frozen_states], dim=1)

        def split_heads(states):
            return states.view(*states.shape[:-1], -1, self.attention_head_size).transpose(1, 2)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            attn_implementation or self.config._attn_implementation, eager_attention_forward
        )
        kwargs.pop("past_key_values", None)
        attn_output, attn_weights = attend(
            self,
            split_heads(self.query(hidden_states)),
            split_heads(self.key(context)),
            split_heads(self.value(context)),
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return attn_output.reshape(*hidden_states.shape[:-1], -1).contiguous(), attn_weights


class ElectraEarlyExitLayer(ElectraLayer):
    """ELECTRA's layer. `frozen_states` (batch, frozen tokens, hidden) are attended to, but not updated. With
    `few_tokens`, no activation is recomputed, because the memory saved would not justify the time."""

    def __init__(self, config, layer_idx=None):
        super().__init__(config, layer_idx=layer_idx)
        self.attention.self = ElectraEarlyExitSelfAttention(config, layer_idx=layer_idx)
        self.norm_position = config.norm_position

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        frozen_states: torch.Tensor | None = None,
        few_tokens: bool = False,
        **kwargs,
    ) -> torch.Tensor:
        # `frozen_states` is positional, because reentrant gradient checkpointing detects only positional inputs that
        # require gradients.
        if self.norm_position == "post" and few_tokens:
            attended, _ = self.attention(hidden_states, attention_mask, frozen_states=frozen_states, **kwargs)
            return self.output(self.intermediate(attended), attended)
        if self.norm_position == "post":
            return super().forward(hidden_states, attention_mask, frozen_states=frozen_states, **kwargs)
        # Same weights and names, but each LayerNorm precedes its block instead of following the residual sum.
        attention, feed_forward = self.attention.output, self.output
        visible = None if frozen_states is None else attention.LayerNorm(frozen_states)
        attended, _ = self.attention.self(
            attention.LayerNorm(hidden_states), attention_mask, frozen_states=visible, **kwargs
        )
        hidden_states = hidden_states + attention.dropout(attention.dense(attended))
        return hidden_states + self._activated(
            feed_forward.LayerNorm(hidden_states),
            lambda inner: feed_forward.dropout(feed_forward.dense(inner)),
            few_tokens,
        )

    def feed_forward_chunk(self, attention_output):
        return self._activated(attention_output, lambda inner: self.output(inner, attention_output))

    def _activated(
        self, hidden_states: torch.Tensor, second_half: Callable[[torch.Tensor], torch.Tensor], kept: bool = False
    ) -> torch.Tensor:
        """Apply `second_half` to the activation of the feed-forward block's first linear layer.

        Unless it is `kept`, the activation's output is recomputed in the backward pass from its input, which is saved
        in any case. This saves about a fifth of a layer's activation memory.
        """
        before, activation = self.intermediate.dense(hidden_states), self.intermediate.intermediate_act_fn
        after = activation(before)
        if kept or not after.requires_grad or self.gradient_checkpointing or torch.compiler.is_compiling():
            return second_half(after)
        place = StorageWeakRef(after.untyped_storage())  # a reference to `after` itself would keep it alive

        def pack(tensor):
            whole = tensor.numel() == before.numel() and tensor.is_contiguous()
            return tensor.shape if whole and StorageWeakRef(tensor.untyped_storage()) == place else tensor

        def unpack(packed):
            return packed if isinstance(packed, torch.Tensor) else activation(before).view(packed)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return second_half(after)


@dataclass
class Exits:
    """What the encoder needs to apply exits. Lists have one entry per exit layer.

    heads: map states (batch, tokens, hidden) to logits (batch, tokens), or to the output of a task head; `None` for an
        unused exit. For "certain_sequences" they also take the `token_mask` of those states.
    gain_heads (*optional*): map states to the predicted gain of continuing, (batch, tokens).
    state ([`ElectraEarlyExitState`], *optional*): running statistics of the exits.
    finished (*optional*): only for the policies in [`CERTAIN`]. Maps the number of the exit, its logits, the items
        that reached it (positions of tokens or indices of sequences) and, for sequences, their `token_mask` to a mask
        of the items that exit.
    rows_per_item (`int`): rows of the batch that exit together, such as the choices of a question.
    noise (`torch.FloatTensor` of shape `(batch, sequence, 2 + 2 * exits)`, *optional*): uniform in (0, 1); see
        [`stream`]. If omitted, policy and exploration sample use torch's generator.
    original_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): the text before corruption, in which
        special tokens are identified. If omitted, the encoder's `input_ids`.
    full_depth_share (`float`): share of a sequence's tokens that the heads read in a full-depth pass.
    """

    heads: Sequence[Callable[..., torch.Tensor] | None]
    gain_heads: Sequence[Callable[[torch.Tensor], torch.Tensor]] | None = None
    state: ElectraEarlyExitState | None = None
    finished: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None
    rows_per_item: int = 1
    noise: torch.Tensor | None = None
    original_ids: torch.Tensor | None = None
    full_depth_share: float = 1.0

    def open_layers(self, config: ElectraEarlyExitConfig) -> list[int]:
        """The exit layers whose head is not `None`."""
        return [layer for layer, head in zip(config.exit_layers, self.heads, strict=True) if head is not None]

    def stream(self, number: int, length: int, exploration: bool = False) -> torch.Tensor | None:
        """Noise (batch, length) for the policy, or for the exploration sample, at exit `number`; `None` without noise.
        The first two streams belong to the generator."""
        return None if self.noise is None else self.noise[:, :length, 2 + 2 * number + exploration]

    def full_depth_sample(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Positions (batch, sampled) of the tokens that the heads read in a full-depth pass, the same at every exit;
        `None` for all tokens."""
        if self.full_depth_share == 1:
            return None
        batch, length, _ = hidden_states.shape
        starts = self.stream(0, 1)
        if starts is None:
            starts = torch.rand(batch, 1, device=hidden_states.device)
        return systematic_sample(starts, sample_size(self.full_depth_share, length), length)


# Internal policies for inference with fine-tuned models, where items exit when their prediction is certain enough.
CERTAIN = ("certain_tokens", "certain_sequences")


@dataclass
class ExitTrace:
    """Record of the exits of one forward pass, in the order of the exit layers.

    logits (list of `torch.FloatTensor` of shape `(batch, active tokens)`): the exit heads' predictions.
    gains (list of `torch.FloatTensor` of the same shapes): the predicted gains, if the model has regressors.
    positions (list of `torch.LongTensor` of the same shapes): positions of those tokens in the sequence.
    answers (dict): only for the policies in [`CERTAIN`]. Maps each exit layer at which an item exited to the items
        that reached it, positions `(batch, active tokens)` or indices of sequences `(active,)`, and their logits.
    selections (list of [`Selection`]): the tokens that continued, if the policy ranks tokens. Empty otherwise.
    exit_layers (`torch.LongTensor` of shape `(batch, sequence)`, or `(batch,)` if whole sequences exit): number of
        layers completed by each item; the depth if it never exited. `None` without a policy.
    """

    logits: list[torch.Tensor] = field(default_factory=list)
    gains: list[torch.Tensor] = field(default_factory=list)
    positions: list[torch.Tensor] = field(default_factory=list)
    answers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    selections: list[Selection] = field(default_factory=list)
    exit_layers: torch.Tensor | None = None


@dataclass
class ActiveTokens:
    """The tokens of a batch in active-first order: those still in the encoder, then those that exited.

    active (`torch.FloatTensor` of shape `(batch, active tokens, hidden)`): states that the next layer updates.
    frozen (`torch.FloatTensor` of shape `(batch, frozen tokens, hidden)`): states of the tokens that exited.
    items (`torch.LongTensor` of shape `(batch, active tokens)`): positions of the active tokens in the sequence.
    order (`torch.LongTensor` of shape `(batch, sequence)`): positions of all tokens, active ones first.
    attention_mask: the mask for full-length layers, in the format of the attention implementation.
    token_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
    alive (`torch.BoolTensor` of shape `(batch, active tokens)`, *optional*): false for exited tokens that fill up a
        row with fewer active tokens than other rows; their states are not updated. `None`: all true.
    in_place (`bool`): whether tokens keep the order of the text and exited ones are marked by `alive` alone.
    layers_since_exit (`int`): layers computed since the last exit layer.
    """

    config: ElectraEarlyExitConfig
    active: torch.Tensor
    attention_mask: torch.Tensor | None
    token_mask: torch.Tensor | None
    position_ids: torch.Tensor | None

    def __post_init__(self):
        batch, sequence, _ = self.active.shape
        self._text = torch.arange(sequence, device=self.active.device).expand(batch, -1)
        self.restart(self.active)

    def restart(self, hidden_states: torch.Tensor):
        """Every token is active, in the order of the text."""
        self.active, self.frozen = hidden_states, hidden_states[:, :0]
        self.order = self.items = self._text
        self.alive, self.in_place, self.layers_since_exit = None, False, 0
        self._permutation: Permutation | None = None

    @property
    def complete(self) -> bool:
        """Whether every token is active."""
        return self.frozen.shape[1] == 0 and self.alive is None

    @property
    def empty(self) -> bool:
        return self.active.shape[1] == 0

    def of_active(self, values: torch.Tensor) -> torch.Tensor:
        """The `values` (batch, sequence) at the active tokens, (batch, active tokens)."""
        return values if self.complete else values.gather(1, self.items)

    def real(self) -> torch.Tensor | None:
        """Which active tokens are no padding; `None` where all are."""
        return None if self.token_mask is None else self.of_active(self.token_mask) != 0

    def exit(self, order: torch.Tensor, num_kept: int, alive: torch.Tensor | None = None):
        """Freeze all but the first `num_kept` of the active tokens, taken in `order` (batch, active tokens)."""
        permutation = Permutation.of(order)
        tokens = PermuteTokens.apply(self.active, *permutation)
        # One split, not two slices: their gradients would be two tensors of this size, and the sum a third one.
        active, frozen = tokens.split([num_kept, order.shape[1] - num_kept], dim=1)
        if self.complete:
            self.order, self._permutation = order, permutation
        else:
            self.order = torch.cat([self.items.gather(1, order), self.order[:, order.shape[1] :]], dim=1)
            frozen, self._permutation = torch.cat([frozen, self.frozen], dim=1), None
        self.active, self.frozen = active.contiguous(), frozen
        self.items, self.alive = self.order[:, :num_kept], alive

    def keep(self, exiting: torch.Tensor, continues: torch.Tensor) -> bool:
        """Freeze the active tokens that are not marked in `continues` (batch, active tokens).

        Each row gets the same result as in a batch of its own: rows with fewer active tokens are filled up with exited
        ones, which are not updated. Nothing changes unless a token is marked in `exiting` (batch, active tokens).

        Returns:
            `bool`: whether any token exits.
        """
        if in_graph():
            self.alive, self.in_place = continues, True
            return True
        num_exiting, most = fetch(exiting.sum(), continues.sum(dim=1).amax())
        if num_exiting == 0:
            return False
        num_kept = min(round_up(most), self.items.shape[1]) if most else 0
        order = torch.argsort((~continues).to(torch.uint8), dim=1, stable=True)
        self.exit(order, num_kept, continues.gather(1, order[:, :num_kept]))
        return True

    def restore(self) -> torch.Tensor:
        """The states of all tokens in the order of the text, (batch, sequence, hidden)."""
        if self.complete or self.in_place:
            return self.active
        permutation = self._permutation or Permutation.of(self.order)
        return PermuteTokens.apply(torch.cat([self.active, self.frozen], dim=1), *permutation.reversed())

    def run(self, layer: nn.Module, **kwargs):
        """Apply a layer to the active tokens."""
        kwargs["position_ids"] = self.position_ids
        if self.complete:
            self.active = layer(self.active, self.attention_mask, **kwargs)
        elif not self.empty:
            self.active = self._run_on_remaining(layer, **kwargs)
            self.layers_since_exit += 1

    def _run_on_remaining(self, layer, **kwargs) -> torch.Tensor:
        """Apply a layer with the active tokens as queries. Keys and values depend on `exit_context`."""
        context = self.config.exit_context
        sees_all = context == "all" or (context == "first" and self.layers_since_exit == 0)
        visible = self.frozen if sees_all and self.frozen.shape[1] else None
        # Masks of flash and flex attention assume as many queries as keys; those of sdpa do not.
        attention = self.config._attn_implementation
        if "flash" in attention or "flex" in attention:
            attention = "sdpa"
        keys = None
        if self.token_mask is not None:
            keys = self.token_mask.bool().gather(1, self.order if visible is not None else self.items)
        if self.alive is not None and not sees_all:
            keys = self.alive if keys is None else keys & self.alive
        mask = None if keys is None else keys[:, None, None, :]
        if mask is not None and attention == "eager":
            lowest = torch.finfo(self.active.dtype).min
            mask = torch.zeros_like(mask, dtype=self.active.dtype).masked_fill(~mask, lowest)
        updated = layer(self.active, mask, visible, True, attn_implementation=attention, **kwargs)
        return updated if self.alive is None else torch.where(self.alive.unsqueeze(-1), updated, self.active)


@dataclass
class ActiveSequences:
    """The sequences of a batch that are still in the encoder.

    Exited sequences are removed from the batch, which is then truncated to the longest remaining one. In a traced
    graph the batch keeps its shape, and the states of exited sequences are not updated.

    active (`torch.FloatTensor` of shape `(rows, longest, hidden)`): states that the next layer updates.
    items (`torch.LongTensor` of shape `(active,)`): indices of the active items, of `rows_per_item` rows each.
    attention_mask, token_mask, position_ids: those of the active rows.
    """

    config: ElectraEarlyExitConfig
    active: torch.Tensor
    attention_mask: torch.Tensor | None
    token_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    rows_per_item: int

    def __post_init__(self):
        # `len` would be a constant in a traced graph.
        self.items = torch.arange(self.active.shape[0] // self.rows_per_item, device=self.active.device)
        self.empty, self._whole, self._continues = False, None, None

    def real(self) -> None:
        return None

    def run(self, layer: nn.Module, **kwargs):
        """Apply a layer to the active sequences."""
        if self.empty:
            return
        updated = layer(self.active, self.attention_mask, position_ids=self.position_ids, **kwargs)
        self.active = updated if self._continues is None else torch.where(self._continues, updated, self.active)

    def restore(self) -> torch.Tensor:
        """The states of all sequences, (batch, sequence, hidden)."""
        if self._whole is None:
            return self.active
        whole = self._whole.clone()
        whole[self._rows(self.items), : self.active.shape[1]] = self.active
        return whole

    def keep(self, exiting: torch.Tensor, continues: torch.Tensor) -> bool:
        """Freeze the active items that are not marked in `continues` (active,). Nothing changes unless an item is
        marked in `exiting` (active,).

        Returns:
            `bool`: whether any item exits.
        """
        if in_graph():
            self._continues = continues.repeat_interleave(self.rows_per_item)[:, None, None]
            return True
        places = torch.arange(1, self.active.shape[1] + 1, device=continues.device)
        read = continues.repeat_interleave(self.rows_per_item).unsqueeze(1)
        if self.token_mask is not None:
            read = read & (self.token_mask != 0)
        num_exiting, staying, longest = fetch(exiting.sum(), continues.sum(), (read * places).amax())
        if num_exiting == 0:
            return False
        kept = torch.argsort((~continues).to(torch.uint8), stable=True)[:staying]
        rows = self._rows(kept)
        self._whole, self.active, self.items = self.restore(), self.active[rows], self.items[kept]
        self.empty = staying == 0
        if self.empty:
            return True
        if self.token_mask is not None:
            longest = max(longest, 1)
            self.token_mask, self.active = self.token_mask[rows, :longest], self.active[:, :longest]
        self.attention_mask = full_attention_mask(self.config, self.active, self.token_mask)
        if self.position_ids is not None:
            own = self.position_ids[rows] if len(self.position_ids) > 1 else self.position_ids
            self.position_ids = own[:, : self.active.shape[1]]
        return True

    def _rows(self, items: torch.Tensor) -> torch.Tensor:
        """The rows of the batch that belong to `items`."""
        each = torch.arange(self.rows_per_item, device=items.device)
        return (items[:, None] * self.rows_per_item + each).view(-1)


class LayerOutput(nn.Module):
    """Hook point for `output_hidden_states`: receives the states of all tokens, in the order of the text, before and
    after a layer, although the layer may have computed only some of them."""

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return after


class ElectraEarlyExitEncoder(nn.Module):
    """The encoder layers, with exits between them."""

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(
            [ElectraEarlyExitLayer(config, layer_idx=i) for i in range(config.num_hidden_layers)]
        )
        pre = config.norm_position == "pre"
        # Applied after the last layer and before every exit head, so that all heads read normalized states.
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if pre else nn.Identity()
        self.layer_output = LayerOutput()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_mask: torch.Tensor | None = None,
        protected: torch.Tensor | None = None,
        exit_policy: str = "none",
        exits: Exits | None = None,
        exit_layer: int | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, ExitTrace]:
        """Run the layers. After an exit layer, they run only on the tokens or sequences that continue.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(batch, sequence, hidden)`).
            attention_mask: the mask for full-length layers, in the format of the attention implementation.
            token_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            protected (`torch.BoolTensor` of shape `(batch, sequence)`, *optional*): tokens that never exit.
            exit_policy (`str`): a key of `POLICIES`, one of [`CERTAIN`], or "none".
            exits ([`Exits`], *optional*): the exit heads and their settings. Required unless `exit_policy` is "none".
            exit_layer (`int`, *optional*): stop after this many layers.
            position_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): passed on to the layers.
            kwargs: passed on to the layers.

        Returns:
            The final states, `torch.FloatTensor` of shape `(batch, sequence, hidden)`, and the [`ExitTrace`].
        """
        depth = len(self.layer)
        given = self.config, hidden_states, attention_mask, token_mask, position_ids
        batch: Any  # `ActiveSequences` or `ActiveTokens`, depending on the policy
        if exit_policy == "certain_sequences":
            batch = ActiveSequences(*given, exits.rows_per_item)
        else:
            batch = ActiveTokens(*given)
        trace = ExitTrace()
        if exit_policy != "none":
            trace.exit_layers = torch.full_like(batch.items, depth).contiguous()
        exit_layers = [] if exits is None else exits.open_layers(self.config)
        # An item that exits a fine-tuned model has its answer, so there is no re-entry.
        reentry = depth - (0 if exit_policy in CERTAIN else self.config.exit_reentry_layers)
        sample = exits.full_depth_sample(hidden_states) if exit_layers and exit_policy == "none" else None
        for index, layer in enumerate(self.layer):
            if index == exit_layer:
                break
            if index == reentry and not batch.complete:
                batch.restart(batch.restore())
            batch.run(layer, **kwargs)
            if self._listening(kwargs):
                hidden_states = self.layer_output(hidden_states, batch.restore())
            if index + 1 in exit_layers and not batch.empty:
                number = self.config.exit_layers.index(index + 1)
                if exit_policy == "none":
                    self._predict(batch, trace, number, exits, sample)
                elif exit_policy in CERTAIN:
                    self._exit_if_certain(batch, trace, number, exits)
                else:
                    self._exit_by_policy(batch, trace, number, exits, exit_policy, protected)
        return self.norm(batch.restore()), trace

    def _listening(self, kwargs) -> bool:
        """Whether hidden states are requested. 0 requests the first one, so it counts as true."""
        requested = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        return requested is not None and requested is not False

    def _predict(self, tokens: ActiveTokens, trace: ExitTrace, number: int, exits: Exits, sample=None, gains=True):
        """Record the predictions of exit `number`, counted from 0, for the active tokens or a `sample` of them."""
        normed = self.norm(tokens.active if sample is None else take_tokens(tokens.active, sample))
        trace.logits.append(exits.heads[number](normed))
        trace.positions.append(tokens.items if sample is None else sample)
        if exits.gain_heads is not None and gains:
            # Detached: the regressor's loss sends no gradient into the encoder.
            trace.gains.append(exits.gain_heads[number](normed.detach()))

    def _exit_by_policy(
        self, tokens: ActiveTokens, trace: ExitTrace, number: int, exits: Exits, policy: str, protected
    ):
        """Apply a pre-training policy: choose the tokens that continue past exit `number`."""
        config, positions, real = self.config, tokens.items, tokens.real()
        self._predict(tokens, trace, number, exits, gains=self.training or policy != "threshold")
        tokens.layers_since_exit = 0
        # Detached: the selection sends no gradient into the heads.
        evidence = Evidence(
            trace.logits[-1].detach(),
            gain=trace.gains[-1].detach() if trace.gains else None,
            protected=None if protected is None else tokens.of_active(protected),
            padding=None if real is None else ~real,
            noise=exits.stream(number, positions.shape[1]),
        )
        if policy == "threshold" and not self.training:
            self._exit_exactly(tokens, trace, number, ~above_threshold(evidence, config))
            return
        num_kept = min(capacity(config.exit_capacities[number], tokens.order.shape[1]), positions.shape[1])
        scores, num_kept = POLICIES[policy](evidence, num_kept, config)
        masks = {"protected": evidence.protected, "padding": evidence.padding}
        if policy == "random":
            selection = draw(scores, num_kept, **masks)
        elif policy == "topk":
            if config.exit_auc_floor > 0 and exits.state is not None:
                scores = torch.where(exits.state.auc[number] < config.exit_auc_floor, evidence.uniform(), scores)
            exploration_noise = exits.stream(number, positions.shape[1], exploration=True)
            selection = select(
                scores, num_kept, **masks, exploration=config.exit_exploration, exploration_noise=exploration_noise
            )
        else:
            selection = select(scores, num_kept, **masks)  # a threshold has no capacity for exploration
        trace.selections.append(selection)
        num_candidates = positions.shape[1]
        tokens.exit(selection.order, num_kept)
        exited = tokens.order[:, num_kept:num_candidates]
        trace.exit_layers = trace.exit_layers.scatter(1, exited, config.exit_layers[number])

    def _exit_if_certain(self, batch: ActiveTokens | ActiveSequences, trace: ExitTrace, number: int, exits: Exits):
        """Apply an inference criterion: items whose prediction at exit `number` is certain enough exit."""
        items = batch.items
        if isinstance(batch, ActiveSequences):
            token_mask = batch.token_mask
            logits = exits.heads[number](self.norm(batch.active), token_mask=token_mask)
        else:
            token_mask, batch.layers_since_exit = None, 0
            logits = exits.heads[number](self.norm(batch.active))
        if self._exit_exactly(batch, trace, number, exits.finished(number, logits, items, token_mask)):
            trace.answers[self.config.exit_layers[number]] = (items, logits)

    def _exit_exactly(
        self, batch: ActiveTokens | ActiveSequences, trace: ExitTrace, number: int, finished: torch.Tensor
    ) -> bool:
        """Let exactly the items marked in `finished`, of the shape of `batch.items`, exit; return whether any does."""
        real, items = batch.real(), batch.items
        left_at = trace.exit_layers.gather(items.dim() - 1, items)
        there = left_at == len(self.layer)
        candidates = there if real is None else there & real
        continues = candidates & ~finished
        if not batch.keep(candidates & finished, continues):
            return False
        left_at = left_at.masked_fill(there & ~continues, self.config.exit_layers[number])
        trace.exit_layers = trace.exit_layers.scatter(items.dim() - 1, items, left_at)
        return True


class ElectraEarlyExitGenerator(nn.Module):
    """ELECTRA's generator: a narrow masked language model on the discriminator's embeddings.

    It takes the embeddings (word, position and type, with their LayerNorm) as input and owns all other weights. Its
    output layer is tied to the word embeddings.
    """

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__()
        config = config.generator_config()
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = GlorotLinear(config.embedding_size, config.hidden_size)
        self.encoder = ElectraEarlyExitEncoder(config)
        self.predictions = ElectraGeneratorPredictions(config)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size)

    def forward(self, embeddings, attention_mask, places: torch.Tensor, **kwargs) -> torch.Tensor:
        """The inputs of `lm_head`, (tokens, embedding size), at `places` (tokens,) in the flattened batch.

        [`PredictMaskedTokens`] applies `lm_head`, so that the logits are never all in memory.
        """
        if hasattr(self, "embeddings_project"):
            embeddings = self.embeddings_project(embeddings)
        hidden_states, _ = self.encoder(embeddings, attention_mask, **kwargs)
        return self.predictions(hidden_states.flatten(0, 1).index_select(0, places))


class ElectraEarlyExitSelfGenerator(nn.Module):
    """The generator `"self"`: a masked-language-modeling head on an early layer of the discriminator, with an output
    layer tied to the word embeddings (after Xu et al., "SAS: Self-Augmentation Strategy", 2021)."""

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__()
        self.predictions = ElectraGeneratorPredictions(config)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The inputs of `lm_head`, (tokens, embedding size), from states (tokens, hidden)."""
        return self.predictions(hidden_states)


# The generators that are part of the model.
MODEL_GENERATORS: dict[str, type] = {
    "mlm": ElectraEarlyExitGenerator,
    "self": ElectraEarlyExitSelfGenerator,
}


def originals(input_ids: torch.Tensor | None, mlm_labels: torch.Tensor | None) -> torch.Tensor | None:
    """The text before masking or corruption, (batch, sequence).

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, sequence)`): the masked or corrupted text.
        mlm_labels (`torch.LongTensor` of the same shape, *optional*): original ids of the chosen tokens, -100
            elsewhere. If omitted, the text is `input_ids`.
    """
    if input_ids is None or mlm_labels is None:
        return input_ids
    return torch.where(mlm_labels != -100, mlm_labels, input_ids)


class ChosenTokens(NamedTuple):
    """The tokens of a batch to predict, in the order of the text.

    places (`torch.LongTensor` of shape `(tokens,)`): indices into the flattened batch.
    targets (`torch.LongTensor` of shape `(tokens,)`): original ids; -100 marks fill entries.
    """

    places: torch.Tensor
    targets: torch.Tensor

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """The `values` (batch, sequence, ...) at these tokens, (tokens, ...)."""
        return values.flatten(0, 1).index_select(0, self.places)

    def put(self, text: torch.Tensor, replacements: torch.Tensor) -> torch.Tensor:
        """The text (batch, sequence) with these tokens replaced by `replacements` (tokens,)."""
        # Fill entries are written behind the text and cut off.
        places = self.places.where(self.targets != -100, text.numel())
        flat = torch.cat([text.flatten(), text.new_zeros(1)])
        return flat.scatter(0, places, replacements)[:-1].view_as(text)

    def corrupt(self, text: torch.Tensor, replacements: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace these tokens of the text (batch, sequence) by `replacements` (tokens,), and label the tokens that
        changed. Returns as [`replace_tokens`]."""
        corrupted = self.put(text, replacements)
        return corrupted, (corrupted != text).long()


def chosen_tokens(mlm_labels: torch.Tensor, masked_positions: torch.Tensor | None = None) -> ChosenTokens:
    """The tokens at `mlm_labels != -100` (batch, sequence).

    With `masked_positions` (batch, places), padded with -1, shapes do not depend on the data, and the host does not
    synchronize with the device. On a CPU, outside a traced graph, the positions are computed from the labels instead,
    which needs no fill entries.

    Raises:
        ValueError: if `masked_positions` is not of shape (batch, places).
    """
    flat, (batch, length) = mlm_labels.flatten(), mlm_labels.shape
    if masked_positions is not None and (masked_positions.dim() != 2 or len(masked_positions) != batch):
        raise ValueError(
            f"`masked_positions` must be of shape (batch, places) with a batch of {batch}, got "
            f"{tuple(masked_positions.shape)}"
        )
    if masked_positions is None or (mlm_labels.device.type == "cpu" and not in_graph()):
        places = (flat != -100).nonzero().squeeze(1)
        return ChosenTokens(places, flat.index_select(0, places))
    starts = length * torch.arange(batch, device=mlm_labels.device).unsqueeze(1)
    places = (masked_positions.clamp_min(0) + starts).flatten()
    return ChosenTokens(places, flat.index_select(0, places).masked_fill((masked_positions < 0).flatten(), -100))


def tokens_in(mask: torch.Tensor, places: int | None = None) -> ChosenTokens:
    """The tokens at a `mask` (batch, sequence), with placeholders as targets.

    With `places`, an upper bound of the number per row, the host does not synchronize with the device, as with the
    `masked_positions` of [`chosen_tokens`].
    """
    positions = None
    if places is not None:
        first, positions = mask.to(torch.uint8).sort(dim=1, descending=True, stable=True)
        positions = positions[:, :places].masked_fill(first[:, :places] == 0, -1)
    return chosen_tokens(torch.where(mask, 0, -100), positions)


def replace_tokens(
    input_ids: torch.Tensor, mlm_labels: torch.Tensor, replacements: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace the chosen tokens, and label the tokens that changed.

    Args:
        input_ids, mlm_labels: as in [`originals`].
        replacements (`torch.LongTensor` of shape `(chosen tokens,)`): in the order of `mlm_labels != -100`.

    Returns:
        The corrupted ids and the labels, both `torch.LongTensor` of shape `(batch, sequence)`. A label is 1 where the
        token differs from the original, else 0.
    """
    text = originals(input_ids, mlm_labels)
    corrupted = text.masked_scatter(mlm_labels != -100, replacements)
    return corrupted, (corrupted != text).long()


def exploration_mean(selection: Selection, values: torch.Tensor) -> torch.Tensor:
    """Mean of `values` (batch, candidates) over the exploration tokens."""
    continued = values.gather(1, selection.order[:, : selection.exploration.shape[1]])
    return (continued * selection.exploration).sum() / selection.exploration.sum().clamp_min(1)


def mean_over_real(values: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of `values` (batch, tokens) over the tokens that are not padding, where `token_mask` is 1."""
    if token_mask is None:
        return values.mean()
    counted = (token_mask == 1).to(values.dtype)
    return (values * counted).sum() / counted.sum().clamp_min(1)


def mean_over_exits(losses: list[torch.Tensor]) -> torch.Tensor:
    """Mean of the exits' losses, each of shape `()`. For the usual single exit, no kernel is launched."""
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


@dataclass
class ElectraEarlyExitModelOutput(ModelOutput):
    r"""
    Output of [`ElectraEarlyExitModel`].

    last_hidden_state (`torch.FloatTensor` of shape `(batch, sequence, hidden)`).
    hidden_states, attentions: as in Transformers. In `hidden_states` a token that has exited keeps its state in later
        layers. `attentions` have entries only for the tokens that a layer computed, active ones first.
    exit_logits (tuple of `torch.FloatTensor` of shape `(batch, active tokens)`): one entry per exit head; in training
        without a policy, only for the sample of `config.exit_full_depth_share`.
    exit_positions (tuple of `torch.LongTensor`, same shapes): positions of those tokens in the sequence.
    exit_gains (tuple of `torch.FloatTensor`, same shapes): predicted gain of continuing, for
        `exit_signal="expected_gain"` only.
    exit_answers (dict): for each exit layer of a fine-tuned model at which an item exited, the items that reached it
        and their logits; see [`ExitTrace`].
    exit_selections (tuple of [`Selection`]): the tokens that continued at each exit, if the policy ranks tokens.
    exit_layers (`torch.LongTensor` of shape `(batch, sequence)`, or `(batch,)` if whole sequences exit): number of
        layers completed by each item.
    """

    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    exit_logits: tuple[torch.FloatTensor, ...] | None = None
    exit_positions: tuple[torch.LongTensor, ...] | None = None
    exit_gains: tuple[torch.FloatTensor, ...] | None = None
    exit_answers: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None
    exit_selections: tuple[Selection, ...] | None = None
    exit_layers: torch.LongTensor | None = None


@dataclass
class ElectraEarlyExitForPreTrainingOutput(ModelOutput):
    r"""
    Output of [`ElectraEarlyExitForPreTraining`]. Has `hidden_states`, `attentions` and the exit fields, except
    `exit_answers`, of [`ElectraEarlyExitModelOutput`], and:

    loss (`torch.FloatTensor` of shape `()`): the training loss.
    logits (`torch.FloatTensor` of shape `(batch, sequence)`): logits of "this token was replaced".
    discriminator_loss, exit_loss, gain_loss, generator_loss (`torch.FloatTensor` of shape `()`): unweighted parts of
        the loss, without gradient: the mean binary cross-entropy of the final head; that of the exit heads, averaged
        over the exits; the mean squared error of the predicted gains; the mean cross-entropy of the generator over
        masked tokens.
    rtd_labels (`torch.LongTensor` of shape `(batch, sequence)`): 1 where the discriminator's input was a replaced
        token, else 0.
    corrupted_ids (`torch.LongTensor` of shape `(batch, sequence)`): the discriminator's input.
    proposals (`torch.LongTensor` of shape `(batch, sequence)`): replacements that the generator `"self"` proposes at
        `proposal_mask`, -100 elsewhere.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    discriminator_loss: torch.FloatTensor | None = None
    exit_loss: torch.FloatTensor | None = None
    gain_loss: torch.FloatTensor | None = None
    generator_loss: torch.FloatTensor | None = None
    rtd_labels: torch.LongTensor | None = None
    corrupted_ids: torch.LongTensor | None = None
    proposals: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    exit_logits: tuple[torch.FloatTensor, ...] | None = None
    exit_positions: tuple[torch.LongTensor, ...] | None = None
    exit_gains: tuple[torch.FloatTensor, ...] | None = None
    exit_selections: tuple[Selection, ...] | None = None
    exit_layers: torch.LongTensor | None = None


# Fields that the pre-training output copies from the encoder's output.
FROM_THE_ENCODER = (
    "hidden_states", "attentions", "exit_logits", "exit_positions", "exit_gains", "exit_selections", "exit_layers",
)  # fmt: skip


class ElectraEarlyExitPreTrainedModel(FromPlain, ElectraPreTrainedModel):
    """Base class of all models: weight initialization and loading."""

    config: ElectraEarlyExitConfig
    config_class = ElectraEarlyExitConfig
    # Loading only the encoder of a pre-training checkpoint, or fewer of its layers, is intended and needs no warning.
    _keys_to_ignore_on_load_unexpected = [
        r"^generator(_\w+)?\.", r"^exit_\w+\.", r"^discriminator_predictions\.", r"^cls\.", r"^(electra\.)?pooler\.",
        r"encoder\.layer\.\d+\.",
    ]  # fmt: skip
    _no_split_modules = ["ElectraEarlyExitLayer"]
    _can_record_outputs = {"hidden_states": LayerOutput, "attentions": ElectraEarlyExitSelfAttention}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, GlorotLinear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, ElectraEarlyExitState):
            for name, value in module.initial(self.config).items():
                init.copy_(getattr(module, name), value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, use_safetensors=True, **kwargs):
        """As in Transformers, except that pickled weights (`pytorch_model.bin`), which can contain code, are loaded
        only with `use_safetensors=False`."""
        loaded = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, use_safetensors=use_safetensors, **kwargs
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._weight_conversions = None  # or the model would be saved under the names of the source checkpoint
        return loaded

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, **kwargs):
        """`push_to_hub` without the library's model card template, which has no information about this model."""
        unchanged = {**files_timestamps, "README.md": float("inf")}
        return super()._upload_modified_files(working_dir, repo_id, unchanged, **kwargs)


class ElectraEarlyExitModel(ElectraEarlyExitPreTrainedModel):
    """Embeddings and encoder. Every token runs at full depth unless `exit_policy` and `exits` are given."""

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.embeddings = ElectraEmbeddings(config)
        # The attention mask identifies padding. With `padding_idx`, a [SEP] of the same id would get no gradient.
        self.embeddings.word_embeddings.padding_idx = None
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = GlorotLinear(config.embedding_size, config.hidden_size)
        self.encoder = ElectraEarlyExitEncoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        exit_policy: str | None = None,
        exits: Exits | None = None,
        exit_layer: int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor] | ElectraEarlyExitModelOutput:
        r"""
        Args:
            input_ids, token_type_ids, position_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): as
                in `ElectraModel`.
            attention_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, sequence, embedding_size)`, *optional*): instead of
                `input_ids`.
            exit_policy (`str`, *optional*): policy at `config.exit_layers`: `"none"` (default), or another value of
                `config.exit_policy`.
            exits ([`Exits`], *optional*): the exit heads. Required for any policy but `"none"`.
            exit_layer (`int`, *optional*): stop after this many layers, for a cheaper `last_hidden_state`.

        Returns:
            [`ElectraEarlyExitModelOutput`].

        Raises:
            ValueError: if both or neither of `input_ids` and `inputs_embeds` are given; if the batch is empty; for an
                unknown policy, or a policy without heads, without the config field that it reads, or with an attention
                mask that is not of shape (batch, sequence); for an `exit_layer` out of range or combined with a
                policy.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if 0 in (shape := (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]):
            raise ValueError(f"a batch needs at least one sequence and one token, got shape {tuple(shape)}")
        exit_policy = "none" if exit_policy is None else exit_policy
        self._check_exit_arguments(exit_policy, exits, attention_mask, exit_layer)

        embedding_output = self.embed(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        protected = None
        if exit_policy not in ("none", *CERTAIN):
            original_ids = input_ids if exits.original_ids is None else exits.original_ids
            protected = self._protected_tokens(embedding_output, original_ids)
        if hasattr(self, "embeddings_project"):
            embedding_output = self.embeddings_project(embedding_output)
        hidden_states, trace = self.encoder(
            embedding_output,
            full_attention_mask(self.config, embedding_output, attention_mask),
            token_mask=attention_mask if exit_policy != "none" else None,
            protected=protected,
            exit_policy=exit_policy,
            exits=exits,
            exit_layer=exit_layer,
            position_ids=position_ids,
            **kwargs,
        )
        return ElectraEarlyExitModelOutput(
            last_hidden_state=hidden_states,
            exit_logits=tuple(trace.logits) or None,
            exit_positions=tuple(trace.positions) or None,
            exit_gains=tuple(trace.gains) or None,
            exit_answers=trace.answers or None,
            exit_selections=tuple(trace.selections) or None,
            exit_layers=trace.exit_layers,
        )

    def embed(
        self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None
    ) -> torch.Tensor:
        """Embeddings (batch, sequence, embedding size). Positions count from the first token that is not padding, so
        that padding on either side does not change the result."""
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
            position_ids = (places - first_tokens(attention_mask).unsqueeze(1)).clamp_min(0)
        return self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)

    def _check_exit_arguments(self, exit_policy, exits, attention_mask, exit_layer):
        depth = self.config.num_hidden_layers
        if exit_layer is not None and (exit_policy != "none" or not 1 <= exit_layer <= depth):
            raise ValueError(
                f"`exit_layer` must be between 1 and num_hidden_layers ({depth}), and requires `exit_policy='none'`; "
                f"got {exit_layer!r} with {exit_policy!r}"
            )
        if exit_policy == "none":
            return
        if exit_policy not in (*POLICIES, *CERTAIN):
            raise ValueError(f"`exit_policy` must be one of {['none', *POLICIES]}, got {exit_policy!r}")
        if exits is None:
            raise ValueError(
                f"`exit_policy={exit_policy!r}` requires `exits`; a model with `config.exit_policy='none'` has none"
            )
        rule = {"topk": "exit_signal", "threshold": "exit_entropy_threshold"}.get(exit_policy)
        if rule is not None and getattr(self.config, rule) is None:
            raise ValueError(
                f"`exit_policy={exit_policy!r}` requires `config.{rule}`, got None; pass both to the config or to "
                "`from_pretrained`"
            )
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(
                f"exits require an `attention_mask` of shape (batch, sequence), got {tuple(attention_mask.shape)}"
            )

    def _protected_tokens(self, embeddings, original_ids) -> torch.Tensor:
        """Tokens that never exit, (batch, sequence): the first, and every [CLS] and [SEP] of the text. A replacement
        that happens to be one is no such token."""
        special = [each for each in (self.config.cls_token_id, self.config.sep_token_id) if each is not None]
        if original_ids is None or not special:
            protected = torch.zeros(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        else:
            protected = functools.reduce(torch.logical_or, [original_ids == token_id for token_id in special])
        # Not assigned: `= True` copies from the host, and `fill_` of a part cannot be traced.
        return torch.cat([torch.ones_like(protected[:, :1]), protected[:, 1:]], dim=1)


class ElectraEarlyExitForPreTraining(PlainPreTraining, ElectraEarlyExitPreTrainedModel):
    """Discriminator, exit heads and, for `generator_type` `"mlm"` and `"self"`, the generator in one model.

    It can be called in two ways:
    - corrupted `input_ids` with `labels`: replaced-token detection, as [`ElectraForPreTraining`];
    - masked `input_ids` with `mlm_labels`: the joint objective. The generator (`generator_type="mlm"`) replaces the
      masked tokens, and the discriminator predicts which tokens were replaced.
    """

    # Only one signal has regressors, and `from_pretrained` may override the policy.
    _keys_to_ignore_on_load_unexpected = [r"^exit_gains\."]
    _keep_in_fp32_modules_strict = ["exit_state"]
    # The loss is a mean over this batch. Without this, `Trainer` would infer the opposite from **kwargs.
    accepts_loss_kwargs = False
    _tied_weights_keys = {"generator.lm_head.weight": "electra.embeddings.word_embeddings.weight"}

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.electra = ElectraEarlyExitModel(config)
        self.discriminator_predictions = ElectraEarlyExitDetectionHead(config)
        if config.has_exit_heads:
            self.exit_predictions = nn.ModuleList([ElectraEarlyExitDetectionHead(config) for _ in config.exit_layers])
            if config.has_gain_heads:
                self.exit_gains = nn.ModuleList([ElectraEarlyExitDetectionHead(config) for _ in config.exit_layers])
            self.exit_state = ElectraEarlyExitState(config)
        if config.generator_type in MODEL_GENERATORS:
            self.generator = MODEL_GENERATORS[config.generator_type](config)
        if self.get_output_embeddings() is None:
            self._tied_weights_keys = {}
        self.post_init()

    def get_output_embeddings(self):
        return self.generator.lm_head if hasattr(self, "generator") else None

    def set_output_embeddings(self, value):
        if hasattr(self, "generator"):
            self.generator.lm_head = value

    def exits(self, noise: torch.Tensor | None = None, original_ids: torch.Tensor | None = None) -> Exits | None:
        """The exits' heads and statistics, or `None` for a model without; the arguments are fields of [`Exits`]."""
        if not self.config.has_exit_heads:
            return None
        return Exits(
            self.exit_predictions,
            getattr(self, "exit_gains", None),
            self.exit_state,
            noise=noise,
            original_ids=original_ids,
            full_depth_share=self.config.exit_full_depth_share if self.training else 1.0,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        exit_policy: str | None = None,
        exit_loss_scale: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        proposal_mask: torch.Tensor | None = None,
        noise_seeds: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor] | ElectraEarlyExitForPreTrainingOutput:
        r"""
        Args:
            input_ids, token_type_ids, position_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): as
                in `ElectraModel`.
            attention_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, sequence, embedding_size)`, *optional*): instead of
                `input_ids`.
            labels (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): 1 where a token was replaced, else 0.
                An empty tensor of shape `(batch, 0)` counts as omitted.
            mlm_labels (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): original tokens at masked
                positions, -100 elsewhere. Selects the joint objective. If `labels` are given too, the batch is already
                corrupted, and the model's generator does not corrupt it. Passed through `**kwargs`, because `Trainer`
                expects every label argument in the signature to be present in evaluation.
            exit_policy (`str`, *optional*): overrides the policy for this call. If omitted, the config's in training
                mode, `"none"` (full depth) in evaluation mode.
            exit_loss_scale (`torch.Tensor` of shape `()`, *optional*): factor on the exit loss, for its warm-up. A
                tensor, so that `torch.compile` does not recompile when the value changes.
            masked_positions (`torch.LongTensor` of shape `(batch, places)`, *optional*): positions where `mlm_labels`
                is not -100, ascending, padded with -1. With them no shape depends on the data: on a GPU the step needs
                no host-device synchronization, and `torch.compile` compiles once. If omitted, they are computed from
                `mlm_labels`.
            proposal_mask (`torch.BoolTensor` of shape `(batch, sequence)`, *optional*): for the generator `"self"`,
                where to propose replacements for the next epoch.
            noise_seeds (`torch.LongTensor` of shape `(batch,)`, *optional*): one seed per sequence, the only source of
                randomness for the generator's samples and the exits. If omitted, torch's generator is used. Dropout
                always uses torch's generator.

        Returns:
            [`ElectraEarlyExitForPreTrainingOutput`]. With `labels`, `loss` is `discriminator_loss +
            exit_loss_weight * exit_loss + exit_gain_loss_weight * gain_loss`. The second term requires exit heads, the
            third gain regressors; without exits the loss equals ELECTRA's. It is multiplied by `discriminator_weight`
            unless `generator_type` is `"mlm"` or `"none"`. With `mlm_labels` the loss is
            `generator_weight * generator_loss + discriminator_weight *` that sum, as in google-research/electra.

        Raises:
            ValueError: if a model with `generator_type="mlm"` gets both `labels` and `mlm_labels`; if any other model
                gets `mlm_labels` without `labels`; for `mlm_labels` without `input_ids`.
        """
        mlm_labels = kwargs.pop("mlm_labels", None)
        if labels is not None and labels.shape[1:] == (0,):
            labels = None
        if exit_policy is None:
            exit_policy = self.config.exit_policy if self.training and self.config.has_exit_heads else "none"
        if mlm_labels is not None and labels is not None and self.config.generator_type == "mlm":
            raise ValueError(
                "`labels` and `mlm_labels` are mutually exclusive: the joint objective creates its own labels"
            )
        text, generator_loss, proposals = originals(input_ids, mlm_labels), None, None
        noise = self._noise(noise_seeds, input_ids if inputs_embeds is None else inputs_embeds)
        beside = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "position_ids": position_ids}
        if mlm_labels is not None and labels is None:
            input_ids, labels, generator_loss = self.corrupt(
                input_ids, mlm_labels, **beside, noise=noise, masked_positions=masked_positions
            )

        proposes = self.config.generator_type == "self" and (mlm_labels is not None or proposal_mask is not None)
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, **beside}
        exits = {"exit_policy": exit_policy, "exits": self.exits(noise, text)}
        outputs, early_states = self._encode(proposes, **inputs, **exits, **kwargs)
        if proposes:
            chosen = None if mlm_labels is None else chosen_tokens(mlm_labels, masked_positions)
            places = None if masked_positions is None else masked_positions.shape[1]  # the same in every epoch
            proposed = None if proposal_mask is None else tokens_in(proposal_mask, places)
            generator_loss, proposals = self.predict_originals(early_states, chosen, proposed)

        logits = self.discriminator_predictions(outputs.last_hidden_state)
        losses = {}
        if labels is not None:
            losses = self._losses(outputs, logits, labels, attention_mask, generator_loss, exit_loss_scale)
            if not self.training and self.config.has_exit_heads:
                warn_of_evaluation_mode(losses["loss"])
            if self.training and exit_policy == "topk":  # only this policy reads the statistics
                self.exit_state.update(outputs, labels, attention_mask)
        return ElectraEarlyExitForPreTrainingOutput(
            **losses,
            logits=logits,
            rtd_labels=labels,
            corrupted_ids=input_ids,
            proposals=proposals,
            **{name: getattr(outputs, name) for name in FROM_THE_ENCODER},
        )

    def _noise(self, seeds: torch.Tensor | None, inputs: torch.Tensor | None) -> torch.Tensor | None:
        """The noise of a whole step for `inputs` (batch, sequence, ...), from the seeds of its sequences; see
        [`Exits`]."""
        if seeds is None or inputs is None:
            return None
        exits = len(self.config.exit_layers) if self.config.has_exit_heads else 0
        return row_noise(seeds, inputs.shape[1], 2 + 2 * exits)

    def _encode(self, with_early_states: bool, **inputs) -> tuple[ElectraEarlyExitModelOutput, torch.Tensor | None]:
        """The encoder's output and, if `with_early_states`, the input states of the generator `"self"`. The output has
        hidden states only if the caller requested them."""
        if not with_early_states:
            return self.electra(**inputs, return_dict=True), None
        layer = self.config.generator_layer
        requested = inputs.pop("output_hidden_states", self.config.output_hidden_states)
        outputs = self.electra(**inputs, output_hidden_states=requested or [layer], return_dict=True)
        early_states = outputs.hidden_states[layer]
        if not requested:
            outputs.hidden_states = None
        return outputs, early_states

    def _losses(self, outputs, logits, labels, token_mask, generator_loss, exit_loss_scale) -> dict[str, torch.Tensor]:
        """The loss as defined in [`forward`], and its parts without gradient."""
        config, parts = self.config, {"generator_loss": generator_loss}
        labels = labels.float()
        loss = parts["discriminator_loss"] = mean_over_real(token_losses(logits, labels), token_mask)
        if outputs.exit_logits is not None:
            exit_loss = parts["exit_loss"] = self._exit_loss(outputs, logits, labels, token_mask)
            weighted = config.exit_loss_weight * exit_loss
            loss = loss + (weighted if exit_loss_scale is None else exit_loss_scale * weighted)
        if outputs.exit_gains is not None:
            gain_loss = parts["gain_loss"] = self._gain_loss(outputs, logits, labels, token_mask)
            loss = loss + config.exit_gain_loss_weight * gain_loss
        # Weighted for every generator, so that learning rate, gradient clipping and Adam's epsilon carry over.
        if generator_loss is not None or config.generator_type not in ("mlm", "none"):
            loss = config.discriminator_weight * loss
        if generator_loss is not None:
            loss = config.generator_weight * generator_loss + loss
        return {"loss": loss, **{name: part.detach() for name, part in parts.items() if part is not None}}

    def corrupt(
        self,
        input_ids: torch.Tensor,
        mlm_labels: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Replace the masked tokens by samples from the generator.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, sequence)`): the masked text.
            mlm_labels (`torch.LongTensor` of shape `(batch, sequence)`): original tokens at masked positions, -100
                elsewhere.
            attention_mask, token_type_ids, position_ids, masked_positions: as in [`forward`].
            noise (`torch.FloatTensor` of shape `(batch, sequence, 2 or more)`, *optional*): uniform in (0, 1); the
                samples use the first two streams. If omitted, drawn from torch's generator.

        Returns:
            The corrupted ids and the labels, as in [`replace_tokens`], and the generator's loss, the mean
            cross-entropy over masked positions, fp32 of shape `()`. Only the loss has a gradient.

        Raises:
            ValueError: if the model has no generator of type `"mlm"`, or `input_ids` are missing.
        """
        if self.config.generator_type != "mlm":
            raise ValueError(
                f"`mlm_labels` requires `generator_type='mlm'`, got {self.config.generator_type!r}; pass corrupted "
                "`input_ids` with `labels` instead"
            )
        if input_ids is None:
            raise ValueError("`mlm_labels` requires `input_ids`")
        chosen = chosen_tokens(mlm_labels, masked_positions)
        noise = None if noise is None else chosen.take(noise)[:, :2]
        states = self._generator_states(input_ids, chosen.places, attention_mask, token_type_ids, position_ids)
        generator_loss, samples = self._predict_tokens(states, chosen.targets, noise)
        return *chosen.corrupt(originals(input_ids, mlm_labels), samples), generator_loss

    def predict_originals(
        self, hidden_states: torch.Tensor, chosen: ChosenTokens | None, proposed: ChosenTokens | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Loss and proposals of the generator `"self"`.

        The head is trained to predict the original token at all chosen positions, including those left unchanged. It
        therefore cannot rely on copying its input, and its proposals are plausible at positions with original tokens.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(batch, sequence, hidden)`): states of the generator's layer.
            chosen ([`ChosenTokens`], *optional*): tokens to predict.
            proposed ([`ChosenTokens`], *optional*): tokens to sample proposals for.

        Returns:
            The mean cross-entropy at the `chosen` tokens, and samples (batch, sequence) at the `proposed` tokens,
            -100 elsewhere. Each is `None` if its argument is.
        """
        hidden_states, loss, proposals = self.electra.encoder.norm(hidden_states), None, None
        if proposed is not None:
            with torch.no_grad():
                samples = sample_tokens(self.generator.lm_head(self.generator(proposed.take(hidden_states))))
            proposals = proposed.put(torch.full(hidden_states.shape[:2], -100, device=samples.device), samples)
        if chosen is not None:
            loss, _ = self._predict_tokens(self.generator(chosen.take(hidden_states)), chosen.targets)
        return loss, proposals

    def _predict_tokens(self, states, targets, noise=None) -> tuple[torch.Tensor, torch.Tensor]:
        """The generator's mean cross-entropy over `targets` (tokens,) other than -100, and one sample per target."""
        head = self.generator.lm_head
        return PredictMaskedTokens.apply(states, head.weight, head.bias, targets, noise)

    def _generator_states(self, input_ids, places, attention_mask, token_type_ids, position_ids) -> torch.Tensor:
        embeddings = self.electra.embed(input_ids, attention_mask, token_type_ids, position_ids)
        return self.generator(
            embeddings,
            full_attention_mask(self.config, embeddings, attention_mask),
            places,
            # The generator's config is a copy, which `set_attn_implementation` does not update.
            attn_implementation=self.config._attn_implementation,
        )

    def _exit_loss(self, outputs, final_logits, labels, token_mask) -> torch.Tensor:
        """Mean over the exits of each head's loss on the tokens that reach it. With distillation, the heads also learn
        the final head's predictions on exploration tokens."""
        losses, weight = [], self.config.exit_distillation_weight
        for number, (logits, positions) in enumerate(zip(outputs.exit_logits, outputs.exit_positions, strict=True)):
            mask = None if token_mask is None else token_mask.gather(1, positions)
            if outputs.exit_layers is not None and not self.training:  # exclude exited tokens that fill up rows
                here = outputs.exit_layers.gather(1, positions) >= self.config.exit_layers[number]
                mask = here.long() if mask is None else mask * here
            loss = mean_over_real(token_losses(logits, labels.gather(1, positions)), mask)
            if outputs.exit_selections is not None and weight > 0:
                teacher = final_logits.detach().gather(1, positions).sigmoid()
                loss = loss + weight * exploration_mean(outputs.exit_selections[number], token_losses(logits, teacher))
            losses.append(loss)
        return mean_over_exits(losses)

    def _gain_loss(self, outputs, final_logits, labels, token_mask) -> torch.Tensor:
        """Squared error of the predicted gains, averaged over the exits: on exploration tokens, or at full depth on
        the sample that the heads read.

        The gain of a token is the exit head's loss minus the final head's loss, in nats. The target and the
        regressor's input are detached, so only the regressor is trained.
        """
        losses = []
        for number, (logits, gains) in enumerate(zip(outputs.exit_logits, outputs.exit_gains, strict=True)):
            positions = outputs.exit_positions[number]
            here = labels.gather(1, positions)
            gain = token_losses(logits, here) - token_losses(final_logits.gather(1, positions), here)
            errors = (gains.float() - gain.detach()).square()
            if outputs.exit_selections is not None:
                losses.append(exploration_mean(outputs.exit_selections[number], errors))
            else:
                mask = None if token_mask is None else token_mask.gather(1, positions)
                losses.append(mean_over_real(errors, mask))
        return mean_over_exits(losses)


ElectraEarlyExitModel.register_for_auto_class("AutoModel")
ElectraEarlyExitForPreTraining.register_for_auto_class("AutoModelForPreTraining")

__all__ = [
    "ElectraEarlyExitForPreTraining",
    "ElectraEarlyExitForPreTrainingOutput",
    "ElectraEarlyExitModel",
    "ElectraEarlyExitModelOutput",
    "ElectraEarlyExitPreTrainedModel",
]
