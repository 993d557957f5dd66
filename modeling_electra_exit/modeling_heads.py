"""Fine-tuning heads: ELECTRA's final heads, one more head at every exit layer, and inference with early exits.

Training runs at full depth and trains every head (`ElectraEarlyExitTaskModel.run`). In evaluation mode with
`inference_exit_thresholds`, an item exits with the answer of the first exit head that is certain enough.
"""

import functools
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
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_electra_exit import ElectraEarlyExitConfig
from .exit_criteria import CRITERIA
from .modeling_electra_exit import (
    ElectraEarlyExitModel,
    ElectraEarlyExitPreTrainedModel,
    Exits,
    first_tokens,
    in_graph,
    warn_of_evaluation_mode,
)


@dataclass
class ExitOutput:
    """Fields that the outputs of the heads have in addition to those of Transformers."""

    exit_loss: torch.FloatTensor | None = None
    exit_logits: tuple[torch.FloatTensor, ...] | None = None
    exit_layers: torch.LongTensor | None = None


@dataclass
class ElectraEarlyExitSequenceClassifierOutput(ExitOutput, SequenceClassifierOutput):
    r"""
    Output of [`ElectraEarlyExitForSequenceClassification`]. As [`SequenceClassifierOutput`], and:

    loss (`torch.FloatTensor` of shape `()`): in training mode the final head's loss plus `exit_loss_weight` times
        `exit_loss`; in evaluation mode the loss of `logits`.
    exit_loss (`torch.FloatTensor` of shape `()`): loss of the exit heads, averaged over the exits, without gradient.
    exit_logits (tuple of `torch.FloatTensor`): the exit heads' predictions, one entry per exit, each of the shape of
        `logits`. Only with labels and without inference exits.
    exit_layers (`torch.LongTensor` of shape `(batch,)`): layers completed by each item. Only with inference exits.
    """


@dataclass
class ElectraEarlyExitTokenClassifierOutput(ExitOutput, TokenClassifierOutput):
    r"""As [`ElectraEarlyExitSequenceClassifierOutput`]; `exit_layers` is of shape `(batch, sequence)`."""


@dataclass
class ElectraEarlyExitQuestionAnsweringModelOutput(ExitOutput, QuestionAnsweringModelOutput):
    r"""As [`ElectraEarlyExitSequenceClassifierOutput`]; `exit_logits` are of shape `(batch, sequence, 2)`."""


@dataclass
class ElectraEarlyExitMultipleChoiceModelOutput(ExitOutput, MultipleChoiceModelOutput):
    r"""As [`ElectraEarlyExitSequenceClassifierOutput`]; the choices of a question exit together."""


class ExitHeads(nn.Module):
    """The exit heads, with a record of which of them have been trained.

    A module with a `forward` rather than a `ModuleList`, so that PEFT can save it with an adapter. The record is kept
    in buffers and is therefore saved with the weights, in checkpoints and in adapters.

    heads (`nn.ModuleList`): one head per exit.
    trained_at_0, trained_at_1, ... (`torch.LongTensor` of shape `()`): exit layer of each head when it last received a
        gradient; 0 if it never did.
    """

    def __init__(self, layers: Sequence[int], new_head: Callable[[], nn.Module]):
        super().__init__()
        self.layers = list(layers)
        self.heads = nn.ModuleList([new_head() for _ in self.layers])
        for number in range(len(self.layers)):
            self.register_buffer(f"trained_at_{number}", torch.zeros((), dtype=torch.long))
        # Copy of the record on the host: reading a buffer synchronizes with the device, and breaks a compiled graph.
        self.trained_at = [0] * len(self.layers)
        self.register_load_state_dict_post_hook(_read_record)

    def forward(self, states: torch.Tensor, number: int) -> torch.Tensor:
        """Output of the head of exit `number`, counted from 0, for states (batch, tokens, hidden)."""
        return self.heads[number](states)

    def train(self, mode: bool = True) -> "ExitHeads":
        if mode != self.training:  # `Trainer` calls this in every step, and reading synchronizes with the device
            _read_record(self)
        return super().train(mode)

    def mark_trained(self, number: int, *_):
        """Record that the head of exit `number` has been trained at its layer. Also used as a gradient hook."""
        getattr(self, f"trained_at_{number}").fill_(self.layers[number])
        if not torch.compiler.is_compiling():
            self.trained_at[number] = self.layers[number]

    def untrained(self) -> list[int]:
        """The exit layers whose heads have not been trained at that layer."""
        return [layer for layer, at in zip(self.layers, self.trained_at, strict=True) if at != layer]


