"""ELECTRA with adaptive early exits: encoder, model, and the joint pre-training objective.

A training step reads top to bottom in `ElectraEarlyExitForPreTraining.forward`: the generator corrupts, the encoder
discriminates, and after an exit layer only the surviving tokens are computed (`ElectraEarlyExitEncoder.forward`).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForMultipleChoice,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
)
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.electra.modeling_electra import (
    ElectraClassificationHead,
    ElectraDiscriminatorPredictions,
    ElectraEmbeddings,
    ElectraGeneratorPredictions,
    ElectraLayer,
    ElectraPreTrainedModel,
    ElectraSelfAttention,
    ElectraSequenceSummary,
    eager_attention_forward,
)
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_electra_exit import AUTO_MAP, ElectraEarlyExitConfig
from .exit_policy import POLICIES, Evidence, Selection, capacity, row_noise, select
from .exit_state import ElectraEarlyExitState, token_losses


logger = logging.get_logger(__name__)


class PermuteTokens(torch.autograd.Function):
    """Reorder the tokens of every row; the gradient is reordered back.

    `torch.gather` would do, but its backward pass has to allow for repeated indices. A permutation has none, so both
    directions copy whole rows: several times faster on a CPU, and deterministic on a GPU.
    """

    @staticmethod
    def forward(ctx, hidden_states, order):
        ctx.save_for_backward(order)
        return take_tokens(hidden_states, order)

    @staticmethod
    def backward(ctx, grad_output):
        (order,) = ctx.saved_tensors
        return take_tokens(grad_output, order.argsort(dim=1)), None


def take_tokens(hidden_states: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """`hidden_states` (batch, tokens, width) with the tokens of each row in the given order (batch, tokens)."""
    batch, tokens, width = hidden_states.shape
    rows = order + tokens * torch.arange(batch, device=order.device).unsqueeze(1)
    return hidden_states.reshape(batch * tokens, width).index_select(0, rows.reshape(-1)).view(batch, -1, width)


class ElectraEarlyExitSelfAttention(ElectraSelfAttention):
    """ELECTRA's self-attention, in which tokens that left may stay visible as keys and values."""

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
    """ELECTRA's layer. `frozen_states` (batch, frozen tokens, hidden) are attended to and not updated."""

    def __init__(self, config, layer_idx=None):
        super().__init__(config, layer_idx=layer_idx)
        self.attention.self = ElectraEarlyExitSelfAttention(config, layer_idx=layer_idx)
        self.norm_position = config.norm_position

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        frozen_states: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        # `frozen_states` is positional so that reentrant gradient checkpointing sees that it needs gradients.
        if self.norm_position == "post":
            return super().forward(hidden_states, attention_mask, frozen_states=frozen_states, **kwargs)
        # The same weights under the same names, but each LayerNorm comes before its block instead of after the sum.
        attention, feed_forward = self.attention.output, self.output
        visible = None if frozen_states is None else attention.LayerNorm(frozen_states)
        attended, _ = self.attention.self(
            attention.LayerNorm(hidden_states), attention_mask, frozen_states=visible, **kwargs
        )
        hidden_states = hidden_states + attention.dropout(attention.dense(attended))
        inner = self.intermediate(feed_forward.LayerNorm(hidden_states))
        return hidden_states + feed_forward.dropout(feed_forward.dense(inner))


