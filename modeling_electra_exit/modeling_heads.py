"""Fine-tuning heads: ELECTRA's own, one more at every exit layer, and inference that lets the certain leave early.

Training runs at full depth, and every head learns (`ElectraEarlyExitTaskModel.run`). In evaluation mode, and with
`inference_exit_thresholds`, whoever an exit head is certain enough about leaves with that head's answer.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.electra.modeling_electra import ElectraClassificationHead, ElectraSequenceSummary
from transformers.utils.generic import can_return_tuple

from .configuration_electra_exit import ElectraEarlyExitConfig
from .exit_policy import CRITERIA
from .modeling_electra_exit import (
    ElectraEarlyExitModel,
    ElectraEarlyExitPreTrainedModel,
    Exits,
    first_tokens,
    in_graph,
    warn_of_evaluation_mode,
)


@dataclass
class ElectraEarlyExitSequenceClassifierOutput(SequenceClassifierOutput):
    r"""
    Output of [`ElectraEarlyExitForSequenceClassification`]. As [`SequenceClassifierOutput`], and:

    loss (`torch.FloatTensor` of shape `()`): in training mode the final head's plus `exit_loss_weight` times
        `exit_loss`; in evaluation mode that of the answers in `logits`.
    exit_loss (`torch.FloatTensor` of shape `()`): loss of the exit heads, averaged over them.
    exit_logits (tuple of `torch.FloatTensor`): what the exit heads said, one entry an exit, each like `logits`; where
        there are labels, and everybody went all the way.
    exit_layers (`torch.LongTensor` of shape `(batch,)`): layers completed when each left, with inference exits.
    """

    exit_loss: torch.FloatTensor | None = None
    exit_logits: tuple[torch.FloatTensor, ...] | None = None
    exit_layers: torch.LongTensor | None = None


@dataclass
class ElectraEarlyExitTokenClassifierOutput(TokenClassifierOutput):
    r"""As [`ElectraEarlyExitSequenceClassifierOutput`]; `exit_layers` is of shape `(batch, sequence)`."""

    exit_loss: torch.FloatTensor | None = None
    exit_logits: tuple[torch.FloatTensor, ...] | None = None
    exit_layers: torch.LongTensor | None = None


@dataclass
class ElectraEarlyExitQuestionAnsweringModelOutput(QuestionAnsweringModelOutput):
    r"""As [`ElectraEarlyExitSequenceClassifierOutput`]; `exit_logits` are of shape `(batch, sequence, 2)`."""

    exit_loss: torch.FloatTensor | None = None
    exit_logits: tuple[torch.FloatTensor, ...] | None = None
    exit_layers: torch.LongTensor | None = None


@dataclass
class ElectraEarlyExitMultipleChoiceModelOutput(MultipleChoiceModelOutput):
    r"""As [`ElectraEarlyExitSequenceClassifierOutput`]; the choices of a question leave together."""

    exit_loss: torch.FloatTensor | None = None
    exit_logits: tuple[torch.FloatTensor, ...] | None = None
    exit_layers: torch.LongTensor | None = None


class ExitHeads(nn.Module):
    """The exits' heads, and which of them have been trained.

    A module that is called, and not a `ModuleList`, so that PEFT can save it beside an adapter. The record is kept in
    buffers: it travels with the weights, in checkpoints and in adapters.

    heads (`nn.ModuleList`): one an exit; none where the exits share the final head.
    trained_at_0, trained_at_1, ... (`torch.LongTensor` of shape `()`): after which layer each head stood when a loss
        last reached it; 0 where none has.
    """

    def __init__(self, layers: Sequence[int], new_head: Callable[[], nn.Module] | None = None):
        super().__init__()
        self.layers = list(layers)
        if new_head is not None:
            self.heads = nn.ModuleList([new_head() for _ in self.layers])
        for number in range(len(self.layers)):
            self.register_buffer(f"trained_at_{number}", torch.zeros((), dtype=torch.long))
        # The record as Python sees it: reading a buffer waits for the device, and cannot be done in a compiled graph.
        self.trained_at = [0] * len(self.layers)
        self.register_load_state_dict_post_hook(_read_record)

    def forward(self, states: torch.Tensor, number: int) -> torch.Tensor:
        """What the head of exit `number` makes of states (batch, tokens, hidden)."""
        return self.heads[number](states)

    def train(self, mode: bool = True) -> "ExitHeads":
        _read_record(self)
        return super().train(mode)

    def mark_trained(self, number: int, *_):
        """Note that the head of exit `number` has been trained where it stands. A gradient hook, too."""
        getattr(self, f"trained_at_{number}").fill_(self.layers[number])
        if not torch.compiler.is_compiling():
            self.trained_at[number] = self.layers[number]

    def untrained(self) -> list[int]:
        """The exit layers whose heads have not been trained there."""
        return [layer for layer, at in zip(self.layers, self.trained_at, strict=True) if at != layer]


def _read_record(heads: ExitHeads, *_):
    buffers = [getattr(heads, f"trained_at_{number}") for number in range(len(heads.layers))]
    if buffers and not any(buffer.is_meta for buffer in buffers):
        heads.trained_at = torch.stack(buffers).tolist()


def _rename_exit_heads(model: "ElectraEarlyExitTaskModel", state_dict: dict, prefix: str, *_):
    """A hook for `load_state_dict`, as `from_pretrained` does it: resuming an older run must find its heads."""
    old, new = model.old_name()
    for name in [name for name in state_dict if name.startswith(f"{prefix}exit_classifiers.")]:
        state_dict[prefix + re.sub(old, new, name.removeprefix(prefix))] = state_dict.pop(name)


class ElectraEarlyExitTaskModel(ElectraEarlyExitPreTrainedModel):
    """What the heads have in common. Each adds its final head under ELECTRA's names, and says what a head is
    (`new_head`, `final_head`), what it costs to be wrong (`task_loss`) and what it predicts (`predictions`)."""

    # The losses are sums over this batch, divided by the items of all batches of the step.
    accepts_loss_kwargs = True
    exit_policy_at_inference = "certain_sequences"
    # PEFT trains and saves every module whose last name is the final head's: the exits' heads have it, too.
    final_head_name = "classifier"
    # Checkpoints from before there was a record.
    _keys_to_ignore_on_load_missing = [r"^exit_modules\.\w+\.trained_at_\d+$"]

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.electra = ElectraEarlyExitModel(config)
        if config.has_exit_heads:
            separate = config.exit_head == "separate"
            heads = ExitHeads(config.exit_layers, self.new_head if separate else None)
            self.exit_modules = nn.Module()
            self.exit_modules.add_module(self.final_head_name, heads)
        self.register_load_state_dict_pre_hook(_rename_exit_heads)

    @property
    def exit_heads(self) -> ExitHeads | None:
        """The heads of the exits, or what PEFT has wrapped around them; `None` for a model without exits."""
        return getattr(self.exit_modules, self.final_head_name) if hasattr(self, "exit_modules") else None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, key_mapping=None, **kwargs):
        old, new = cls.old_name()
        return super().from_pretrained(
            pretrained_model_name_or_path, *model_args, key_mapping={old: new, **(key_mapping or {})}, **kwargs
        )

    @classmethod
    def old_name(cls) -> tuple[str, str]:
        """Pattern and replacement for the exit heads' weights in older checkpoints."""
        return r"^exit_classifiers\.(\d+)\.", rf"exit_modules.{cls.final_head_name}.heads.\1."

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ExitHeads):
            for number, layer in enumerate(module.layers):
                trained = self._loaded_with_checkpoint(module, number)
                init.constant_(getattr(module, f"trained_at_{number}"), layer if trained else 0)

    def _loaded_with_checkpoint(self, heads: ExitHeads, number: int) -> bool:
        """Whether the checkpoint being loaded holds an exit's head: one without a record, which is from before there
        was one, was trained."""
        if hasattr(heads, "heads"):
            return all(getattr(weight, "_is_hf_initialized", False) for weight in heads.heads[number].parameters())
        final = getattr(self, self.final_head_name)
        return type(self).__name__ in (self.config.architectures or ()) and all(
            getattr(weight, "_is_hf_initialized", False) for weight in final.parameters()
        )

    def new_head(self) -> nn.Module:
        raise NotImplementedError

    def final_head(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of states (batch, sequence, hidden)."""
        raise NotImplementedError

    def task_loss(self, logits: torch.Tensor, targets, num_items: torch.Tensor | int | None = None) -> torch.Tensor:
        """Mean loss of fp32 logits; with `num_items`, their summed loss over that many."""
        raise NotImplementedError

    def predictions(self, logits: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits as categorical predictions for the exit criteria: (items..., predictions, classes)."""
        return logits.unsqueeze(-2)

    def exit_head_loss(
        self, logits: torch.Tensor, targets, final_logits: torch.Tensor, token_mask, num_items
    ) -> torch.Tensor:
        """An exit head's own loss, and with distillation its distance from the final head; fp32 logits."""
        loss, weight = self.task_loss(logits, targets, num_items), self.config.exit_distillation_weight
        if weight > 0:
            distances = self.distances(logits, final_logits, targets, token_mask)
            loss = loss + weight * mean_over_items(distances, num_items)
        return loss

    def distances(self, logits: torch.Tensor, teacher: torch.Tensor, targets, token_mask) -> torch.Tensor:
        """Cross-entropies between the teacher's predictions and those of `logits`, one a label."""
        teacher, student = (self.predictions(each, token_mask) for each in (teacher, logits))
        # Padding has no chance to hold an answer: probability 0 at a logarithm of minus infinity.
        log_probabilities = student.log_softmax(dim=-1).clamp_min(torch.finfo(student.dtype).min)
        losses = -(teacher.softmax(dim=-1) * log_probabilities).sum(dim=-1)
        if losses.dim() == 3:  # tokens, of which some have no label
            losses = losses[targets != -100]
        return losses

    def pooling(self, token_mask: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
        """What makes of states (batch, sequence, hidden) what a head reads; made once for all heads of these rows."""
        return lambda states: states

    def check_trained(self, layers: Sequence[int], field: str, value):
        """Raise a ValueError that names `field` and its `value` if an exit head after one of `layers` is untrained."""
        if self.exit_heads is None:
            return
        if untrained := sorted(set(layers) & set(self.exit_heads.untrained())):
            raise ValueError(
                f"`{field}` must not use exit heads that are untrained, here those after layers {untrained}, got "
                f"{value!r}: a head is trained where the model computes the loss, from `labels`, and not where "
                "somebody else does (label smoothing, `compute_loss_func`), or with frozen or other exit layers"
            )

    def _record_training(self, number: int, logits: torch.Tensor):
        """Note that the head of exit `number` is trained, as soon as a gradient reaches what it said."""
        if self.config.exit_layers[number] not in self.exit_heads.untrained():
            return
        own = getattr(self.exit_heads, "heads", None)
        head = getattr(self, self.final_head_name) if own is None else own[number]
        if not (logits.requires_grad and any(weight.requires_grad for weight in head.parameters())):
            return
        if torch.compiler.is_compiling():  # has no hooks
            self.exit_heads.mark_trained(number)
        else:
            logits.register_hook(functools.partial(self.exit_heads.mark_trained, number))

    def heads(self, token_mask: torch.Tensor | None, choices: int | None = None) -> dict[int, Callable]:
        """The heads by the layer that they read, the final one last: states (batch, sequence, hidden) to logits.

        In evaluation mode the exits' logits are divided by their temperatures. With `choices`, that many rows of the
        batch are one question, and logits are of shape `(batch / choices, choices)`. `token_mask` (batch, sequence)
        is that of the whole batch; the heads take another with other rows.
        """
        config, exits = self.config, self.config.exit_layers if self.config.has_exit_heads else []
        own = [self.final_head] * len(exits)
        if exits and config.exit_head == "separate":
            own = [functools.partial(self.exit_heads, number=number) for number in range(len(exits))]
        temperatures = None if self.training else config.inference_exit_temperatures
        temperatures = [*(temperatures or [1.0] * len(exits)), 1.0]
        last_mask, last_pool = token_mask, self.pooling(token_mask)

        def pool(states, token_mask):
            nonlocal last_mask, last_pool
            if token_mask is not last_mask:
                last_mask, last_pool = token_mask, self.pooling(token_mask)
            return last_pool(states)

        def head_with(module, temperature):
            def head(states: torch.Tensor, token_mask: torch.Tensor | None = token_mask) -> torch.Tensor:
                logits = module(pool(states, token_mask))
                logits = logits if temperature == 1 else logits / temperature
                return logits if choices is None else logits.view(-1, choices)

            return head

        return {
            layer: head_with(module, temperature)
            for layer, module, temperature in zip(
                [*exits, config.num_hidden_layers], [*own, self.final_head], temperatures, strict=True
            )
        }

    def run(
        self,
        targets,
        exit_layer: int | None = None,
        choices: int | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **inputs,
    ) -> dict:
        """The encoder, and all heads that are wanted.

        Args:
            targets: labels for `task_loss`, or `None`.
            exit_layer (`int`, *optional*): stop there for everybody and answer with that exit's head.
            choices (`int`, *optional*): rows of the batch that are one question, and stay and leave together.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): labels of all batches whose gradients are added
                up for one step: losses are sums over this batch, divided by it. Left out: means over this batch.
            inputs: of the encoder.

        Returns:
            The fields of the output. For `targets`, `loss` is the final head's, in training mode plus
            `exit_loss_weight` times `exit_loss`, the mean over the exit heads; where sequences or tokens may leave
            early, it is the loss of the answers given.

        Raises:
            ValueError: for an `exit_layer` without a head, or an exit head that would answer and is untrained.
        """
        config, policy, exits = self.config, "none", None
        heads = self.heads(inputs["attention_mask"], choices)
        *exit_heads, final_head = heads.values()
        if exit_layer is not None:
            if exit_layer not in heads:
                raise ValueError(
                    f"`exit_layer` must be one of {list(heads)}, where there are heads, got {exit_layer!r}"
                )
            if not self.training:
                self.check_trained([exit_layer], "exit_layer", exit_layer)
            final_head = heads[exit_layer]
        elif not self.training and config.has_inference_exits:
            policy = self.exit_policy_at_inference
            exits = self._inference_exits(exit_heads, choices)
        elif targets is not None and exit_heads:
            exits = Exits(exit_heads)
        outputs = self.electra(**inputs, exit_policy=policy, exits=exits, exit_layer=exit_layer, return_dict=True)

        logits = final_head(outputs.last_hidden_state)
        if policy != "none":
            logits = self._answers(logits, outputs)
        loss = exit_loss = None
        if targets is not None:
            loss = self.task_loss(logits.float(), targets, num_items_in_batch)
            if policy == "none" and exits is not None:
                common = targets, logits.detach().float(), inputs["attention_mask"], num_items_in_batch
                losses = [self.exit_head_loss(each.float(), *common) for each in outputs.exit_logits]
                exit_loss = torch.stack(losses).mean()
            if exit_loss is not None and self.training and config.exit_loss_weight > 0:
                loss = loss + config.exit_loss_weight * exit_loss
                for number, said in enumerate(outputs.exit_logits):
                    self._record_training(number, said)
            elif self.training and exit_layer in config.exit_layers:
                self._record_training(config.exit_layers.index(exit_layer), logits)
            if exit_heads and not self.training:
                warn_of_evaluation_mode(loss)
        return {
            "loss": loss,
            "logits": logits,
            "hidden_states": outputs.hidden_states,
            "attentions": outputs.attentions,
            "exit_loss": None if exit_loss is None else exit_loss.detach(),
            # Pipelines take any other tuple apart as if it had an entry an example.
            "exit_logits": outputs.exit_logits if policy == "none" else None,
            "exit_layers": outputs.exit_layers,
        }

    def _inference_exits(self, exit_heads: list[Callable], choices: int | None) -> Exits:
        """The exits as the config's criterion takes them."""
        config, thresholds = self.config, self.config.inference_exit_thresholds
        rule = CRITERIA[config.inference_exit_criterion](thresholds)
        asked = [rule.asks(number) for number in range(len(exit_heads))]
        layers = [layer for layer, takes_part in zip(config.exit_layers, asked, strict=True) if takes_part]
        self.check_trained(layers, "inference_exit_thresholds", thresholds)
        return Exits(
            [head if takes_part else None for head, takes_part in zip(exit_heads, asked, strict=True)],
            leaves=lambda number, logits, items, token_mask: rule(number, self.predictions(logits, token_mask), items),
            rows_per_item=choices or 1,
        )

    def _answers(self, logits: torch.Tensor, outputs) -> torch.Tensor:
        """The final head's logits of those that stayed, and of those that left, what the exit's head said."""
        for layer, (items, exit_logits) in (outputs.exit_answers or {}).items():
            if in_graph():  # everything is computed everywhere
                said = exit_logits
            elif items.dim() == 1:
                said = logits.clone()
                said[items, : exit_logits.shape[1]] = exit_logits  # of a span: padding may have gone before
            else:
                said = logits.scatter(1, items.unsqueeze(-1).expand_as(exit_logits), exit_logits)
            left = outputs.exit_layers == layer
            logits = torch.where(left.view(*left.shape, *[1] * (logits.dim() - left.dim())), said, logits)
        return logits


def mean_over_items(losses: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
    """The mean of `losses`; with `num_items`, their sum over that many."""
    if num_items is None:
        return losses.mean()
    return losses.sum() / (num_items.to(losses.device) if torch.is_tensor(num_items) else num_items)


def sequence_pooling(
    pooling: str, token_mask: torch.Tensor | None, dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor]:
    """To the states of the one token that stands for a sequence, (batch, 1, hidden): its `"first"`, wherever padding
    is, or the `"mean"` of all but padding."""
    if pooling == "first" and (token_mask is None or token_mask.dim() != 2):  # of more dimensions, it says no place
        return lambda states: states[:, :1]
    if token_mask is None:
        return lambda states: states.mean(dim=1, keepdim=True)
    if pooling == "first":
        first = first_tokens(token_mask)[:, None, None]
        return lambda states: states.gather(1, first.expand(-1, 1, states.shape[-1]))
    real = (token_mask != 0).unsqueeze(1).to(dtype)  # zeros and ones: exact in bf16, too
    share = real.sum(dim=-1, keepdim=True, dtype=torch.float32).clamp_min(1).reciprocal()
    return lambda states: ((real.to(states.dtype) @ states) * share).to(states.dtype)


class ElectraEarlyExitForSequenceClassification(ElectraEarlyExitTaskModel):
    """Classification of whole sequences, with one label or several each, or regression, as `problem_type` says."""

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.classifier = self.new_head()
        self.post_init()

    def new_head(self):
        return ElectraClassificationHead(self.config)

    def final_head(self, states):
        return self.classifier(states)

    def pooling(self, token_mask):
        return sequence_pooling(self.config.classifier_pooling, token_mask, self.dtype)

    def task_loss(self, logits, targets, num_items=None):
        loss = self.loss_function(targets, logits, self.config, num_items_in_batch=num_items)
        if num_items is None or self.config.problem_type == "single_label_classification":
            return loss
        return mean_over_items(loss * targets.numel(), num_items)  # the library's is a mean there

    @property
    def is_regression(self) -> bool:
        return self.config.problem_type == "regression" or self.num_labels == 1

    def distances(self, logits, teacher, targets, token_mask):
        if self.is_regression:
            return (logits - teacher).square()
        return super().distances(logits, teacher, targets, token_mask)

    def predictions(self, logits, token_mask=None):
        if self.is_regression:
            raise ValueError(
                "a regression has no certainty to leave by: `inference_exit_thresholds` must be None, got "
                f"{self.config.inference_exit_thresholds!r}"
            )
        if self.config.problem_type == "multi_label_classification":
            return torch.stack([torch.zeros_like(logits), logits], dim=-1)
        return logits.unsqueeze(-2)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        exit_layer: int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor] | ElectraEarlyExitSequenceClassifierOutput:
        r"""
        Args:
            input_ids, token_type_ids, position_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*).
            attention_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, sequence, embedding_size)`, *optional*).
            labels (*optional*): `torch.LongTensor` of shape `(batch,)` for classes; `torch.FloatTensor` of shape
                `(batch,)` or `(batch, num_labels)` for a regression, `(batch, num_labels)` for several labels.
            exit_layer (`int`, *optional*): stop at this exit layer for every sequence.

        Raises:
            ValueError: for an `exit_layer` without a head, an exit head that would answer and is untrained, or
                `inference_exit_thresholds` in a regression.
        """
        return ElectraEarlyExitSequenceClassifierOutput(
            **self.run(
                labels,
                exit_layer,
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                **kwargs,
            )
        )


class ElectraEarlyExitForTokenClassification(ElectraEarlyExitTaskModel):
    """A class for every token."""

    exit_policy_at_inference = "certain_tokens"

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.dropout, self.classifier = self.new_head()
        self.post_init()

    def new_head(self):
        config = self.config
        dropout = config.classifier_dropout if config.classifier_dropout is not None else config.hidden_dropout_prob
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(config.hidden_size, config.num_labels))

    def final_head(self, states):
        return self.classifier(self.dropout(states))

    def task_loss(self, logits, targets, num_items=None):
        return self.loss_function(logits, targets, self.config, num_items_in_batch=num_items)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        exit_layer: int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor] | ElectraEarlyExitTokenClassifierOutput:
        r"""
        Args: those of [`ElectraEarlyExitForSequenceClassification`], but
            labels (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): -100 where there is none.

        Raises:
            ValueError: for an `exit_layer` without a head, or an exit head that would answer and is untrained.
        """
        return ElectraEarlyExitTokenClassifierOutput(
            **self.run(
                labels,
                exit_layer,
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                **kwargs,
            )
        )