def _read_record(heads: ExitHeads, *_):
    buffers = [getattr(heads, f"trained_at_{number}") for number in range(len(heads.layers))]
    # Meta and fake tensors have no values.
    if buffers and all(type(buffer) is torch.Tensor and not buffer.is_meta for buffer in buffers):
        heads.trained_at = torch.stack(buffers).tolist()


class ElectraEarlyExitTaskModel(ElectraEarlyExitPreTrainedModel):
    """Base class of the fine-tuning models. Subclasses add the final head under ELECTRA's module names, and define the
    heads (`new_head`, `final_head`), the loss (`task_loss`) and the predictions for exit criteria (`predictions`)."""

    # Losses are sums over this batch, divided by the number of items in all batches of the step.
    accepts_loss_kwargs = True
    exit_policy_at_inference = "certain_sequences"
    output_class: type[ModelOutput]
    # PEFT trains and saves every module with the last name of the final head. The module of the exit heads shares it.
    final_head_name = "classifier"
    # Missing only together with their heads, which are reported.
    _keys_to_ignore_on_load_missing = [r"^exit_modules\.\w+\.trained_at_\d+$"]

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.electra = ElectraEarlyExitModel(config)
        if config.has_exit_heads:
            self.exit_modules = nn.Module()
            self.exit_modules.add_module(self.final_head_name, ExitHeads(config.exit_layers, self.new_head))

    @property
    def exit_heads(self) -> ExitHeads | None:
        """The exit heads, possibly wrapped by PEFT; `None` for a model without exits."""
        return getattr(self.exit_modules, self.final_head_name) if hasattr(self, "exit_modules") else None

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ExitHeads):
            for number in range(len(module.layers)):
                init.zeros_(getattr(module, f"trained_at_{number}"))

    def new_head(self) -> nn.Module:
        """A newly initialized head, for an exit or the end."""
        raise NotImplementedError

    def final_head(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of the final head for pooled states (batch, tokens, hidden); see [`pool`]."""
        raise NotImplementedError

    def task_loss(self, logits: torch.Tensor, targets, num_items: torch.Tensor | int | None = None) -> torch.Tensor:
        """Mean loss of fp32 logits; with `num_items`, the summed loss divided by it."""
        raise NotImplementedError

    def predictions(self, logits: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of categorical predictions for the exit criteria: (items..., predictions, classes)."""
        return logits.unsqueeze(-2)

    def exit_head_loss(
        self, logits: torch.Tensor, targets, final_logits: torch.Tensor, token_mask, num_items
    ) -> torch.Tensor:
        """An exit head's loss, with distillation plus its weighted distance from the final head; fp32 logits."""
        loss, weight = self.task_loss(logits, targets, num_items), self.config.exit_distillation_weight
        if weight > 0:
            distances = self.distances(logits, final_logits, targets, token_mask)
            loss = loss + weight * mean_over_items(distances, num_items)
        return loss

    def distances(self, logits: torch.Tensor, teacher: torch.Tensor, targets, token_mask) -> torch.Tensor:
        """Cross-entropy between the predictions of `teacher` and of `logits`, one for each label."""
        teacher, student = (self.predictions(each, token_mask) for each in (teacher, logits))
        # Padding has probability 0 in a span prediction, and 0 times minus infinity would be NaN.
        log_probabilities = student.log_softmax(dim=-1).clamp_min(torch.finfo(student.dtype).min)
        losses = -(teacher.softmax(dim=-1) * log_probabilities).sum(dim=-1)
        if losses.dim() == 3:  # tokens, some of them without a label
            losses = losses[targets != -100]
        return losses

    def pool(self, states: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
        """Input of a head, (batch, tokens, hidden), from states (batch, sequence, hidden): here all of them."""
        return states

    def check_trained(self, layers: Sequence[int], field: str, value):
        """Check that the exit heads at `layers` are trained.

        Raises:
            ValueError: if one is not. The message names `field` and its `value`.
        """
        if self.exit_heads is None:
            return
        if untrained := sorted(set(layers) & set(self.exit_heads.untrained())):
            raise ValueError(
                f"`{field}` must not use untrained exit heads, here those after layers {untrained}, got {value!r}: a "
                "head is trained when the model computes the loss from `labels`, but not with label smoothing or "
                "`compute_loss_func`, not while it is frozen, and not after a change of `exit_layers`"
            )

    def _record_training(self, number: int, logits: torch.Tensor):
        """Record the head of exit `number` as trained as soon as its logits receive a gradient."""
        if self.config.exit_layers[number] not in self.exit_heads.untrained():
            return
        head = self.exit_heads.heads[number]
        if not (logits.requires_grad and any(weight.requires_grad for weight in head.parameters())):
            return
        if torch.compiler.is_compiling():  # hooks are not supported
            self.exit_heads.mark_trained(number)
        else:
            logits.register_hook(functools.partial(self.exit_heads.mark_trained, number))

    def exit_answer(
        self, states: torch.Tensor, token_mask: torch.Tensor | None, number: int, choices: int | None
    ) -> torch.Tensor:
        """Logits of exit `number` for normalized states (batch, sequence, hidden); see [`answer`]. In evaluation mode
        they are divided by the exit's temperature."""
        logits = self.exit_heads(self.pool(states, token_mask), number=number)
        temperatures = self.config.inference_exit_temperatures
        if not self.training and temperatures is not None and temperatures[number] != 1:
            logits = logits / temperatures[number]
        return logits if choices is None else logits.view(-1, choices)

    def answer(self, states: torch.Tensor, token_mask: torch.Tensor | None, choices: int | None) -> torch.Tensor:
        """Logits of the final head for states (batch, sequence, hidden); `token_mask` (batch, sequence) is 0 at
        padding. With `choices`, that many rows form one question, and the logits are (batch / choices, choices)."""
        logits = self.final_head(self.pool(states, token_mask))
        return logits if choices is None else logits.view(-1, choices)

    def rows(self, inputs: dict[str, torch.Tensor | None]) -> tuple[dict[str, torch.Tensor | None], int | None]:
        """The encoder's inputs, one sequence per row, and the number of rows per question, `None` without choices."""
        return inputs, None

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
    ) -> tuple[torch.Tensor] | ModelOutput:
        r"""
        Args:
            input_ids, token_type_ids, position_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*).
            attention_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, sequence, embedding_size)`, *optional*).
            labels (`torch.Tensor`, *optional*): see the class.
            exit_layer (`int`, *optional*): stop after this many layers and answer with the head there.
            kwargs: `num_items_in_batch`, see [`run`], and arguments of the encoder.

        Returns:
            The output class of the task; its fields are described in [`ElectraEarlyExitSequenceClassifierOutput`].

        Raises:
            ValueError: if there is no head at `exit_layer`, or in evaluation mode an exit head in use is untrained.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        return self.output_class(**self.run(inputs, labels, exit_layer, **kwargs))

    def run(
        self,
        inputs: dict[str, torch.Tensor | None],
        targets,
        exit_layer: int | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> dict:
        """Run the encoder and the heads that are needed.

        Args:
            inputs: tensor arguments of [`forward`], by name.
            targets: labels for `task_loss`, or `None`.
            exit_layer (`int`, *optional*): as in [`forward`].
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): number of labels in all batches whose gradients
                are accumulated for one step. Losses are sums over this batch divided by it. If omitted, means over
                this batch.
            kwargs: arguments of the encoder.

        Returns:
            The fields of the output. With `targets`, `loss` is the final head's loss, in training mode plus
            `exit_loss_weight` times `exit_loss`, the mean over the exit heads. With inference exits it is the loss of
            the answers given.
        """
        inputs, choices = self.rows(inputs)
        token_mask, policy, exits = inputs["attention_mask"], "none", None
        if exit_layer is not None:
            self._check_exit_layer(exit_layer)
        elif not self.training and self.config.has_inference_exits:
            policy = self.exit_policy_at_inference
            exits = self._inference_exits(token_mask, choices)
        elif targets is not None and self.exit_numbers:
            exits = Exits(self._exit_answers(token_mask, choices))
        outputs = self.electra(
            **inputs, **kwargs, exit_policy=policy, exits=exits, exit_layer=exit_layer, return_dict=True
        )
        if exit_layer in self.exit_numbers:
            number = self.exit_numbers[exit_layer]
            logits = self.exit_answer(outputs.last_hidden_state, token_mask, number, choices)
        else:
            logits = self.answer(outputs.last_hidden_state, token_mask, choices)
        if policy != "none":
            logits = self._answers(logits, outputs)
        exit_logits = outputs.exit_logits if policy == "none" else None
        loss = exit_loss = None
        if targets is not None:
            loss, exit_loss = self._losses(logits, exit_logits, targets, token_mask, num_items_in_batch)
            if self.training and exit_layer in self.exit_numbers:
                self._record_training(self.exit_numbers[exit_layer], logits)
        return {
            "loss": loss,
            "logits": logits,
            "hidden_states": outputs.hidden_states,
            "attentions": outputs.attentions,
            "exit_loss": exit_loss,
            "exit_logits": exit_logits,  # a tuple under any other name would be split by pipelines along the batch
            "exit_layers": outputs.exit_layers,
        }

    @property
    def exit_numbers(self) -> dict[int, int]:
        """Number of each exit, counted from 0, by its layer; empty for a model without exits."""
        layers = self.config.exit_layers if self.config.has_exit_heads else []
        return {layer: number for number, layer in enumerate(layers)}

    def _check_exit_layer(self, exit_layer: int):
        layers = [*self.exit_numbers, self.config.num_hidden_layers]
        if exit_layer not in layers:
            raise ValueError(f"`exit_layer` must be one of {layers}, which have heads, got {exit_layer!r}")
        if not self.training:
            self.check_trained([exit_layer], "exit_layer", exit_layer)

    def _losses(self, logits, exit_logits, targets, token_mask, num_items) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss, and the exit heads' part of it without gradient."""
        weight, loss, exit_loss = (
            self.config.exit_loss_weight,
            self.task_loss(logits.float(), targets, num_items),
            None,
        )
        if exit_logits is not None:
            common = targets, logits.detach().float(), token_mask, num_items
            exit_loss = torch.stack([self.exit_head_loss(each.float(), *common) for each in exit_logits]).mean()
            if self.training and weight > 0:
                loss = loss + weight * exit_loss
                for number, each in enumerate(exit_logits):
                    self._record_training(number, each)
            exit_loss = exit_loss.detach()
        if self.exit_numbers and not self.training:
            warn_of_evaluation_mode(loss)
        return loss, exit_loss

    def _exit_answers(self, token_mask: torch.Tensor | None, choices: int | None) -> list[Callable]:
        """The exit heads as functions of states. Their `token_mask` can be overridden, for a subset of the rows."""
        return [
            functools.partial(self.exit_answer, token_mask=token_mask, number=number, choices=choices)
            for number in range(len(self.config.exit_layers))
        ]

    def _inference_exits(self, token_mask: torch.Tensor | None, choices: int | None) -> Exits:
        """Exits that apply the config's inference criterion."""
        config, thresholds = self.config, self.config.inference_exit_thresholds
        rule = CRITERIA[config.inference_exit_criterion](thresholds)
        used = [rule.needs_head(number) for number in range(len(config.exit_layers))]
        layers = [layer for layer, is_used in zip(config.exit_layers, used, strict=True) if is_used]
        self.check_trained(layers, "inference_exit_thresholds", thresholds)
        heads = self._exit_answers(token_mask, choices)
        return Exits(
            [head if is_used else None for head, is_used in zip(heads, used, strict=True)],
            finished=lambda number, logits, items, token_mask: rule(
                number, self.predictions(logits, token_mask), items
            ),
            rows_per_item=choices or 1,
        )

    def _answers(self, logits: torch.Tensor, outputs) -> torch.Tensor:
        """The final head's logits, replaced by the exit head's for items that exited."""
        for layer, (items, exit_logits) in (outputs.exit_answers or {}).items():
            if in_graph():  # every layer computes all items
                answers = exit_logits
            elif items.dim() == 1:
                answers = logits.clone()
                answers[items, : exit_logits.shape[1]] = exit_logits  # of a span: the rows may have been truncated
            else:
                answers = logits.scatter(1, items.unsqueeze(-1).expand_as(exit_logits), exit_logits)
            exited = outputs.exit_layers == layer
            logits = torch.where(exited.view(*exited.shape, *[1] * (logits.dim() - exited.dim())), answers, logits)
        return logits