@dataclass
class Exits:
    """What a model lends its encoder to decide about exits: one entry an exit layer.

    heads: map states (batch, tokens, hidden) to logits (batch, tokens).
    gain_heads (*optional*): map states to the predicted gain of going on, (batch, tokens).
    state ([`ElectraEarlyExitState`], *optional*): what training has measured so far.
    noise_seeds (`torch.LongTensor` of shape `(batch,)`, *optional*): see [`noise`].
    """

    heads: Sequence[Callable[[torch.Tensor], torch.Tensor]]
    gain_heads: Sequence[Callable[[torch.Tensor], torch.Tensor]] | None = None
    state: ElectraEarlyExitState | None = None
    noise_seeds: torch.Tensor | None = None

    def noise(self, number: int, length: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Uniform noise (batch, length) for the policy and for the audit sample at exit `number`, from the seeds of
        the sequences; without seeds there is none, and both draw from torch's generator."""
        if self.noise_seeds is None:
            return None, None
        return tuple(row_noise(self.noise_seeds, 1 + 2 * number + i, length) for i in range(2))


@dataclass
class ExitTrace:
    """What happened at the exits of one forward pass, in the order of the exit layers.

    logits (list of `torch.FloatTensor` of shape `(batch, active tokens)`): the exit heads' predictions.
    gains (list of `torch.FloatTensor` of the same shapes): the predicted gains, where there are regressors.
    positions (list of `torch.LongTensor` of the same shapes): where in the sequence those tokens stand.
    selections (list of [`Selection`]): who continued. Empty if no policy was at work.
    exit_layers (`torch.LongTensor` of shape `(batch, sequence)`): layers completed when each token left; the depth for
        tokens that never did. `None` if no policy was at work.
    """

    logits: list[torch.Tensor] = field(default_factory=list)
    gains: list[torch.Tensor] = field(default_factory=list)
    positions: list[torch.Tensor] = field(default_factory=list)
    selections: list[Selection] = field(default_factory=list)
    exit_layers: torch.Tensor | None = None


@dataclass
class ActiveTokens:
    """The tokens of a batch in active-first order: those still in the encoder, then those that left.

    active (`torch.FloatTensor` of shape `(batch, active tokens, hidden)`): states that the next layer updates.
    frozen (`torch.FloatTensor` of shape `(batch, frozen tokens, hidden)`): states of the tokens that left.
    order (`torch.LongTensor` of shape `(batch, sequence)`): where in the sequence each token of this order stands.
    """

    active: torch.Tensor
    frozen: torch.Tensor
    order: torch.Tensor

    @classmethod
    def all_of(cls, hidden_states: torch.Tensor) -> "ActiveTokens":
        batch, sequence, _ = hidden_states.shape
        order = torch.arange(sequence, device=hidden_states.device).expand(batch, -1)
        return cls(hidden_states, hidden_states[:, :0], order)

    def positions(self) -> torch.Tensor:
        """Positions of the active tokens, (batch, active tokens)."""
        return self.order[:, : self.active.shape[1]]

    def exit(self, local_order: torch.Tensor, num_kept: int) -> "ActiveTokens":
        """Freeze all but the first `num_kept` of the active tokens, taken in `local_order` (batch, active tokens)."""
        tokens = PermuteTokens.apply(self.active, local_order)
        order = torch.cat([self.positions().gather(1, local_order), self.order[:, local_order.shape[1] :]], dim=1)
        return ActiveTokens(tokens[:, :num_kept], torch.cat([tokens[:, num_kept:], self.frozen], dim=1), order)

    def restore(self) -> torch.Tensor:
        """All tokens in the order of the text, (batch, sequence, hidden)."""
        return PermuteTokens.apply(torch.cat([self.active, self.frozen], dim=1), self.order.argsort(dim=1))


class ElectraEarlyExitEncoder(nn.Module):
    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(
            [ElectraEarlyExitLayer(config, layer_idx=i) for i in range(config.num_hidden_layers)]
        )
        pre = config.norm_position == "pre"
        # After the last layer, and before every exit head: heads read what the last head would read.
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if pre else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_mask: torch.Tensor | None = None,
        protected: torch.Tensor | None = None,
        exit_policy: str = "none",
        exits: Exits | None = None,
        input_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, ExitTrace]:
        """Run the layers, and after each exit layer only on the tokens that continue.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(batch, sequence, hidden)`).
            attention_mask: what the attention implementation wants for full-length layers.
            token_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            protected (`torch.BoolTensor` of shape `(batch, sequence)`, *optional*): tokens that never exit.
            exit_policy (`str`): a key of `POLICIES`, or "none".
            exits ([`Exits`], *optional*): the heads, and what else decides.
            input_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): for signals by vocabulary id.
        """
        tokens = ActiveTokens.all_of(hidden_states)
        trace = ExitTrace()
        if exit_policy != "none":
            trace.exit_layers = torch.full_like(tokens.order, len(self.layer)).contiguous()
        exit_layers = [] if exits is None else self.config.exit_layers
        since_exit = 0
        for index, layer in enumerate(self.layer):
            if index == len(self.layer) - self.config.exit_reentry_layers and tokens.frozen.shape[1]:
                tokens = ActiveTokens.all_of(tokens.restore())
            if tokens.frozen.shape[1] == 0:
                tokens.active = layer(tokens.active, attention_mask, **kwargs)
            else:
                tokens.active = self._run_on_survivors(layer, tokens, token_mask, since_exit, **kwargs)
                since_exit += 1

            if index + 1 in exit_layers:
                number = exit_layers.index(index + 1)
                normed = self.norm(tokens.active)
                trace.logits.append(exits.heads[number](normed))
                trace.positions.append(tokens.positions())
                if exits.gain_heads is not None:
                    # Detached: the regressor watches the encoder and must not bend it.
                    trace.gains.append(exits.gain_heads[number](normed.detach()))
                if exit_policy != "none":
                    tokens = self._exit(tokens, trace, number, token_mask, protected, exit_policy, exits, input_ids)
                    since_exit = 0
        return self.norm(tokens.restore() if tokens.frozen.shape[1] else tokens.active), trace

    def _run_on_survivors(self, layer, tokens: ActiveTokens, token_mask, since_exit: int, **kwargs) -> torch.Tensor:
        """One layer with the active tokens as queries and, as `exit_context` says, more tokens as keys and values."""
        context = self.config.exit_context
        visible = tokens.frozen if context == "all" or (context == "first" and since_exit == 0) else None
        # Flash and flex attention take their masks in forms that assume as many queries as keys; sdpa does not.
        eager = self.config._attn_implementation == "eager"
        mask = None
        if token_mask is not None:
            keys = tokens.order if visible is not None else tokens.positions()
            mask = token_mask.bool().gather(1, keys)[:, None, None, :]
            if eager:
                lowest = torch.finfo(tokens.active.dtype).min
                mask = torch.zeros_like(mask, dtype=tokens.active.dtype).masked_fill(~mask, lowest)
        return layer(tokens.active, mask, visible, attn_implementation="eager" if eager else "sdpa", **kwargs)

    def _exit(
        self, tokens, trace: ExitTrace, number: int, token_mask, protected, exit_policy, exits: Exits, input_ids
    ) -> ActiveTokens:
        """Let the policy choose who continues past exit `number`, counted from 0."""
        config, positions = self.config, tokens.positions()
        num_kept = min(capacity(config.exit_keep[number], tokens.order.shape[1]), positions.shape[1])
        # Detached: a token is not chosen for its loss, and the choice sends no gradient back.
        noise, lottery = exits.noise(number, positions.shape[1])
        evidence = Evidence(
            trace.logits[-1].detach(),
            gain=trace.gains[-1].detach() if trace.gains else None,
            token_loss=self._token_losses(exits.state, input_ids, positions),
            protected=None if protected is None else protected.gather(1, positions),
            padding=None if token_mask is None else token_mask.gather(1, positions) == 0,
            noise=noise,
        )
        scores, num_kept, log_weights = POLICIES[exit_policy](evidence, num_kept, config)
        if exit_policy == "budget" and config.exit_auc_floor > 0 and exits.state is not None:
            scores = torch.where(exits.state.auc[number] < config.exit_auc_floor, evidence.uniform(), scores)
        # Whom chance alone chose is a uniform sample already; a threshold leaves no places to give away.
        audit_fraction = {"random": 1.0, "threshold": 0.0}.get(exit_policy, config.audit_fraction)
        selection = select(
            scores,
            num_kept,
            protected=evidence.protected,
            padding=evidence.padding,
            audit_fraction=audit_fraction,
            log_weights=log_weights,
            lottery=lottery,
        )
        trace.selections.append(selection)
        exited = positions.gather(1, selection.order[:, num_kept:])
        trace.exit_layers = trace.exit_layers.scatter(1, exited, config.exit_layers[number])
        return tokens.exit(selection.order, num_kept)

    def _token_losses(self, state, input_ids, positions) -> torch.Tensor | None:
        if getattr(state, "token_loss", None) is None:
            return None
        if input_ids is None:
            raise ValueError("`exit_signal='token_loss'` needs `input_ids`: embeddings have no vocabulary id")
        return state.token_loss[input_ids.gather(1, positions)]


