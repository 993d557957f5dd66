"""The generator of a pre-training checkpoint as a standalone masked language model."""

import os

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ElectraForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.electra.modeling_electra import ElectraGeneratorPredictions
from transformers.utils.generic import can_return_tuple

from .configuration_electra_exit import ElectraEarlyExitConfig
from .conversion import check_plain_form, plain_model
from .modeling_electra_exit import (
    ElectraEarlyExitForPreTraining,
    ElectraEarlyExitModel,
    ElectraEarlyExitPreTrainedModel,
)
from .modeling_heads import mean_over_items


class ElectraEarlyExitForMaskedLM(ElectraEarlyExitPreTrainedModel):
    """ELECTRA's generator: an encoder without exits and an output layer tied to the word embeddings. Except for
    `norm_position`, it has the same modules as [`ElectraForMaskedLM`].

    `from_pretrained` extracts the generator from a pre-training checkpoint (`generator_type="mlm"`). The model then
    has the generator's config: `hidden_size` is the width of the generator, not of the discriminator. From an
    encoder-only checkpoint, the output layer is newly initialized.
    """

    accepts_loss_kwargs = True
    _tied_weights_keys = {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"}

    def __init__(self, config: ElectraEarlyExitConfig):
        super().__init__(config)
        self.electra = ElectraEarlyExitModel(config)
        self.generator_predictions = ElectraGeneratorPredictions(config)
        self.generator_lm_head = nn.Linear(config.embedding_size, config.vocab_size)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """As in Transformers, from a checkpoint of this class or of a pre-training model. The latter is loaded in
        full, and its discriminator discarded, because the layers of both have the same names.

        Raises:
            ValueError: if the checkpoint is of this plugin but has no masked language model as generator; the message
                names the field.
        """
        place = pretrained_model_name_or_path
        given = {name: value for name, value in kwargs.items() if name != "config"}
        if place is None or not _is_pre_training(cls.config_class.get_config_dict(place, **given)[0], place):
            return super().from_pretrained(place, *model_args, output_loading_info=output_loading_info, **kwargs)
        whole, info = ElectraEarlyExitForPreTraining.from_pretrained(
            place, *model_args, output_loading_info=True, **kwargs
        )
        model = cls.of(whole)
        return (model, info) if output_loading_info else model

    @classmethod
    def of(cls, pre_training: ElectraEarlyExitForPreTraining) -> "ElectraEarlyExitForMaskedLM":
        """A copy of the generator of a model with `generator_type="mlm"`, on the same device, in the same dtype and in
        evaluation mode."""
        config = pre_training.config.generator_config()
        config.name_or_path = pre_training.config.name_or_path
        model = cls(config).to(device=pre_training.device, dtype=pre_training.dtype)
        pre_training.copy_generator(model)
        return model.eval()

    def get_output_embeddings(self):
        return self.generator_lm_head

    def set_output_embeddings(self, value):
        self.generator_lm_head = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor] | MaskedLMOutput:
        r"""
        Args:
            input_ids, token_type_ids, position_ids (`torch.LongTensor` of shape `(batch, sequence)`, *optional*).
            attention_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, sequence, embedding_size)`, *optional*).
            labels (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): original tokens at the positions to
                predict, -100 elsewhere.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): number of labels in all batches whose gradients
                are accumulated for one step. The loss is the sum over this batch divided by it. If omitted, the mean
                over this batch.

        Returns:
            [`MaskedLMOutput`]: `logits` of shape `(batch, sequence, vocab_size)` and, if `labels` are given, `loss` in
            nats, fp32 of shape `()`.
        """
        outputs = self.electra(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits, loss = self.generator_lm_head(self.generator_predictions(outputs.last_hidden_state)), None
        if labels is not None:
            chosen = labels != -100
            losses = F.cross_entropy(logits[chosen].float(), labels[chosen], reduction="none")
            loss = mean_over_items(losses, num_items_in_batch)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def to_electra(self, folder: str | os.PathLike) -> dict[str, str]:
        """Write the generator as a plain `ElectraForMaskedLM`, which loads without this plugin.

        Args:
            folder (`str`): where to write the subfolder `generator`.

        Returns:
            `dict[str, str]`: the folder written, by `"generator"`.

        Raises:
            ValueError: for `norm_position="pre"`, which plain ELECTRA does not support.
        """
        check_plain_form(self.config)
        plain = plain_model(ElectraForMaskedLM, self.config)
        plain.load_state_dict(self.state_dict())
        written = os.path.join(folder, "generator")
        plain.to(self.dtype).save_pretrained(written)
        return {"generator": written}


def _is_pre_training(stored: dict, checkpoint: str | os.PathLike) -> bool:
    """Whether `stored`, the config of a checkpoint, belongs to a pre-training with a masked language model.

    Raises:
        ValueError: if the checkpoint is of this plugin and contains no masked language model.
    """
    saved_as = (stored.get("architectures") or [None])[0]
    if stored.get("model_type") != ElectraEarlyExitConfig.model_type:
        return False
    if saved_as in (None, ElectraEarlyExitForMaskedLM.__name__, ElectraEarlyExitModel.__name__):
        return False
    if saved_as != ElectraEarlyExitForPreTraining.__name__:
        raise ValueError(
            f"{checkpoint} must hold an ElectraEarlyExitForPreTraining or an ElectraEarlyExitForMaskedLM to load its "
            f"generator as a masked language model, got {saved_as}"
        )
    generator_type = stored.get("generator_type", ElectraEarlyExitConfig.generator_type)
    if generator_type != "mlm":
        raise ValueError(
            f"`generator_type` of {checkpoint} must be 'mlm' to load its generator as a masked language model, got "
            f"{generator_type!r}"
        )
    return True


ElectraEarlyExitForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")

__all__ = ["ElectraEarlyExitForMaskedLM"]