def mean_over_items(losses: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
    """The mean of `losses`; with `num_items`, their sum divided by it."""
    if num_items is None:
        return losses.mean()
    return losses.sum() / (num_items.to(losses.device) if isinstance(num_items, torch.Tensor) else num_items)


def pool_sequence(states: torch.Tensor, token_mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """Pooled states (batch, 1, hidden) from states (batch, sequence, hidden): the `"first"` token that is not padding,
    or the `"mean"` of all tokens that are not padding."""
    if pooling == "first":
        if token_mask is None or token_mask.dim() != 2:  # other masks do not define where padding is
            return states[:, :1]
        first = first_tokens(token_mask)[:, None, None]
        return states.gather(1, first.expand(-1, 1, states.shape[-1]))
    if token_mask is None:
        return states.mean(dim=1, keepdim=True)
    real = (token_mask != 0).unsqueeze(1).to(states.dtype)  # zeros and ones, exact in bf16
    share = real.sum(dim=-1, keepdim=True, dtype=torch.float32).clamp_min(1).reciprocal()
    return ((real @ states) * share).to(states.dtype)


class ElectraEarlyExitForSequenceClassification(ElectraEarlyExitTaskModel):
    """Sequence classification with one or several labels, or regression, depending on `config.problem_type`.

    `labels` are `torch.LongTensor` of shape `(batch,)` for single-label classification; `torch.FloatTensor` of shape
    `(batch, num_labels)` for multi-label classification; `torch.FloatTensor` of shape `(batch,)` or
    `(batch, num_labels)` for regression, which does not support inference exits.
    """

    output_class = ElectraEarlyExitSequenceClassifierOutput

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.classifier = self.new_head()
        self.post_init()

    def new_head(self):
        return ElectraClassificationHead(self.config)

    def final_head(self, states):
        return self.classifier(states)

    def pool(self, states, token_mask):
        return pool_sequence(states, token_mask, self.config.classifier_pooling)

    def task_loss(self, logits, targets, num_items=None):
        loss = self.loss_function(targets, logits, self.config, num_items_in_batch=num_items)
        if num_items is None or self.config.problem_type == "single_label_classification":
            return loss
        return mean_over_items(loss * targets.numel(), num_items)  # Transformers ignores `num_items_in_batch` here

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
                "`inference_exit_thresholds` must be None for a regression, which cannot exit early, got "
                f"{self.config.inference_exit_thresholds!r}"
            )
        if self.config.problem_type == "multi_label_classification":
            return torch.stack([torch.zeros_like(logits), logits], dim=-1)
        return logits.unsqueeze(-2)


class ElectraEarlyExitForTokenClassification(ElectraEarlyExitTaskModel):
    """Token classification. `labels` are `torch.LongTensor` of shape `(batch, sequence)`, -100 for tokens without a
    label. Each token exits by itself."""

    output_class = ElectraEarlyExitTokenClassifierOutput
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


class ElectraEarlyExitForQuestionAnswering(ElectraEarlyExitTaskModel):
    """Extractive question answering. A sequence exits when start and end are both certain."""

    output_class = ElectraEarlyExitQuestionAnsweringModelOutput
    final_head_name = "qa_outputs"
    # `Trainer` counts items in `labels`, which this task does not have. The loss is a mean over this batch.
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
        return super().distances(logits, teacher, targets, token_mask).mean(dim=-1)  # over start and end, as the loss

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
        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, exit_layer, kwargs: as in
                [`ElectraEarlyExitTaskModel.forward`].
            start_positions, end_positions (`torch.LongTensor` of shape `(batch,)`, *optional*): first and last token
                of the answer. Positions outside the sequence are ignored.

        Returns:
            [`ElectraEarlyExitQuestionAnsweringModelOutput`].

        Raises:
            ValueError: if there is no head at `exit_layer`, or in evaluation mode an exit head in use is untrained.
        """
        targets = None if start_positions is None or end_positions is None else (start_positions, end_positions)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        fields = self.run(inputs, targets, exit_layer, **kwargs)
        start_logits, end_logits = (each.contiguous() for each in fields.pop("logits").unbind(-1))
        return self.output_class(start_logits=start_logits, end_logits=end_logits, **fields)


class ElectraEarlyExitForMultipleChoice(ElectraEarlyExitTaskModel):
    """Multiple choice. Inputs have shape `(batch, choices, sequence)`; `labels`, the index of the right choice, are
    `torch.LongTensor` of shape `(batch,)`."""

    output_class = ElectraEarlyExitMultipleChoiceModelOutput

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.sequence_summary, self.classifier = self.new_head()
        self.post_init()

    def new_head(self):
        return nn.Sequential(ElectraSequenceSummary(self.config), nn.Linear(self.config.hidden_size, 1))

    def final_head(self, states):
        return self.classifier(self.sequence_summary(states))

    def pool(self, states, token_mask):
        if self.config.classifier_pooling == "first" and self.config.summary_type != "first":
            return states  # `sequence_summary` reads another token, as in ELECTRA
        return pool_sequence(states, token_mask, self.config.classifier_pooling)

    def rows(self, inputs):
        given = [value for value in inputs.values() if value is not None]
        rows = {name: None if value is None else value.flatten(0, 1) for name, value in inputs.items()}
        return rows, given[0].shape[1]

    def task_loss(self, logits, targets, num_items=None):
        return mean_over_items(F.cross_entropy(logits, targets, reduction="none"), num_items)


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