class ElectraEarlyExitGenerator(nn.Module):
    """ELECTRA's generator: a narrow masked language model on the discriminator's embeddings.

    It owns everything but the embeddings (word, position and type, with their LayerNorm), which it is given, and its
    output layer is tied to the word embeddings.
    """

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__()
        config = config.generator_config()
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)
        self.encoder = ElectraEarlyExitEncoder(config)
        self.predictions = ElectraGeneratorPredictions(config)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size)

    def forward(self, embeddings, attention_mask, masked: torch.Tensor, **kwargs) -> torch.Tensor:
        """Logits (masked tokens of the batch, vocabulary) where `masked` (batch, sequence) is true."""
        if hasattr(self, "embeddings_project"):
            embeddings = self.embeddings_project(embeddings)
        hidden_states, _ = self.encoder(embeddings, attention_mask, **kwargs)
        return self.lm_head(self.predictions(hidden_states[masked]))


def sample_tokens(logits: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """One token a row from softmax(logits), by inverting the cumulative distribution, in fp32.

    Args:
        logits (`torch.FloatTensor` of shape `(rows, vocabulary)`).
        noise (`torch.FloatTensor` of shape `(rows,)`, *optional*): uniform in [0, 1), else torch's generator's.

    Returns:
        `torch.LongTensor` of shape `(rows,)`.
    """
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    # Scaled by the last entry instead of by 1, because rounding leaves the sum of the probabilities beside 1.
    noise = torch.rand(logits.shape[0], device=logits.device) if noise is None else noise
    uniform = noise.unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, uniform, right=True).squeeze(1).clamp_max(logits.shape[1] - 1)


def audit_mean(selection: Selection, values: torch.Tensor) -> torch.Tensor:
    """Mean of `values` (batch, candidates) over the audit tokens."""
    continued = values.gather(1, selection.order[:, : selection.audit.shape[1]])
    return (continued * selection.audit).sum() / selection.audit.sum().clamp_min(1)


def inverse_probabilities(selection: Selection, before: torch.Tensor | None) -> torch.Tensor | None:
    """Weights (batch, num_kept) of the tokens that continued: chances multiply along the exits passed `before`."""
    if selection.inverse_probability is None:
        return None
    if before is None:
        return selection.inverse_probability
    return selection.inverse_probability * before.gather(1, selection.order[:, : selection.audit.shape[1]])