class ElectraEarlyExitForQuestionAnswering(ElectraEarlyExitTaskModel):
    """The span of the answer. A sequence leaves when its start and its end are certain."""

    final_head_name = "qa_outputs"
    # Trainer counts `labels`, and there are none: the loss is a mean over this batch.
    accepts_loss_kwargs = False

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.qa_outputs = self.new_head()
        self.post_init()

    def new_head(self):
        return nn.Linear(self.config.hidden_size, 2)

    def final_head(self, states):
        return self.qa_outputs(states)

    def task_loss(self, logits, targets, num_items=None):
        return self.loss_function(logits[..., 0], logits[..., 1], *targets, num_items_in_batch=num_items)

    def distances(self, logits, teacher, targets, token_mask):
        return super().distances(logits, teacher, targets, token_mask).mean(dim=-1)  # of start and end, as the loss

    def predictions(self, logits, token_mask=None):
        if token_mask is not None:
            logits = logits.masked_fill(token_mask[:, : logits.shape[1], None] == 0, -torch.inf)
        return logits.transpose(1, 2)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        exit_layer: int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor] | ElectraEarlyExitQuestionAnsweringModelOutput:
        r"""
        Args: those of [`ElectraEarlyExitForSequenceClassification`], but instead of `labels`
            start_positions, end_positions (`torch.LongTensor` of shape `(batch,)`, *optional*): tokens of the answer;
                positions outside the sequence are ignored.

        Raises:
            ValueError: for an `exit_layer` without a head, or an exit head that would answer and is untrained.
        """
        targets = None if start_positions is None or end_positions is None else (start_positions, end_positions)
        fields = self.run(
            targets,
            exit_layer,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        start_logits, end_logits = (each.contiguous() for each in fields.pop("logits").unbind(-1))
        return ElectraEarlyExitQuestionAnsweringModelOutput(start_logits=start_logits, end_logits=end_logits, **fields)


class ElectraEarlyExitForMultipleChoice(ElectraEarlyExitTaskModel):
    """Which of several sequences is the right one."""

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.sequence_summary, self.classifier = self.new_head()
        self.post_init()

    def new_head(self):
        return nn.Sequential(ElectraSequenceSummary(self.config), nn.Linear(self.config.hidden_size, 1))

    def final_head(self, states):
        return self.classifier(self.sequence_summary(states))

    def pooling(self, token_mask):
        if self.config.classifier_pooling == "first" and self.config.summary_type != "first":
            return super().pooling(token_mask)  # `sequence_summary` reads another token, as in ELECTRA
        return sequence_pooling(self.config.classifier_pooling, token_mask, self.dtype)

    def task_loss(self, logits, targets, num_items=None):
        return mean_over_items(F.cross_entropy(logits, targets, reduction="none"), num_items)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        exit_layer: int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor] | ElectraEarlyExitMultipleChoiceModelOutput:
        r"""
        Args: those of [`ElectraEarlyExitForSequenceClassification`], but all of shape `(batch, choices, sequence)`
            (`inputs_embeds`: `(batch, choices, sequence, embedding_size)`), and
            labels (`torch.LongTensor` of shape `(batch,)`, *optional*): the number of the right choice.

        Raises:
            ValueError: for an `exit_layer` without a head, or an exit head that would answer and is untrained.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        choices = (input_ids if input_ids is not None else inputs_embeds).shape[1]
        rows = {name: None if value is None else value.flatten(0, 1) for name, value in inputs.items()}
        return ElectraEarlyExitMultipleChoiceModelOutput(**self.run(labels, exit_layer, choices, **rows, **kwargs))


ElectraEarlyExitForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
ElectraEarlyExitForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
ElectraEarlyExitForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
ElectraEarlyExitForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")

__all__ = [
    "ElectraEarlyExitForMultipleChoice",
    "ElectraEarlyExitForQuestionAnswering",
    "ElectraEarlyExitForSequenceClassification",
    "ElectraEarlyExitForTokenClassification",
    "ElectraEarlyExitMultipleChoiceModelOutput",
    "ElectraEarlyExitQuestionAnsweringModelOutput",
    "ElectraEarlyExitSequenceClassifierOutput",
    "ElectraEarlyExitTokenClassifierOutput",
]
