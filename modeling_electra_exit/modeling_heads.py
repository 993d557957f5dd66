"""Fine-tuning heads: ELECTRA's own, one more at every exit layer, and inference that lets the certain leave early.

Training runs at full depth, and every head learns (`ElectraEarlyExitTaskModel.run`). In evaluation mode, and with
`inference_exit_thresholds`, whoever an exit head is certain enough about leaves with that head's answer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
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
from .modeling_electra_exit import ElectraEarlyExitModel, ElectraEarlyExitPreTrainedModel, Exits


@dataclass
class ElectraEarlyExitSequenceClassifierOutput(SequenceClassifierOutput):
    r"""
    Output of [`ElectraEarlyExitForSequenceClassification`]. As [`SequenceClassifierOutput`], and:

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


class ElectraEarlyExitTaskModel(ElectraEarlyExitPreTrainedModel):
    """What the heads have in common. Each adds its final head under ELECTRA's names, and says what a head is
    (`new_head`, `final_head`), what it costs to be wrong (`task_loss`) and what it predicts (`predictions`)."""

    # The losses are means over this batch, whatever **kwargs suggests to Trainer.
    accepts_loss_kwargs = False
    exit_policy_at_inference = "certain_sequences"

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.electra = ElectraEarlyExitModel(config)
        if config.has_exit_heads and config.exit_head == "separate":
            self.exit_classifiers = nn.ModuleList([self.new_head() for _ in config.exit_layers])

    def new_head(self) -> nn.Module:
        raise NotImplementedError

    def final_head(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of states (batch, sequence, hidden)."""
        raise NotImplementedError

    def task_loss(self, logits: torch.Tensor, targets) -> torch.Tensor:
        """Mean loss of fp32 logits."""
        raise NotImplementedError

    def predictions(self, logits: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits as categorical predictions for the exit criteria: (items..., predictions, classes)."""
        return logits.unsqueeze(-2)

    def exit_head_loss(self, logits: torch.Tensor, targets, final_logits: torch.Tensor, token_mask) -> torch.Tensor:
        """An exit head's own loss, and with distillation its distance from the final head; fp32 logits."""
        loss, weight = self.task_loss(logits, targets), self.config.exit_distillation_weight
        if weight > 0:
            loss = loss + weight * self.distillation_loss(logits, final_logits, targets, token_mask)
        return loss

    def distillation_loss(self, logits: torch.Tensor, teacher: torch.Tensor, targets, token_mask) -> torch.Tensor:
        """Mean cross-entropy between the teacher's predictions and those of `logits`."""
        teacher, student = (self.predictions(each, token_mask) for each in (teacher, logits))
        # Padding has no chance to hold an answer: probability 0 at a logarithm of minus infinity.
        log_probabilities = student.log_softmax(dim=-1).clamp_min(torch.finfo(student.dtype).min)
        losses = -(teacher.softmax(dim=-1) * log_probabilities).sum(dim=-1)
        if losses.dim() == 3:  # tokens, of which some have no label
            losses = losses[targets != -100]
        return losses.mean()

    def pooling(self, token_mask: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
        """What makes of states (batch, sequence, hidden) what a head reads; made once for all heads of these rows."""
        return lambda states: states

    def heads(self, token_mask: torch.Tensor | None, choices: int | None = None) -> dict[int, Callable]:
        """The heads by the layer that they read, the final one last: states (batch, sequence, hidden) to logits.

        In evaluation mode the exits' logits are divided by their temperatures. With `choices`, that many rows of the
        batch are one question, and logits are of shape `(batch / choices, choices)`. `token_mask` (batch, sequence)
        is that of the whole batch; the heads take another with other rows.
        """
        config, exits = self.config, self.config.exit_layers if self.config.has_exit_heads else []
        own = getattr(self, "exit_classifiers", [self.final_head] * len(exits)) if exits else []
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

    def run(self, targets, exit_layer: int | None = None, choices: int | None = None, **inputs) -> dict:
        """The encoder, and all heads that are wanted.

        Args:
            targets: labels for `task_loss`, or `None`.
            exit_layer (`int`, *optional*): stop there for everybody and answer with that exit's head.
            choices (`int`, *optional*): rows of the batch that are one question, and stay and leave together.
            inputs: of the encoder.

        Returns:
            The fields of the output. For `targets`, `loss` is the final head's plus `exit_loss_weight` times
            `exit_loss`, the mean over the exit heads; where sequences or tokens may leave early, it is the loss of the
            answers given.
        """
        config, policy, exits = self.config, "none", None
        heads = self.heads(inputs["attention_mask"], choices)
        *exit_heads, final_head = heads.values()
        if exit_layer is not None:
            if exit_layer not in heads:
                raise ValueError(
                    f"`exit_layer` must be one of {list(heads)}, where there are heads, got {exit_layer!r}"
                )
            final_head = heads[exit_layer]
        elif not self.training and config.has_inference_exits:
            policy = self.exit_policy_at_inference
            rule = CRITERIA[config.inference_exit_criterion](config.inference_exit_thresholds)
            exit_heads = [head if rule.asks(number) else None for number, head in enumerate(exit_heads)]
            exits = Exits(
                exit_heads,
                leaves=lambda number, logits, items, token_mask: rule(
                    number, self.predictions(logits, token_mask), items
                ),
                rows_per_item=choices or 1,
            )
        elif targets is not None and exit_heads:
            exits = Exits(exit_heads)
        outputs = self.electra(**inputs, exit_policy=policy, exits=exits, exit_layer=exit_layer, return_dict=True)

        logits = final_head(outputs.last_hidden_state)
        if policy != "none":
            logits = self._answers(logits, outputs)
        loss = exit_loss = None
        if targets is not None:
            loss = self.task_loss(logits.float(), targets)
            if policy == "none" and exits is not None:
                common = targets, logits.detach().float(), inputs["attention_mask"]
                losses = [self.exit_head_loss(each.float(), *common) for each in outputs.exit_logits]
                exit_loss = torch.stack(losses).mean()
                loss = loss + config.exit_loss_weight * exit_loss
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

    def _answers(self, logits: torch.Tensor, outputs) -> torch.Tensor:
        """The final head's logits of those that stayed, and of those that left, what the exit's head said."""
        for layer, (items, exit_logits) in (outputs.exit_answers or {}).items():
            if items.dim() == 1:
                said = logits.clone()
                said[items, : exit_logits.shape[1]] = exit_logits  # of a span: padding may have gone before
            else:
                said = logits.scatter(1, items.unsqueeze(-1).expand_as(exit_logits), exit_logits)
            left = outputs.exit_layers == layer
            logits = torch.where(left.view(*left.shape, *[1] * (logits.dim() - left.dim())), said, logits)
        return logits


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
        """To the states of the one token that ELECTRA's head reads, or of what stands for all of them."""
        if self.config.classifier_pooling == "first":
            return lambda states: states[:, :1]
        if token_mask is None:
            return lambda states: states.mean(dim=1, keepdim=True)
        real = (token_mask != 0).unsqueeze(1).to(self.dtype)  # zeros and ones: exact in bf16, too
        share = real.sum(dim=-1, keepdim=True, dtype=torch.float32).clamp_min(1).reciprocal()
        return lambda states: ((real.to(states.dtype) @ states) * share).to(states.dtype)

    def task_loss(self, logits, targets):
        return self.loss_function(targets, logits, self.config)

    @property
    def is_regression(self) -> bool:
        return self.config.problem_type == "regression" or self.num_labels == 1

    def distillation_loss(self, logits, teacher, targets, token_mask):
        if self.is_regression:
            return F.mse_loss(logits, teacher)
        return super().distillation_loss(logits, teacher, targets, token_mask)

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
            ValueError: for an `exit_layer` without a head, or `inference_exit_thresholds` in a regression.
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

    def task_loss(self, logits, targets):
        return self.loss_function(logits, targets, self.config)

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
            ValueError: for an `exit_layer` without a head.
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

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.qa_outputs = self.new_head()
        self.post_init()

    def new_head(self):
        return nn.Linear(self.config.hidden_size, 2)

    def final_head(self, states):
        return self.qa_outputs(states)

    def task_loss(self, logits, targets):
        return self.loss_function(logits[..., 0], logits[..., 1], *targets)

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
            ValueError: for an `exit_layer` without a head.
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

    def task_loss(self, logits, targets):
        return F.cross_entropy(logits, targets)

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
            ValueError: for an `exit_layer` without a head.
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