@dataclass
class ElectraEarlyExitModelOutput(ModelOutput):
    r"""
    Output of [`ElectraEarlyExitModel`].

    last_hidden_state (`torch.FloatTensor` of shape `(batch, sequence, hidden)`).
    hidden_states, attentions: as everywhere in Transformers. Where tokens have exited, a layer's entry has one row a
        token that was still there, in active-first order.
    exit_logits (tuple of `torch.FloatTensor` of shape `(batch, active tokens)`): one entry an exit head.
    exit_positions (tuple of `torch.LongTensor`, same shapes): where in the sequence those tokens stand.
    exit_gains (tuple of `torch.FloatTensor`, same shapes): predicted gain of going on, for that signal alone.
    exit_selections (tuple of [`Selection`]): who continued at each exit, where a policy was at work.
    exit_layers (`torch.LongTensor` of shape `(batch, sequence)`): layers completed when each token left.
    """

    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    exit_logits: tuple[torch.FloatTensor, ...] | None = None
    exit_positions: tuple[torch.LongTensor, ...] | None = None
    exit_gains: tuple[torch.FloatTensor, ...] | None = None
    exit_selections: tuple[Selection, ...] | None = None
    exit_layers: torch.LongTensor | None = None


@dataclass
class ElectraEarlyExitForPreTrainingOutput(ModelOutput):
    r"""
    Output of [`ElectraEarlyExitForPreTraining`]. What [`ElectraEarlyExitModelOutput`] has, and:

    loss (`torch.FloatTensor` of shape `()`): the training loss.
    logits (`torch.FloatTensor` of shape `(batch, sequence)`): of "this token was replaced".
    discriminator_loss, exit_loss, gain_loss, generator_loss (`torch.FloatTensor` of shape `()`): its unweighted parts:
        the mean binary cross-entropy of the final head; that of the exit heads, averaged over the exits; the mean
        squared error of the predicted gains; the mean cross-entropy of the generator over masked tokens.
    rtd_labels (`torch.LongTensor` of shape `(batch, sequence)`): 1 where the discriminator saw a replaced token.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    discriminator_loss: torch.FloatTensor | None = None
    exit_loss: torch.FloatTensor | None = None
    gain_loss: torch.FloatTensor | None = None
    generator_loss: torch.FloatTensor | None = None
    rtd_labels: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    exit_logits: tuple[torch.FloatTensor, ...] | None = None
    exit_positions: tuple[torch.LongTensor, ...] | None = None
    exit_gains: tuple[torch.FloatTensor, ...] | None = None
    exit_selections: tuple[Selection, ...] | None = None
    exit_layers: torch.LongTensor | None = None


class ElectraEarlyExitPreTrainedModel(ElectraPreTrainedModel):
    config: ElectraEarlyExitConfig
    config_class = ElectraEarlyExitConfig
    # A pre-training checkpoint holds more than its encoder; taking the encoder out of it is no accident.
    _keys_to_ignore_on_load_unexpected = [r"^generator\.", r"^exit_\w+\.", r"^discriminator_predictions\."]
    _no_split_modules = ["ElectraEarlyExitLayer"]
    _can_record_outputs = {"hidden_states": ElectraEarlyExitLayer, "attentions": ElectraEarlyExitSelfAttention}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ElectraEarlyExitState):
            for name, value in module.initial(self.config).items():
                init.copy_(getattr(module, name), value)


class ElectraEarlyExitModel(ElectraEarlyExitPreTrainedModel):
    """The encoder. Full depth for every token unless `exit_policy` and `exits` are given."""

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.embeddings = ElectraEmbeddings(config)
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)
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
        **kwargs,
    ) -> tuple[torch.Tensor] | ElectraEarlyExitModelOutput:
        r"""
        Args:
            input_ids, token_type_ids, position_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*).
            attention_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, sequence, embedding_size)`, *optional*).
            exit_policy (`str`, *optional*): who leaves at `config.exit_layers`: `"none"` (the default here), or one of
                the policies the config knows.
            exits ([`Exits`], *optional*): the exits' heads. Needed for any policy but `"none"`.

        Raises:
            ValueError: if both or neither of `input_ids` and `inputs_embeds` are given, for an unknown policy, a
                policy without heads, or a policy with an attention mask that is not (batch, sequence).
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        exit_policy = "none" if exit_policy is None else exit_policy
        self._check_exit_arguments(exit_policy, exits, attention_mask)

        embedding_output = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        protected = None if exit_policy == "none" else self._protected_tokens(embedding_output, input_ids)
        if hasattr(self, "embeddings_project"):
            embedding_output = self.embeddings_project(embedding_output)
        hidden_states, trace = self.encoder(
            embedding_output,
            create_bidirectional_mask(self.config, embedding_output, attention_mask),
            token_mask=attention_mask if exit_policy != "none" else None,
            protected=protected,
            exit_policy=exit_policy,
            exits=exits,
            input_ids=input_ids,
            position_ids=position_ids,
            **kwargs,
        )
        return ElectraEarlyExitModelOutput(
            last_hidden_state=hidden_states,
            exit_logits=tuple(trace.logits) or None,
            exit_positions=tuple(trace.positions) or None,
            exit_gains=tuple(trace.gains) or None,
            exit_selections=tuple(trace.selections) or None,
            exit_layers=trace.exit_layers,
        )

    def _check_exit_arguments(self, exit_policy, exits, attention_mask):
        if exit_policy == "none":
            return
        if exit_policy not in POLICIES:
            raise ValueError(f"`exit_policy` must be one of {['none', *POLICIES]}, got {exit_policy!r}")
        if exits is None:
            raise ValueError(
                f"`exit_policy={exit_policy!r}` needs `exits`, and a model whose config says "
                "`exit_policy='none'` has none"
            )
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(
                f"exits need an attention mask of shape (batch, sequence), got {tuple(attention_mask.shape)}"
            )

    def _protected_tokens(self, embeddings, input_ids) -> torch.Tensor:
        """Tokens that never exit, (batch, sequence): the first, and every [CLS] and [SEP]."""
        protected = torch.zeros(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        protected[:, 0] = True
        for token_id in (self.config.cls_token_id, self.config.sep_token_id):
            if token_id is not None and input_ids is not None:
                protected |= input_ids == token_id
        return protected


class ElectraEarlyExitForPreTraining(ElectraEarlyExitPreTrainedModel):
    """Discriminator, exit heads and, for `generator_type="mlm"`, the generator: one checkpoint.

    Two ways to call it:
    - corrupted `input_ids` with `labels`: replaced-token detection, as [`ElectraForPreTraining`];
    - masked `input_ids` with `mlm_labels`: the joint objective. The generator predicts the masked tokens, its samples
      replace them, and the discriminator tells which tokens were replaced.
    """

    _keys_to_ignore_on_load_unexpected = None
    # The loss is a mean over this batch, whatever **kwargs suggests to Trainer.
    accepts_loss_kwargs = False
    _tied_weights_keys = {"generator.lm_head.weight": "electra.embeddings.word_embeddings.weight"}

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.electra = ElectraEarlyExitModel(config)
        self.discriminator_predictions = ElectraDiscriminatorPredictions(config)
        if config.has_exit_heads:
            if config.exit_head == "separate":
                self.exit_predictions = nn.ModuleList(
                    [ElectraDiscriminatorPredictions(config) for _ in config.exit_layers]
                )
            if config.has_gain_heads:
                self.exit_gains = nn.ModuleList([ElectraDiscriminatorPredictions(config) for _ in config.exit_layers])
            self.exit_state = ElectraEarlyExitState(config)
        if config.generator_type == "mlm":
            self.generator = ElectraEarlyExitGenerator(config)
        else:
            self._tied_weights_keys = {}
        self.post_init()

    def get_output_embeddings(self):
        return self.generator.lm_head if self.config.generator_type == "mlm" else None

    def set_output_embeddings(self, value):
        if self.config.generator_type == "mlm":
            self.generator.lm_head = value

    def exits(self, noise_seeds: torch.Tensor | None = None) -> Exits | None:
        """The exits' heads and statistics, or `None` for a model without."""
        if not self.config.has_exit_heads:
            return None
        shared = [self.discriminator_predictions] * len(self.config.exit_layers)
        heads, gain_heads = getattr(self, "exit_predictions", shared), getattr(self, "exit_gains", None)
        return Exits(heads, gain_heads, self.exit_state, noise_seeds)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        mlm_labels: torch.Tensor | None = None,
        exit_policy: str | None = None,
        exit_loss_scale: torch.Tensor | None = None,
        noise_seeds: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor] | ElectraEarlyExitForPreTrainingOutput:
        r"""
        Args:
            input_ids, token_type_ids, position_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*).
            attention_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, sequence, embedding_size)`, *optional*).
            labels (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): 1 where a token was replaced, else 0.
            mlm_labels (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): the original token at masked
                positions, -100 everywhere else. Starts the joint objective.
            exit_policy (`str`, *optional*): overrides the policy of this call. Left out: the config's in training
                mode, `"none"` (full depth) in evaluation mode.
            exit_loss_scale (`torch.Tensor` of shape `()`, *optional*): factor on the exit loss, for warming it up. A
                tensor, so that a changing value does not make `torch.compile` compile again.
            noise_seeds (`torch.LongTensor` of shape `(batch,)`, *optional*): one seed a sequence, the only source of
                chance of the generator's samples and of the exits. Left out: torch's generator. Dropout draws from
                torch's generator in any case.

        Returns:
            [`ElectraEarlyExitForPreTrainingOutput`]. For `labels`, `loss` is `discriminator_loss +
            exit_loss_weight * exit_loss + gain_loss` (the second term only with exit heads, the third only with
            regressors of the gain), so that it equals ELECTRA's without exits; times `discriminator_weight` where
            `generator_type` names one that corrupts outside the model. For `mlm_labels` it is `generator_weight *
            generator_loss + discriminator_weight *` that sum, as in google-research/electra.

        Raises:
            ValueError: if `labels` and `mlm_labels` are both given, or `mlm_labels` without a generator or without
                `input_ids`.
        """
        if exit_policy is None:
            exit_policy = self.config.exit_policy if self.training and self.config.has_exit_heads else "none"
        generator_loss = None
        if mlm_labels is not None:
            if labels is not None:
                raise ValueError(
                    "`labels` and `mlm_labels` exclude each other: the joint objective makes its own labels"
                )
            input_ids, labels, generator_loss = self.corrupt(
                input_ids, mlm_labels, attention_mask, token_type_ids, position_ids, noise_seeds
            )

        outputs = self.electra(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            exit_policy=exit_policy,
            exits=self.exits(noise_seeds),
            return_dict=True,
            **kwargs,
        )
        logits = self.discriminator_predictions(outputs.last_hidden_state)

        loss = discriminator_loss = exit_loss = gain_loss = None
        if labels is not None:
            discriminator_loss = self._detection_loss(logits, labels, attention_mask)
            loss = discriminator_loss
            if outputs.exit_logits is not None:
                exit_loss = self._exit_loss(outputs, logits, labels, attention_mask)
                weighted = self.config.exit_loss_weight * exit_loss
                loss = loss + (weighted if exit_loss_scale is None else exit_loss_scale * weighted)
            if outputs.exit_gains is not None:
                gain_loss = self._gain_loss(outputs, logits, labels)
                loss = loss + gain_loss
            # Weighted wherever a generator is named, so that the same learning rate, clipping and Adam's epsilon fit.
            if generator_loss is not None or self.config.generator_type not in ("mlm", "none"):
                loss = self.config.discriminator_weight * loss
            if generator_loss is not None:
                loss = self.config.generator_weight * generator_loss + loss

        result = ElectraEarlyExitForPreTrainingOutput(
            loss=loss,
            logits=logits,
            discriminator_loss=None if discriminator_loss is None else discriminator_loss.detach(),
            exit_loss=None if exit_loss is None else exit_loss.detach(),
            gain_loss=None if gain_loss is None else gain_loss.detach(),
            generator_loss=None if generator_loss is None else generator_loss.detach(),
            rtd_labels=labels,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            exit_logits=outputs.exit_logits,
            exit_positions=outputs.exit_positions,
            exit_gains=outputs.exit_gains,
            exit_selections=outputs.exit_selections,
            exit_layers=outputs.exit_layers,
        )
        if self.training and labels is not None and result.exit_selections is not None:
            self.exit_state.update(result, labels, attention_mask, input_ids)
        return result

    def corrupt(
        self,
        input_ids: torch.Tensor,
        mlm_labels: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        noise_seeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Let the generator replace the masked tokens by samples.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, sequence)`): with masked positions.
            mlm_labels (`torch.LongTensor` of shape `(batch, sequence)`): the original token at masked positions, else
                -100.
            noise_seeds (`torch.LongTensor` of shape `(batch,)`, *optional*): as in [`forward`].

        Returns:
            The corrupted ids (batch, sequence), the labels (batch, sequence; 1 where a sample differs from the
            original token) and the generator's loss, the mean cross-entropy over masked positions. Gradients flow
            through the loss alone.
        """
        if self.config.generator_type != "mlm":
            raise ValueError(
                f"`mlm_labels` needs a generator, and this model has `generator_type={self.config.generator_type!r}`; "
                "give corrupted `input_ids` with `labels` instead"
            )
        if input_ids is None:
            raise ValueError("`mlm_labels` needs `input_ids`")
        masked = mlm_labels != -100
        embeddings = self.electra.embeddings(input_ids, token_type_ids, position_ids)
        logits = self.generator(
            embeddings,
            create_bidirectional_mask(self.config, embeddings, attention_mask),
            masked,
            # Its own config is a copy, made before `set_attn_implementation` may have changed ours.
            attn_implementation=self.config._attn_implementation,
        ).float()
        originals = mlm_labels[masked]
        # The sum over max(1, count) is 0, not NaN, for a batch in which nothing could be masked.
        generator_loss = F.cross_entropy(logits, originals, reduction="sum") / max(1, len(originals))
        noise = None if noise_seeds is None else row_noise(noise_seeds, 0, masked.shape[1])[masked]
        with torch.no_grad():
            original_ids = torch.where(masked, mlm_labels, input_ids)
            corrupted_ids = original_ids.masked_scatter(masked, sample_tokens(logits, noise))
        return corrupted_ids, (corrupted_ids != original_ids).long(), generator_loss

    @staticmethod
    def _detection_loss(logits, labels, token_mask, weights=None) -> torch.Tensor:
        """Mean binary cross-entropy over real tokens; all arguments (batch, tokens), the result in fp32."""
        losses = token_losses(logits, labels)
        if token_mask is None and weights is None:
            return losses.mean()
        counted = torch.ones_like(losses) if token_mask is None else (token_mask == 1).to(losses.dtype)
        if weights is not None:
            counted = counted * weights
        return (losses * counted).sum() / counted.sum().clamp_min(1)

    def _exit_loss(self, outputs, final_logits, labels, token_mask) -> torch.Tensor:
        """Each exit head is trained on the tokens that reach it; the mean over the exits. With distillation it also
        learns the final head's answers on the audit tokens."""
        losses, weights = [], None
        for number, (logits, positions) in enumerate(zip(outputs.exit_logits, outputs.exit_positions, strict=True)):
            mask = None if token_mask is None else token_mask.gather(1, positions)
            loss = self._detection_loss(logits, labels.gather(1, positions), mask, weights)
            if outputs.exit_selections is not None:
                selection = outputs.exit_selections[number]
                if self.config.exit_distillation_weight > 0:
                    teacher = final_logits.detach().gather(1, positions).sigmoid()
                    loss = loss + self.config.exit_distillation_weight * audit_mean(
                        selection, token_losses(logits, teacher)
                    )
                weights = inverse_probabilities(selection, weights)
            losses.append(loss)
        return torch.stack(losses).mean()

    def _gain_loss(self, outputs, final_logits, labels) -> torch.Tensor:
        """Squared error of the predicted gains, on audit tokens alone, the mean over the exits.

        The gain of a token is the exit head's loss less the final head's, in nats. It is a target and nothing else:
        the regressor's input is detached, and no gradient leaves through the losses.
        """
        if outputs.exit_selections is None:  # a dense step has no audit tokens
            return torch.stack([0.0 * gains.sum() for gains in outputs.exit_gains]).mean()
        losses = []
        for number, (logits, gains) in enumerate(zip(outputs.exit_logits, outputs.exit_gains, strict=True)):
            positions = outputs.exit_positions[number]
            here = labels.gather(1, positions)
            gain = token_losses(logits, here) - token_losses(final_logits.gather(1, positions), here)
            losses.append(audit_mean(outputs.exit_selections[number], (gains.float() - gain.detach()).square()))
        return torch.stack(losses).mean()

    @classmethod
    def from_electra(
        cls, discriminator: str | os.PathLike, generator: str | os.PathLike | None = None, **config_overrides
    ) -> "ElectraEarlyExitForPreTraining":
        """Start from plain ELECTRA checkpoints.

        Args:
            discriminator (`str`): folder or Hub id of an `ElectraForPreTraining` checkpoint.
            generator (`str`, *optional*): folder or Hub id of the `ElectraForMaskedLM` trained with it. Its size is
                taken from its config. Left out: a fresh generator as the config asks for.
            **config_overrides: fields of [`ElectraEarlyExitConfig`], such as `exit_policy` or `exit_layers`.

        Returns:
            [`ElectraEarlyExitForPreTraining`] whose `exit_policy="none"` logits are the discriminator's. Exit heads
            start from the discriminator's final head.

        Raises:
            ValueError: if the generator's vocabulary, embedding size or depth-independent settings do not fit.
        """
        source = ElectraForPreTraining.from_pretrained(discriminator)
        donor = None if generator is None else ElectraForMaskedLM.from_pretrained(generator)
        settings = {k: v for k, v in source.config.to_dict().items() if k not in ("model_type", "architectures")}
        if donor is not None:
            settings |= _generator_settings(source.config, donor.config)
        model = cls(ElectraEarlyExitConfig(**{**settings, **config_overrides}))
        model.electra.load_state_dict(source.electra.state_dict())
        model.discriminator_predictions.load_state_dict(source.discriminator_predictions.state_dict())
        for head in getattr(model, "exit_predictions", ()):
            head.load_state_dict(source.discriminator_predictions.state_dict())
        if donor is not None:
            model._load_generator(donor)
        return model.eval()

    def _load_generator(self, donor: ElectraForMaskedLM):
        """Copy a plain ELECTRA generator. Its embeddings are the discriminator's here; say so where they differ."""
        own = self.electra.embeddings.state_dict()
        for name, value in donor.electra.embeddings.state_dict().items():
            if not torch.equal(own[name], value):
                logger.warning(
                    f"The generator's `embeddings.{name}` differs from the discriminator's by up to "
                    f"{(own[name] - value).abs().max().item():.3g}; they share one here, the discriminator's."
                )
        if hasattr(donor.electra, "embeddings_project"):
            self.generator.embeddings_project.load_state_dict(donor.electra.embeddings_project.state_dict())
        self.generator.encoder.load_state_dict(donor.electra.encoder.state_dict())
        self.generator.predictions.load_state_dict(donor.generator_predictions.state_dict())
        with torch.no_grad():
            self.generator.lm_head.bias.copy_(donor.generator_lm_head.bias)

    def to_electra(self, folder: str | os.PathLike) -> dict[str, str]:
        """Write plain ELECTRA checkpoints that need no plugin. Exit heads have no place there and are left out.

        Args:
            folder (`str`): gets a subfolder `discriminator` (`ElectraForPreTraining`) and, if there is a generator,
                `generator` (`ElectraForMaskedLM`).

        Returns:
            `dict[str, str]`: the folder written for each part.

        Raises:
            ValueError: for `norm_position="pre"`, which plain ELECTRA does not know.
        """
        if self.config.norm_position != "post":
            raise ValueError(
                f"plain ELECTRA normalises after each block; this model has "
                f"`norm_position={self.config.norm_position!r}` and no plain form"
            )
        plain = ElectraForPreTraining(_plain_config(self.config))
        plain.electra.load_state_dict(self.electra.state_dict())
        plain.discriminator_predictions.load_state_dict(self.discriminator_predictions.state_dict())
        written = {"discriminator": os.path.join(folder, "discriminator")}
        plain.to(self.dtype).save_pretrained(written["discriminator"])
        if self.config.generator_type == "mlm":
            masked_lm = ElectraForMaskedLM(_plain_config(self.config.generator_config()))
            masked_lm.electra.embeddings.load_state_dict(self.electra.embeddings.state_dict())
            if hasattr(self.generator, "embeddings_project"):
                masked_lm.electra.embeddings_project.load_state_dict(self.generator.embeddings_project.state_dict())
            masked_lm.electra.encoder.load_state_dict(self.generator.encoder.state_dict())
            masked_lm.generator_predictions.load_state_dict(self.generator.predictions.state_dict())
            masked_lm.generator_lm_head.load_state_dict(self.generator.lm_head.state_dict())
            masked_lm.tie_weights()
            written["generator"] = os.path.join(folder, "generator")
            masked_lm.to(self.dtype).save_pretrained(written["generator"])
        return written


# ---- Fine-tuning: ELECTRA's own heads and forward passes, on this encoder at full depth ----
# Their constructors are passed over, because they would build a plain encoder first.


class ElectraEarlyExitForSequenceClassification(ElectraEarlyExitPreTrainedModel, ElectraForSequenceClassification):
    def __init__(self, config: ElectraEarlyExitConfig):
        super(ElectraForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.electra = ElectraEarlyExitModel(config)
        self.classifier = ElectraClassificationHead(config)
        self.post_init()


class ElectraEarlyExitForTokenClassification(ElectraEarlyExitPreTrainedModel, ElectraForTokenClassification):
    def __init__(self, config: ElectraEarlyExitConfig):
        super(ElectraForTokenClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.electra = ElectraEarlyExitModel(config)
        dropout = config.classifier_dropout if config.classifier_dropout is not None else config.hidden_dropout_prob
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class ElectraEarlyExitForQuestionAnswering(ElectraEarlyExitPreTrainedModel, ElectraForQuestionAnswering):
    def __init__(self, config: ElectraEarlyExitConfig):
        super(ElectraForQuestionAnswering, self).__init__(config)
        self.num_labels = config.num_labels
        self.electra = ElectraEarlyExitModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class ElectraEarlyExitForMultipleChoice(ElectraEarlyExitPreTrainedModel, ElectraForMultipleChoice):
    def __init__(self, config: ElectraEarlyExitConfig):
        super(ElectraForMultipleChoice, self).__init__(config)
        self.electra = ElectraEarlyExitModel(config)
        self.sequence_summary = ElectraSequenceSummary(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()


def _generator_settings(discriminator: ElectraConfig, generator: ElectraConfig) -> dict:
    """The fields of our config that describe a given generator of a given discriminator."""
    for name in ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size", "hidden_act"):
        if getattr(discriminator, name) != getattr(generator, name):
            raise ValueError(
                f"the generator's `{name}` must be the discriminator's ({getattr(discriminator, name)!r}), "
                f"got {getattr(generator, name)!r}"
            )
    return {
        "generator_type": "mlm",
        "generator_size": generator.hidden_size / discriminator.hidden_size,
        "generator_num_hidden_layers": generator.num_hidden_layers,
        "generator_num_attention_heads": generator.num_attention_heads,
        "generator_intermediate_size": generator.intermediate_size,
    }


def _plain_config(config: ElectraEarlyExitConfig) -> ElectraConfig:
    """The [`ElectraConfig`] part of our config."""
    fields = ElectraConfig().to_dict()
    settings = {name: value for name, value in config.to_dict().items() if name in fields}
    for name in ("model_type", "architectures", "dtype"):
        settings.pop(name, None)
    return ElectraConfig(**settings)


for _auto_class, _reference in AUTO_MAP.items():
    if (_model_class := globals().get(_reference.split(".")[-1])) is not None and _auto_class != "AutoConfig":
        _model_class.register_for_auto_class(_auto_class)

__all__ = [
    "ElectraEarlyExitForMultipleChoice",
    "ElectraEarlyExitForPreTraining",
    "ElectraEarlyExitForPreTrainingOutput",
    "ElectraEarlyExitForQuestionAnswering",
    "ElectraEarlyExitForSequenceClassification",
    "ElectraEarlyExitForTokenClassification",
    "ElectraEarlyExitModel",
    "ElectraEarlyExitModelOutput",
    "ElectraEarlyExitPreTrainedModel",
]
